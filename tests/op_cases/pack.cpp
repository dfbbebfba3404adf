#include "autograd/pack.h"

#include <algorithm>

#include "tests/op_cases/families.h"

namespace proteus::testing {
namespace {

// Some heads for every token, ascending; every third token has one fewer.
PackedRows rows_of(std::int64_t tokens, std::int64_t slots, std::int64_t groups,
                   std::int64_t sequences, Device device) {
  Tensor heads = Tensor::full({tokens, slots}, -1, DType::i32);
  for (std::int64_t t = 0; t < tokens; ++t) {
    const std::int64_t count = std::min(groups, slots - (t % 3 == 0 ? 1 : 0));
    for (std::int64_t s = 0; s < count; ++s) {
      const std::int64_t spread = (groups - count) * ((t * 7) % 5) / 5;
      heads.data<std::int32_t>()[t * slots + s] = static_cast<std::int32_t>(s + spread);
    }
  }
  return ops::pack_rows(heads.to(device), groups, sequences);
}

struct Sizes {
  std::string name;
  std::int64_t tokens, slots, groups, sequences, C;
};

OpCase gather_case(const Sizes& s) {
  return {.op = "gather_rows",
          .variant = s.name,
          .slots = {"pack_rows", "rows_gather", "rows_combine"},
          .inputs = {{{s.tokens, s.C}}},
          .run =
              [s](const auto& v) {
                return gather_rows(
                    v[0], rows_of(s.tokens, s.slots, s.groups, s.sequences, v[0].device()));
              },
          .bytes = 8.0 * static_cast<double>(s.tokens * s.slots * s.C)};
}

OpCase combine_case(const Sizes& s) {
  const std::int64_t rows = rows_of(s.tokens, s.slots, s.groups, s.sequences, kCpu).rows();
  return {.op = "combine_rows",
          .variant = s.name,
          .slots = {"pack_rows", "rows_gather", "rows_combine"},
          .inputs = {{{rows, s.C}}},
          .run =
              [s](const auto& v) {
                return combine_rows(
                    v[0], rows_of(s.tokens, s.slots, s.groups, s.sequences, v[0].device()));
              },
          .bytes = 8.0 * static_cast<double>(rows * s.C)};
}

OpCase slots_case(const Sizes& s) {
  return {.op = "gather_slots",
          .variant = s.name,
          .slots = {"pack_rows", "slots_gather", "slots_scatter"},
          .inputs = {{{s.tokens, s.groups}}},
          .run =
              [s](const auto& v) {
                return gather_slots(
                    v[0], rows_of(s.tokens, s.slots, s.groups, s.sequences, v[0].device()));
              },
          .bytes = 8.0 * static_cast<double>(s.tokens * s.slots)};
}

// Packing alone: row_of as numbers, without gradient.
OpCase pack_case(const std::string& variant, const Sizes& s) {
  return {.op = "pack_rows",
          .variant = variant,
          .slots = {"pack_rows"},
          .inputs = {{.shape = {1}, .differentiable = false}},
          .run =
              [s](const auto& v) {
                const Device device = v[0].device();
                const PackedRows rows = rows_of(s.tokens, s.slots, s.groups, s.sequences, device);
                return Variable(rows.row_of.to(v[0].dtype()));
              },
          .bytes = 12.0 * static_cast<double>(s.tokens * s.slots),
          .bf16_tolerance = 1e-2};
}

}  // namespace

OpFamily pack_family() {
  OpFamily family{"pack", {}, {}};
  const std::vector<Sizes> sizes{{"1 token", 1, 2, 3, 1, 4},      {"6 tokens", 6, 2, 4, 1, 3},
                                 {"2 sequences", 10, 3, 5, 2, 2}, {"3 sequences", 12, 2, 2, 3, 5},
                                 {"empty heads", 7, 2, 16, 1, 1}, {"no tokens", 0, 2, 3, 1, 4},
                                 {"one slot", 9, 1, 4, 3, 2},     {"70 tokens", 70, 2, 3, 2, 3}};
  for (const Sizes& s : sizes) {
    family.cases.push_back(gather_case(s));
    family.cases.push_back(combine_case(s));
    family.cases.push_back(slots_case(s));
    if (s.tokens > 0) family.cases.push_back(pack_case(s.name, s));
  }
  const Sizes large{"large", 16384, 2, 16, 64, 384};
  for (OpCase c : {gather_case(large), combine_case(large), slots_case(large)}) {
    c.bench_only = true;
    family.cases.push_back(c);
  }
  family.errors = {
      {"tokens that are not whole sequences",
       [] {
         ops::pack_rows(Tensor::zeros({5, 2}, DType::i32), 3, 2);
       },
       "ShapeError", "heads: expected [N, k] with N a multiple of 2 sequences, got [5, 2]"},
      {"head out of range",
       [] {
         ops::pack_rows(Tensor::full({4, 1}, 3, DType::i32), 3, 1);
       },
       "ConfigError",
       "pack_rows(heads, groups, sequences): heads: expected ascending heads in [0, 3) and then "
       "only "
       "-1, got [3] at token 0"},
      {"heads out of order",
       [] {
         ops::pack_rows(Tensor::from({0, 1, 2, -1, 1, 0}, {3, 2}, DType::i32), 3, 1);
       },
       "ConfigError", "got [1, 0] at token 2"},
      {"a head twice",
       [] {
         ops::pack_rows(Tensor::from({1, 1}, {1, 2}, DType::i32), 3, 1);
       },
       "ConfigError", "got [1, 1] at token 0"},
      {"an empty slot before a head",
       [] {
         ops::pack_rows(Tensor::from({-1, 1}, {1, 2}, DType::i32), 3, 1);
       },
       "ConfigError", "got [-1, 1] at token 0"},
      {"heads that are not i32",
       [] {
         ops::pack_rows(Tensor::zeros({2, 1}, DType::i64), 3, 1);
       },
       "DTypeError", "heads: expected dtype i32, got i64"},
      {"no groups",
       [] {
         ops::pack_rows(Tensor::zeros({2, 1}, DType::i32), 0, 1);
       },
       "ShapeError", "groups, sequences: expected at least 1, got 0 and 1"},
      {"x of other tokens",
       [] {
         gather_rows(Variable(Tensor::zeros({5, 2})), rows_of(6, 2, 4, 1, kCpu));
       },
       "ShapeError", "gather_rows(x, rows): x: expected [6, C] (= tokens of the rows), got [5, 2]"},
      {"y of other rows",
       [] {
         combine_rows(Variable(Tensor::zeros({6, 2})), rows_of(6, 2, 4, 1, kCpu));
       },
       "ShapeError", "combine_rows(y, rows): y: expected [10, C] (= packed rows), got [6, 2]"},
      {"z of other heads",
       [] {
         gather_slots(Variable(Tensor::zeros({6, 5})), rows_of(6, 2, 4, 1, kCpu));
       },
       "ShapeError",
       "gather_slots(z, rows): z: expected [6, 4] (= tokens and heads of the rows), got [6, 5]"},
  };
  return family;
}

}  // namespace proteus::testing
