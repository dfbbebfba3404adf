// One step of a gate table's prototypes, on copies of the inputs.
#include "tensor/ops/prototypes.h"

#include "autograd/view.h"
#include "tests/op_cases/families.h"

namespace proteus::testing {
namespace {

// N, P, p and starving after the step, side by side: [G, 2R + 2]. Inputs: N [G], P [G, R], p [G,
// R], Σω [G], Σω·x̃ [G, R] and the steps that a gate has starved.
Variable run_step(const std::vector<Variable>& v) {
  const Tensor N = v[0].value().clone();
  const Tensor P = v[1].value().clone();
  const Tensor p = v[2].value().clone();
  const Tensor starving = v[5].value().clone();
  ops::prototypes_step({N, P, p, starving}, v[3].value().contiguous(), v[4].value().contiguous(),
                       0.75, 0.9);
  const auto column = [&](const Tensor& x) { return Variable(x.to(N.dtype()).unsqueeze(1)); };
  return concat({column(N), Variable(P), Variable(p), column(starving)}, 1);
}

OpCase step_case(std::int64_t G, std::int64_t R) {
  const OpInput per_gate{
      .shape = {G}, .fill = Fill::positive, .differentiable = false, .accumulation = true};
  const OpInput rows{.shape = {G, R}, .differentiable = false, .accumulation = true};
  return {
      .op = "prototypes_step",
      .variant = std::to_string(G) + "x" + std::to_string(R),
      .slots = {"prototypes_step"},
      .inputs =
          {per_gate, rows, rows, per_gate, rows, {.shape = {G}, .fill = Fill::index, .bound = 5}},
      .run = run_step};
}

}  // namespace

OpFamily prototypes_family() {
  OpFamily family{"prototypes", {}, {}};
  for (const auto& [G, R] : std::vector<std::pair<std::int64_t, std::int64_t>>{
           {1, 1}, {3, 2}, {7, 33}, {40, 16}, {300, 5}}) {
    family.cases.push_back(step_case(G, R));
  }
  family.errors = {
      {"P of other gates",
       [] {
         ops::prototypes_step({Tensor::zeros({3}), Tensor::zeros({2, 4}), Tensor::zeros({2, 4}),
                               Tensor::zeros({3}, DType::i32)},
                              Tensor::zeros({3}), Tensor::zeros({3, 4}), 0.9, 0.1);
       },
       "ShapeError",
       "prototypes_step(table, weight_sum, weighted_sum): N, P: expected [G] and [G, R], got [3] "
       "and [2, 4]"},
      {"sums of another dtype",
       [] {
         ops::prototypes_step({Tensor::zeros({2}), Tensor::zeros({2, 4}), Tensor::zeros({2, 4}),
                               Tensor::zeros({2}, DType::i32)},
                              Tensor::zeros({2}, DType::f64), Tensor::zeros({2, 4}), 0.9, 0.1);
       },
       "DTypeError", "weight_sum: expected dtype f32, got f64"},
  };
  return family;
}

}  // namespace proteus::testing
