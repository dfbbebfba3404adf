#include "tensor/ops/prototypes.h"

#include <cmath>
#include <string>
#include <tuple>

#include "tensor/ops/check.h"

namespace proteus {
namespace {

template <class T>
void normalise(const T* from, T* to, std::int64_t R) {
  double square = 0;
  for (std::int64_t r = 0; r < R; ++r) {
    square += static_cast<double>(from[r]) * static_cast<double>(from[r]);
  }
  if (!(square > 0)) return;
  const double scale = 1 / std::sqrt(square);
  for (std::int64_t r = 0; r < R; ++r) to[r] = T(static_cast<double>(from[r]) * scale);
}

template <class T>
void step_typed(const PrototypesStep& a) {
  T* N = static_cast<T*>(a.N);
  T* P = static_cast<T*>(a.P);
  const T* weight = static_cast<const T*>(a.weight_sum);
  const T* weighted = static_cast<const T*>(a.weighted_sum);
  const T keep = static_cast<T>(a.keep);
  const T take = static_cast<T>(1 - a.keep);
  double sum = 0;
  for (std::int64_t g = 0; g < a.G; ++g) {
    N[g] = keep * N[g] + take * weight[g];
    sum += static_cast<double>(N[g]);
  }
  for (std::int64_t i = 0; i < a.G * a.R; ++i) P[i] = keep * P[i] + take * weighted[i];
  const double threshold = a.dead_share * (sum / static_cast<double>(a.G));
  for (std::int64_t g = 0; g < a.G; ++g) {
    normalise(P + g * a.R, static_cast<T*>(a.p) + g * a.R, a.R);
    a.starving[g] = static_cast<double>(N[g]) < threshold ? a.starving[g] + 1 : 0;
  }
}

void step_cpu(const PrototypesStep& a) {
  a.dtype == DType::f64 ? step_typed<double>(a) : step_typed<float>(a);
}

}  // namespace

Slot<PrototypesStep> prototypes_step{"prototypes_step", step_cpu};

namespace ops {

void prototypes_step(const PrototypeTable& table, const Tensor& weight_sum,
                     const Tensor& weighted_sum, double keep, double dead_share) {
  const std::string call = "prototypes_step(table, weight_sum, weighted_sum)";
  const Tensor& N = table.N;
  if (N.dtype() != DType::f32 && N.dtype() != DType::f64) {
    throw_dtype(call + ": N", N.dtype(), "f32 or f64");
  }
  if (N.rank() != 1 || table.P.rank() != 2 || table.P.size(0) != N.size(0)) {
    throw ShapeError(call + ": N, P: expected [G] and [G, R], got " + to_string(N.shape()) +
                     " and " + to_string(table.P.shape()));
  }
  const auto check = [&](const char* name, const Tensor& t, const Tensor& like) {
    check_device(call, name, t, N);
    check_shape(call, name, t, like.shape(), "(as the table)");
    if (!t.is_contiguous()) throw ShapeError(call + ": " + name + ": expected a contiguous tensor");
  };
  for (const auto& [name, t, like] :
       {std::tuple{"P", &table.P, &table.P}, std::tuple{"p", &table.p, &table.P},
        std::tuple{"weight_sum", &weight_sum, &N},
        std::tuple{"weighted_sum", &weighted_sum, &table.P}}) {
    check_like(call, name, *t, N);
    check(name, *t, *like);
  }
  if (table.starving.dtype() != DType::i32) {
    throw_dtype(call + ": starving", table.starving.dtype(), "i32");
  }
  check("starving", table.starving, N);
  for (const Tensor& t : {N, table.P, table.p, table.starving}) t.bump_version();
  if (N.numel() == 0) return;
  proteus::prototypes_step(N.device(), {.N = N.raw(),
                                        .P = table.P.raw(),
                                        .p = table.p.raw(),
                                        .starving = table.starving.data<std::int32_t>(),
                                        .weight_sum = weight_sum.raw(),
                                        .weighted_sum = weighted_sum.raw(),
                                        .G = table.P.size(0),
                                        .R = table.P.size(1),
                                        .keep = keep,
                                        .dead_share = dead_share,
                                        .dtype = N.dtype()});
}

}  // namespace ops
}  // namespace proteus
