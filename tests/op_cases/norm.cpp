#include "autograd/norm.h"

#include "autograd/elementwise.h"
#include "tests/op_cases/families.h"

namespace proteus::testing {
namespace {

OpCase layernorm_case(const std::string& variant, const Shape& x, bool with_beta = true) {
  const Shape c{x[-1]};
  OpCase out{
      .op = "layernorm",
      .variant = variant,
      .slots = {"norm_fwd", "norm_bwd"},
      .inputs = {{x}, {c}},
      .run = [](const auto& v) { return layernorm(v[0], v[1], v.size() > 2 ? v[2] : Variable()); },
      .flops = 8.0 * static_cast<double>(x.numel()),
      .bytes = 8.0 * static_cast<double>(x.numel())};
  if (with_beta) out.inputs.push_back({c});
  // One column has no variance: its gradient is a rounding error times 1/√eps.
  if (x[-1] == 1) out.negligible = 1e-4;
  return out;
}

OpCase rmsnorm_case(const std::string& variant, const Shape& x, bool with_gamma = true) {
  OpCase out{.op = "rmsnorm",
             .variant = variant,
             .slots = {"norm_fwd", "norm_bwd"},
             .inputs = {{x}},
             .run = [](const auto& v) { return rmsnorm(v[0], v.size() > 1 ? v[1] : Variable()); },
             .flops = 5.0 * static_cast<double>(x.numel()),
             .bytes = 8.0 * static_cast<double>(x.numel())};
  if (with_gamma) out.inputs.push_back({{x[-1]}});
  return out;
}

// As in a block: the norm adds its gradient to what came past it.
OpCase residual_case(OpCase c) {
  c.variant += " residual";
  c.run = [run = c.run](const auto& v) { return add(run(v), v[0]); };
  return c;
}

OpCase large(OpCase c) {
  c.bench_only = true;
  return c;
}

Tensor f32(const Shape& shape) { return Tensor::zeros(shape); }

}  // namespace

OpFamily norm_family() {
  OpFamily family{"norm", {}, {}};
  const std::vector<std::pair<std::string, Shape>> shapes{
      {"1", {1}},         {"7", {7}},      {"3x5", {3, 5}}, {"2x3x8", {2, 3, 8}},
      {"33x4", {33, 4}},  {"5x1", {5, 1}}, {"0x6", {0, 6}}, {"2x1x3x9", {2, 1, 3, 9}},
      {"65x17", {65, 17}}};
  for (const auto& [name, shape] : shapes) {
    family.cases.push_back(layernorm_case(name, shape));
    family.cases.push_back(rmsnorm_case(name, shape));
  }
  for (const auto& [name, shape] : {std::pair{"2x3x8", Shape{2, 3, 8}},
                                    {"65x17", Shape{65, 17}},
                                    {"37x40", Shape{37, 40}},
                                    {"3x1032", Shape{3, 1032}}}) {
    family.cases.push_back(residual_case(layernorm_case(name, shape)));
    family.cases.push_back(residual_case(rmsnorm_case(name, shape)));
  }
  family.cases.push_back(layernorm_case("4x6 no beta", {4, 6}, false));
  family.cases.push_back(rmsnorm_case("4x6 no gamma", {4, 6}, false));
  family.cases.push_back(large(layernorm_case("16384x384", {16384, 384})));
  family.cases.push_back(large(rmsnorm_case("16384x384", {16384, 384})));
  family.errors = {
      {"gamma of another width",
       [] {
         layernorm(Variable(f32({8, 768})), Variable(f32({512})), Variable());
       },
       "ShapeError",
       "layernorm(x, gamma, beta): gamma: expected [768] (= x.shape[-1]), got [512]; x is [8, "
       "768]"},
      {"integer x", [] { rmsnorm(Variable(Tensor::arange(4)), Variable()); }, "DTypeError",
       "rmsnorm(x, gamma): x: expected dtype f64, f32 or bf16, got i64"},
      {"gamma of another dtype",
       [] {
         rmsnorm(Variable(f32({2, 4})), Variable(Tensor::zeros({4}, DType::f64)));
       },
       "DTypeError", "rmsnorm(x, gamma): gamma: expected dtype f32, got f64"},
  };
  return family;
}

}  // namespace proteus::testing
