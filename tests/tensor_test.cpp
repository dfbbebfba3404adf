// Shapes, layouts, views, copies, conversions and error texts of Tensor.
#include "tensor/tensor.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>

#include "tensor/error.h"

namespace proteus::testing {
namespace {

// EXPECT_THROW with the class and a part of the message.
template <class E, class F>
void expect_error(F&& call, const std::string& text) {
  try {
    call();
    ADD_FAILURE() << "nothing was thrown, expected \"" << text << "\"";
  } catch (const E& error) {
    EXPECT_NE(std::string(error.what()).find(text), std::string::npos)
        << "message:  " << error.what() << "\nexpected: " << text;
  } catch (const std::exception& error) {
    ADD_FAILURE() << "another class: " << error.what();
  }
}

using Values = std::vector<double>;

// 0, 1, 2, … in `shape`.
Tensor iota(const Shape& shape, DType dtype = DType::f32) {
  return Tensor::arange(shape.numel(), dtype).reshape(shape);
}

TEST(Shape, SizesIndicesAndText) {
  const Shape s{2, 3, 4};
  EXPECT_EQ(s.rank(), 3);
  EXPECT_EQ(s.numel(), 24);
  EXPECT_EQ(s[-1], 4);
  EXPECT_EQ(s[0], 2);
  EXPECT_EQ(to_string(s), "[2, 3, 4]");
  EXPECT_EQ(to_string(Shape{}), "[]");
  EXPECT_EQ(Shape{}.numel(), 1);
  EXPECT_EQ((Shape{0, 5}.numel()), 0);
  EXPECT_EQ(s.without(1), (Shape{2, 4}));
  EXPECT_EQ(s.without(-1), (Shape{2, 3}));
  EXPECT_EQ(s.with(0, 7), (Shape{7, 2, 3, 4}));
  EXPECT_EQ(s.with(3, 7), (Shape{2, 3, 4, 7}));
  EXPECT_FALSE((Shape{2, 3}) == (Shape{2, 3, 1}));
  expect_error<ShapeError>([&] { (void)s[3]; }, "dimension 3 asked of [2, 3, 4]");
  expect_error<ShapeError>([&] { (void)s[-4]; }, "dimension -4 asked of [2, 3, 4]");
  expect_error<ShapeError>([] { Shape({1, 1, 1, 1, 1, 1, 1, 1, 1}); }, "more than 8 dimensions");
}

TEST(Shape, Broadcasting) {
  const auto both = [](const Shape& a, const Shape& b) { return broadcast_shapes("f", a, b); };
  EXPECT_EQ(both({2, 3}, {3}), (Shape{2, 3}));
  EXPECT_EQ(both({2, 1}, {1, 5}), (Shape{2, 5}));
  EXPECT_EQ(both({}, {4}), (Shape{4}));
  EXPECT_EQ(both({}, {}), Shape{});
  EXPECT_EQ(both({1}, {0}), (Shape{0}));
  EXPECT_EQ(both({5, 1, 7}, {3, 1}), (Shape{5, 3, 7}));
  expect_error<ShapeError>(
      [&] {
        both({2, 3}, {2});
      },
      "f: shapes [2, 3] and [2] do not broadcast: dimension -1 has 3 and 2");
  expect_error<ShapeError>([&] { both({0}, {2}); }, "dimension -1 has 0 and 2");
}

TEST(Shape, CheckedDim) {
  EXPECT_EQ(checked_dim("f", -1, 3), 2);
  EXPECT_EQ(checked_dim("f", 0, 3), 0);
  expect_error<ShapeError>([] { checked_dim("f", 3, 3); }, "f: dim: expected -3 to 2, got 3");
}

TEST(Layout, Contiguity) {
  EXPECT_EQ(Layout::contiguous({2, 3, 4}).strides, (Shape{12, 4, 1}));
  EXPECT_TRUE(iota({2, 3}).is_contiguous());
  EXPECT_FALSE(iota({2, 3}).transpose(0, 1).is_contiguous());
  EXPECT_TRUE(iota({1, 3}).transpose(0, 1).is_contiguous()) << "size 1 has no stride";
  EXPECT_TRUE(iota({4, 3}).slice(0, 1, 3).is_contiguous());
  EXPECT_FALSE(iota({4, 3}).slice(1, 0, 2).is_contiguous());
  EXPECT_TRUE(iota({0, 3}).transpose(0, 1).is_contiguous()) << "nothing lies anywhere";
  EXPECT_FALSE(Tensor::scalar(1).expand({3}).is_contiguous());
}

TEST(TensorViews, ShareData) {
  const Tensor x = iota({2, 3});
  const Tensor t = x.transpose(0, 1);
  EXPECT_EQ(t.shape(), (Shape{3, 2}));
  EXPECT_EQ(t.to_vector(), (Values{0, 3, 1, 4, 2, 5}));
  t.select(0, 1).fill_(9);
  EXPECT_EQ(x.to_vector(), (Values{0, 9, 2, 3, 9, 5}));
  EXPECT_EQ(x.version(), t.version()) << "a version belongs to the storage";
}

TEST(TensorViews, SliceSelectSqueeze) {
  const Tensor x = iota({3, 4});
  EXPECT_EQ(x.slice(1, 1, 3).to_vector(), (Values{1, 2, 5, 6, 9, 10}));
  EXPECT_EQ(x.slice(-1, 1, 3).slice(0, 1, 2).to_vector(), (Values{5, 6}));
  EXPECT_EQ(x.slice(0, 2, 2).numel(), 0);
  EXPECT_EQ(x.select(0, 2).to_vector(), (Values{8, 9, 10, 11}));
  EXPECT_EQ(x.select(-1, 0).shape(), (Shape{3}));
  EXPECT_EQ(x.unsqueeze(-1).shape(), (Shape{3, 4, 1}));
  EXPECT_EQ(x.unsqueeze(0).squeeze(0).shape(), (Shape{3, 4}));
  expect_error<ShapeError>([&] { x.slice(1, 2, 5); },
                           "slice(x, dim, begin, end): [2, 5) is not within dimension 1 of [3, 4]");
  expect_error<ShapeError>([&] { x.slice(1, 3, 2); }, "[3, 2) is not within");
  expect_error<ShapeError>([&] { x.slice(0, -1, 2); }, "[-1, 2) is not within");
  expect_error<ShapeError>([&] { x.select(0, 3); }, "[3, 4) is not within dimension 0");
  expect_error<ShapeError>([&] { x.squeeze(0); },
                           "squeeze(x, dim): dimension 0 of [3, 4] is not 1");
}

TEST(TensorViews, PermuteAndExpand) {
  const Tensor x = iota({2, 3, 4});
  const Tensor p = x.permute({2, 0, -2});
  EXPECT_EQ(p.shape(), (Shape{4, 2, 3}));
  EXPECT_EQ(p.select(0, 1).to_vector(), (Values{1, 5, 9, 13, 17, 21}));
  expect_error<ShapeError>(
      [&] {
        x.permute({0, 1});
      },
      "permute(x, order): order: expected 3 dimensions, got 2");
  expect_error<ShapeError>([&] { x.permute({0, 1, 1}); }, "permute: dimension 1 twice");
  EXPECT_EQ(iota({3}).expand({2, 3}).to_vector(), (Values{0, 1, 2, 0, 1, 2}));
  EXPECT_EQ(iota({2, 1}).expand({2, 2}).to_vector(), (Values{0, 0, 1, 1}));
  expect_error<ShapeError>(
      [&] {
        x.expand({2, 3, 5});
      },
      "expand: [2, 3, 4] does not broadcast to [2, 3, 5]");
  expect_error<ShapeError>([&] { x.expand({4}); }, "does not broadcast to [4]");
  expect_error<ShapeError>([&] { x.expand({}); }, "does not broadcast to []");
}

TEST(TensorReshape, ViewsWhereStridesAllow) {
  const Tensor x = iota({2, 6});
  EXPECT_EQ(x.reshape({3, 4}).storage(), x.storage());
  EXPECT_EQ(x.reshape({-1}).shape(), (Shape{12}));
  EXPECT_EQ(x.reshape({2, -1, 3}).shape(), (Shape{2, 2, 3}));
  // Splitting a dimension of a strided view needs no copy; merging across a gap does.
  const Tensor cut = x.slice(1, 0, 4);
  EXPECT_EQ(cut.reshape({2, 2, 2}).storage(), x.storage());
  EXPECT_EQ(cut.reshape({2, 2, 2}).to_vector(), cut.to_vector());
  EXPECT_NE(cut.reshape({8}).storage(), x.storage());
  EXPECT_EQ(cut.reshape({8}).to_vector(), (Values{0, 1, 2, 3, 6, 7, 8, 9}));
  EXPECT_EQ(x.transpose(0, 1).reshape({12}).to_vector(),
            (Values{0, 6, 1, 7, 2, 8, 3, 9, 4, 10, 5, 11}));
  EXPECT_EQ(iota({3}).expand({2, 3}).reshape({6}).to_vector(), (Values{0, 1, 2, 0, 1, 2}));
}

// Every way of cutting 24 elements, from every view: values in row-major order never change.
TEST(TensorReshape, KeepsTheOrderOfElements) {
  const std::vector<Shape> shapes{{24},      {2, 12},   {4, 6},       {2, 3, 4}, {1, 24, 1},
                                  {3, 2, 4}, {2, 2, 6}, {2, 2, 3, 2}, {6, 1, 4}, {4, 3, 2, 1}};
  const Tensor base = iota({2, 3, 4});
  const Tensor large = iota({4, 5, 7});
  const std::vector<Tensor> views{base,
                                  base.transpose(0, 2),
                                  base.transpose(1, 2),
                                  base.permute({1, 2, 0}),
                                  large.slice(0, 1, 3).slice(1, 0, 3).slice(2, 2, 6),
                                  large.slice(0, 0, 2).slice(1, 1, 4).slice(2, 0, 4).unsqueeze(1),
                                  iota({2, 1, 4}).expand({2, 3, 4})};
  for (const Tensor& view : views) {
    for (const Shape& shape : shapes) {
      EXPECT_EQ(view.reshape(shape).to_vector(), view.to_vector()) << to_string(shape);
    }
  }
}

TEST(TensorReshape, Errors) {
  const Tensor x = iota({2, 3});
  expect_error<ShapeError>(
      [&] { x.reshape({4}); },
      "reshape(x, shape): shape: [4] does not have the 6 elements of x [2, 3]");
  expect_error<ShapeError>([&] { x.reshape({4, -1}); }, "[4, -1] does not have the 6 elements");
  expect_error<ShapeError>([&] { x.reshape({-2, -3}); }, "[-2, -3] does not have");
  expect_error<ShapeError>([] { iota({1}).reshape({-1, -1}); }, "[-1, -1] does not have");
  expect_error<ShapeError>([] { iota({0}).reshape({-1, 0}); }, "[-1, 0] does not have");
  EXPECT_EQ(iota({0, 3}).reshape({-1, 3}).shape(), (Shape{0, 3}));
}

TEST(TensorMake, ValuesAndErrors) {
  EXPECT_EQ(Tensor::zeros({2}).to_vector(), (Values{0, 0}));
  EXPECT_EQ(Tensor::full({2}, 3, DType::i8).to_vector(), (Values{3, 3}));
  EXPECT_EQ(Tensor::scalar(2.5).item(), 2.5);
  EXPECT_EQ(Tensor::arange(3, DType::i32).to_vector(), (Values{0, 1, 2}));
  EXPECT_EQ(Tensor::from({1, 2, 3, 4}, {2, 2}).transpose(0, 1).to_vector(), (Values{1, 3, 2, 4}));
  const std::int32_t ints[] = {7, -8};
  EXPECT_EQ(Tensor::from_data(std::span<const std::int32_t>(ints), {2}).to_vector(),
            (Values{7, -8}));
  expect_error<ShapeError>(
      [] {
        Tensor::from({1, 2}, {3});
      },
      "tensor.from(values, shape): values: expected 3 for [3], got 2");
  expect_error<ShapeError>([] { Tensor::empty({2, -1}); }, "negative size in [2, -1]");
  const std::int64_t huge = std::int64_t{1} << 40;
  expect_error<OutOfMemory>(
      [&] {
        Tensor::empty({huge, huge});
      },
      "tensor: [1099511627776, 1099511627776] has more bytes than an address "
      "space");
  EXPECT_EQ(Tensor::empty({0, 5}).numel(), 0);
  expect_error<Error>([] { Tensor().raw(); }, "data asked of an undefined tensor");
  expect_error<DTypeError>([] { Tensor::zeros({1}).data<double>(); },
                           "tensor.data: expected dtype f64, got f32");
  expect_error<ShapeError>([] { (void)Tensor::zeros({2}).item(); },
                           "item(x): x: expected one element, got [2]");
  EXPECT_EQ(describe(Tensor::zeros({8, 2}, DType::bf16)), "bf16 [8, 2]");
  EXPECT_EQ(describe(Tensor()), "undefined");
}

TEST(TensorCopy, BetweenLayoutsAndTypes) {
  const DType types[] = {DType::f64, DType::f32, DType::bf16, DType::i8, DType::i32, DType::i64};
  for (const DType from : types) {
    for (const DType to : types) {
      const Tensor source = iota({3, 5}, from).transpose(0, 1);
      const Tensor target = Tensor::full({6, 4}, 99, to);
      const Tensor window = target.slice(0, 0, 5).slice(1, 1, 4);
      window.copy_(source);
      EXPECT_EQ(window.to_vector(), source.to_vector()) << name_of(from) << " " << name_of(to);
      EXPECT_EQ(target.select(1, 0).to_vector(), Values(6, 99.0));
      EXPECT_EQ(target.select(0, 5).to_vector(), Values(4, 99.0));
    }
  }
}

TEST(TensorCopy, InPlace) {
  const Tensor x = iota({2, 3});
  const auto version = x.version();
  x.copy_(iota({2, 3}, DType::f64).slice(0, 0, 2));
  EXPECT_EQ(x.version(), version + 1);
  x.fill_(2);
  x.add_(iota({2, 3}), -0.5);
  EXPECT_EQ(x.version(), version + 3);
  EXPECT_EQ(x.to_vector(), (Values{2, 1.5, 1, 0.5, 0, -0.5}));
  x.select(1, 1).add_(Tensor::from({10, 20}, {2}));
  EXPECT_EQ(x.to_vector(), (Values{2, 11.5, 1, 0.5, 20, -0.5}));
  expect_error<ShapeError>(
      [&] {
        x.copy_(iota({3, 2}));
      },
      "copy_(x, source): source: expected [2, 3], got [3, 2]");
  expect_error<ShapeError>(
      [&] {
        x.add_(iota({2, 3}, DType::f64));
      },
      "add_(x, source): source: expected f32 [2, 3] on cpu, got f64 [2, 3]");
  EXPECT_EQ(x.version(), version + 4) << "failed calls change nothing";
}

TEST(TensorCopy, OverlappingViews) {
  const Tensor x = iota({6});
  x.slice(0, 1, 6).copy_(x.slice(0, 0, 5));
  EXPECT_EQ(x.to_vector(), (Values{0, 0, 1, 2, 3, 4}));
  const Tensor m = iota({3, 3});
  m.copy_(m.transpose(0, 1));
  EXPECT_EQ(m.to_vector(), (Values{0, 3, 6, 1, 4, 7, 2, 5, 8}));
}

TEST(TensorCopy, CloneAndContiguous) {
  const Tensor x = iota({2, 3});
  EXPECT_EQ(x.contiguous().storage(), x.storage());
  EXPECT_NE(x.clone().storage(), x.storage());
  EXPECT_EQ(x.to(DType::f32).storage(), x.storage()) << "already so";
  const Tensor t = x.transpose(0, 1).contiguous();
  EXPECT_EQ(t.stride(0), 2);
  EXPECT_EQ(t.to_vector(), (Values{0, 3, 1, 4, 2, 5}));
}

TEST(Bf16, RoundsToNearestEven) {
  const auto round = [](double v) { return Tensor::from({v}, {1}, DType::bf16).item(); };
  const double ulp = 0x1p-7;  // between 1 and 2
  EXPECT_EQ(round(1 + 0.49 * ulp), 1);
  EXPECT_EQ(round(1 + 0.5 * ulp), 1) << "a tie goes to the even neighbour";
  EXPECT_EQ(round(1 + 1.5 * ulp), 1 + 2 * ulp) << "a tie goes to the even neighbour";
  EXPECT_EQ(round(1 + 0.51 * ulp), 1 + ulp);
  EXPECT_EQ(round(-1 - 0.51 * ulp), -1 - ulp);
  EXPECT_EQ(round(1 + 0.5 * ulp + 0x1p-40), 1 + ulp) << "rounded once, not through f32";
  EXPECT_EQ(round(1 + 1.5 * ulp - 0x1p-40), 1 + ulp) << "rounded once, not through f32";
  EXPECT_EQ(round(3.4e38), std::numeric_limits<double>::infinity()) << "beyond the largest";
  EXPECT_EQ(round(-std::numeric_limits<double>::infinity()),
            -std::numeric_limits<double>::infinity());
  EXPECT_EQ(round(1e300), std::numeric_limits<double>::infinity());
  EXPECT_EQ(round(0x1p-133), 0x1p-133) << "subnormal numbers stay";
  EXPECT_TRUE(std::signbit(round(-0.0)));
}

TEST(Bf16, NanStaysNan) {
  // A NaN whose payload is in the lower half only must not become infinity.
  const auto low = std::bit_cast<float>(0x7f800001u);
  EXPECT_TRUE(std::isnan(static_cast<float>(bfloat16(low))));
  EXPECT_TRUE(std::isnan(static_cast<float>(bfloat16(std::bit_cast<float>(0xffffffffu)))));
  EXPECT_TRUE(std::isnan(Tensor::from({std::nan("")}, {1}, DType::bf16).item()));
}

TEST(Bf16, EveryValueSurvivesARoundTrip) {
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    bfloat16 v;
    v.bits = static_cast<std::uint16_t>(bits);
    const float f = v;
    if (std::isnan(f)) continue;
    ASSERT_EQ(bfloat16(f).bits, v.bits);
  }
}

TEST(DTypes, Names) {
  EXPECT_EQ(name_of(DType::bf16), "bf16");
  EXPECT_EQ(size_of(DType::bf16), 2u);
  expect_error<DTypeError>([] { dispatch_float(DType::i8, "f(x): x", [](auto) {}); },
                           "f(x): x: expected dtype f64, f32 or bf16, got i8");
}

TEST(RandomTensors, AreAFunctionOfTheKey) {
  const RngKey key{5, 9};
  const Tensor a = Tensor::randn({1000}, key);
  EXPECT_EQ(a.to_vector(), Tensor::randn({1000}, key).to_vector());
  EXPECT_NE(a.to_vector(), Tensor::randn({1000}, {5, 10}).to_vector());
  EXPECT_NE(a.to_vector(), Tensor::randn({1000}, {6, 9}).to_vector());
  const Values longer = Tensor::randn({20000}, key).to_vector();
  EXPECT_EQ(a.to_vector(), Values(longer.begin(), longer.begin() + 1000))
      << "element i depends on key and i alone";
}

TEST(RandomTensors, HaveTheirMoments) {
  constexpr double kCount = 200000;
  const auto x = Tensor::randn({200000}, {1, 1}, DType::f64, 3, 2).to_vector();
  double mean = 0;
  double square = 0;
  for (const double v : x) mean += v / kCount;
  for (const double v : x) square += (v - mean) * (v - mean) / kCount;
  EXPECT_NEAR(mean, 3, 5 * 2 / std::sqrt(kCount));
  EXPECT_NEAR(square, 4, 5 * 4 * std::sqrt(2 / kCount));
  double uniform = 0;
  for (const double v : Tensor::rand({200000}, {1, 2}, DType::f64, -1, 3).to_vector()) {
    ASSERT_TRUE(v >= -1 && v < 3);
    uniform += v / kCount;
  }
  EXPECT_NEAR(uniform, 1, 5 * 4 / std::sqrt(12 * kCount));
}

}  // namespace
}  // namespace proteus::testing
