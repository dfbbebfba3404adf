#include "tensor/ops/select.h"

#include <array>
#include <cmath>

#include "tests/op_cases/families.h"

namespace proteus::testing {
namespace {

// The chosen heads as numbers: there is no gradient.
OpCase topk_case(std::int64_t N, std::int64_t H, std::int64_t k, bool with_theta, bool with_count) {
  OpCase out{.op = "topk_heads",
             .variant = std::to_string(N) + "x" + std::to_string(H) + " top " + std::to_string(k) +
                        (with_theta ? " theta" : "") + (with_count ? " count" : ""),
             .slots = {"topk_fwd"},
             .inputs = {{.shape = {N, H}, .differentiable = false, .accumulation = true}},
             .run =
                 [=](const auto& v) {
                   const Tensor none;
                   const Tensor heads =
                       ops::topk_heads(v[0].value(), k, with_theta ? v[1].value() : none,
                                       with_count ? v[v.size() - 1].value() : none);
                   return Variable(heads.to(v[0].dtype()));
                 },
             .bytes = 4.0 * static_cast<double>(N * H)};
  if (with_theta) {
    out.inputs.push_back({.shape = {H}, .differentiable = false, .accumulation = true});
  }
  if (with_count) out.inputs.push_back({.shape = {N}, .fill = Fill::index, .bound = k + 1});
  return out;
}

// Every third column is extra.
OpCase extra_case(std::int64_t N, std::int64_t H, std::int64_t k) {
  OpCase out = topk_case(N, H, k, true, true);
  out.variant += " extra";
  out.run = [=](const auto& v) {
    Tensor extra = Tensor::zeros({H}, DType::i32);
    for (std::int64_t h = 2; h < H; h += 3) extra.data<std::int32_t>()[h] = 1;
    const Tensor heads =
        ops::topk_heads(v[0].value(), k, v[1].value(), v[2].value(), extra.to(v[0].device()));
    return Variable(heads.to(v[0].dtype()));
  };
  return out;
}

OpCase nucleus_case(std::int64_t N, std::int64_t H, std::int64_t k_min, std::int64_t k_max,
                    double p) {
  return {.op = "nucleus_counts",
          .variant = std::to_string(N) + "x" + std::to_string(H) + " of " + std::to_string(k_min) +
                     " to " + std::to_string(k_max) + " p " + std::to_string(p),
          .slots = {"nucleus_fwd"},
          .inputs = {{.shape = {N, H}, .differentiable = false, .accumulation = true},
                     {.shape = {H}, .differentiable = false, .accumulation = true}},
          .run =
              [=](const auto& v) {
                const Tensor count =
                    ops::nucleus_counts(v[0].value(), p, k_min, k_max, v[1].value());
                return Variable(count.to(v[0].dtype()));
              },
          .bytes = 4.0 * static_cast<double>(N * H)};
}

// Tokens enter by their position, or by their score.
OpCase keep_case(std::int64_t N, std::int64_t period, bool with_count, bool with_time) {
  OpCase out{.op = "keep_counts",
             .variant = std::to_string(N) + " of period " + std::to_string(period) +
                        (with_count ? " count" : "") + (with_time ? " time" : ""),
             .slots = {"keep_counts"},
             .inputs = {{.shape = {N}, .differentiable = false, .accumulation = true}},
             .run = [=](const auto& v) {
               const Tensor none;
               const Tensor counts = ops::keep_counts(
                   v[0].value(), {.tau = 0.3, .guard = 2, .period = period}, 5,
                   with_count ? v[1].value() : none, with_time ? v[v.size() - 1].value() : none);
               return Variable(counts.to(v[0].dtype()));
             }};
  if (with_count) out.inputs.push_back({.shape = {N}, .fill = Fill::index, .bound = 4});
  if (with_time) out.inputs.push_back({.shape = {N}, .fill = Fill::index, .bound = 9});
  return out;
}

OpCase ranks_case(std::int64_t N, const std::vector<std::int64_t>& ranks) {
  return {.op = "order_statistics",
          .variant = std::to_string(N) + " at " + std::to_string(ranks.size()),
          .slots = {"order_statistics"},
          .inputs = {{.shape = {N}, .differentiable = false, .accumulation = true}},
          .run = [=](const auto& v) {
            return Variable(ops::order_statistics(v[0].value(), ranks).to(v[0].dtype()));
          }};
}

}  // namespace

OpFamily select_family() {
  OpFamily family{"select", {}, {}};
  for (const std::int64_t N : {1, 6, 131, 5000}) {
    family.cases.push_back(keep_case(N, 6, false, false));
    family.cases.push_back(keep_case(N, 1, true, true));
    family.cases.push_back(keep_case(N, 7, true, false));
    family.cases.push_back(ranks_case(N, {0, N / 2, N - 1}));
  }
  family.cases.push_back(keep_case(0, 3, false, false));
  for (const auto& [N, H, k] : std::vector<std::array<std::int64_t, 3>>{{1, 1, 1},
                                                                        {5, 4, 2},
                                                                        {130, 9, 3},
                                                                        {7, 6, 6},
                                                                        {0, 4, 2},
                                                                        {3, 2000, 4},
                                                                        {3, 100, 33},
                                                                        {2, 70, 70}}) {
    family.cases.push_back(topk_case(N, H, k, false, false));
    family.cases.push_back(topk_case(N, H, k, true, true));
  }
  for (const auto& [N, H, k] :
       std::vector<std::array<std::int64_t, 3>>{{1, 3, 1}, {130, 9, 3}, {7, 6, 4}, {3, 100, 40}}) {
    family.cases.push_back(extra_case(N, H, k));
  }
  for (const double p : {0.3, 0.9}) {
    family.cases.push_back(nucleus_case(1, 1, 0, 1, p));
    family.cases.push_back(nucleus_case(5, 4, 1, 4, p));
    family.cases.push_back(nucleus_case(130, 9, 2, 7, p));
    family.cases.push_back(nucleus_case(0, 3, 1, 2, p));
    family.cases.push_back(nucleus_case(3, 2000, 1, 64, p));
  }
  OpCase large_nucleus = nucleus_case(16384, 16, 1, 4, 0.9);
  large_nucleus.bench_only = true;
  family.cases.push_back(large_nucleus);
  for (const auto& [H, k] : std::vector<std::array<std::int64_t, 2>>{{16, 2}, {2000, 4}}) {
    OpCase large = topk_case(16384, H, k, true, false);
    large.bench_only = true;
    family.cases.push_back(large);
  }
  const auto with_nan = [](std::int64_t row) {
    const Tensor scores = Tensor::zeros({200, 3});
    scores.data<float>()[row * 3 + 1] = std::nanf("");
    return scores;
  };
  family.errors = {
      {"a rank that is not there",
       [] { ops::order_statistics(Tensor::zeros({3}), std::vector<std::int64_t>{3}); },
       "ShapeError",
       "order_statistics(x, ranks): ranks: expected ranks in [0, 3) (= elements of x), got 3"},
      {"keep with counts of other tokens",
       [] { ops::keep_counts(Tensor::zeros({3}), {}, 1, Tensor::zeros({2}, DType::i32)); },
       "ShapeError",
       "keep_counts(scores, keep, k, count, time): count: expected [3] (= scores.shape), got [2]"},
      {"nucleus of no mass",
       [] {
         ops::nucleus_counts(Tensor::zeros({2, 3}), 0, 1, 2);
       },
       "ConfigError",
       "nucleus_counts(scores, p, k_min, k_max, theta): p: expected a number in (0, 1], got 0"},
      {"nucleus of more than all",
       [] {
         ops::nucleus_counts(Tensor::zeros({2, 3}), 0.5, 1, 4);
       },
       "ConfigError", "1 <= k_max <= 3 (= scores.shape[1]), got 1 and 4"},
      {"k above H",
       [] {
         ops::topk_heads(Tensor::zeros({2, 3}), 4);
       },
       "ConfigError",
       "topk_heads(scores, k, theta, count): k: expected 1 to 3 (= scores.shape[1]), got 4"},
      {"k of 0",
       [] {
         ops::topk_heads(Tensor::zeros({2, 3}), 0);
       },
       "ConfigError", "got 0"},
      {"a NaN", [with_nan] { ops::topk_heads(with_nan(150), 1); }, "NumericError",
       "topk_heads(scores, k, theta, count): scores: row 150 has a NaN; scores are [200, 3]"},
      {"a NaN in theta",
       [] {
         ops::topk_heads(Tensor::zeros({2, 3}), 1, Tensor::full({3}, std::nan("")));
       },
       "NumericError", "scores: row 0 has a NaN after theta was subtracted"},
      {"theta of another width",
       [] {
         ops::topk_heads(Tensor::zeros({2, 3}), 1, Tensor::zeros({2}));
       },
       "ShapeError", "theta: expected [3] (= scores.shape[1]), got [2]"},
      {"theta of another dtype",
       [] {
         ops::topk_heads(Tensor::zeros({2, 3}), 1, Tensor::zeros({3}, DType::f64));
       },
       "DTypeError", "theta: expected dtype f32, got f64"},
      {"bf16 scores",
       [] {
         ops::topk_heads(Tensor::zeros({2, 3}, DType::bf16), 1);
       },
       "DTypeError", "scores: expected dtype f32 or f64, got bf16"},
      {"count of other rows",
       [] {
         ops::topk_heads(Tensor::zeros({2, 3}), 1, {}, Tensor::zeros({3}, DType::i32));
       },
       "ShapeError", "count: expected [2] (= scores.shape[0]), got [3]"},
  };
  return family;
}

}  // namespace proteus::testing
