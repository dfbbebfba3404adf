#include "tensor/ops/elementwise.h"

#include <cmath>
#include <limits>

#include "tensor/ops/check.h"
#include "tensor/ops/gelu.h"
#include "tensor/ops/strided.h"
#include "tensor/parallel.h"
#include "tensor/vmath.h"

namespace proteus {
namespace {

constexpr std::int64_t kGrain = 16384;

template <class T, class F>
void map(const void* x_any, void* y_any, std::int64_t n, F f) {
  using A = accum_t<T>;
  const T* x = static_cast<const T*>(x_any);
  T* y = static_cast<T*>(y_any);
  parallel_for(n, kGrain, [=](std::int64_t begin, std::int64_t end) {
#pragma omp simd
    for (std::int64_t i = begin; i < end; ++i) y[i] = T(f(A(x[i])));
  });
}

template <class T, class F>
void map2(const void* x_any, const void* z_any, void* y_any, std::int64_t n, F f) {
  using A = accum_t<T>;
  const T* x = static_cast<const T*>(x_any);
  const T* z = static_cast<const T*>(z_any);
  T* y = static_cast<T*>(y_any);
  parallel_for(n, kGrain, [=](std::int64_t begin, std::int64_t end) {
#pragma omp simd
    for (std::int64_t i = begin; i < end; ++i) y[i] = T(f(A(x[i]), A(z[i])));
  });
}

template <class T>
void unary_typed(const UnaryFwd& u) {
  using A = accum_t<T>;
  const A a = static_cast<A>(u.a);
  const A b = static_cast<A>(u.b);
  const auto go = [&](auto f) { map<T>(u.x, u.y, u.n, f); };
  switch (u.op) {
    case UnaryOp::affine:
      return go([a, b](A x) { return a * x + b; });
    case UnaryOp::exp:
      return go([](A x) { return vmath::exp(x); });
    case UnaryOp::log:
      return go([](A x) { return x < 0 ? std::numeric_limits<A>::quiet_NaN() : vmath::log(x); });
    case UnaryOp::sqrt:
      return go([](A x) { return std::sqrt(x); });
    case UnaryOp::square:
      return go([](A x) { return x * x; });
    case UnaryOp::power:
      return go([a](A x) { return std::pow(x, a); });
    case UnaryOp::sigmoid:
      return go([](A x) { return vmath::sigmoid(x); });
    case UnaryOp::log_sigmoid:
      return go([a](A x) { return a * vmath::log_sigmoid(x); });
    case UnaryOp::tanh:
      return go([](A x) { return vmath::tanh(x); });
    case UnaryOp::gelu:
      return go([](A x) { return gelu_value(x); });
    case UnaryOp::silu:
      return go([](A x) { return x * vmath::sigmoid(x); });
    case UnaryOp::relu:
      return go([](A x) { return x < 0 ? A(0) : x; });
    case UnaryOp::softplus:
      return go([](A x) { return -vmath::log_sigmoid(-x); });
  }
}

// In each lambda s is what was saved: y or x.
template <class T>
void unary_bwd_typed(const UnaryBwd& u) {
  using A = accum_t<T>;
  const A a = static_cast<A>(u.a);
  const auto go = [&](auto f) { map2<T>(u.saved, u.dy, u.dx, u.n, f); };
  switch (u.op) {
    case UnaryOp::affine:
      return map<T>(u.dy, u.dx, u.n, [a](A g) { return a * g; });
    case UnaryOp::exp:
      return go([](A s, A g) { return g * s; });
    case UnaryOp::log:
      return go([](A s, A g) { return g / s; });
    case UnaryOp::sqrt:
      return go([](A s, A g) { return g / (s + s); });
    case UnaryOp::square:
      return go([](A s, A g) { return g * (s + s); });
    case UnaryOp::power:
      return go([a](A s, A g) { return a == A(0) ? A(0) : g * a * std::pow(s, a - A(1)); });
    case UnaryOp::sigmoid:
      return go([](A s, A g) { return g * vmath::sigmoid(s) * vmath::sigmoid(-s); });
    case UnaryOp::log_sigmoid:
      return go([a](A s, A g) { return a * g * vmath::sigmoid(-s); });
    case UnaryOp::tanh:  // 1 − tanh² x = 4·σ(2x)·σ(−2x)
      return go([](A s, A g) { return A(4) * g * vmath::sigmoid(s + s) * vmath::sigmoid(-s - s); });
    case UnaryOp::gelu:
      return go([](A s, A g) { return g * gelu_slope(s); });
    case UnaryOp::silu:
      return go([](A s, A g) {
        const A p = vmath::sigmoid(s);
        return g * p * (A(1) + s * (A(1) - p));
      });
    case UnaryOp::relu:
      return go([](A s, A g) { return s > 0 ? g : A(0); });
    case UnaryOp::softplus:
      return go([](A s, A g) { return g * vmath::sigmoid(s); });
  }
}

void unary_fwd_cpu(const UnaryFwd& u) {
  dispatch_float(u.dtype, "unary_fwd",
                 [&](auto tag) { unary_typed<typename decltype(tag)::type>(u); });
}

void unary_bwd_cpu(const UnaryBwd& u) {
  dispatch_float(u.dtype, "unary_bwd",
                 [&](auto tag) { unary_bwd_typed<typename decltype(tag)::type>(u); });
}

// One run. Operands with stride 1 or 0 (a number repeated along the run) go through a loop that
// vectorises.
template <class T, class F>
void binary_run(const T* a, std::int64_t as, const T* b, std::int64_t bs, T* y, std::int64_t ys,
                std::int64_t n, F f) {
  using A = accum_t<T>;
  if (as == 1 && bs == 1 && ys == 1) {
#pragma omp simd
    for (std::int64_t i = 0; i < n; ++i) y[i] = T(f(A(a[i]), A(b[i])));
  } else if (as == 1 && bs == 0 && ys == 1) {
    const A c = A(b[0]);
#pragma omp simd
    for (std::int64_t i = 0; i < n; ++i) y[i] = T(f(A(a[i]), c));
  } else if (as == 0 && bs == 1 && ys == 1) {
    const A c = A(a[0]);
#pragma omp simd
    for (std::int64_t i = 0; i < n; ++i) y[i] = T(f(c, A(b[i])));
  } else {
    for (std::int64_t i = 0; i < n; ++i) y[i * ys] = T(f(A(a[i * as]), A(b[i * bs])));
  }
}

template <class T>
void binary_typed(const BinaryFwd& args) {
  using A = accum_t<T>;
  const auto walk = make_walk<3>({args.y_layout, args.a_layout, args.b_layout});
  const auto go = [&](auto f) {
    const T* a = static_cast<const T*>(args.a) + args.a_layout.offset;
    const T* b = static_cast<const T*>(args.b) + args.b_layout.offset;
    T* y = static_cast<T*>(args.y) + args.y_layout.offset;
    walk_runs(
        walk,
        [&](const auto& at, std::int64_t n) {
          binary_run(a + at[1], walk.inner_stride(1), b + at[2], walk.inner_stride(2), y + at[0],
                     walk.inner_stride(0), n, f);
        },
        kGrain);
  };
  switch (args.op) {
    case BinaryOp::add:
      return go([](A a, A b) { return a + b; });
    case BinaryOp::sub:
      return go([](A a, A b) { return a - b; });
    case BinaryOp::mul:
      return go([](A a, A b) { return a * b; });
    case BinaryOp::div:
      return go([](A a, A b) { return a / b; });
  }
}

void binary_fwd_cpu(const BinaryFwd& args) {
  dispatch_float(args.dtype, "binary_fwd",
                 [&](auto tag) { binary_typed<typename decltype(tag)::type>(args); });
}

}  // namespace

Slot<UnaryFwd> unary_fwd{"unary_fwd", unary_fwd_cpu};
Slot<UnaryBwd> unary_bwd{"unary_bwd", unary_bwd_cpu};
Slot<BinaryFwd> binary_fwd{"binary_fwd", binary_fwd_cpu};

namespace ops {

Tensor unary(UnaryOp op, const char* name, const Tensor& x_any, double a, double b) {
  check_floating(name, "x", x_any);
  const Tensor x = x_any.contiguous();
  Tensor y = Tensor::empty(x.shape(), x.dtype(), x.device());
  if (x.numel() == 0) return y;
  unary_fwd(
      x.device(),
      {.op = op, .x = x.raw(), .y = y.raw(), .n = x.numel(), .a = a, .b = b, .dtype = x.dtype()});
  return y;
}

Tensor unary_backward(UnaryOp op, const Tensor& saved_any, const Tensor& dy_any, double a) {
  const Tensor saved = saved_any.defined() ? saved_any.contiguous() : saved_any;
  const Tensor dy = dy_any.contiguous();
  Tensor dx = Tensor::empty(dy.shape(), dy.dtype(), dy.device());
  if (dy.numel() == 0) return dx;
  unary_bwd(dy.device(), {.op = op,
                          .saved = saved.defined() ? saved.raw() : nullptr,
                          .dy = dy.raw(),
                          .dx = dx.raw(),
                          .n = dy.numel(),
                          .a = a,
                          .dtype = dy.dtype()});
  return dx;
}

Tensor binary(BinaryOp op, const char* name, const Tensor& a, const Tensor& b) {
  check_floating(name, "a", a);
  check_like(name, "b", b, a);
  const Shape shape = broadcast_shapes(name, a.shape(), b.shape());
  Tensor y = Tensor::empty(shape, a.dtype(), a.device());
  if (y.numel() == 0) return y;
  binary_fwd(a.device(), {.op = op,
                          .a = a.storage()->data(),
                          .a_layout = broadcast_to(name, a.layout(), shape),
                          .b = b.storage()->data(),
                          .b_layout = broadcast_to(name, b.layout(), shape),
                          .y = y.storage()->data(),
                          .y_layout = y.layout(),
                          .dtype = a.dtype()});
  return y;
}

}  // namespace ops
}  // namespace proteus
