#include "tensor/ops/softmax.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "tensor/ops/check.h"
#include "tensor/parallel.h"
#include "tensor/vmath.h"

namespace proteus {
namespace {

std::int64_t row_grain(std::int64_t C) { return std::max<std::int64_t>(1, 8192 / C); }

template <class T>
accum_t<T> row_max(const T* x, std::int64_t C) {
  using A = accum_t<T>;
  A m = -std::numeric_limits<A>::infinity();
#pragma omp simd reduction(max : m)
  for (std::int64_t c = 0; c < C; ++c) m = A(x[c]) > m ? A(x[c]) : m;
  return m;
}

// One row: its logsumexp, and what the operation makes of it. `e` has room for a row.
template <class T>
void softmax_row(const SoftmaxFwd& s, std::int64_t r, accum_t<T>* e) {
  using A = accum_t<T>;
  constexpr A kInf = std::numeric_limits<A>::infinity();
  const T* x = static_cast<const T*>(s.x) + r * s.C;
  const A top = row_max(x, s.C);
  const A m = top == -kInf ? A(0) : top;  // −∞ − (−∞) is no number
  A sum = 0;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t c = 0; c < s.C; ++c) {
    e[c] = vmath::exp(A(x[c]) - m);
    sum += e[c];
  }
  const A lse = sum == A(0) ? -kInf : m + std::log(sum);
  if (s.lse) static_cast<A*>(s.lse)[r] = lse;
  if (s.op == SoftmaxOp::logsumexp) {
    static_cast<T*>(s.y)[r] = T(lse);
    return;
  }
  T* y = static_cast<T*>(s.y) + r * s.C;
  if (s.op == SoftmaxOp::softmax) {
    const A inverse = sum == A(0) ? A(0) : A(1) / sum;
#pragma omp simd
    for (std::int64_t c = 0; c < s.C; ++c) y[c] = T(e[c] * inverse);
  } else {
    const A shift = lse == -kInf ? A(0) : lse;
#pragma omp simd
    for (std::int64_t c = 0; c < s.C; ++c) y[c] = T(A(x[c]) - shift);
  }
}

template <class T>
void softmax_fwd_typed(const SoftmaxFwd& s) {
  parallel_for(s.rows, row_grain(s.C), [&](std::int64_t begin, std::int64_t end) {
    std::vector<accum_t<T>> e(static_cast<std::size_t>(s.C));
    for (std::int64_t r = begin; r < end; ++r) softmax_row<T>(s, r, e.data());
  });
}

template <class T>
void softmax_bwd_row(const SoftmaxBwd& s, std::int64_t r) {
  using A = accum_t<T>;
  constexpr A kInf = std::numeric_limits<A>::infinity();
  T* dx = static_cast<T*>(s.dx) + r * s.C;
  const T* dy = static_cast<const T*>(s.dy) + (s.op == SoftmaxOp::logsumexp ? r : r * s.C);
  if (s.op == SoftmaxOp::softmax) {
    const T* y = static_cast<const T*>(s.y) + r * s.C;
    A dot = 0;
#pragma omp simd reduction(+ : dot)
    for (std::int64_t c = 0; c < s.C; ++c) dot += A(dy[c]) * A(y[c]);
#pragma omp simd
    for (std::int64_t c = 0; c < s.C; ++c) dx[c] = T(A(y[c]) * (A(dy[c]) - dot));
    return;
  }
  const T* x = static_cast<const T*>(s.x) + r * s.C;
  const A lse = static_cast<const A*>(s.lse)[r];
  const A shift = lse == -kInf ? A(0) : lse;
  if (s.op == SoftmaxOp::logsumexp) {
    const A g = A(dy[0]);
#pragma omp simd
    for (std::int64_t c = 0; c < s.C; ++c) dx[c] = T(vmath::exp(A(x[c]) - shift) * g);
    return;
  }
  A sum = 0;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t c = 0; c < s.C; ++c) sum += A(dy[c]);
#pragma omp simd
  for (std::int64_t c = 0; c < s.C; ++c) {
    dx[c] = T(A(dy[c]) - vmath::exp(A(x[c]) - shift) * sum);
  }
}

template <class T>
void softmax_bwd_typed(const SoftmaxBwd& s) {
  parallel_for(s.rows, row_grain(s.C), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r) softmax_bwd_row<T>(s, r);
  });
}

void softmax_fwd_cpu(const SoftmaxFwd& s) {
  dispatch_float(s.dtype, "softmax_fwd",
                 [&](auto tag) { softmax_fwd_typed<typename decltype(tag)::type>(s); });
}

void softmax_bwd_cpu(const SoftmaxBwd& s) {
  dispatch_float(s.dtype, "softmax_bwd",
                 [&](auto tag) { softmax_bwd_typed<typename decltype(tag)::type>(s); });
}

const char* call_of(SoftmaxOp op) {
  switch (op) {
    case SoftmaxOp::softmax:
      return "softmax(x)";
    case SoftmaxOp::log_softmax:
      return "log_softmax(x)";
    case SoftmaxOp::logsumexp:
      return "logsumexp(x)";
  }
  return "";
}

}  // namespace

Slot<SoftmaxFwd> softmax_fwd{"softmax_fwd", softmax_fwd_cpu};
Slot<SoftmaxBwd> softmax_bwd{"softmax_bwd", softmax_bwd_cpu};

namespace ops {

SoftmaxResult softmax_forward(SoftmaxOp op, const Tensor& x_any, bool with_lse) {
  const std::string call = call_of(op);
  check_floating(call, "x", x_any);
  if (x_any.rank() == 0) throw ShapeError(call + ": x: expected [..., C], got []");
  const Tensor x = x_any.contiguous();
  const std::int64_t C = x.size(-1);
  const Shape rows = x.shape().without(-1);
  SoftmaxResult out;
  out.y = Tensor::empty(op == SoftmaxOp::logsumexp ? rows : x.shape(), x.dtype(), x.device());
  if (with_lse) out.lse = Tensor::empty(rows, accum_dtype(x.dtype()), x.device());
  if (x.numel() == 0) {
    out.y.fill_(-std::numeric_limits<double>::infinity());
    if (with_lse) out.lse.fill_(-std::numeric_limits<double>::infinity());
    return out;
  }
  softmax_fwd(x.device(), {.op = op,
                           .x = x.raw(),
                           .y = out.y.raw(),
                           .lse = with_lse ? out.lse.raw() : nullptr,
                           .rows = x.numel() / C,
                           .C = C,
                           .dtype = x.dtype()});
  return out;
}

Tensor softmax_backward(SoftmaxOp op, const Tensor& x_any, const Tensor& y_any, const Tensor& lse,
                        const Tensor& dy_any) {
  const Tensor x = x_any.defined() ? x_any.contiguous() : x_any;
  const Tensor y = y_any.defined() ? y_any.contiguous() : y_any;
  const Tensor dy = dy_any.contiguous();
  const Tensor& like = op == SoftmaxOp::softmax ? y : x;
  Tensor dx = Tensor::empty(like.shape(), like.dtype(), like.device());
  if (dx.numel() == 0) return dx;
  softmax_bwd(dx.device(), {.op = op,
                            .x = x.defined() ? x.raw() : nullptr,
                            .y = y.defined() ? y.raw() : nullptr,
                            .lse = lse.defined() ? lse.raw() : nullptr,
                            .dy = dy.raw(),
                            .dx = dx.raw(),
                            .rows = dx.numel() / dx.size(-1),
                            .C = dx.size(-1),
                            .dtype = dx.dtype()});
  return dx;
}

}  // namespace ops
}  // namespace proteus
