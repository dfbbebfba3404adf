#include "autograd/gemm.h"

#include "tensor/ops/gemm.h"
#include "tests/op_cases/families.h"

namespace proteus::testing {
namespace {

double product_flops(const Shape& x, std::int64_t out) {
  return 2.0 * static_cast<double>(x.numel()) * static_cast<double>(out);
}

double product_bytes(const Shape& x, std::int64_t out) {
  const auto in = static_cast<double>(x[-1]);
  const double rows = in > 0 ? static_cast<double>(x.numel()) / in : 0;
  return 4.0 * (rows * in + in * static_cast<double>(out) + rows * static_cast<double>(out));
}

OpCase linear_case(const std::string& variant, const Shape& x, std::int64_t out,
                   bool with_bias = true) {
  OpCase c{
      .op = "linear",
      .variant = variant,
      .slots = {"gemm_fwd", "bias_bwd"},
      .inputs = {{x}, {{out, x[-1]}}},
      .run = [](const auto& v) { return linear(v[0], v[1], v.size() > 2 ? v[2] : Variable()); },
      .flops = product_flops(x, out),
      .bytes = product_bytes(x, out)};
  if (with_bias) {
    c.inputs.push_back({{out}});
  } else {
    c.slots = {"gemm_fwd"};
  }
  return c;
}

// Plus something of the shape of the result, in the same product.
OpCase residual_case(OpCase c, const Shape& y) {
  c.variant += " residual";
  c.inputs.push_back({y});
  c.run = [](const auto& v) {
    return linear(v[0], v[1], v.size() > 3 ? v[2] : Variable(), v.back());
  };
  return c;
}

OpCase linear_gelu_case(const std::string& variant, const Shape& x, std::int64_t out,
                        bool with_bias = true) {
  OpCase c = linear_case(variant, x, out, with_bias);
  c.op = "linear_gelu";
  c.slots = {"gemm_fwd", "bias_bwd"};
  c.run = [](const auto& v) { return linear_gelu(v[0], v[1], v.size() > 2 ? v[2] : Variable()); };
  return c;
}

OpCase mlp_case(const std::string& variant, const Shape& x, std::int64_t hidden, std::int64_t out,
                bool with_bias = true) {
  OpCase c{.op = "mlp_gelu",
           .variant = variant,
           .slots = {"gemm_fwd", "bias_bwd"},
           .inputs = {{x}, {{hidden, x[-1]}}, {{out, hidden}}},
           .run =
               [](const auto& v) {
                 return v.size() > 3 ? mlp_gelu(v[0], v[1], v[3], v[2], v[4])
                                     : mlp_gelu(v[0], v[1], {}, v[2], {});
               },
           .flops = product_flops(x, hidden) *
                    (1 + static_cast<double>(out) / static_cast<double>(x[-1])),
           .bytes = 2 * product_bytes(x, hidden),
           .bf16_tolerance = 3e-4};
  if (with_bias) {
    c.inputs.push_back({{hidden}});
    c.inputs.push_back({{out}});
  } else {
    c.slots = {"gemm_fwd"};
  }
  return c;
}

OpCase matmul_case(const std::string& variant, const Shape& a, const Shape& b, bool trans_a = false,
                   bool trans_b = false) {
  return {.op = "matmul",
          .variant = variant,
          .slots = {"gemm_fwd"},
          .inputs = {{a}, {b}},
          .run = [trans_a, trans_b](const auto& v) { return matmul(v[0], v[1], trans_a, trans_b); },
          .flops = product_flops(a, b[trans_b ? -2 : -1]),
          .bytes = product_bytes(a, b[trans_b ? -2 : -1])};
}

OpCase large(OpCase c) {
  c.bench_only = true;
  return c;
}

void add_linear(std::vector<OpCase>& cases) {
  const std::vector<std::tuple<std::string, Shape, std::int64_t>> shapes{
      {"1 to 1", {1}, 1},          {"5 to 3", {5}, 3},
      {"3x4 to 7", {3, 4}, 7},     {"2x3x5 to 2", {2, 3, 5}, 2},
      {"17x9 to 33", {17, 9}, 33}, {"0x4 to 3", {0, 4}, 3},
      {"3x0 to 4", {3, 0}, 4},     {"3x4 to 0", {3, 4}, 0},
      {"1x16 to 16", {1, 16}, 16}, {"2x1x2x6 to 5", {2, 1, 2, 6}, 5}};
  for (const auto& [name, x, out] : shapes) {
    cases.push_back(linear_case(name, x, out));
    cases.push_back(linear_gelu_case(name, x, out));
  }
  cases.push_back(linear_case("6x5 to 4 no bias", {6, 5}, 4, false));
  cases.push_back(linear_gelu_case("6x5 to 4 no bias", {6, 5}, 4, false));
  for (const auto& [name, x, out] : {std::tuple{"1 to 1", Shape{1}, 1},
                                     {"2x3x8 to 16", Shape{2, 3, 8}, 16},
                                     {"33x5 to 7", Shape{33, 5}, 7},
                                     {"0x4 to 3", Shape{0, 4}, 3},
                                     {"4x0 to 3", Shape{4, 0}, 3},
                                     {"70x16 to 24", Shape{70, 16}, 24}}) {
    Shape y = x;
    y[-1] = out;
    cases.push_back(residual_case(linear_case(name, x, out), y));
  }
  cases.push_back(residual_case(linear_case("6x5 to 4 no bias", {6, 5}, 4, false), {6, 4}));
  cases.push_back(large(linear_case("768x384 to 1152", {768, 384}, 1152)));
  cases.push_back(large(linear_case("97x301 to 203", {97, 301}, 203)));
  cases.push_back(large(linear_case("16384x384 to 1536", {16384, 384}, 1536)));
  cases.push_back(large(linear_gelu_case("301x96 to 515", {301, 96}, 515)));
  cases.push_back(large(linear_gelu_case("16384x384 to 1536", {16384, 384}, 1536)));
}

void add_mlp(std::vector<OpCase>& cases) {
  cases.push_back(mlp_case("1 to 1 to 1", {1}, 1, 1));
  cases.push_back(mlp_case("3 to 4 to 2", {3}, 4, 2));
  cases.push_back(mlp_case("2x3 to 5 to 3", {2, 3}, 5, 3));
  cases.push_back(mlp_case("2x3x4 to 8 to 4", {2, 3, 4}, 8, 4));
  cases.push_back(mlp_case("9x5 to 17 to 6", {9, 5}, 17, 6));
  cases.push_back(mlp_case("0x4 to 8 to 4", {0, 4}, 8, 4));
  cases.push_back(mlp_case("2x4 to 0 to 3", {2, 4}, 0, 3));
  cases.push_back(mlp_case("2x3 to 5 to 3 no bias", {2, 3}, 5, 3, false));
  OpCase residual = mlp_case("2x3x8 to 16 to 24", {2, 3, 8}, 16, 24);
  residual.variant += " residual";
  residual.inputs.push_back({{2, 3, 24}});
  residual.run = [](const auto& v) { return mlp_gelu(v[0], v[1], v[3], v[2], v[4], v[5]); };
  cases.push_back(residual);
  cases.push_back(large(mlp_case("300x96 to 384 to 96", {300, 96}, 384, 96)));
  cases.push_back(large(mlp_case("768x128 to 512 to 128", {768, 128}, 512, 128)));
}

void add_matmul(std::vector<OpCase>& cases) {
  cases.push_back(matmul_case("1x1 by 1x1", {1, 1}, {1, 1}));
  cases.push_back(matmul_case("3x4 by 4x5", {3, 4}, {4, 5}));
  cases.push_back(matmul_case("4x3t by 4x5", {4, 3}, {4, 5}, true));
  cases.push_back(matmul_case("3x4 by 5x4t", {3, 4}, {5, 4}, false, true));
  cases.push_back(matmul_case("4x3t by 5x4t", {4, 3}, {5, 4}, true, true));
  cases.push_back(matmul_case("batch 2x3", {2, 3, 4, 5}, {2, 3, 5, 2}));
  cases.push_back(matmul_case("one right factor", {2, 3, 4, 5}, {5, 2}));
  cases.push_back(matmul_case("one right factor transposed", {3, 4, 5}, {2, 5}, false, true));
  cases.push_back(matmul_case("one left factor", {4, 5}, {3, 5, 2}));
  cases.push_back(matmul_case("left repeated", {2, 1, 3, 4}, {3, 4, 2}));
  cases.push_back(matmul_case("right repeated", {2, 3, 2, 4}, {2, 1, 4, 3}));
  cases.push_back(matmul_case("both repeated", {3, 1, 2, 4}, {1, 2, 4, 3}, false, false));
  cases.push_back(matmul_case("left repeated transposed", {1, 4, 3}, {3, 4, 2}, true));
  cases.push_back(matmul_case("no rows", {2, 0, 4}, {2, 4, 3}));
  cases.push_back(matmul_case("nothing to sum", {2, 3, 0}, {2, 0, 4}));
  cases.push_back(matmul_case("no batch", {0, 3, 4}, {4, 2}));
  cases.push_back(large(matmul_case("12 of 129x65 by 65x127", {12, 129, 65}, {12, 65, 127})));
}

Variable f32(const Shape& shape) { return Variable(Tensor::zeros(shape)); }

}  // namespace

OpFamily gemm_family() {
  OpFamily family{"gemm", {}, {}};
  add_linear(family.cases);
  add_mlp(family.cases);
  add_matmul(family.cases);
  family.errors = {
      {"weight of another width",
       [] {
         linear(f32({8, 64}), f32({32, 65}), {});
       },
       "ShapeError",
       "linear(x, weight, bias): weight: expected [out, 64] (in = x.shape[-1]), got [32, 65]; x is "
       "[8, 64]"},
      {"bias of another width",
       [] {
         linear_gelu(f32({8, 64}), f32({32, 64}), f32({64}));
       },
       "ShapeError",
       "linear_gelu(x, weight, bias): bias: expected [32] (= weight.shape[0]), got [64]; weight is "
       "[32, 64]"},
      {"residual of another shape",
       [] {
         linear(f32({8, 64}), f32({32, 64}), {}, f32({8, 64}));
       },
       "ShapeError",
       "linear(x, weight, bias): residual: expected [8, 32] (= rows of x, out), got [8, 64]"},
      {"weight of another dtype",
       [] {
         linear(f32({8, 4}), Variable(Tensor::zeros({2, 4}, DType::f64)), {});
       },
       "DTypeError", "linear(x, weight, bias): weight: expected dtype f32, got f64"},
      {"integer x",
       [] {
         linear(Variable(Tensor::arange(4)), f32({2, 4}), {});
       },
       "DTypeError", "linear(x, weight, bias): x: expected dtype f64, f32 or bf16, got i64"},
      {"inner sizes differ",
       [] {
         matmul(f32({2, 3, 4}), f32({5, 6}));
       },
       "ShapeError",
       "matmul(a, b): b: expected [..., 4, N] (K = a.shape[-1]), got [5, 6]; a is [2, 3, 4]"},
      {"a vector",
       [] {
         matmul(f32({4}), f32({4, 2}));
       },
       "ShapeError", "matmul(a, b): a: expected [..., M, K], got [4]"},
      {"batches differ",
       [] {
         matmul(f32({2, 3, 4}), f32({3, 4, 2}));
       },
       "ShapeError", "matmul(a, b): shapes [2] and [3] do not broadcast"},
      {"output of another shape",
       [] {
         ops::gemm_into(Tensor::zeros({3, 2}), Tensor::zeros({3, 4}), Tensor::zeros({4, 3}));
       },
       "ShapeError", "gemm_into(c, a, b): c: expected [3, 3]"},
  };
  return family;
}

}  // namespace proteus::testing
