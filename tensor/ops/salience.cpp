#include "tensor/ops/salience.h"

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "tensor/ops/check.h"
#include "tensor/parallel.h"

namespace proteus {
namespace {

constexpr std::int64_t kGrain = 256;  // tokens per chunk: also fixes the order of the sums

template <class T>
struct Products {
  T v = 0;        // v·x
  T inverse = 0;  // 1/|x|, 0 for a vector too short to have a direction
  T cosine = 0;
};

template <class T>
Products<T> products(const T* x, const T* v, const T* p, std::int64_t R) {
  T with_v = 0;
  T with_p = 0;
  T square = 0;
#pragma omp simd reduction(+ : with_v, with_p, square)
  for (std::int64_t r = 0; r < R; ++r) {
    with_v += v[r] * x[r];
    with_p += p[r] * x[r];
    square += x[r] * x[r];
  }
  const T inverse = square < std::numeric_limits<T>::min() ? T(0) : T(1) / std::sqrt(square);
  return {with_v, inverse, with_p * inverse};
}

template <class T>
const T* prototype(const void* p, const std::int32_t* gate, std::int64_t n, std::int64_t R) {
  return static_cast<const T*>(p) + gate[n] * R;
}

template <class T>
void salience_fwd_typed(const SalienceFwd& a) {
  const T* v = static_cast<const T*>(a.v);
  parallel_for(a.N, kGrain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t n = begin; n < end; ++n) {
      const T* x = static_cast<const T*>(a.x) + n * a.R;
      const Products<T> dot = products(x, v, a.p ? prototype<T>(a.p, a.gate, n, a.R) : v, a.R);
      T s = dot.v;
      if (a.p) s += *static_cast<const T*>(a.kappa) * dot.cosine;
      static_cast<T*>(a.s)[n] = s;
    }
  });
}

// dx = ds·(v + κ/|x|·(p − cos·x̂)), dv = Σ ds·x, dκ = Σ ds·cos.
template <class T>
void salience_bwd_typed(const SalienceBwd& a) {
  const std::int64_t R = a.R;
  const std::int64_t chunks = (a.N + kGrain - 1) / kGrain;
  const T* v = static_cast<const T*>(a.v);
  std::vector<T> dv(static_cast<std::size_t>(chunks * R));
  std::vector<T> dkappa(static_cast<std::size_t>(chunks));
  parallel_for(a.N, kGrain, [&](std::int64_t begin, std::int64_t end) {
    const std::int64_t chunk = begin / kGrain;
    T* sum = dv.data() + chunk * R;
    for (std::int64_t n = begin; n < end; ++n) {
      const T* x = static_cast<const T*>(a.x) + n * R;
      T* dx = static_cast<T*>(a.dx) + n * R;
      const T ds = static_cast<const T*>(a.ds)[n];
      const T* p = a.p ? prototype<T>(a.p, a.gate, n, R) : v;
      const Products<T> dot = products(x, v, p, R);
      const T turn = a.p ? ds * *static_cast<const T*>(a.kappa) * dot.inverse : T(0);
      const T along = dot.cosine * dot.inverse;
#pragma omp simd
      for (std::int64_t r = 0; r < R; ++r) {
        dx[r] = ds * v[r] + turn * (p[r] - along * x[r]);
        sum[r] += ds * x[r];
      }
      dkappa[static_cast<std::size_t>(chunk)] += ds * dot.cosine;
    }
  });
  T* total = static_cast<T*>(a.dv);
  std::fill_n(total, R, T(0));
  T kappa = 0;
  for (std::int64_t chunk = 0; chunk < chunks; ++chunk) {
    for (std::int64_t r = 0; r < R; ++r) total[r] += dv[static_cast<std::size_t>(chunk * R + r)];
    kappa += dkappa[static_cast<std::size_t>(chunk)];
  }
  if (a.p) *static_cast<T*>(a.dkappa) = kappa;
}

void salience_fwd_cpu(const SalienceFwd& a) {
  a.dtype == DType::f64 ? salience_fwd_typed<double>(a) : salience_fwd_typed<float>(a);
}

void salience_bwd_cpu(const SalienceBwd& a) {
  a.dtype == DType::f64 ? salience_bwd_typed<double>(a) : salience_bwd_typed<float>(a);
}

}  // namespace

Slot<SalienceFwd> salience_fwd{"salience_fwd", salience_fwd_cpu};
Slot<SalienceBwd> salience_bwd{"salience_bwd", salience_bwd_cpu};

