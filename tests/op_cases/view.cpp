#include "autograd/view.h"

#include "autograd/elementwise.h"
#include "tests/op_cases/families.h"

namespace proteus::testing {
namespace {

using Run = std::function<Variable(const std::vector<Variable>&)>;

void add_case(OpFamily& family, const std::string& op, const std::string& variant,
              const std::vector<Shape>& shapes, const Run& run,
              const std::vector<std::string>& slots = {}) {
  OpCase c{.op = op, .variant = variant, .slots = slots, .inputs = {}, .run = run};
  for (const Shape& shape : shapes) c.inputs.push_back({shape});
  family.cases.push_back(c);
}

void add_slices(OpFamily& family) {
  struct Cut {
    Shape x;
    int dim;
    std::int64_t begin, end;
  };
  for (const Cut& cut : std::vector<Cut>{{{5}, 0, 1, 4},
                                         {{5}, 0, 0, 5},
                                         {{3, 4}, 0, 2, 3},
                                         {{4, 6}, -1, 1, 3},
                                         {{2, 3, 4}, 1, 1, 3},
                                         {{2, 5, 4}, -2, 0, 1},
                                         {{4, 3}, 0, 2, 2},
                                         {{2, 3, 1, 5}, 3, 4, 5},
                                         {{0, 3}, 1, 1, 2}}) {
    const auto run = [cut](const auto& v) { return slice(v[0], cut.dim, cut.begin, cut.end); };
    const bool empty = cut.begin == cut.end;
    add_case(family, "slice",
             to_string(cut.x) + " dim " + std::to_string(cut.dim) + " from " +
                 std::to_string(cut.begin) + " to " + std::to_string(cut.end),
             {cut.x}, run,
             empty ? std::vector<std::string>{"fill"}
                   : std::vector<std::string>{"fill", "strided_copy"});
  }
}

// The parts differ in weight, and the last one is not used: its gradient is zero.
void add_splits(OpFamily& family) {
  for (const auto& [shape, dim] : std::vector<std::pair<Shape, int>>{{{6}, 0},
                                                                     {{2, 3}, 1},
                                                                     {{3, 4}, 0},
                                                                     {{2, 9, 4}, -2},
                                                                     {{0, 3}, 1},
                                                                     {{3, 0}, 0},
                                                                     {{1, 2, 2, 12}, 3},
                                                                     {{21, 5}, 0}}) {
    add_case(
        family, "split", to_string(shape) + " dim " + std::to_string(dim), {shape},
        [d = dim](const auto& v) {
          const auto parts = split(v[0], d, 3);
          return add(parts[0], scale(parts[1], 2));
        },
        shape.numel() > 0 ? std::vector<std::string>{"strided_copy"} : std::vector<std::string>{});
  }
}

void add_concats(OpFamily& family) {
  const std::vector<std::pair<std::vector<Shape>, int>> parts{
      {{{3}, {4}}, 0},
      {{{1}}, 0},
      {{{2, 3}, {4, 3}}, 0},
      {{{2, 3}, {2, 1}, {2, 2}}, 1},
      {{{2, 3, 2}, {2, 1, 2}}, -2},
      {{{2, 2, 3}, {2, 2, 5}}, -1},
      {{{0, 3}, {2, 3}}, 0},
      {{{2, 1, 3, 1}, {2, 4, 3, 1}, {2, 2, 3, 1}}, 1},
      {{{7, 5}, {7, 9}}, 1}};
  for (const auto& [shapes, dim] : parts) {
    std::string text = "dim " + std::to_string(dim);
    for (const Shape& shape : shapes) text.append(1, ' ').append(to_string(shape));
    add_case(family, "concat", text, shapes, [d = dim](const auto& v) { return concat(v, d); },
             {"strided_copy"});
  }
}

void add_reshapes(OpFamily& family) {
  const std::vector<std::pair<Shape, Shape>> shapes{
      {{6}, {2, 3}},       {{2, 3}, {6}},     {{4, 6}, {2, 2, -1}},     {{}, {1, 1}},
      {{1, 1}, {}},        {{0, 3}, {3, 0}},  {{2, 3, 4}, {-1, 4}},     {{2, 3, 4}, {6, 2, 2}},
      {{3, 1, 5}, {5, 3}}, {{8, 2}, {2, -1}}, {{2, 3, 2, 2}, {3, 2, 4}}};
  for (const auto& [from, to] : shapes) {
    add_case(family, "reshape", to_string(from) + " to " + to_string(to), {from},
             [shape = to](const auto& v) { return reshape(v[0], shape); });
    // A transposed view cannot be reshaped without a copy.
    if (from.rank() < 2 || from.numel() < 2) continue;
    add_case(family, "reshape", to_string(from) + " transposed to " + to_string(to), {from},
             [shape = to](const auto& v) { return reshape(transpose(v[0], 0, 1), shape); });
  }
}

void add_transposes(OpFamily& family) {
  for (const Shape& x : std::vector<Shape>{
           {1, 1}, {3, 5}, {0, 4}, {2, 3, 4}, {5, 1, 2}, {2, 2, 2, 2}, {4, 3, 1, 2}, {17, 33}}) {
    add_case(family, "transpose", to_string(x), {x},
             [](const auto& v) { return transpose(v[0], 0, -1); });
    std::vector<int> order;
    for (int d = 0; d < x.rank(); ++d) order.push_back((d + 1) % x.rank());
    add_case(family, "permute", to_string(x), {x},
             [order](const auto& v) { return permute(v[0], order); });
    // The transposed gradient is summed into one of the usual layout.
    add_case(family, "transpose", to_string(x) + " used twice", {x},
             [](const auto& v) { return add(transpose(v[0], 0, -1), transpose(v[0], 0, -1)); },
             {"accumulate"});
  }
}

void add_expands(OpFamily& family) {
  const std::vector<std::pair<Shape, Shape>> shapes{
      {{}, {3}},        {{1}, {5}},       {{4}, {3, 4}},          {{3, 1}, {3, 4}},
      {{1, 4}, {3, 4}}, {{2, 3}, {2, 3}}, {{2, 1, 3}, {2, 4, 3}}, {{1, 2, 1}, {3, 1, 2, 5}},
      {{1}, {0}},       {{0, 1}, {0, 4}}};
  for (const auto& [from, to] : shapes) {
    const bool same = from == to;
    add_case(
        family, "expand", to_string(from) + " to " + to_string(to), {from},
        [shape = to](const auto& v) { return expand(v[0], shape); },
        same || to.numel() == 0 ? std::vector<std::string>{} : std::vector<std::string>{"sum_fwd"});
  }
}

void add_copies(OpFamily& family) {
  for (const Shape& x :
       std::vector<Shape>{{}, {1}, {7}, {3, 5}, {0, 4}, {2, 3, 4}, {2, 1, 3, 2}, {130, 3}}) {
    add_case(family, "clone", to_string(x), {x}, [](const auto& v) { return clone(v[0]); },
             {"strided_copy"});
    add_case(family, "cast", to_string(x), {x}, [](const auto& v) {
      return cast(v[0], v[0].dtype() == DType::bf16 ? DType::f32 : DType::f64);
    });
  }
}

Variable f32(const Shape& shape) { return Variable(Tensor::zeros(shape)); }

std::vector<ErrorCase> errors() {
  return {
      {"slice outside",
       [] {
         slice(f32({2, 3}), 1, 1, 4);
       },
       "ShapeError", "slice(x, dim, begin, end): [1, 4) is not within dimension 1 of [2, 3]"},
      {"slice of no dimension",
       [] {
         slice(f32({2, 3}), 2, 0, 1);
       },
       "ShapeError", "slice: dim: expected -2 to 1, got 2"},
      {"split into unequal parts",
       [] {
         split(f32({2, 3}), 1, 2);
       },
       "ShapeError", "split(x, dim, parts): parts: expected a divisor of 3 (= x.shape[1]), got 2"},
      {"concat of nothing", [] { concat({}, 0); }, "ShapeError",
       "concat(parts, dim): parts: expected at least one, got none"},
      {"concat of other widths",
       [] {
         concat({f32({2, 3}), f32({2, 4})}, 0);
       },
       "ShapeError",
       "concat(parts, dim): parts[1]: expected [2, 3] (= parts[0].shape but for dimension 0), got "
       "[2, 4]"},
      {"concat of other ranks",
       [] {
         concat({f32({2, 3}), f32({3})}, 0);
       },
       "ShapeError", "parts[1]: expected [2, 3]"},
      {"concat of other dtypes",
       [] {
         concat({f32({2}), Variable(Tensor::zeros({2}, DType::f64))}, 0);
       },
       "DTypeError", "concat(parts, dim): parts[1]: expected dtype f32, got f64"},
      {"reshape to another size",
       [] {
         reshape(f32({2, 3}), {4});
       },
       "ShapeError", "reshape(x, shape): shape: [4] does not have the 6 elements of x [2, 3]"},
      {"reshape that does not divide",
       [] {
         reshape(f32({2, 3}), {4, -1});
       },
       "ShapeError", "reshape(x, shape): shape: [4, -1] does not have the 6 elements of x [2, 3]"},
      {"permute with one twice",
       [] {
         permute(f32({2, 3}), {0, 0});
       },
       "ShapeError", "permute: dimension 0 twice"},
      {"expand to a smaller shape",
       [] {
         expand(f32({2, 3}), {3});
       },
       "ShapeError", "expand: [2, 3] does not broadcast to [3]"},
      {"cast to integers", [] { cast(f32({2}), DType::i32); }, "DTypeError",
       "cast(x, dtype): dtype: expected dtype f64, f32 or bf16, got i32"},
  };
}

}  // namespace

OpFamily view_family() {
  OpFamily family{"view", {}, errors()};
  add_slices(family);
  add_splits(family);
  add_concats(family);
  add_reshapes(family);
  add_transposes(family);
  add_expands(family);
  add_copies(family);
  return family;
}

}  // namespace proteus::testing
