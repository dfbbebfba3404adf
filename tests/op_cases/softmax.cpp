#include "autograd/softmax.h"

#include "tests/op_cases/families.h"

namespace proteus::testing {
namespace {

using Op = Variable (*)(const Variable&);

OpCase softmax_case(const std::string& op, Op f, const Shape& x) {
  return {.op = op,
          .variant = to_string(x),
          .slots = {"softmax_fwd", "softmax_bwd"},
          .inputs = {{x}},
          .run = [f](const auto& v) { return f(v[0]); },
          .flops = 4 * static_cast<double>(x.numel()),
          .bytes = 8 * static_cast<double>(x.numel())};
}

}  // namespace

OpFamily softmax_family() {
  OpFamily family{"softmax", {}, {}};
  const std::vector<std::pair<std::string, Op>> ops{
      {"softmax", softmax}, {"log_softmax", log_softmax}, {"logsumexp", logsumexp}};
  for (const auto& [name, f] : ops) {
    for (const Shape& x : std::vector<Shape>{
             {1}, {9}, {3, 5}, {5, 1}, {2, 3, 4}, {0, 4}, {2, 1, 3, 7}, {33, 3}, {3, 130}}) {
      family.cases.push_back(softmax_case(name, f, x));
    }
    OpCase large = softmax_case(name, f, {2048, 512});
    large.bench_only = true;
    family.cases.push_back(large);
    family.errors.push_back({name + " of a scalar", [f = f] { f(Variable(Tensor::scalar(1))); },
                             "ShapeError", name + "(x): x: expected [..., C], got []"});
    family.errors.push_back({name + " of integers", [f = f] { f(Variable(Tensor::arange(3))); },
                             "DTypeError",
                             name + "(x): x: expected dtype f64, f32 or bf16, got i64"});
  }
  return family;
}

}  // namespace proteus::testing
