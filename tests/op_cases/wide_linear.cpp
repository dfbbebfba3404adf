#include "tensor/ops/wide_linear.h"

#include "autograd/gemm.h"
#include "tests/op_cases/families.h"

namespace proteus::testing {
namespace {

OpCase wide_case(const std::string& variant, const Shape& x, std::int64_t out) {
  const double rows = static_cast<double>(x.numel()) / static_cast<double>(x[-1]);
  return {.op = "wide_linear",
          .variant = variant,
          .slots = {"wide_linear_fwd", "wide_linear_bwd"},
          .inputs = {{x}, {.shape = {out, x[-1]}, .accumulation = true}},
          .run = [](const auto& v) { return wide_linear(v[0], v[1]); },
          .flops = 2.0 * static_cast<double>(x.numel() * out),
          .bytes = 4.0 * (static_cast<double>(x.numel()) + rows * static_cast<double>(out))};
}

}  // namespace

OpFamily wide_linear_family() {
  OpFamily family{"wide_linear", {}, {}};
  family.cases = {
      wide_case("1x1", {1, 1}, 1),          wide_case("3x2", {3, 2}, 5),
      wide_case("2x5x7", {2, 5, 7}, 3),     wide_case("0x4 empty", {0, 4}, 3),
      wide_case("17x13 odd", {17, 13}, 11), wide_case("5x64", {5, 64}, 1),
      wide_case("2x3x16", {2, 3, 16}, 8),   wide_case("67x32 more rows", {67, 32}, 16),
      wide_case("3x64", {3, 64}, 2),        wide_case("130x64", {130, 64}, 4),
      wide_case("2x128", {2, 128}, 70),
  };
  for (OpCase large : {wide_case("1x4096x512", {1, 4096, 512}, 64),
                       wide_case("300x40", {300, 40}, 24), wide_case("300x448", {300, 448}, 130)}) {
    large.bench_only = true;
    family.cases.push_back(large);
  }
  family.errors = {
      {"weight of another width",
       [] {
         ops::wide_linear(Tensor::zeros({2, 3}), Tensor::zeros({4, 2}));
       },
       "ShapeError",
       "wide_linear(x, weight): weight: expected [out, in] with in = x.shape[-1], got [4, 2]; x is "
       "[2, 3]"},
      {"weight as narrow as x",
       [] {
         ops::wide_linear(Tensor::zeros({2, 3}, DType::bf16), Tensor::zeros({4, 3}, DType::bf16));
       },
       "DTypeError", "wide_linear(x, weight): weight: expected dtype f32, got bf16"},
  };
  return family;
}

}  // namespace proteus::testing