namespace ops {
namespace {

void check_salience(const std::string& call, const Tensor& x, const Tensor& v, const Tensor& p,
                    const Tensor& kappa, const Tensor& gate) {
  if (x.dtype() != DType::f32 && x.dtype() != DType::f64) {
    throw_dtype(call + ": x", x.dtype(), "f32 or f64");
  }
  if (x.rank() != 2) {
    throw ShapeError(call + ": x: expected [N, R], got " + to_string(x.shape()));
  }
  check_like(call, "v", v, x);
  check_shape(call, "v", v, {x.size(1)}, "(= x.shape[1])");
  if (p.defined() != kappa.defined() || p.defined() != gate.defined()) {
    throw ConfigError(call + ": p, kappa, gate: expected all three or none");
  }
  if (!p.defined()) return;
  check_like(call, "p", p, x);
  if (p.rank() != 2 || p.size(1) != x.size(1)) {
    throw ShapeError(call + ": p: expected [G, " + std::to_string(x.size(1)) +
                     "] (= x.shape[1]), got " + to_string(p.shape()));
  }
  check_like(call, "kappa", kappa, x);
  check_shape(call, "kappa", kappa, {}, "(a scalar)");
  if (gate.dtype() != DType::i32) throw_dtype(call + ": gate", gate.dtype(), "i32");
  check_device(call, "gate", gate, x);
  check_shape(call, "gate", gate, {x.size(0)}, "(= x.shape[0])");
  if (gate.device() != kCpu) return;  // elsewhere they come from a kernel
  const Tensor gates = gate.contiguous();
  for (std::int64_t n = 0; n < gates.numel(); ++n) {
    const std::int32_t g = gates.data<std::int32_t>()[n];
    if (g >= 0 && g < p.size(0)) continue;
    throw ConfigError(call + ": gate: expected gates in [0, " + std::to_string(p.size(0)) +
                      "), got " + std::to_string(g) + " for token " + std::to_string(n));
  }
}

// Contiguous copies that live as long as the kernel runs.
struct Held {
  Tensor x, v, p, kappa, gate;
  Held(const Tensor& x_any, const Tensor& v_any, const Tensor& p_any, const Tensor& kappa_any,
       const Tensor& gate_any)
      : x(x_any.contiguous()), v(v_any.contiguous()) {
    if (!p_any.defined()) return;
    p = p_any.contiguous();
    kappa = kappa_any;
    gate = gate_any.contiguous();
  }
  const void* p_raw() const { return p.defined() ? p.raw() : nullptr; }
  const void* kappa_raw() const { return p.defined() ? kappa.raw() : nullptr; }
  const std::int32_t* gate_raw() const { return p.defined() ? gate.data<std::int32_t>() : nullptr; }
};

}  // namespace

Tensor salience(const Tensor& x, const Tensor& v, const Tensor& p, const Tensor& kappa,
                const Tensor& gate) {
  check_salience("salience(x, v, p, kappa, gate)", x, v, p, kappa, gate);
  Tensor s = Tensor::empty({x.size(0)}, x.dtype(), x.device());
  if (s.numel() == 0) return s;
  const Held in(x, v, p, kappa, gate);
  salience_fwd(x.device(), {.x = in.x.raw(),
                            .v = in.v.raw(),
                            .p = in.p_raw(),
                            .kappa = in.kappa_raw(),
                            .gate = in.gate_raw(),
                            .s = s.raw(),
                            .N = x.size(0),
                            .R = x.size(1),
                            .dtype = x.dtype()});
  return s;
}

SalienceGrads salience_backward(const Tensor& x, const Tensor& v, const Tensor& p,
                                const Tensor& kappa, const Tensor& gate, const Tensor& ds_any) {
  const std::string call = "salience_backward(x, v, p, kappa, gate, ds)";
  check_salience(call, x, v, p, kappa, gate);
  check_like(call, "ds", ds_any, x);
  check_shape(call, "ds", ds_any, {x.size(0)}, "(= x.shape[0])");
  SalienceGrads out{Tensor::empty(x.shape(), x.dtype(), x.device()),
                    Tensor::zeros(v.shape(), x.dtype(), x.device()),
                    p.defined() ? Tensor::zeros({}, x.dtype(), x.device()) : Tensor()};
  if (x.size(0) == 0) return out;
  const Held in(x, v, p, kappa, gate);
  const Tensor ds = ds_any.contiguous();
  salience_bwd(x.device(), {.x = in.x.raw(),
                            .v = in.v.raw(),
                            .p = in.p_raw(),
                            .kappa = in.kappa_raw(),
                            .gate = in.gate_raw(),
                            .ds = ds.raw(),
                            .dx = out.dx.raw(),
                            .dv = out.dv.raw(),
                            .dkappa = p.defined() ? out.dkappa.raw() : nullptr,
                            .N = x.size(0),
                            .R = x.size(1),
                            .dtype = x.dtype()});
  return out;
}

}  // namespace ops
}  // namespace proteus
