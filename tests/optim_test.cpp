// Optimizers against the formulas written out in f64, clipping, schedules, state.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "optim/adamw.h"
#include "optim/clip.h"
#include "optim/schedule.h"
#include "optim/sgd.h"
#include "tensor/parallel.h"

namespace proteus {
namespace {

std::vector<ParameterRef> make_parameters(DType dtype, std::int64_t n = 7) {
  std::vector<ParameterRef> all;
  all.push_back({"a", Variable(Tensor::randn({n}, {1, 1}, dtype), true), true});
  all.push_back({"b", Variable(Tensor::randn({2, n}, {1, 2}, dtype), true), false});
  all.push_back({"frozen", Variable(Tensor::randn({3}, {1, 3}, dtype), true), true});
  return all;
}

void set_gradients(const std::vector<ParameterRef>& all, std::uint64_t step) {
  for (std::size_t i = 0; i < 2; ++i) {
    const Tensor& x = all[i].variable.value();
    all[i].variable.set_grad(Tensor::randn(x.shape(), {step, 10 + i}, x.dtype()));
  }
}

TEST(AdamW, FollowsTheFormula) {
  const auto all = make_parameters(DType::f64);
  const AdamWConfig config{0.9, 0.95, 1e-8, 0.1};
  AdamW optimizer(all, config);
  std::vector<std::vector<double>> x, m(2), v(2);
  for (std::size_t i = 0; i < 3; ++i) x.push_back(all[i].variable.value().to_vector());
  for (int t = 1; t <= 5; ++t) {
    set_gradients(all, static_cast<std::uint64_t>(t));
    const double lr = 0.01 * t;
    optimizer.step(lr, 0.5);
    for (std::size_t i = 0; i < 2; ++i) {
      const auto g = all[i].variable.grad().to_vector();
      m[i].resize(g.size());
      v[i].resize(g.size());
      for (std::size_t e = 0; e < g.size(); ++e) {
        const double gradient = 0.5 * g[e];
        m[i][e] = 0.9 * m[i][e] + 0.1 * gradient;
        v[i][e] = 0.95 * v[i][e] + 0.05 * gradient * gradient;
        const double mhat = m[i][e] / (1 - std::pow(0.9, t));
        const double vhat = v[i][e] / (1 - std::pow(0.95, t));
        x[i][e] -= lr * (i == 0 ? 0.1 : 0.0) * x[i][e];
        x[i][e] -= lr * mhat / (std::sqrt(vhat) + 1e-8);
      }
    }
  }
  for (std::size_t i = 0; i < 3; ++i) {
    const auto got = all[i].variable.value().to_vector();
    for (std::size_t e = 0; e < got.size(); ++e) EXPECT_NEAR(got[e], x[i][e], 1e-12);
  }
}

TEST(Sgd, FollowsTheFormula) {
  const auto all = make_parameters(DType::f64);
  Sgd optimizer(all, 0.9, 0.1);
  auto x = all[0].variable.value().to_vector();
  std::vector<double> m(x.size());
  for (int t = 1; t <= 4; ++t) {
    set_gradients(all, static_cast<std::uint64_t>(t));
    optimizer.step(0.05);
    const auto g = all[0].variable.grad().to_vector();
    for (std::size_t e = 0; e < x.size(); ++e) {
      m[e] = 0.9 * m[e] + g[e] + 0.1 * x[e];
      x[e] -= 0.05 * m[e];
    }
  }
  const auto got = all[0].variable.value().to_vector();
  for (std::size_t e = 0; e < x.size(); ++e) EXPECT_NEAR(got[e], x[e], 1e-12);
}

TEST(AdamW, FindsTheMinimumOfAQuadratic) {
  const Variable x(Tensor::full({3}, 5.0, DType::f64), true);
  AdamW optimizer({{"x", x, true}}, {0.9, 0.99, 1e-8, 0});
  for (int step = 0; step < 2000; ++step) {
    Tensor grad = x.value().clone();
    grad.add_(Tensor::full({3}, 2.0, DType::f64), -1);
    x.set_grad(grad);
    optimizer.step(cosine_lr(step, 2000, 0.05, 0, 10));
  }
  for (const double value : x.value().to_vector()) EXPECT_NEAR(value, 2.0, 1e-3);
}

TEST(Optimizer, SameBitsForAnyNumberOfThreads) {
  std::vector<Tensor> results;
  for (const int threads : {1, 2, 5}) {
    set_num_threads(threads);
    const auto all = make_parameters(DType::f32, 40001);
    set_gradients(all, 3);
    AdamW optimizer(all, {});
    const double norm = gradient_norm(all);
    optimizer.step(0.1, clip_scale(norm, 1.0));
    results.push_back(all[1].variable.value());
    results.push_back(Tensor::scalar(norm, DType::f64));
  }
  set_num_threads(0);
  for (std::size_t i = 2; i < results.size(); ++i) {
    EXPECT_EQ(std::memcmp(results[i].raw(), results[i % 2].raw(),
                          static_cast<std::size_t>(results[i].bytes())),
              0);
  }
}

TEST(Optimizer, RestoredStateContinuesBitForBit) {
  const auto run = [](bool interrupted) {
    auto all = make_parameters(DType::f32);
    auto optimizer = std::make_unique<AdamW>(all, AdamWConfig{});
    for (std::uint64_t t = 1; t <= 6; ++t) {
      if (interrupted && t == 4) {
        auto fresh = std::make_unique<AdamW>(all, AdamWConfig{});
        const auto old = optimizer->state();
        const auto now = fresh->state();
        for (std::size_t i = 0; i < old.size(); ++i) {
          EXPECT_EQ(now[i].first, old[i].first);
          now[i].second.copy_(old[i].second);
        }
        fresh->set_steps(optimizer->steps());
        optimizer = std::move(fresh);
      }
      set_gradients(all, t);
      optimizer->step(0.01);
    }
    return all[0].variable.value().to_vector();
  };
  EXPECT_EQ(run(true), run(false));
}

TEST(Optimizer, StateIsNamedAfterParameters) {
  AdamW optimizer(make_parameters(DType::f32), {});
  std::vector<std::string> names;
  for (const auto& [name, tensor] : optimizer.state()) names.push_back(name);
  EXPECT_EQ(names, (std::vector<std::string>{"m.a", "m.b", "m.frozen", "v.a", "v.b", "v.frozen"}));
}

TEST(Clip, ScalesOnlyWhatIsTooLarge) {
  const Variable x(Tensor::zeros({2}), true);
  const std::vector<ParameterRef> all{{"x", x, true}};
  EXPECT_EQ(gradient_norm(all), 0);
  x.set_grad(Tensor::from({3, 4}, {2}));
  EXPECT_DOUBLE_EQ(gradient_norm(all), 5);
  EXPECT_EQ(clip_scale(5, 10), 1);
  EXPECT_EQ(clip_scale(5, 0), 1);
  EXPECT_NEAR(clip_scale(5, 1), 0.2, 1e-6);
  x.set_grad(Tensor::from({3, NAN}, {2}));
  EXPECT_TRUE(std::isnan(gradient_norm(all)));
}

TEST(Schedule, WarmsUpAndFalls) {
  EXPECT_DOUBLE_EQ(cosine_lr(0, 100, 1, 0.1, 10), 0.1);
  EXPECT_DOUBLE_EQ(cosine_lr(9, 100, 1, 0.1, 10), 1);
  EXPECT_DOUBLE_EQ(cosine_lr(10, 100, 1, 0.1, 10), 1);
  EXPECT_NEAR(cosine_lr(55, 100, 1, 0.1, 10), 0.55, 1e-12);
  EXPECT_DOUBLE_EQ(cosine_lr(100, 100, 1, 0.1, 10), 0.1);
  EXPECT_DOUBLE_EQ(cosine_lr(500, 100, 1, 0.1, 10), 0.1);
  EXPECT_DOUBLE_EQ(cosine_lr(0, 100, 1, 0.1, 0), 1);
  EXPECT_DOUBLE_EQ(constant_lr(1, 2, 4), 1);
  EXPECT_DOUBLE_EQ(constant_lr(99, 2, 4), 2);
  for (int step = 11; step < 100; ++step) {
    EXPECT_LT(cosine_lr(step, 100, 1, 0.1, 10), cosine_lr(step - 1, 100, 1, 0.1, 10));
  }
}

}  // namespace
}  // namespace proteus
