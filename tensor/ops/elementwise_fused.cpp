// The fused forms of tensor/ops/elementwise.h: swiglu, scale_rows and open_rows, key_shift.
#include <algorithm>
#include <vector>

#include "tensor/ops/check.h"
#include "tensor/ops/elementwise.h"
#include "tensor/ops/row_factor.h"
#include "tensor/parallel.h"
#include "tensor/vmath.h"

namespace proteus {
namespace {

constexpr std::int64_t kGrain = 16384;

std::int64_t row_grain(std::int64_t width) {
  return std::max<std::int64_t>(1, kGrain / std::max<std::int64_t>(1, width));
}

template <class T>
void swiglu_fwd_typed(const SwigluFwd& s) {
  using A = accum_t<T>;
  const T* gate = static_cast<const T*>(s.gate);
  const T* up = static_cast<const T*>(s.up);
  T* y = static_cast<T*>(s.y);
  parallel_for(s.n, kGrain, [=](std::int64_t begin, std::int64_t end) {
#pragma omp simd
    for (std::int64_t i = begin; i < end; ++i) {
      const A g = A(gate[i]);
      y[i] = T(g * vmath::sigmoid(g) * A(up[i]));
    }
  });
}

template <class T>
void swiglu_bwd_typed(const SwigluBwd& s) {
  using A = accum_t<T>;
  const T* gate = static_cast<const T*>(s.gate);
  const T* up = static_cast<const T*>(s.up);
  const T* dy = static_cast<const T*>(s.dy);
  T* dgate = static_cast<T*>(s.dgate);
  T* dup = static_cast<T*>(s.dup);
  parallel_for(s.n, kGrain, [=](std::int64_t begin, std::int64_t end) {
#pragma omp simd
    for (std::int64_t i = begin; i < end; ++i) {
      const A g = A(gate[i]);
      const A d = A(dy[i]);
      const A p = vmath::sigmoid(g);
      dup[i] = T(d * g * p);
      dgate[i] = T(d * A(up[i]) * p * (A(1) + g * (A(1) - p)));
    }
  });
}

template <class T, class R>
void scale_rows_fwd_typed(const ScaleRowsFwd& s) {
  using A = accum_t<T>;
  parallel_for(s.M, row_grain(s.D), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t m = begin; m < end; ++m) {
      const A r = factor_of(s.factor, A(static_cast<const R*>(s.r)[m]));
      const T* x = static_cast<const T*>(s.x) + m * s.D;
      T* y = static_cast<T*>(s.y) + m * s.D;
#pragma omp simd
      for (std::int64_t d = 0; d < s.D; ++d) y[d] = T(A(x[d]) * r);
    }
  });
}

template <class T, class R>
void scale_rows_bwd_typed(const ScaleRowsBwd& s) {
  using A = accum_t<T>;
  parallel_for(s.M, row_grain(s.D), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t m = begin; m < end; ++m) {
      const T* x = static_cast<const T*>(s.x) + m * s.D;
      const T* dy = static_cast<const T*>(s.dy) + m * s.D;
      const A r = A(static_cast<const R*>(s.r)[m]);
      if (s.dr) {
        A sum = 0;
#pragma omp simd reduction(+ : sum)
        for (std::int64_t d = 0; d < s.D; ++d) sum += A(dy[d]) * A(x[d]);
        static_cast<R*>(s.dr)[m] = R(sum * factor_slope(s.factor, r));
      }
      if (!s.dx) continue;
      const A factor = factor_of(s.factor, r);
      T* dx = static_cast<T*>(s.dx) + m * s.D;
#pragma omp simd
      for (std::int64_t d = 0; d < s.D; ++d) dx[d] = T(A(dy[d]) * factor);
    }
  });
}

// r has the dtype of x, or its accumulation type.
template <class S, class F>
void dispatch_rows(const S& s, const char* name, F&& fn) {
  dispatch_float(s.dtype, name, [&](auto tag) {
    using T = typename decltype(tag)::type;
    if (s.r_dtype == s.dtype) {
      fn(tag, TypeTag<T>{});
    } else {
      fn(tag, TypeTag<accum_t<T>>{});
    }
  });
}

template <class T>
void key_shift_fwd_typed(const KeyShiftFwd& k) {
  using A = accum_t<T>;
  const T* mu = static_cast<const T*>(k.mu);
  parallel_for(k.B * k.T, row_grain(k.C), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row) {
      const T* x = static_cast<const T*>(k.x) + row * k.C;
      T* y = static_cast<T*>(k.y) + row * k.C;
      if (row % k.T == 0) {
        std::copy(x, x + k.C, y);
        continue;
      }
#pragma omp simd
      for (std::int64_t c = 0; c < k.C; ++c) y[c] = T(A(x[c]) + A(mu[c]) * A(x[c - k.C]));
    }
  });
}

