#include "autograd/dropout.h"

#include <cmath>

#include "tensor/ops/dropout.h"
#include "tests/op_cases/families.h"

namespace proteus::testing {
namespace {

// A new generator per call: the same mask every time.
OpCase dropout_case(const std::string& variant, const Shape& x, double p) {
  return {.op = "dropout",
          .variant = variant,
          .slots = {"dropout_fwd"},
          .inputs = {{x}},
          .run =
              [p](const auto& v) {
                Generator generator(7, 1);
                return dropout(v[0], p, generator);
              },
          .bytes = 8.0 * static_cast<double>(x.numel())};
}

OpCase add_case(const std::string& variant, const Shape& x, double p) {
  return {.op = "dropout_add",
          .variant = variant,
          .slots = {"dropout_fwd"},
          .inputs = {{x}, {x}},
          .run =
              [p](const auto& v) {
                Generator generator(7, 2);
                return dropout_add(v[0], v[1], p, generator);
              },
          .bytes = 12.0 * static_cast<double>(x.numel())};
}

}  // namespace

OpFamily dropout_family() {
  OpFamily family{"dropout", {}, {}};
  const std::vector<std::pair<std::string, Shape>> shapes{
      {"1", {1}},      {"5", {5}},       {"3x4", {3, 4}},      {"2x3x5", {2, 3, 5}},
      {"0x3", {0, 3}}, {"1025", {1025}}, {"7x1x2", {7, 1, 2}}, {"scalar", {}}};
  for (const auto& [name, shape] : shapes) {
    family.cases.push_back(dropout_case(name, shape, 0.3));
    family.cases.push_back(add_case(name, shape, 0.6));
  }
  OpCase large = add_case("16384x384", {16384, 384}, 0.2);
  large.bench_only = true;
  family.cases.push_back(large);
  for (const auto& [name, shape] : shapes) {
    family.cases.push_back(add_case(name + " p of zero", shape, 0));
    family.cases.back().slots.clear();
  }
  const Tensor two = Tensor::zeros({2});
  family.errors = {
      {"p of one", [] { ops::dropout(Tensor::zeros({2}), 1.0, {}); }, "ConfigError",
       "dropout(x, p): p: expected 0 <= p < 1, got 1"},
      {"negative p",
       [two] { dropout(Variable(two), -0.1, RngKey{}); },
       "ConfigError",
       "dropout(x, p): p: expected 0 <= p < 1, got -0.1",
       {two}},
      {"p that is NaN",
       [two] { dropout(Variable(two), std::nan(""), RngKey{}); },
       "ConfigError",
       "got nan",
       {two}},
      {"residual of another shape",
       [] { ops::dropout_add(Tensor::zeros({2}), Tensor::zeros({3}), 0.1, {}); }, "ShapeError",
       "dropout_add(x, residual, p): residual: expected [2] (= x.shape), got [3]"},
      {"residual of another dtype",
       [] { ops::dropout_add(Tensor::zeros({2}), Tensor::zeros({2}, DType::f64), 0, {}); },
       "DTypeError", "dropout_add(x, residual, p): residual: expected dtype f32, got f64"},
      {"integer x", [] { ops::dropout(Tensor::zeros({2}, DType::i32), 0.5, {}); }, "DTypeError",
       "dropout(x, p): x: expected dtype f64, f32 or bf16, got i32"},
  };
  return family;
}

}  // namespace proteus::testing
