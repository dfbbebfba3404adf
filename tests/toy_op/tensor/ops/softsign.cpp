#include "tensor/ops/softsign.h"

#include <cmath>

#include "tensor/ops/check.h"
#include "tensor/parallel.h"

namespace proteus {
namespace {

constexpr std::int64_t kGrain = 4096;  // elements of a chunk

template <class T>
void fwd(const SoftsignFwd& a) {
  using A = accum_t<T>;
  const T* x = static_cast<const T*>(a.x);
  T* y = static_cast<T*>(a.y);
  parallel_for(a.n, kGrain, [=](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) y[i] = T(A(x[i]) / (1 + std::abs(A(x[i]))));
  });
}

template <class T>
void bwd(const SoftsignBwd& a) {
  using A = accum_t<T>;
  const T* x = static_cast<const T*>(a.x);
  const T* dy = static_cast<const T*>(a.dy);
  T* dx = static_cast<T*>(a.dx);
  parallel_for(a.n, kGrain, [=](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const A scale = 1 / (1 + std::abs(A(x[i])));
      dx[i] = T(A(dy[i]) * scale * scale);
    }
  });
}

void fwd_cpu(const SoftsignFwd& a) {
  dispatch_float(a.dtype, "softsign_fwd", [&](auto tag) { fwd<typename decltype(tag)::type>(a); });
}
void bwd_cpu(const SoftsignBwd& a) {
  dispatch_float(a.dtype, "softsign_bwd", [&](auto tag) { bwd<typename decltype(tag)::type>(a); });
}

}  // namespace

Slot<SoftsignFwd> softsign_fwd{"softsign_fwd", fwd_cpu};
Slot<SoftsignBwd> softsign_bwd{"softsign_bwd", bwd_cpu};

namespace ops {

Tensor softsign(const Tensor& x_any) {
  check_floating("softsign(x)", "x", x_any);
  const Tensor x = x_any.contiguous();
  Tensor y = Tensor::empty(x.shape(), x.dtype(), x.device());
  if (x.numel() > 0) softsign_fwd(x.device(), {x.raw(), y.raw(), x.numel(), x.dtype()});
  return y;
}

Tensor softsign_backward(const Tensor& x_any, const Tensor& dy_any) {
  const Tensor x = x_any.contiguous();
  const Tensor dy = dy_any.contiguous();
  Tensor dx = Tensor::empty(x.shape(), x.dtype(), x.device());
  if (x.numel() > 0) softsign_bwd(x.device(), {x.raw(), dy.raw(), dx.raw(), x.numel(), x.dtype()});
  return dx;
}

}  // namespace ops
}  // namespace proteus