// dmu: one partial sum per chunk of rows, then the chunks in order.
template <class T>
void key_shift_bwd_typed(const KeyShiftBwd& k) {
  using A = accum_t<T>;
  constexpr std::int64_t kRows = 64;
  const T* mu = static_cast<const T*>(k.mu);
  const std::int64_t rows = k.B * k.T;
  const std::int64_t chunks = (rows + kRows - 1) / kRows;
  std::vector<A> partial(static_cast<std::size_t>(k.dmu ? chunks * k.C : 0));
  parallel_for(rows, kRows, [&](std::int64_t begin, std::int64_t end) {
    A* sum = k.dmu ? partial.data() + begin / kRows * k.C : nullptr;
    for (std::int64_t row = begin; row < end; ++row) {
      const T* x = static_cast<const T*>(k.x) + row * k.C;
      const T* dy = static_cast<const T*>(k.dy) + row * k.C;
      if (k.dx) {
        T* dx = static_cast<T*>(k.dx) + row * k.C;
        const T* next = row % k.T == k.T - 1 ? nullptr : dy + k.C;
#pragma omp simd
        for (std::int64_t c = 0; c < k.C; ++c) {
          const A own = k.add_dx ? A(dx[c]) + A(dy[c]) : A(dy[c]);
          dx[c] = T(next ? own + A(mu[c]) * A(next[c]) : own);
        }
      }
      if (!sum || row % k.T == 0) continue;
#pragma omp simd
      for (std::int64_t c = 0; c < k.C; ++c) sum[c] += A(dy[c]) * A(x[c - k.C]);
    }
  });
  if (!k.dmu) return;
  for (std::int64_t c = 0; c < k.C; ++c) {
    A sum = 0;
    for (std::int64_t i = 0; i < chunks; ++i) {
      sum += partial[static_cast<std::size_t>(i * k.C + c)];
    }
    static_cast<T*>(k.dmu)[c] = T(sum);
  }
}

void swiglu_fwd_cpu(const SwigluFwd& s) {
  dispatch_float(s.dtype, "swiglu_fwd",
                 [&](auto tag) { swiglu_fwd_typed<typename decltype(tag)::type>(s); });
}

void swiglu_bwd_cpu(const SwigluBwd& s) {
  dispatch_float(s.dtype, "swiglu_bwd",
                 [&](auto tag) { swiglu_bwd_typed<typename decltype(tag)::type>(s); });
}

void scale_rows_fwd_cpu(const ScaleRowsFwd& s) {
  dispatch_rows(s, "scale_rows_fwd", [&](auto t, auto r) {
    scale_rows_fwd_typed<typename decltype(t)::type, typename decltype(r)::type>(s);
  });
}

void scale_rows_bwd_cpu(const ScaleRowsBwd& s) {
  dispatch_rows(s, "scale_rows_bwd", [&](auto t, auto r) {
    scale_rows_bwd_typed<typename decltype(t)::type, typename decltype(r)::type>(s);
  });
}

void key_shift_fwd_cpu(const KeyShiftFwd& k) {
  dispatch_float(k.dtype, "key_shift_fwd",
                 [&](auto tag) { key_shift_fwd_typed<typename decltype(tag)::type>(k); });
}

void key_shift_bwd_cpu(const KeyShiftBwd& k) {
  dispatch_float(k.dtype, "key_shift_bwd",
                 [&](auto tag) { key_shift_bwd_typed<typename decltype(tag)::type>(k); });
}

}  // namespace

Slot<SwigluFwd> swiglu_fwd{"swiglu_fwd", swiglu_fwd_cpu};
Slot<SwigluBwd> swiglu_bwd{"swiglu_bwd", swiglu_bwd_cpu};
Slot<ScaleRowsFwd> scale_rows_fwd{"scale_rows_fwd", scale_rows_fwd_cpu};
Slot<ScaleRowsBwd> scale_rows_bwd{"scale_rows_bwd", scale_rows_bwd_cpu};
Slot<KeyShiftFwd> key_shift_fwd{"key_shift_fwd", key_shift_fwd_cpu};
Slot<KeyShiftBwd> key_shift_bwd{"key_shift_bwd", key_shift_bwd_cpu};

