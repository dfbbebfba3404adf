#include "tensor/ops/norm.h"

#include <cmath>
#include <vector>

#include "tensor/ops/check.h"
#include "tensor/parallel.h"

namespace proteus {
namespace {

constexpr std::int64_t kRowGrain = 32;  // rows per chunk: also fixes the order of dgamma's sums

template <class T>
void norm_fwd_typed(const NormFwd& a) {
  using A = accum_t<T>;
  const T* gamma = static_cast<const T*>(a.gamma);
  const T* beta = static_cast<const T*>(a.beta);
  parallel_for(a.rows, kRowGrain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r) {
      const T* x = static_cast<const T*>(a.x) + r * a.C;
      T* y = static_cast<T*>(a.y) + r * a.C;
      A mean = 0;
      if (a.centre) {
#pragma omp simd reduction(+ : mean)
        for (std::int64_t c = 0; c < a.C; ++c) mean += A(x[c]);
        mean /= static_cast<A>(a.C);
        static_cast<A*>(a.mean)[r] = mean;
      }
      A var = 0;
#pragma omp simd reduction(+ : var)
      for (std::int64_t c = 0; c < a.C; ++c) var += (A(x[c]) - mean) * (A(x[c]) - mean);
      const A rstd = A(1) / std::sqrt(var / static_cast<A>(a.C) + static_cast<A>(a.eps));
      static_cast<A*>(a.rstd)[r] = rstd;
#pragma omp simd
      for (std::int64_t c = 0; c < a.C; ++c) {
        const A scale = gamma ? A(gamma[c]) : A(1);
        const A shift = beta ? A(beta[c]) : A(0);
        y[c] = T((A(x[c]) - mean) * rstd * scale + shift);
      }
    }
  });
}

// With x̂ = (x − mean)·rstd and g = dy·gamma: dx = rstd·(g − mean(g) − x̂·mean(g·x̂)); RMSNorm lacks
// the middle term. dgamma = Σ dy·x̂ and dbeta = Σ dy over rows: partial sums per chunk, then in
// order.
template <class T>
void norm_bwd_typed(const NormBwd& a) {
  using A = accum_t<T>;
  const T* gamma = static_cast<const T*>(a.gamma);
  const std::int64_t chunks = (a.rows + kRowGrain - 1) / kRowGrain;
  std::vector<A> partial(static_cast<std::size_t>(a.dgamma || a.dbeta ? chunks * 2 * a.C : 0));
  parallel_for(a.rows, kRowGrain, [&](std::int64_t begin, std::int64_t end) {
    A* dgamma = partial.empty() ? nullptr : partial.data() + begin / kRowGrain * 2 * a.C;
    std::vector<T> own(static_cast<std::size_t>(a.add_dx ? a.C : 0));  // before it is added
    for (std::int64_t r = begin; r < end; ++r) {
      const T* x = static_cast<const T*>(a.x) + r * a.C;
      const T* dy = static_cast<const T*>(a.dy) + r * a.C;
      T* dx = a.add_dx ? own.data() : static_cast<T*>(a.dx) + r * a.C;
      const A mean = a.centre ? static_cast<const A*>(a.mean)[r] : A(0);
      const A rstd = static_cast<const A*>(a.rstd)[r];
      A sum = 0;
      A dot = 0;
#pragma omp simd reduction(+ : sum, dot)
      for (std::int64_t c = 0; c < a.C; ++c) {
        const A g = A(dy[c]) * (gamma ? A(gamma[c]) : A(1));
        sum += g;
        dot += g * (A(x[c]) - mean) * rstd;
      }
      sum = a.centre ? sum / static_cast<A>(a.C) : A(0);
      dot /= static_cast<A>(a.C);
#pragma omp simd
      for (std::int64_t c = 0; c < a.C; ++c) {
        const A g = A(dy[c]) * (gamma ? A(gamma[c]) : A(1));
        dx[c] = T(rstd * (g - sum - (A(x[c]) - mean) * rstd * dot));
      }
      if (a.add_dx) {
        T* total = static_cast<T*>(a.dx) + r * a.C;
#pragma omp simd
        for (std::int64_t c = 0; c < a.C; ++c) total[c] = T(A(total[c]) + A(dx[c]));
      }
      if (!dgamma) continue;
#pragma omp simd
      for (std::int64_t c = 0; c < a.C; ++c) {
        dgamma[c] += A(dy[c]) * (A(x[c]) - mean) * rstd;
        dgamma[a.C + c] += A(dy[c]);
      }
    }
  });
  for (int which = 0; which < 2; ++which) {
    T* out = static_cast<T*>(which == 0 ? a.dgamma : a.dbeta);
    if (!out) continue;
    for (std::int64_t c = 0; c < a.C; ++c) {
      A sum = 0;
      for (std::int64_t k = 0; k < chunks; ++k) {
        sum += partial[static_cast<std::size_t>((k * 2 + which) * a.C + c)];
      }
      out[c] = T(sum);
    }
  }
}

