#include "autograd/salience.h"

#include <array>

#include "tests/op_cases/families.h"

namespace proteus::testing {
namespace {

// Inputs x, v and, with prototypes, p, kappa and the gate of every token. The op takes f32 and f64.
OpCase salience_case(std::int64_t N, std::int64_t R, std::int64_t G) {
  OpCase out{.op = "salience",
             .variant = std::to_string(N) + "x" + std::to_string(R) +
                        (G ? " of " + std::to_string(G) : " no prototypes"),
             .slots = {"salience_fwd", "salience_bwd"},
             .inputs = {{.shape = {N, R}}, {.shape = {R}}},
             .run =
                 [G](const auto& v) {
                   return G ? salience(v[0], v[1], v[2].value(), v[3], v[4].value())
                            : salience(v[0], v[1], {}, {}, {});
                 },
             .flops = 6.0 * static_cast<double>(N * R),
             .bytes = 4.0 * static_cast<double>(N * R)};
  if (G) {
    out.inputs.push_back({.shape = {G, R}, .differentiable = false});
    out.inputs.push_back({.shape = {}});
  }
  for (OpInput& input : out.inputs) input.accumulation = true;
  if (G) out.inputs.push_back({.shape = {N}, .fill = Fill::index, .bound = G});
  return out;
}

}  // namespace

OpFamily salience_family() {
  OpFamily family{"salience", {}, {}};
  for (const auto& [N, R, G] : std::vector<std::array<std::int64_t, 3>>{
           {1, 2, 1}, {5, 3, 4}, {13, 7, 2}, {0, 4, 3}, {300, 5, 9}, {17, 64, 11}}) {
    family.cases.push_back(salience_case(N, R, G));
    family.cases.push_back(salience_case(N, R, 0));
  }
  OpCase large = salience_case(16384, 64, 64);
  large.bench_only = true;
  family.cases.push_back(large);
  const auto z = [](const Shape& shape, DType dtype = DType::f32) {
    return Tensor::zeros(shape, dtype);
  };
  family.errors = {
      {"v of another width",
       [z] {
         ops::salience(z({3, 4}), z({5}), {}, {}, {});
       },
       "ShapeError", "salience(x, v, p, kappa, gate): v: expected [4] (= x.shape[1]), got [5]"},
      {"bf16",
       [z] {
         ops::salience(z({3, 4}, DType::bf16), z({4}), {}, {}, {});
       },
       "DTypeError", "x: expected dtype f32 or f64, got bf16"},
      {"prototypes without gates",
       [z] {
         ops::salience(z({3, 4}), z({4}), z({2, 4}), z({}), {});
       },
       "ConfigError", "p, kappa, gate: expected all three or none"},
      {"a gate that is not there",
       [z] {
         ops::salience(z({2, 4}), z({4}), z({2, 4}), z({}), Tensor::full({2}, 2, DType::i32));
       },
       "ConfigError", "gate: expected gates in [0, 2), got 2 for token 0"},
  };
  return family;
}

}  // namespace proteus::testing
