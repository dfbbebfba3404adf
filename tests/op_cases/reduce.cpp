#include "autograd/reduce.h"

#include "tests/op_cases/families.h"

namespace proteus::testing {
namespace {

struct Reduction {
  Shape x;
  std::vector<int> dims;
  bool keepdim = false;
};

std::string name_of(const Reduction& r) {
  std::string text = to_string(r.x) + " dims";
  for (const int d : r.dims) text.append(1, ' ').append(std::to_string(d));
  return text + (r.keepdim ? " kept" : "");
}

using Reduce = Variable (*)(const Variable&, const std::vector<int>&, bool);

OpCase reduce_case(const std::string& op, Reduce f, const Reduction& r) {
  OpCase c{.op = op,
           .variant = name_of(r),
           .slots = {"sum_fwd"},
           .inputs = {{r.x}},
           .run = [f, r](const auto& v) { return f(v[0], r.dims, r.keepdim); },
           .flops = static_cast<double>(r.x.numel()),
           .bytes = 4 * static_cast<double>(r.x.numel())};
  if (op == "max") c.slots = {"max_fwd", "max_bwd"};
  if (op != "max" && r.x.rank() == 0) c.slots = {};
  return c;
}

Variable f32(const Shape& shape) { return Variable(Tensor::zeros(shape)); }

}  // namespace

OpFamily reduce_family() {
  OpFamily family{"reduce", {}, {}};
  const std::vector<std::pair<std::string, Reduce>> ops{{"sum", sum}, {"mean", mean}, {"max", max}};
  for (const auto& [name, f] : ops) {
    for (const Reduction& r : std::vector<Reduction>{{{}, {}},
                                                     {{5}, {}},
                                                     {{1, 1}, {0}},
                                                     {{3, 4}, {0}},
                                                     {{3, 4}, {1}, true},
                                                     {{2, 3, 4}, {-1}},
                                                     {{2, 3, 4}, {1}, true},
                                                     {{2, 3, 4}, {0, 2}},
                                                     {{2, 3, 4, 2}, {3, 1}, true},
                                                     {{2, 1, 3}, {0, 1, 2}},
                                                     {{0, 3}, {1}},
                                                     {{70, 9}, {0}},
                                                     {{3, 600}, {1}}}) {
      family.cases.push_back(reduce_case(name, f, r));
    }
    for (const Reduction& r :
         std::vector<Reduction>{{{2048, 1000}, {}}, {{2048, 1000}, {0}}, {{2048, 1000}, {1}}}) {
      OpCase c = reduce_case(name, f, r);
      c.bench_only = true;
      family.cases.push_back(c);
    }
    if (name != "max") {
      family.cases.push_back(reduce_case(name, f, {{0, 3}, {1}, true}));
    }
  }
  family.cases.push_back(reduce_case("sum", sum, {{0, 3}, {0}}));
  family.errors = {
      {"sum over no dimension",
       [] {
         sum(f32({2, 3}), {2});
       },
       "ShapeError", "sum(x, dims): dim: expected -2 to 1, got 2"},
      {"mean over one dimension twice",
       [] {
         mean(f32({2, 3}), {1, -1});
       },
       "ShapeError", "mean(x, dims): dims: dimension -1 named twice"},
      {"sum of integers", [] { sum(Variable(Tensor::arange(3))); }, "DTypeError",
       "sum(x, dims): x: expected dtype f64, f32 or bf16, got i64"},
      {"max of nothing",
       [] {
         max(f32({3, 0}), {1});
       },
       "ShapeError", "max(x, dims): x: [3, 0] has no elements to compare"},
  };
  return family;
}

}  // namespace proteus::testing
