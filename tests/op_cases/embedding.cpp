#include "autograd/embedding.h"

#include "tests/op_cases/families.h"

namespace proteus::testing {
namespace {

OpCase embedding_case(const std::string& variant, std::int64_t V, std::int64_t C,
                      const Shape& ids) {
  return {.op = "embedding",
          .variant = variant,
          .slots = {"embedding_fwd", "embedding_bwd"},
          .inputs = {{{V, C}}, {.shape = ids, .fill = Fill::index, .bound = V}},
          .run = [](const auto& v) { return embedding(v[0], v[1].value()); },
          .bytes = 8.0 * static_cast<double>(ids.numel() * C)};
}

}  // namespace

OpFamily embedding_family() {
  OpFamily family{"embedding", {}, {}};
  family.cases = {
      embedding_case("1x1", 1, 1, {1}),
      embedding_case("5x3 by 4", 5, 3, {4}),
      embedding_case("7x2 by 2x3", 7, 2, {2, 3}),
      embedding_case("3x70 by 100", 3, 70, {100}),
      embedding_case("4x8 by one id", 4, 8, {}),
      embedding_case("6x4 by none", 6, 4, {0}),
      embedding_case("11x5 by 2x3x2", 11, 5, {2, 3, 2}),
      embedding_case("2x129 by 9", 2, 129, {9}),
  };
  OpCase large = embedding_case("50257x384 by 16384", 50257, 384, {16384});
  large.bench_only = true;
  family.cases.push_back(large);
  const auto call = [](std::initializer_list<double> ids, DType dtype) {
    embedding(Variable(Tensor::zeros({4, 2})),
              Tensor::from(ids, {static_cast<std::int64_t>(ids.size())}, dtype));
  };
  family.errors = {
      {"id too large",
       [call] {
         call({0, 3, 4}, DType::i32);
       },
       "ConfigError",
       "embedding(weight, ids): ids: expected 0 to 3 (weight has 4 rows), got 4 at [2]"},
      {"id negative", [call] { call({-1}, DType::i64); }, "ConfigError", "got -1 at [0]"},
      {"ids not integers", [call] { call({1}, DType::f32); }, "DTypeError",
       "embedding(weight, ids): ids: expected dtype i32 or i64, got f32"},
      {"place of an id",
       [] {
         const Tensor ids = Tensor::zeros({2, 3}, DType::i32);
         ids.data<std::int32_t>()[5] = 9;
         embedding(Variable(Tensor::zeros({4, 2})), ids);
       },
       "ConfigError", "got 9 at [1, 2]"},
      {"weight that is no table",
       [] { embedding(Variable(Tensor::zeros({4})), Tensor::zeros({1}, DType::i32)); },
       "ShapeError", "embedding(weight, ids): weight: expected [V, C], got [4]"},
      {"integer weight",
       [] {
         embedding(Variable(Tensor::zeros({4, 2}, DType::i64)), Tensor::zeros({1}, DType::i32));
       },
       "DTypeError", "embedding(weight, ids): weight: expected dtype f64, f32 or bf16, got i64"},
  };
  return family;
}

}  // namespace proteus::testing