void norm_fwd_cpu(const NormFwd& a) {
  dispatch_float(a.dtype, "norm_fwd",
                 [&](auto tag) { norm_fwd_typed<typename decltype(tag)::type>(a); });
}

void norm_bwd_cpu(const NormBwd& a) {
  dispatch_float(a.dtype, "norm_bwd",
                 [&](auto tag) { norm_bwd_typed<typename decltype(tag)::type>(a); });
}

void check_vector(const std::string& call, const char* name, const Tensor& v, const Tensor& x) {
  if (!v.defined()) return;
  if (v.shape() != Shape{x.size(-1)}) {
    throw ShapeError(call + ": " + name + ": expected [" + std::to_string(x.size(-1)) +
                     "] (= x.shape[-1]), got " + to_string(v.shape()) + "; x is " +
                     to_string(x.shape()));
  }
  ops::check_like(call, name, v, x);
}

ops::NormResult forward(const std::string& call, const Tensor& x_any, const Tensor& gamma_any,
                        const Tensor& beta_any, double eps, bool centre) {
  if (!is_floating(x_any.dtype())) throw_dtype(call + ": x", x_any.dtype(), "f64, f32 or bf16");
  if (x_any.rank() == 0) throw ShapeError(call + ": x: expected [..., C], got []");
  check_vector(call, "gamma", gamma_any, x_any);
  check_vector(call, "beta", beta_any, x_any);
  const Tensor x = x_any.contiguous();
  const Tensor gamma = gamma_any.defined() ? gamma_any.contiguous() : gamma_any;
  const Tensor beta = beta_any.defined() ? beta_any.contiguous() : beta_any;
  const std::int64_t C = x.size(-1);
  const std::int64_t rows = C ? x.numel() / C : 0;
  const DType accum = ops::accum_dtype(x.dtype());
  ops::NormResult out{Tensor::empty(x.shape(), x.dtype(), x.device()),
                      {},
                      Tensor::empty({rows}, accum, x.device())};
  if (centre) out.mean = Tensor::empty({rows}, accum, x.device());
  if (rows == 0) return out;
  norm_fwd(x.device(), {.x = x.raw(),
                        .gamma = gamma.defined() ? gamma.raw() : nullptr,
                        .beta = beta.defined() ? beta.raw() : nullptr,
                        .y = out.y.raw(),
                        .mean = centre ? out.mean.raw() : nullptr,
                        .rstd = out.rstd.raw(),
                        .rows = rows,
                        .C = C,
                        .eps = eps,
                        .centre = centre,
                        .dtype = x.dtype()});
  return out;
}

}  // namespace

Slot<NormFwd> norm_fwd{"norm_fwd", norm_fwd_cpu};
Slot<NormBwd> norm_bwd{"norm_bwd", norm_bwd_cpu};

namespace ops {

NormResult layernorm(const Tensor& x, const Tensor& gamma, const Tensor& beta, double eps) {
  return forward("layernorm(x, gamma, beta)", x, gamma, beta, eps, true);
}

NormResult rmsnorm(const Tensor& x, const Tensor& gamma, double eps) {
  return forward("rmsnorm(x, gamma)", x, gamma, {}, eps, false);
}

NormGrads norm_backward(const Tensor& x_any, const Tensor& gamma_any, const NormResult& saved,
                        const Tensor& dy_any, bool with_beta, const Tensor* sum) {
  const Tensor x = x_any.contiguous();
  const Tensor dy = dy_any.contiguous();
  const Tensor gamma = gamma_any.defined() ? gamma_any.contiguous() : gamma_any;
  NormGrads out;
  if (!sum) out.dx = Tensor::empty(x.shape(), x.dtype(), x.device());
  if (gamma.defined()) out.dgamma = Tensor::zeros(gamma.shape(), x.dtype(), x.device());
  if (with_beta) out.dbeta = Tensor::zeros({x.size(-1)}, x.dtype(), x.device());
  if (x.numel() == 0) return out;
  if (sum) sum->bump_version();
  norm_bwd(x.device(), {.x = x.raw(),
                        .gamma = gamma.defined() ? gamma.raw() : nullptr,
                        .mean = saved.mean.defined() ? saved.mean.raw() : nullptr,
                        .rstd = saved.rstd.raw(),
                        .dy = dy.raw(),
                        .dx = sum ? sum->raw() : out.dx.raw(),
                        .dgamma = out.dgamma.defined() ? out.dgamma.raw() : nullptr,
                        .dbeta = out.dbeta.defined() ? out.dbeta.raw() : nullptr,
                        .rows = x.numel() / x.size(-1),
                        .C = x.size(-1),
                        .centre = saved.mean.defined(),
                        .add_dx = sum != nullptr,
                        .dtype = x.dtype()});
  return out;
}

}  // namespace ops
}  // namespace proteus
