#include "autograd/attention.h"

#include "autograd/elementwise.h"
#include "tests/op_cases/families.h"

namespace proteus::testing {
namespace {

double attention_flops(const Shape& qkv, std::int64_t window) {
  const double T = static_cast<double>(qkv[1]);
  const double w = window > 0 ? std::min(static_cast<double>(window), T) : T;
  const double pairs = w * (w + 1) / 2 + (T - w) * w;
  return 4.0 * static_cast<double>(qkv[0] * qkv[3] * qkv[4]) * pairs;
}

OpCase packed_case(const std::string& variant, const Shape& qkv, std::int64_t window = 0,
                   std::int64_t anchors = 0, double dropout = 0) {
  AttentionOptions options;
  options.window = window;
  options.anchors = anchors;
  options.dropout = dropout;
  options.key = {17, 3};
  return {.op = "attention_qkv",
          .variant = variant,
          .slots = {"attention_fwd", "attention_bwd"},
          .inputs = {{qkv}},
          .run = [options](const auto& v) { return attention_qkv(v[0], options); },
          .flops = attention_flops(qkv, window),
          .bytes = 16.0 * static_cast<double>(qkv.numel()) / 3};
}

OpCase separate_case(const std::string& variant, const Shape& q, std::int64_t keys) {
  const Shape k{q[0], keys, q[2], q[3]};
  return {.op = "attention",
          .variant = variant,
          .slots = {"attention_fwd", "attention_bwd"},
          .inputs = {{q}, {k}, {k}},
          .run = [](const auto& v) { return attention(v[0], v[1], v[2]); }};
}

// Packed rows with key bias and sink, as the routed heads use them: two segments of different
// sizes. `own`: of rows that nobody else has, whose gradients take their places.
OpCase rows_case(const std::string& variant, std::int64_t D, double dropout, bool own = false) {
  const auto run = [dropout, own](const std::vector<Variable>& v) {
    AttentionPlan plan;
    plan.segments =
        Tensor::from({0, 0, 0, 0, 3, 5, 0, 0, 3, 5, 3, 3, 4, 2, 1, 0}, {2, 8}, DType::i64);
    plan.lo = Tensor::from({0, 1, 3, 0, 0, 0, 1}, {7}, DType::i32);
    plan.hi = Tensor::from({0, 4, 5, 1, 1, 2, 2}, {7}, DType::i32);
    plan.segments = plan.segments.to(v[0].device());
    plan.lo = plan.lo.to(v[0].device());
    plan.hi = plan.hi.to(v[0].device());
    plan.slots = 7;
    plan.anchors = 1;
    plan.whole = own;
    AttentionOptions options;
    options.sink_scale = 0.7;
    options.dropout = dropout;
    options.key = {5, 9};
    // Bias and sink are in the accumulation type, also for bf16 rows.
    if (!own) return attention(v[0], v[1], v[2], v[3], v[4], plan, options);
    const auto copy = [](const Variable& x) { return scale(x, 1); };
    return copy(attention(copy(v[0]), copy(v[1]), copy(v[2]), v[3], v[4], plan, options));
  };
  return {.op = "attention",
          .variant = variant,
          .slots = {"attention_fwd", "attention_bwd", "sink_gradient"},
          .inputs = {{{7, 1, D}},
                     {{7, 1, D}},
                     {{7, 1, D}},
                     {.shape = {7}, .accumulation = true},
                     {.shape = {2}, .accumulation = true}},
          .run = run,
          // At width 1 the terms of dk nearly cancel: what is left is mostly the rounding of dout
          // (measured: 5e-4 of the squared norm).
          .bf16_tolerance = D == 1 ? 1e-3 : 1e-4};
}

OpCase large(OpCase c) {
  c.bench_only = true;
  return c;
}

Variable zeros(const Shape& shape) { return Variable(Tensor::zeros(shape)); }

}  // namespace

OpFamily attention_family() {
  OpFamily family{"attention", {}, {}};
  family.cases = {
      packed_case("1x1x1x1", {1, 1, 3, 1, 1}),
      packed_case("1x5x2x4", {1, 5, 3, 2, 4}),
      packed_case("2x7x1x3 odd width", {2, 7, 3, 1, 3}),
      packed_case("0x4x2x4 empty", {0, 4, 3, 2, 4}),
      packed_case("2x9x2x4 window 3", {2, 9, 3, 2, 4}, 3),
      packed_case("1x12x1x4 window 2 anchors 3", {1, 12, 3, 1, 4}, 2, 3),
      packed_case("1x67x1x2 two tiles", {1, 67, 3, 1, 2}),
      packed_case("17x3x2x4 many segments", {17, 3, 3, 2, 4}),
      packed_case("2x6x2x4 dropout", {2, 6, 3, 2, 4}, 0, 0, 0.4),
      separate_case("1x3x2x4 of 8 keys", {1, 3, 2, 4}, 8),
      separate_case("2x4x1x5 of 4 keys", {2, 4, 1, 5}, 4),
      separate_case("1x1x3x2 of 6 keys", {1, 1, 3, 2}, 6),
      separate_case("3x2x2x2 of 2 keys", {3, 2, 2, 2}, 2),
      rows_case("segments width 4", 4, 0),
      rows_case("segments width 5", 5, 0),
      rows_case("segments dropout", 8, 0.3),
      rows_case("segments width 1", 1, 0),
      rows_case("segments of own rows", 4, 0, true),
      rows_case("segments of own rows, dropout", 5, 0.3, true),
      separate_case("2x3x1x9 of 5 keys", {2, 3, 1, 9}, 5),
      large(packed_case("64x256x6x64", {64, 256, 3, 6, 64})),
      large(packed_case("1x2048x6x64", {1, 2048, 3, 6, 64})),
      large(packed_case("1x8192x6x64", {1, 8192, 3, 6, 64})),
      large(packed_case("1x8192x6x64 window 256", {1, 8192, 3, 6, 64}, 256)),
  };
  family.errors = {
      {"not five dimensions",
       [] {
         attention_qkv(zeros({1, 4, 2, 8}));
       },
       "ShapeError", "attention_qkv(qkv): expected [B, T, 3, H, D], got [1, 4, 2, 8]"},
      {"keys of another width",
       [] {
         attention(zeros({1, 4, 2, 8}), zeros({1, 4, 2, 6}), zeros({1, 4, 2, 6}));
       },
       "ShapeError", "attention(q, k, v): k: expected [rows, 2, 8] (as q), got [4, 2, 6]"},
      {"more queries than keys",
       [] {
         attention(zeros({1, 4, 2, 8}), zeros({1, 3, 2, 8}), zeros({1, 3, 2, 8}));
       },
       "ShapeError", "q has 4 positions, k only 3"},
  };
  return family;
}

}  // namespace proteus::testing
