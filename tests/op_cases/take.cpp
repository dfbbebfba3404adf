#include "autograd/take.h"

#include "tests/op_cases/families.h"

namespace proteus::testing {
namespace {

// Every row about taken / rows times, row 0 three times as often, the last row never.
RowIndex index_of(std::int64_t rows, std::int64_t taken, Device device) {
  std::vector<std::int32_t> row;
  for (std::int64_t i = 0; i < taken; ++i) {
    const std::int64_t r = i % 4 == 3 ? 0 : i * 7 % std::max<std::int64_t>(1, rows - 1);
    row.push_back(static_cast<std::int32_t>(r));
  }
  return ops::row_index(Tensor::from_data<std::int32_t>(row, {taken}, device), rows);
}

OpCase take_case(std::int64_t rows, std::int64_t taken, std::int64_t C) {
  std::vector<std::string> slots{"rows_sum"};
  if (taken > 0) slots.emplace_back("rows_gather");
  return {
      .op = "take_rows",
      .variant = std::to_string(taken) + " of " + std::to_string(rows) + "x" + std::to_string(C),
      .slots = slots,
      .inputs = {{{rows, C}}},
      .run = [=](const auto& v) { return take_rows(v[0], index_of(rows, taken, v[0].device())); },
      .bytes = 8.0 * static_cast<double>(taken * C)};
}

}  // namespace

OpFamily take_family() {
  OpFamily family{"take", {}, {}};
  family.cases = {take_case(1, 1, 1),   take_case(5, 13, 3),  take_case(4, 4, 2),
                  take_case(300, 9, 4), take_case(3, 0, 2),   take_case(2, 90, 7),
                  take_case(70, 70, 1), take_case(13, 64, 64)};
  OpCase large = take_case(32768, 131072, 64);
  large.bench_only = true;
  family.cases.push_back(large);
  family.errors = {
      {"a row out of range",
       [] {
         ops::row_index(Tensor::from({0, 2, 3}, {3}, DType::i32), 3);
       },
       "ConfigError", "row_index(row, rows): row: expected rows in [0, 3), got 3 at 2"},
      {"rows that are not i32", [] { ops::row_index(Tensor::zeros({2}, DType::i64), 3); },
       "DTypeError", "row_index(row, rows): row: expected dtype i32, got i64"},
      {"an index of two dimensions",
       [] {
         ops::row_index(Tensor::zeros({2, 1}, DType::i32), 3);
       },
       "ShapeError", "row: expected [n], got [2, 1]"},
      {"x of other rows",
       [] {
         take_rows(Variable(Tensor::zeros({5, 2})), index_of(4, 6, kCpu));
       },
       "ShapeError", "take_rows(x, index): x: expected [4, C] (= rows of the index), got [5, 2]"},
      {"y of other rows",
       [] {
         ops::sum_rows(Tensor::zeros({5, 2}), index_of(4, 6, kCpu));
       },
       "ShapeError", "sum_rows(y, index): y: expected [6, C] (= rows taken), got [5, 2]"},
  };
  return family;
}

}  // namespace proteus::testing
