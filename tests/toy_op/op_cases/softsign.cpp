#include "autograd/softsign.h"

#include "tests/op_cases/op_case.h"

namespace proteus::testing {
namespace {

OpCase softsign_case(const Shape& x) {
  const auto n = static_cast<double>(x.numel());
  return {.op = "softsign",
          .variant = to_string(x),
          .slots = {"softsign_fwd", "softsign_bwd"},
          .inputs = {{x}},
          .run = [](const auto& v) { return softsign(v[0]); },
          .flops = 2 * n,   // an addition, a division
          .bytes = 8 * n};  // of f32: read x, write y
}

}  // namespace

OpFamily softsign_family() {
  OpFamily family{"softsign", {}, {}};
  // One element, primes, an empty one, dimensions of one, more elements than a chunk holds.
  for (const Shape& x : {Shape{1}, Shape{7}, Shape{3, 5}, Shape{2, 3, 8}, Shape{0, 6}, Shape{5, 1},
                         Shape{1, 1, 4}, Shape{13, 11}, Shape{65, 67}}) {
    family.cases.push_back(softsign_case(x));
  }
  OpCase large = softsign_case({16384, 768});
  large.bench_only = true;
  family.cases.push_back(large);
  family.errors = {{"integer x", [] { softsign(Variable(Tensor::arange(4))); }, "DTypeError",
                    "softsign(x): x: expected dtype f64, f32 or bf16, got i64"}};
  return family;
}

}  // namespace proteus::testing
