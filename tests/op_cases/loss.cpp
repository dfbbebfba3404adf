#include "autograd/loss.h"

#include "autograd/elementwise.h"
#include "tensor/ops/check.h"
#include "tests/op_cases/families.h"

namespace proteus::testing {
namespace {

// Ignores every `every`-th target (0: none).
Tensor with_ignored(const Tensor& targets, std::int64_t every) {
  if (every == 0) return targets;
  const Tensor out = targets.to(kCpu).clone();
  auto* t = out.data<std::int32_t>();
  for (std::int64_t i = 0; i < out.numel(); i += every) t[i] = ops::kIgnoreIndex;
  return out.to(targets.device());
}

OpCase fused_case(const std::string& variant, const Shape& rows, std::int64_t C, std::int64_t V,
                  std::int64_t every = 0) {
  Shape hidden = rows;
  hidden.push_back(C);
  OpCase c{.op = "cross_entropy",
           .variant = variant,
           .slots = {"linear_cross_entropy"},
           .inputs = {{hidden}, {{V, C}}, {rows, Fill::index, false, V}},
           .run =
               [every](const auto& v) {
                 return cross_entropy(v[0], v[1], with_ignored(v[2].value(), every));
               },
           .flops = 2.0 * static_cast<double>(rows.numel() * C * V),
           .bytes = 4.0 * static_cast<double>(rows.numel() * C + V * C),
           .bf16_tolerance = 3e-4};
  if (every > 1) c.slots.push_back("row_copy");
  return c;
}

// Logits in the hundreds: of most targets the exponential is 0 beside the largest one.
OpCase far_case(OpCase c) {
  c.variant += ", far";
  c.run = [run = c.run](const auto& v) {
    constexpr double kFar = 64;  // a power of two: exact in every dtype
    return run(std::vector<Variable>{scale(v[0], kFar), v[1], v[2]});
  };
  return c;
}

OpCase logits_case(const std::string& variant, const Shape& rows, std::int64_t V,
                   std::int64_t every = 0) {
  Shape logits = rows;
  logits.push_back(V);
  return {.op = "cross_entropy_logits",
          .variant = variant,
          .slots = {"cross_entropy_fwd"},
          .inputs = {{logits}, {rows, Fill::index, false, V}},
          .run =
              [every](const auto& v) {
                return cross_entropy_logits(v[0], with_ignored(v[1].value(), every));
              },
          .flops = 5.0 * static_cast<double>(logits.numel()),
          .bytes = 4.0 * static_cast<double>(logits.numel()),
          .bf16_tolerance = 3e-4};
}

// x, then x times a factor that is one or is not.
OpCase rescale_case(std::int64_t n, double factor) {
  return {.op = "rescale",
          .variant = std::to_string(n) + " by " + std::to_string(factor).substr(0, 3),
          .slots = {"rescale"},
          .inputs = {{.shape = {n}, .differentiable = false}},
          .run =
              [factor](const auto& v) {
                const Tensor x = v[0].value().clone();
                ops::rescale_gradient(
                    x, Tensor::full({}, factor, ops::accum_dtype(x.dtype()), x.device()));
                return Variable(x);
              },
          .bytes = 8.0 * static_cast<double>(n)};
}

OpCase large(OpCase c) {
  c.bench_only = true;
  return c;
}

Variable f32(const Shape& shape) { return Variable(Tensor::zeros(shape)); }

Tensor targets(std::initializer_list<double> values) {
  return Tensor::from(values, {static_cast<std::int64_t>(values.size())}, DType::i32);
}

}  // namespace

OpFamily loss_family() {
  OpFamily family{"loss", {}, {}};
  const std::vector<std::tuple<std::string, Shape, std::int64_t, std::int64_t>> shapes{
      {"1 row", {1}, 3, 4},   {"5 rows of 7", {5}, 4, 7}, {"2x3 rows", {2, 3}, 5, 9},
      {"2 words", {4}, 3, 2}, {"1 word", {3}, 2, 1},      {"33 rows", {33}, 2, 5},
      {"width 1", {6}, 1, 3}, {"65 words", {7}, 3, 65}};
  for (const auto& [name, rows, C, V] : shapes) {
    family.cases.push_back(fused_case(name, rows, C, V));
    family.cases.push_back(logits_case(name, rows, V));
  }
  for (const std::int64_t n : {1, 17, 4096, 40001}) {
    family.cases.push_back(rescale_case(n, 0.3));
    family.cases.push_back(rescale_case(n, 1));
  }
  family.cases.push_back(fused_case("every third ignored", {2, 5}, 4, 6, 3));
  family.cases.push_back(fused_case("every second ignored", {9}, 3, 5, 2));
  family.cases.push_back(logits_case("every third ignored", {2, 5}, 6, 3));
  family.cases.push_back(fused_case("9 rows, 130 words", {9}, 8, 130, 4));
  family.cases.push_back(far_case(fused_case("9 rows, 130 words", {9}, 8, 130)));
  family.cases.push_back(far_case(fused_case("5 rows of 7", {5}, 4, 7)));
  family.cases.push_back(large(fused_case("1000 of 96 to 503", {1000}, 96, 503, 7)));
  family.cases.push_back(large(fused_case("16384 of 384 to 65", {16384}, 384, 65)));
  family.cases.push_back(large(logits_case("16384 of 65", {16384}, 65)));
  family.errors = {
      {"a target too large",
       [] {
         cross_entropy(f32({3, 2}), f32({5, 2}), targets({4, 5, 0}));
       },
       "ShapeError",
       "cross_entropy(hidden, weight, targets): targets: row 1 is 5, expected 0 to 4 or -100 "
       "(ignored)"},
      {"a negative target",
       [] {
         cross_entropy_logits(f32({2, 5}), targets({-1, 0}));
       },
       "ShapeError",
       "cross_entropy_logits(logits, targets): targets: row 0 is -1, expected 0 to 4"},
      {"another number of targets",
       [] {
         cross_entropy(f32({3, 2}), f32({5, 2}), targets({1, 2}));
       },
       "ShapeError",
       "cross_entropy(hidden, weight, targets): targets: expected [3], got [2]; the rows are [3, "
       "2]"},
      {"floating targets",
       [] {
         cross_entropy_logits(f32({2, 5}), Tensor::zeros({2}));
       },
       "DTypeError",
       "cross_entropy_logits(logits, targets): targets: expected dtype i32 or i64, got f32"},
      {"weight of another width",
       [] {
         cross_entropy(f32({3, 2}), f32({5, 4}), targets({0, 0, 0}));
       },
       "ShapeError",
       "cross_entropy(hidden, weight, targets): weight: expected [V, 2] (C = hidden.shape[-1]), "
       "got "
       "[5, 4]; hidden is [3, 2]"},
  };
  return family;
}

}  // namespace proteus::testing
