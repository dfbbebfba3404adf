#include "tensor/ops/bank.h"

#include "autograd/variable.h"
#include "tests/op_cases/families.h"

namespace proteus::testing {
namespace {

struct Sizes {
  std::string name;
  std::int64_t streams, entries, strides, M, D, gates, anchors;
  BankEviction eviction = BankEviction::score;
};

// Keys and values of few directions, a multiple of one of four each, so that many are alike and
// none is near the limit; the rows of a stream leave its window evenly.
OpCase select_case(const Sizes& s) {
  const std::int64_t rows = s.streams * s.entries;
  return {
      .op = "bank_select",
      .variant = s.name,
      .slots = s.strides > 0 ? std::vector<std::string>{"bank_select"} : std::vector<std::string>{},
      .inputs = {{.shape = {rows, s.gates}, .differentiable = false, .accumulation = true},
                 {.shape = {rows}, .differentiable = false, .accumulation = true}},
      .run =
          [s, rows](const auto& v) {
            const Device device = v[0].device();
            Tensor k = Tensor::zeros({rows, s.D}, DType::f64);
            for (std::int64_t r = 0; r < rows; ++r) {
              k.data<double>()[r * s.D + r * 5 % std::min<std::int64_t>(4, s.D)] = 1 + r % 3;
            }
            Tensor offsets = Tensor::empty({s.streams + 1}, DType::i32);
            Tensor first = Tensor::empty({s.streams, s.strides}, DType::i32);
            for (std::int64_t i = 0; i <= s.streams; ++i) {
              offsets.data<std::int32_t>()[i] = static_cast<std::int32_t>(i * s.entries);
            }
            for (std::int64_t i = 0; i < s.streams * s.strides; ++i) {
              first.data<std::int32_t>()[i] =
                  static_cast<std::int32_t>(i % s.strides * s.entries / s.strides);
            }
            const Tensor rotated = k.to(v[0].dtype()).to(device);
            return Variable(ops::bank_select({rotated, rotated, v[0].value(), v[1].value()},
                                             offsets.to(device), first.to(device), s.M, s.anchors,
                                             1, {.delta = 0.5, .eviction = s.eviction, .seed = 3})
                                .to(v[0].dtype()));
          },
      .flops = 4.0 * static_cast<double>(rows * s.M * s.D),
      .bytes = 8.0 * static_cast<double>(rows * s.D)};
}

ops::BankRows rows_of(std::int64_t rows, std::int64_t D) {
  return {Tensor::zeros({rows, D}), Tensor::zeros({rows, D}), Tensor::zeros({rows, 2}),
          Tensor::zeros({rows})};
}

}  // namespace

OpFamily bank_family() {
  OpFamily family{"bank", {}, {}};
  for (const Sizes& s :
       std::vector<Sizes>{{"one entry", 1, 1, 2, 1, 2, 1, 0},
                          {"no strides", 2, 3, 0, 2, 2, 1, 0},
                          {"no streams", 0, 3, 4, 2, 2, 1, 0},
                          {"no entries", 3, 0, 4, 2, 2, 1, 0},
                          {"3 streams", 3, 40, 7, 4, 5, 3, 1},
                          {"more slots than entries", 2, 9, 5, 32, 4, 2, 2},
                          {"64 wide", 5, 130, 13, 8, 64, 4, 0},
                          {"one gate", 2, 70, 9, 3, 8, 1, 4},
                          {"fifo", 2, 70, 9, 3, 8, 2, 1, BankEviction::fifo},
                          {"random", 2, 70, 9, 3, 8, 2, 1, BankEviction::random}}) {
    family.cases.push_back(select_case(s));
  }
  OpCase large = select_case({"large", 16, 8192, 64, 32, 64, 4, 4});
  large.bench_only = true;
  family.cases.push_back(large);
  const auto numbers = [](const Shape& shape) { return Tensor::zeros(shape, DType::i32); };
  family.errors = {
      {"v of other rows",
       [=] {
         ops::BankRows rows = rows_of(4, 2);
         rows.v = Tensor::zeros({3, 2});
         ops::bank_select(rows, numbers({2}), numbers({1, 1}), 2, 0, 1, {});
       },
       "ShapeError",
       "bank_select(rows, offsets, first, M): v: expected [4, 2] (= k.shape), got [3, 2]"},
      {"share of other rows",
       [=] {
         ops::BankRows rows = rows_of(4, 2);
         rows.share = Tensor::zeros({3, 2});
         ops::bank_select(rows, numbers({2}), numbers({1, 1}), 2, 0, 1, {});
       },
       "ShapeError", "share: expected [4, gates] (= rows of k), got [3, 2]"},
      {"scores of another dtype",
       [=] {
         ops::BankRows rows = rows_of(4, 2);
         rows.score = Tensor::zeros({4}, DType::f64);
         ops::bank_select(rows, numbers({2}), numbers({1, 1}), 2, 0, 1, {});
       },
       "DTypeError", "score: expected dtype f32, got f64"},
      {"no slots",
       [=] {
         ops::bank_select(rows_of(4, 2), numbers({2}), numbers({1, 1}), 0, 0, 1, {});
       },
       "ConfigError", "M, anchors, sequences: expected at least 1, 0 and 1, got 0, 0 and 1"},
      {"first of other streams",
       [=] {
         ops::bank_select(rows_of(4, 2), numbers({3}), numbers({1, 1}), 2, 0, 1, {});
       },
       "ShapeError", "first: expected [2, strides] (= streams of offsets), got [1, 1]"},
  };
  return family;
}

}  // namespace proteus::testing
