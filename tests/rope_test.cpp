// Rotary positions against sines and cosines taken one by one, and what rotation promises.
#include "tensor/ops/rope.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "autograd/rope.h"

namespace proteus {
namespace {

std::vector<double> rotated(std::vector<double> x, double position, std::int64_t R, double base) {
  for (std::int64_t i = 0; i < R / 2; ++i) {
    const double angle =
        position * std::pow(base, -2.0 * static_cast<double>(i) / static_cast<double>(R));
    double& u = x[static_cast<std::size_t>(2 * i)];
    double& v = x[static_cast<std::size_t>(2 * i + 1)];
    const double u0 = u;
    u = u0 * std::cos(angle) - v * std::sin(angle);
    v = u0 * std::sin(angle) + v * std::cos(angle);
  }
  return x;
}

TEST(Rope, EqualsTheFormulaAtAnyPosition) {
  const std::vector<double> positions{0, 1, 7, 1023, 1024, 1025, 4096, 99999, 1048575, -1, -1500};
  const auto rows = static_cast<std::int64_t>(positions.size());
  const Tensor at = Tensor::from(positions, {rows}, DType::i32);
  for (const DType dtype : {DType::f64, DType::f32, DType::bf16}) {
    const double tolerance = dtype == DType::f64 ? 1e-9 : dtype == DType::f32 ? 1e-6 : 2e-2;
    for (const std::int64_t R : {0, 2, 6, 32}) {
      const Tensor x = Tensor::randn({rows, 3, 32}, {2, 3}, dtype);
      const Tensor y = ops::rope(x, at, {.R = R});
      for (std::int64_t r = 0; r < rows; ++r) {
        for (std::int64_t h = 0; h < 3; ++h) {
          const auto expected = rotated(x.select(0, r).select(0, h).to_vector(),
                                        positions[static_cast<std::size_t>(r)], R, 10000);
          const auto got = y.select(0, r).select(0, h).to_vector();
          for (std::size_t d = 0; d < got.size(); ++d) {
            ASSERT_NEAR(got[d], expected[d], tolerance)
                << "position " << positions[static_cast<std::size_t>(r)];
          }
        }
      }
    }
  }
}

TEST(Rope, FormsAgreeBitForBit) {
  const std::int64_t B = 2, T = 50, H = 3, D = 16, offset = 1000;
  const Tensor qkv = Tensor::randn({B, T, 3, H, D}, {4, 5});
  const Tensor y = ops::rope(qkv, {.R = 8, .offset = offset});
  const Tensor positions = ops::sequence_positions(B, T, offset);
  for (int part = 0; part < 3; ++part) {
    const Tensor x = qkv.select(2, part);
    const Tensor expected = part == 2 ? x : ops::rope(x, {.R = 8, .offset = offset});
    EXPECT_EQ(y.select(2, part).to_vector(), expected.to_vector()) << "part " << part;
    if (part == 2) continue;
    const Tensor rows = ops::rope(x.reshape({B * T, H, D}), positions, {.R = 8});
    EXPECT_EQ(rows.to_vector(), expected.to_vector()) << "part " << part;
  }
}

TEST(Rope, APositionDoesNotDependOnLaterOnes) {
  const Tensor x = Tensor::randn({1, 3000, 1, 8}, {6, 7});
  const Tensor all = ops::rope(x, {.R = 8});
  const Tensor first = ops::rope(x.slice(1, 0, 100), {.R = 8});
  EXPECT_EQ(all.slice(1, 0, 100).to_vector(), first.to_vector());
}

TEST(Rope, InverseUndoesIt) {
  const Tensor x = Tensor::randn({2, 40, 2, 12}, {8, 9}, DType::f64);
  const Tensor y = ops::rope(x, {.R = 12, .offset = 123456});
  const auto back = ops::rope(y, {.R = 12, .offset = 123456, .inverse = true}).to_vector();
  const auto expected = x.to_vector();
  for (std::size_t i = 0; i < back.size(); ++i) ASSERT_NEAR(back[i], expected[i], 1e-12);
}

// q_t·k_s depends on t − s only.
TEST(Rope, ProductsDependOnTheDistance) {
  const Tensor q = Tensor::randn({1, 1, 1, 16}, {1, 1}, DType::f64);
  const Tensor k = Tensor::randn({1, 1, 1, 16}, {1, 2}, DType::f64);
  const auto product = [&](std::int64_t t, std::int64_t s) {
    const auto a = ops::rope(q, {.R = 16, .offset = t}).to_vector();
    const auto b = ops::rope(k, {.R = 16, .offset = s}).to_vector();
    double sum = 0;
    for (std::size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
    return sum;
  };
  EXPECT_NEAR(product(17, 3), product(5017, 5003), 1e-10);
  EXPECT_GT(std::abs(product(17, 3) - product(17, 4)), 1e-3);
}

}  // namespace
}  // namespace proteus
