#include "autograd/elementwise.h"

#include "tests/op_cases/families.h"

namespace proteus::testing {
namespace {

using Unary = Variable (*)(const Variable&);
using Binary = Variable (*)(const Variable&, const Variable&);

std::string name_of(const Shape& shape) {
  std::string text;
  for (const std::int64_t size : shape) {
    if (!text.empty()) text += 'x';
    text += std::to_string(size);
  }
  return text.empty() ? "scalar" : text;
}

double numel(const Shape& shape) { return static_cast<double>(shape.numel()); }

void add_unary(OpFamily& family, const std::string& op, Unary f, Fill fill = Fill::normal) {
  const auto make = [&](const Shape& shape) {
    return OpCase{.op = op,
                  .variant = name_of(shape),
                  .slots = {"unary_fwd", "unary_bwd"},
                  .inputs = {{shape, fill}},
                  .run = [f](const auto& v) { return f(v[0]); },
                  .flops = numel(shape),
                  .bytes = 8 * numel(shape)};
  };
  for (const Shape& shape :
       std::vector<Shape>{{}, {1}, {7}, {3, 5}, {0, 4}, {2, 3, 4}, {130}, {2, 1, 3, 2}, {33, 17}}) {
    family.cases.push_back(make(shape));
  }
  OpCase large = make({2048, 1000});
  large.bench_only = true;
  family.cases.push_back(large);
}

struct Pair {
  Shape a, b;
};

OpCase binary_case(const std::string& op, Binary f, const Pair& pair, bool reduces) {
  OpCase c{.op = op,
           .variant = name_of(pair.a) + " and " + name_of(pair.b),
           .slots = {"binary_fwd"},
           .inputs = {{pair.a, Fill::positive}, {pair.b, Fill::positive}},
           .run = [f](const auto& v) { return f(v[0], v[1]); }};
  if (reduces) c.slots.emplace_back("sum_fwd");
  const Shape y = broadcast_shapes(op, pair.a, pair.b);
  c.flops = numel(y);
  c.bytes = 4 * (numel(pair.a) + numel(pair.b) + numel(y));
  return c;
}

void add_binary(OpFamily& family, const std::string& op, Binary f) {
  for (const Pair& p : std::vector<Pair>{{{}, {}},
                                         {{1}, {1}},
                                         {{37}, {37}},
                                         {{3, 5}, {3, 5}},
                                         {{0, 4}, {0, 4}},
                                         {{2, 3, 4}, {2, 3, 4}}}) {
    family.cases.push_back(binary_case(op, f, p, false));
  }
  for (const Pair& p : std::vector<Pair>{{{4, 6}, {6}},
                                         {{6}, {4, 6}},
                                         {{5, 7}, {5, 1}},
                                         {{5, 1}, {1, 7}},
                                         {{3, 4}, {}},
                                         {{}, {3, 4}},
                                         {{2, 3, 4, 5}, {3, 1, 5}},
                                         {{2, 1, 4}, {1, 3, 1}},
                                         {{70, 40}, {40}},
                                         {{0, 4}, {4}}}) {
    family.cases.push_back(binary_case(op, f, p, true));
  }
  for (const Pair& p : std::vector<Pair>{
           {{2048, 1000}, {2048, 1000}}, {{2048, 1000}, {1000}}, {{2048, 1000}, {2048, 1}}}) {
    OpCase c = binary_case(op, f, p, !(p.a == p.b));
    c.bench_only = true;
    family.cases.push_back(c);
  }
}

OpCase swiglu_case(const Shape& shape) {
  return {.op = "swiglu",
          .variant = name_of(shape),
          .slots = {"swiglu_fwd", "swiglu_bwd"},
          .inputs = {{shape}, {shape}},
          .run = [](const auto& v) { return swiglu(v[0], v[1]); },
          .flops = 12 * numel(shape),
          .bytes = 12 * numel(shape)};
}

// As the routed heads use it: r is f32 beside bf16.
Variable mixed_scale_rows(const std::vector<Variable>& v) { return scale_rows(v[0], v[1]); }

OpCase scale_rows_case(std::int64_t M, std::int64_t D) {
  return {.op = "scale_rows",
          .variant = name_of({M, D}),
          .slots = {"scale_rows_fwd", "scale_rows_bwd"},
          .inputs = {{{M, D}}, {{M}}},
          .run = mixed_scale_rows,
          .flops = static_cast<double>(M * D),
          .bytes = 8.0 * static_cast<double>(M * D)};
}

OpCase open_rows_case(std::int64_t M, std::int64_t D) {
  OpCase c = scale_rows_case(M, D);
  c.op = "open_rows";
  c.run = [](const auto& v) { return open_rows(v[0], v[1], 1.5, 0.25); };
  return c;
}

// The gradient of x begins with that of the same x elsewhere, and is added to in place.
OpCase added_key_shift_case(const Shape& shape) {
  return {.op = "key_shift",
          .variant = name_of(shape) + " added",
          .slots = {"key_shift_fwd", "key_shift_bwd"},
          .inputs = {{shape}, {{shape[2]}}},
          .run = [](const auto& v) {
            const Variable shifted = key_shift(v[0], v[1]);
            return add(shifted, square(v[0]));
          }};
}

OpCase key_shift_case(const Shape& shape) {
  return {.op = "key_shift",
          .variant = name_of(shape),
          .slots = {"key_shift_fwd", "key_shift_bwd"},
          .inputs = {{shape}, {{shape[2]}}},
          .run = [](const auto& v) { return key_shift(v[0], v[1]); },
          .flops = 2 * numel(shape),
          .bytes = 8 * numel(shape)};
}

OpCase large(OpCase c) {
  c.bench_only = true;
  return c;
}

void add_fused(OpFamily& family) {
  for (const Shape& shape :
       std::vector<Shape>{{}, {1}, {9}, {3, 5}, {0, 4}, {2, 3, 4}, {2, 1, 3, 2}, {65, 17}}) {
    family.cases.push_back(swiglu_case(shape));
  }
  family.cases.push_back(large(swiglu_case({2048, 1024})));
  for (const auto& [M, D] : std::vector<std::pair<std::int64_t, std::int64_t>>{
           {1, 1}, {1, 8}, {8, 1}, {3, 5}, {0, 4}, {17, 16}, {33, 3}, {5, 70}}) {
    family.cases.push_back(scale_rows_case(M, D));
  }
  for (const auto& [M, D] : std::vector<std::pair<std::int64_t, std::int64_t>>{
           {1, 1}, {1, 8}, {8, 1}, {3, 5}, {0, 4}, {17, 16}, {33, 64}, {5, 70}}) {
    family.cases.push_back(open_rows_case(M, D));
  }
  family.cases.push_back(large(scale_rows_case(16384, 64)));
  for (const Shape& shape : std::vector<Shape>{{1, 1, 1},
                                               {1, 5, 3},
                                               {3, 1, 4},
                                               {2, 2, 7},
                                               {2, 6, 5},
                                               {0, 4, 3},
                                               {5, 33, 2},
                                               {3, 50, 4}}) {
    family.cases.push_back(key_shift_case(shape));
  }
  // Eight columns at a time, more rows than a block sums, sequences that end inside of a block.
  for (const Shape& shape : std::vector<Shape>{{2, 6, 5}, {3, 50, 16}, {1, 300, 8}, {7, 1, 8}}) {
    family.cases.push_back(added_key_shift_case(shape));
  }
  family.cases.push_back(key_shift_case({3, 70, 72}));
  family.cases.push_back(large(key_shift_case({12, 256, 384})));
}

Variable f32(const Shape& shape) { return Variable(Tensor::zeros(shape)); }
Variable f64(const Shape& shape) { return Variable(Tensor::zeros(shape, DType::f64)); }

std::vector<ErrorCase> errors() {
  return {
      {"shapes that do not broadcast",
       [] {
         add(f32({2, 3}), f32({4}));
       },
       "ShapeError", "add(a, b): shapes [2, 3] and [4] do not broadcast: dimension -1 has 3 and 4"},
      {"two dtypes", [] { mul(f32({2}), f64({2})); }, "DTypeError",
       "mul(a, b): b: expected dtype f32, got f64"},
      {"integers", [] { div(Variable(Tensor::arange(3)), f32({3})); }, "DTypeError",
       "div(a, b): a: expected dtype f64, f32 or bf16, got i64"},
      {"gelu of integers", [] { gelu(Variable(Tensor::arange(3))); }, "DTypeError",
       "gelu(x): x: expected dtype f64, f32 or bf16, got i64"},
      {"swiglu of two shapes",
       [] {
         swiglu(f32({2, 3}), f32({3}));
       },
       "ShapeError", "swiglu(gate, up): up: expected [2, 3] (= gate.shape), got [3]"},
      {"scale_rows of rank 3",
       [] {
         scale_rows(f32({2, 3, 4}), f32({2}));
       },
       "ShapeError", "scale_rows(x, r): x: expected [M, D], got [2, 3, 4]"},
      {"scale_rows with too few",
       [] {
         scale_rows(f32({3, 4}), f32({2}));
       },
       "ShapeError", "scale_rows(x, r): r: expected [3] (= x.shape[0]), got [2]"},
      {"scale_rows with another dtype",
       [] {
         scale_rows(f32({3, 4}), f64({3}));
       },
       "DTypeError", "scale_rows(x, r): r: expected dtype f32, got f64"},
      {"key_shift with another width",
       [] {
         key_shift(f32({1, 2, 4}), f32({3}));
       },
       "ShapeError", "key_shift(x, mu): mu: expected [4] (= x.shape[-1]), got [3]"},
      {"key_shift of rank 2",
       [] {
         key_shift(f32({2, 4}), f32({4}));
       },
       "ShapeError", "key_shift(x, mu): x: expected [B, T, C], got [2, 4]"},
  };
}

}  // namespace

OpFamily elementwise_family() {
  OpFamily family{"elementwise", {}, errors()};
  add_unary(family, "neg", neg);
  add_unary(family, "scale", [](const Variable& x) { return scale(x, -1.75); });
  add_unary(family, "shift", [](const Variable& x) { return shift(x, 0.375); });
  add_unary(family, "exp", exp);
  add_unary(family, "log", log, Fill::positive);
  add_unary(family, "sqrt", sqrt, Fill::positive);
  add_unary(family, "square", square);
  add_unary(
      family, "pow", [](const Variable& x) { return pow(x, 1.5); }, Fill::positive);
  add_unary(family, "sigmoid", sigmoid);
  add_unary(family, "log_sigmoid", log_sigmoid);
  add_unary(family, "scaled_log_sigmoid", [](const Variable& x) { return log_sigmoid(x, 0.75); });
  add_unary(family, "tanh", tanh);
  add_unary(family, "gelu", gelu);
  add_unary(family, "silu", silu);
  add_unary(family, "relu", relu);
  add_unary(family, "softplus", softplus);
  add_binary(family, "add", add);
  add_binary(family, "sub", sub);
  add_binary(family, "mul", mul);
  add_binary(family, "div", div);
  add_fused(family);
  return family;
}

}  // namespace proteus::testing
