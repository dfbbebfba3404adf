#include "autograd/rope.h"

#include "tests/op_cases/families.h"

namespace proteus::testing {
namespace {

OpCase rope_case(const std::string& variant, const Shape& x, std::int64_t width,
                 std::int64_t bound) {
  return {.op = "rope",
          .variant = variant,
          .slots = {"rope_fwd"},
          .inputs = {{x}, {.shape = {x[0]}, .fill = Fill::index, .bound = bound}},
          .run = [width](const auto& v) { return rope(v[0], v[1].value(), width); },
          .bytes = 8.0 * static_cast<double>(x.numel())};
}

OpCase sequence_case(const std::string& variant, const Shape& x, std::int64_t width,
                     std::int64_t first = 0) {
  return {.op = "rope",
          .variant = variant + " sequence",
          .slots = {"rope_fwd"},
          .inputs = {{x}},
          .run = [width, first](const auto& v) { return rope(v[0], width, first); },
          .bytes = 8.0 * static_cast<double>(x.numel())};
}

OpCase qkv_case(const std::string& variant, const Shape& qkv, std::int64_t width,
                std::int64_t first = 0) {
  return {.op = "rope_qkv",
          .variant = variant,
          .slots = {"rope_fwd"},
          .inputs = {{qkv}},
          .run = [width, first](const auto& v) { return rope_qkv(v[0], width, first); },
          .bytes = 8.0 * static_cast<double>(qkv.numel())};
}

}  // namespace

OpFamily rope_family() {
  OpFamily family{"rope", {}, {}};
  family.cases = {
      rope_case("1x1x2", {1, 1, 2}, 2, 5),
      rope_case("3x2x4", {3, 2, 4}, 4, 9),
      rope_case("3x2x4 half", {3, 2, 4}, 2, 9),
      rope_case("5x1x7 odd width", {5, 1, 7}, 6, 100),
      rope_case("4x3x6 none", {4, 3, 6}, 0, 9),
      rope_case("0x2x4 empty", {0, 2, 4}, 4, 9),
      rope_case("33x1x8 far", {33, 1, 8}, 8, 1000000),
      rope_case("2x5x10", {2, 5, 10}, 4, 300),
      rope_case("37x16 rows", {37, 16}, 8, 5000),
      rope_case("1x2 rows", {1, 2}, 2, 3),
      sequence_case("1x1x1x2", {1, 1, 1, 2}, 2),
      sequence_case("2x5x3x4", {2, 5, 3, 4}, 4),
      sequence_case("2x5x3x6 half", {2, 5, 3, 6}, 2, 99),
      sequence_case("1x33x2x8 before 0", {1, 33, 2, 8}, 8, -5),
      sequence_case("2x0x3x4 empty", {2, 0, 3, 4}, 4),
      qkv_case("1x1x1x2", {1, 1, 3, 1, 2}, 2),
      qkv_case("2x5x2x4", {2, 5, 3, 2, 4}, 4),
      qkv_case("2x5x2x4 half", {2, 5, 3, 2, 4}, 2),
      qkv_case("1x3x1x6 later", {1, 3, 3, 1, 6}, 6, 12345),
      qkv_case("0x3x1x6 empty", {0, 3, 3, 1, 6}, 6),
      qkv_case("3x2x3x2", {3, 2, 3, 3, 2}, 2),
      qkv_case("1x40x1x4", {1, 40, 3, 1, 4}, 4),
      qkv_case("2x1x2x8", {2, 1, 3, 2, 8}, 6, 7),
      qkv_case("1x7x1x4 negative", {1, 7, 3, 1, 4}, 4, -3),
      qkv_case("2x3x1x5 odd width", {2, 3, 3, 1, 5}, 4),
  };
  OpCase large = qkv_case("64x256x6x64", {64, 256, 3, 6, 64}, 64);
  large.bench_only = true;
  family.cases.push_back(large);
  const auto call = [](std::int64_t width, std::int64_t rows) {
    rope(Variable(Tensor::zeros({3, 2, 6})), Tensor::zeros({rows}, DType::i32), width);
  };
  family.errors = {
      {"odd width", [call] { call(3, 3); }, "ConfigError",
       "rope(x, positions, R): R: expected an even number from 0 to 6 (= x.shape[-1]), got 3"},
      {"width beyond D", [call] { call(8, 3); }, "ConfigError", "got 8"},
      {"negative width", [call] { call(-2, 3); }, "ConfigError", "got -2"},
      {"too few positions", [call] { call(2, 2); }, "ShapeError",
       "rope(x, positions, R): positions: expected [3] (= x.shape[0]), got [2]"},
      {"positions that are not i32",
       [] {
         rope(Variable(Tensor::zeros({3, 6})), Tensor::arange(3), 2);
       },
       "DTypeError", "rope(x, positions, R): positions: expected dtype i32, got i64"},
      {"x without heads",
       [] {
         rope(Variable(Tensor::zeros({2, 3, 4})), 2);
       },
       "ShapeError", "rope(x, R): x: expected [B, T, H, D], got [2, 3, 4]"},
      {"qkv of two",
       [] {
         rope_qkv(Variable(Tensor::zeros({2, 3, 2, 1, 4})), 2);
       },
       "ShapeError", "x: expected [B, T, H, D] or [B, T, 3, H, D], got [2, 3, 2, 1, 4]"},
      {"integer x",
       [] {
         rope(Variable(Tensor::zeros({1, 1, 1, 2}, DType::i32)), 2);
       },
       "DTypeError", "rope(x, R): x: expected dtype f64, f32 or bf16, got i32"},
      {"base of zero",
       [] {
         rope(Variable(Tensor::zeros({1, 1, 1, 2})), 2, 0, 0.0);
       },
       "ConfigError", "base: expected a positive number, got 0"},
  };
  return family;
}

}  // namespace proteus::testing
