// The polynomials against libm in f64: relative errors in units of f32's spacing, and the ends.
#include "tensor/vmath.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

namespace proteus {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr double kUlp = 0x1p-23;

// Largest relative error over [low, high] in units of kUlp; results below `floor` count as `floor`.
double worst(const std::function<float(float)>& fn, const std::function<double(double)>& exact,
             double low, double high, double floor = 1e-37) {
  double error = 0;
  constexpr int kSteps = 400000;
  for (int i = 0; i <= kSteps; ++i) {
    const float x = static_cast<float>(low + (high - low) * i / kSteps);
    const double y = exact(x);
    error = std::max(error, std::abs(fn(x) - y) / std::max(std::abs(y), floor));
  }
  return error / kUlp;
}

TEST(Vmath, ExpIsAccurate) {
  const auto fn = [](float x) { return vmath::exp(x); };
  const auto exact = [](double x) { return std::exp(x); };
  EXPECT_LT(worst(fn, exact, -87.3, 88.3), 2);
  EXPECT_LT(worst(fn, exact, -1, 1), 2);
  EXPECT_EQ(vmath::exp(0.0f), 1.0f);
  EXPECT_EQ(vmath::exp(-kInf), 0.0f);
  EXPECT_EQ(vmath::exp(-200.0f), 0.0f);
  EXPECT_EQ(vmath::exp(100.0f), kInf);
  EXPECT_TRUE(std::isnan(vmath::exp(kNan)));
}

TEST(Vmath, LogIsAccurate) {
  const auto fn = [](float x) { return vmath::log(x); };
  const auto exact = [](double x) { return std::log(x); };
  EXPECT_LT(worst(fn, exact, 1e-6, 4, 1e-3), 3);
  EXPECT_LT(worst(fn, exact, 1, 1e30), 3);
  EXPECT_EQ(vmath::log(1.0f), 0.0f);
  EXPECT_EQ(vmath::log(0.0f), -kInf);
  EXPECT_EQ(vmath::log(kInf), kInf);
  EXPECT_TRUE(std::isnan(vmath::log(kNan)));
}

TEST(Vmath, SigmoidAndItsLogarithmAreAccurate) {
  EXPECT_LT(worst([](float x) { return vmath::sigmoid(x); },
                  [](double x) { return 1 / (1 + std::exp(-x)); }, -80, 80),
            4);
  EXPECT_LT(worst([](float x) { return vmath::log_sigmoid(x); },
                  [](double x) { return std::min(x, 0.0) - std::log1p(std::exp(-std::abs(x))); },
                  -80, 80, 1e-30),
            4);
  EXPECT_EQ(vmath::sigmoid(-kInf), 0.0f);
  EXPECT_EQ(vmath::sigmoid(kInf), 1.0f);
  EXPECT_LT(worst([](float u) { return vmath::log1p_unit(u); },
                  [](double u) { return std::log1p(u); }, 0, 1),
            4);
}

TEST(Vmath, TanhIsAccurate) {
  const auto fn = [](float x) { return vmath::tanh(x); };
  const auto exact = [](double x) { return std::tanh(x); };
  EXPECT_LT(worst(fn, exact, -20, 20), 8);
  EXPECT_LT(worst(fn, exact, -0.3, 0.3), 8);
  EXPECT_EQ(vmath::tanh(0.0f), 0.0f);
  EXPECT_EQ(vmath::tanh(kInf), 1.0f);
  EXPECT_EQ(vmath::tanh(-kInf), -1.0f);
}

}  // namespace
}  // namespace proteus
