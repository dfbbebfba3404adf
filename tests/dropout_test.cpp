// Dropout: which elements are kept, by what factor, and that the mask is drawn again the same.
#include "autograd/dropout.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "autograd/checkpoint.h"
#include "autograd/tape.h"
#include "tensor/ops/dropout.h"

namespace proteus {
namespace {

TEST(Dropout, MaskIsThatOfTheRandomStream) {
  const RngKey key{(std::uint64_t{5} << 40) + 3, (std::uint64_t{1} << 33) + 9};
  const double p = 0.3;
  for (const std::int64_t n : {1, 5, 63, 64, 65, 40000}) {
    const Tensor x = Tensor::full({n}, 2.0, DType::f64);
    const auto y = ops::dropout(x, p, key).to_vector();
    for (std::int64_t i = 0; i < n; ++i) {
      const bool kept = random_u32(key, static_cast<std::uint64_t>(i)) >= drop_threshold(p);
      ASSERT_EQ(y[static_cast<std::size_t>(i)], kept ? 2.0 * (1 / (1 - p)) : 0.0) << i;
    }
  }
}

TEST(Dropout, KeepsAboutOneMinusP) {
  const std::int64_t n = 1 << 20;
  for (const double p : {0.1, 0.5, 0.9}) {
    const auto y = ops::dropout(Tensor::full({n}, 1.0), p, {1, 2}).to_vector();
    double kept = 0;
    double sum = 0;
    for (const double v : y) {
      kept += v != 0 ? 1 : 0;
      sum += v;
    }
    const double deviation = std::sqrt(p * (1 - p) / static_cast<double>(n));
    EXPECT_NEAR(kept / static_cast<double>(n), 1 - p, 5 * deviation);
    EXPECT_NEAR(sum / static_cast<double>(n), 1, 6 * deviation / (1 - p));
  }
}

TEST(Dropout, EveryCallDrawsAnotherMask) {
  Generator generator(1);
  const Variable x(Tensor::full({256}, 1.0));
  const auto a = dropout(x, 0.5, generator).value().to_vector();
  const auto b = dropout(x, 0.5, generator).value().to_vector();
  EXPECT_NE(a, b);
  EXPECT_EQ(generator.stream(), 2u);
}

TEST(Dropout, ZeroIsTheIdentityAndDrawsNothing) {
  Generator generator(1);
  const Variable x(Tensor::randn({3, 5}, {1, 1}), true);
  const Variable y = dropout(x, 0, generator);
  EXPECT_EQ(y.value().raw(), x.value().raw());
  const Variable sum = dropout_add(x, x, 0, generator);
  sum.backward(Tensor::full({3, 5}, 1.0));
  EXPECT_EQ(x.grad().to_vector(), std::vector<double>(15, 2.0));
  EXPECT_EQ(generator.stream(), 0u);
}

TEST(Dropout, GradientHasTheMaskOfTheForwardPass) {
  Generator generator(3);
  const Variable x(Tensor::full({1000}, 1.0), true);
  const Variable residual(Tensor::full({1000}, 10.0), true);
  const Variable y = dropout_add(x, residual, 0.25, generator);
  y.backward(Tensor::full({1000}, 1.0));
  const auto grad = x.grad().to_vector();
  const auto value = y.value().to_vector();
  for (std::size_t i = 0; i < grad.size(); ++i) ASSERT_EQ(grad[i] != 0, value[i] != 10) << i;
  EXPECT_EQ(residual.grad().to_vector(), std::vector<double>(1000, 1.0));
}

TEST(Dropout, RecomputationDrawsTheSameMask) {
  const auto run = [](bool recompute) {
    Generator generator(11);
    const Variable x(Tensor::randn({40, 7}, {2, 2}), true);
    const auto segment = [&generator](const std::vector<Variable>& in) {
      return dropout(dropout_add(in[0], in[0], 0.4, generator), 0.2, generator);
    };
    const Variable y = recompute ? checkpoint(segment, {x}) : segment({x});
    y.backward(Tensor::randn({40, 7}, {2, 3}));
    EXPECT_EQ(generator.stream(), 2u) << "a recomputation draws no new stream";
    return x.grad().to_vector();
  };
  EXPECT_EQ(run(true), run(false));
}

}  // namespace
}  // namespace proteus
