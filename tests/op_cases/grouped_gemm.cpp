#include "autograd/grouped_gemm.h"

#include <vector>

#include "autograd/elementwise.h"
#include "tests/op_cases/families.h"

namespace proteus::testing {
namespace {

/// What the rows of a case are made from.
struct Packing {
  std::int64_t sequences = 1, tokens = 1, groups = 1, slots = 1;
};

// Ascending heads by a fixed rule: some groups stay empty, some tokens have fewer heads or none.
PackedRows packed(const Packing& p, Device device) {
  std::vector<std::int32_t> heads;
  for (std::int64_t n = 0; n < p.sequences * p.tokens; ++n) {
    const auto start = heads.size();
    const auto end = start + static_cast<std::size_t>(p.slots);
    for (std::int64_t h = n % 3; h < p.groups && heads.size() < end; h += 1 + (n + h) % 2) {
      if ((n * 7 + h * 5) % 11 != 3) heads.push_back(static_cast<std::int32_t>(h));
    }
    heads.resize(end, -1);
  }
  const Tensor table =
      Tensor::from_data<std::int32_t>(heads, {p.sequences * p.tokens, p.slots}, device);
  return ops::pack_rows(table, p.groups, p.sequences);
}

double flops(const Packing& p, std::int64_t C, std::int64_t D) {
  return 2.0 * static_cast<double>(packed(p, kCpu).rows() * C * D);
}

OpCase linear_case(const std::string& variant, const Packing& p, std::int64_t C, std::int64_t D) {
  return {
      .op = "grouped_linear",
      .variant = variant,
      .slots = {"grouped_gather", "grouped_scatter", "grouped_weight"},
      .inputs = {{{p.sequences * p.tokens, C}}, {{p.groups, C, D}}},
      .run = [p](const auto& v) { return grouped_linear(v[0], v[1], packed(p, v[0].device())); },
      .flops = flops(p, C, D),
      .bytes = 4.0 * static_cast<double>(packed(p, kCpu).rows() * (C + D))};
}

OpCase combine_case(const std::string& variant, const Packing& p, std::int64_t D, std::int64_t C) {
  return {
      .op = "grouped_combine",
      .variant = variant,
      .slots = {"grouped_gather", "grouped_scatter", "grouped_weight"},
      .inputs = {{{packed(p, kCpu).rows(), D}}, {{p.groups, D, C}}},
      .run = [p](const auto& v) { return grouped_combine(v[0], v[1], packed(p, v[0].device())); },
      .flops = flops(p, C, D),
      .bytes = 4.0 * static_cast<double>(packed(p, kCpu).rows() * (C + D))};
}

// Every token begins with a row of its own.
OpCase base_case(const std::string& variant, const Packing& p, std::int64_t D, std::int64_t C) {
  OpCase c = combine_case(variant + ", with a base", p, D, C);
  c.inputs.push_back({{p.sequences * p.tokens, C}});
  c.run = [p](const auto& v) {
    const Variable& base = v[2];
    return grouped_combine(v[0], v[1], packed(p, v[0].device()), base);
  };
  return c;
}

// The result takes the memory of the base.
OpCase own_base_case(const std::string& variant, const Packing& p, std::int64_t D, std::int64_t C) {
  OpCase c = base_case(variant, p, D, C);
  c.variant += " of its own";
  c.run = [p](const auto& v) {
    return grouped_combine(v[0], v[1], packed(p, v[0].device()), scale(v[2], 2));
  };
  return c;
}

OpCase large(OpCase c) {
  c.bench_only = true;
  return c;
}

}  // namespace

OpFamily grouped_gemm_family() {
  OpFamily family{"grouped_gemm", {}, {}};
  const std::vector<std::tuple<std::string, Packing, std::int64_t, std::int64_t>> cases{
      {"one of all", {1, 1, 1, 1}, 1, 1},    {"2 groups", {1, 5, 2, 1}, 3, 2},
      {"2 sequences", {2, 4, 3, 2}, 5, 4},   {"9 groups, few rows", {2, 3, 9, 2}, 4, 3},
      {"many rows", {1, 40, 2, 2}, 3, 5},    {"columns of 17", {2, 6, 4, 2}, 6, 17},
      {"depth of 33", {1, 7, 3, 3}, 33, 4},  {"3 sequences", {3, 5, 6, 3}, 8, 8},
      {"width 0", {1, 4, 2, 1}, 3, 0},       {"depth 0", {1, 4, 2, 1}, 0, 3},
      {"whole words", {2, 20, 3, 2}, 16, 24}};
  for (const auto& [name, p, C, D] : cases) {
    family.cases.push_back(linear_case(name, p, C, D));
    family.cases.push_back(combine_case(name, p, D, C));
    family.cases.push_back(base_case(name, p, D, C));
    family.cases.push_back(own_base_case(name, p, D, C));
  }
  family.cases.push_back(large(linear_case("many blocks", {3, 130, 5, 2}, 70, 40)));
  family.cases.push_back(large(combine_case("many blocks", {3, 130, 5, 2}, 40, 150)));
  family.cases.push_back(large(linear_case("baby", {64, 256, 16, 2}, 384, 64)));
  family.cases.push_back(large(combine_case("baby", {64, 256, 16, 2}, 64, 384)));
  family.errors = {
      {"x of another number of tokens",
       [] {
         grouped_linear(Variable(Tensor::zeros({5, 4})), Variable(Tensor::zeros({2, 4, 3})),
                        packed({1, 6, 2, 1}, kCpu));
       },
       "ShapeError",
       "grouped_gather(x, w, rows): x: expected [6, width] (tokens of the rows), got [5, 4]"},
      {"weight of another number of groups",
       [] {
         grouped_linear(Variable(Tensor::zeros({6, 4})), Variable(Tensor::zeros({3, 4, 3})),
                        packed({1, 6, 2, 1}, kCpu));
       },
       "ShapeError", "grouped_gather(x, w, rows): w: expected [2, 4, N]"},
      {"weight of another dtype",
       [] {
         grouped_linear(Variable(Tensor::zeros({6, 4})),
                        Variable(Tensor::zeros({2, 4, 3}, DType::f64)), packed({1, 6, 2, 1}, kCpu));
       },
       "DTypeError", "grouped_gather(x, w, rows): w: expected dtype f32, got f64"},
  };
  return family;
}

}  // namespace proteus::testing