namespace ops {

Tensor swiglu(const Tensor& gate_any, const Tensor& up_any) {
  const char* call = "swiglu(gate, up)";
  check_floating(call, "gate", gate_any);
  check_like(call, "up", up_any, gate_any);
  check_shape(call, "up", up_any, gate_any.shape(), "(= gate.shape)");
  const Tensor gate = gate_any.contiguous();
  const Tensor up = up_any.contiguous();
  Tensor y = Tensor::empty(gate.shape(), gate.dtype(), gate.device());
  if (y.numel() == 0) return y;
  swiglu_fwd(y.device(), {gate.raw(), up.raw(), y.raw(), y.numel(), y.dtype()});
  return y;
}

SwigluGrads swiglu_backward(const Tensor& gate_any, const Tensor& up_any, const Tensor& dy_any) {
  const Tensor gate = gate_any.contiguous();
  const Tensor up = up_any.contiguous();
  const Tensor dy = dy_any.contiguous();
  SwigluGrads out{Tensor::empty(gate.shape(), gate.dtype(), gate.device()),
                  Tensor::empty(gate.shape(), gate.dtype(), gate.device())};
  if (gate.numel() == 0) return out;
  swiglu_bwd(gate.device(), {gate.raw(), up.raw(), dy.raw(), out.dgate.raw(), out.dup.raw(),
                             gate.numel(), gate.dtype()});
  return out;
}

Tensor scale_rows(const Tensor& x_any, const Tensor& r_any, const RowFactor& factor) {
  const char* call = "scale_rows(x, r)";
  check_floating(call, "x", x_any);
  if (x_any.rank() != 2) {
    throw ShapeError(std::string(call) + ": x: expected [M, D], got " + to_string(x_any.shape()));
  }
  check_shape(call, "r", r_any, {x_any.size(0)}, "(= x.shape[0])");
  if (r_any.dtype() != accum_dtype(x_any.dtype())) check_like(call, "r", r_any, x_any);
  check_device(call, "r", r_any, x_any);
  const Tensor x = x_any.contiguous();
  const Tensor r = r_any.contiguous();
  Tensor y = Tensor::empty(x.shape(), x.dtype(), x.device());
  if (y.numel() == 0) return y;
  scale_rows_fwd(x.device(),
                 {x.raw(), r.raw(), y.raw(), factor, x.size(0), x.size(1), x.dtype(), r.dtype()});
  return y;
}

ScaleRowsGrads scale_rows_backward(const Tensor& x_any, const Tensor& r_any, const Tensor& dy_any,
                                   bool with_dx, bool with_dr, const RowFactor& factor) {
  const Tensor x = x_any.contiguous();
  const Tensor r = r_any.contiguous();
  const Tensor dy = dy_any.contiguous();
  ScaleRowsGrads out;
  if (with_dx) out.dx = Tensor::empty(x.shape(), x.dtype(), x.device());
  if (with_dr) {
    const auto make = x.numel() == 0 ? Tensor::zeros : Tensor::empty;
    out.dr = make(r.shape(), r.dtype(), r.device());
  }
  if (x.numel() == 0) return out;
  scale_rows_bwd(x.device(), {.x = x.raw(),
                              .r = r.raw(),
                              .dy = dy.raw(),
                              .dx = with_dx ? out.dx.raw() : nullptr,
                              .dr = with_dr ? out.dr.raw() : nullptr,
                              .factor = factor,
                              .M = x.size(0),
                              .D = x.size(1),
                              .dtype = x.dtype(),
                              .r_dtype = r.dtype()});
  return out;
}

Tensor key_shift(const Tensor& x_any, const Tensor& mu_any) {
  const char* call = "key_shift(x, mu)";
  check_floating(call, "x", x_any);
  if (x_any.rank() != 3) {
    throw ShapeError(std::string(call) + ": x: expected [B, T, C], got " +
                     to_string(x_any.shape()));
  }
  check_like(call, "mu", mu_any, x_any);
  check_shape(call, "mu", mu_any, {x_any.size(2)}, "(= x.shape[-1])");
  const Tensor x = x_any.contiguous();
  const Tensor mu = mu_any.contiguous();
  Tensor y = Tensor::empty(x.shape(), x.dtype(), x.device());
  if (y.numel() == 0) return y;
  key_shift_fwd(x.device(),
                {x.raw(), mu.raw(), y.raw(), x.size(0), x.size(1), x.size(2), x.dtype()});
  return y;
}

KeyShiftGrads key_shift_backward(const Tensor& x_any, const Tensor& mu_any, const Tensor& dy_any,
                                 bool with_dx, bool with_dmu, const Tensor* sum) {
  const Tensor x = x_any.contiguous();
  const Tensor mu = mu_any.contiguous();
  const Tensor dy = dy_any.contiguous();
  KeyShiftGrads out;
  if (with_dx && !sum) out.dx = Tensor::empty(x.shape(), x.dtype(), x.device());
  if (with_dmu) {
    const auto make = x.numel() == 0 ? Tensor::zeros : Tensor::empty;
    out.dmu = make(mu.shape(), mu.dtype(), mu.device());
  }
  if (x.numel() == 0) return out;
  key_shift_bwd(x.device(), {.x = x.raw(),
                             .mu = mu.raw(),
                             .dy = dy.raw(),
                             .dx = !with_dx ? nullptr
                                   : sum    ? sum->raw()
                                            : out.dx.raw(),
                             .dmu = with_dmu ? out.dmu.raw() : nullptr,
                             .B = x.size(0),
                             .T = x.size(1),
                             .C = x.size(2),
                             .add_dx = sum != nullptr,
                             .dtype = x.dtype()});
  if (with_dx && sum) sum->bump_version();
  return out;
}

}  // namespace ops
}  // namespace proteus
