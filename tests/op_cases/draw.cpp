#include "tensor/ops/draw.h"

#include <cmath>

#include "autograd/variable.h"
#include "tensor/ops/elementwise.h"
#include "tests/op_cases/families.h"

namespace proteus::testing {
namespace {

// The tokens as numbers; logits are `spread` times the inputs.
OpCase draw_case(const std::string& name, std::int64_t B, std::int64_t V, double spread,
                 const ops::DrawOptions& options) {
  return {.op = "draw_tokens",
          .variant = name,
          .slots = {"draw_tokens"},
          .inputs = {{.shape = {B, V}, .differentiable = false}, {{B}, Fill::index, false, 1000}},
          .run =
              [=](const auto& v) {
                const Tensor logits = ops::affine(v[0].value(), spread, 0);
                const Tensor tokens = Tensor::zeros({B}, DType::i32, logits.device());
                ops::draw_tokens(tokens, logits, v[1].value().contiguous(), options);
                return Variable(tokens.to(kCpu).to(logits.dtype()).to(logits.device()));
              },
          .flops = 10.0 * static_cast<double>(B * V),
          .bytes = 4.0 * static_cast<double>(B * V)};
}

}  // namespace

OpFamily draw_family() {
  OpFamily family{"draw", {}, {}};
  const RngKey key{5, 7};
  family.cases = {
      draw_case("one candidate", 1, 1, 1, {.key = key}),
      draw_case("no rows", 0, 5, 1, {.key = key}),
      draw_case("greedy", 40, 65, 1, {.temperature = 0, .key = key}),
      draw_case("all", 200, 65, 2, {.key = key}),
      draw_case("all of many", 30, 1031, 4, {.temperature = 0.8, .key = key, .offset = 3}),
      draw_case("equal ones", 100, 90, 0, {.key = key}),
      draw_case("the few", 200, 65, 2, {.temperature = 0.7, .top_k = 5, .key = key}),
      draw_case("more than there are", 20, 9, 2, {.top_k = 50, .key = key}),
      draw_case("a nucleus", 200, 65, 2, {.top_p = 0.7, .key = key}),
      draw_case("a nucleus of the few", 100, 300, 2, {.top_k = 20, .top_p = 0.5, .key = key}),
      draw_case("a nucleus of one", 50, 30, 2, {.top_p = 1e-9, .key = key}),
      draw_case("cold", 50, 40, 1, {.temperature = 1e-30, .key = key}),
      draw_case("hot", 50, 40, 1, {.temperature = 1e30, .key = key}),
      draw_case("far apart", 50, 40, 0x1p100, {.key = key}),
  };
  OpCase large = draw_case("large", 32, 50257, 4, {.temperature = 0.8, .key = key});
  large.bench_only = true;
  family.cases.push_back(large);
  const auto numbers = [](std::int64_t n) { return Tensor::zeros({n}, DType::i32); };
  family.errors = {
      {"logits of one dimension",
       [=] { ops::draw_tokens(numbers(2), Tensor::zeros({2}), numbers(2), {}); }, "ShapeError",
       "draw_tokens(tokens, logits, positions): logits: expected [B, V], got [2]"},
      {"positions of other rows",
       [=] {
         ops::draw_tokens(numbers(2), Tensor::zeros({2, 3}), numbers(3), {});
       },
       "ShapeError", "positions: expected [2] (= logits.shape[0]), got [3]"},
      {"tokens that are not i32",
       [=] {
         ops::draw_tokens(Tensor::zeros({2}), Tensor::zeros({2, 3}), numbers(2), {});
       },
       "DTypeError", "tokens: expected dtype i32, got f32"},
      {"a temperature below 0",
       [=] {
         ops::draw_tokens(numbers(2), Tensor::zeros({2, 3}), numbers(2), {.temperature = -1});
       },
       "ConfigError", "expected temperature >= 0, top_k >= 0 and top_p > 0, got -1.000000, 0 and"},
  };
  return family;
}

}  // namespace proteus::testing
