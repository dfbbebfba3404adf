// Controllers: the rules by hand, and that they move real layers.
#include "aspa/controllers.h"

#include <gtest/gtest.h>

#include <map>

#include "tensor/error.h"
#include "tests/aspa_layers.h"
#include "tests/error_text.h"

namespace proteus {
namespace {

using testing::AspaLayer;
using testing::config;
using testing::input;
using testing::message_of;
using testing::run;
using testing::TestLayer;

TEST(DensityController, MovesOneHeadTowardsTheTarget) {
  const DensityConfig c{.target = 0.28, .tolerance = 0.05, .k_min = 2, .k_max = 4};
  EXPECT_EQ(controlled_k(c, 0.5, 4, 8), 3);
  EXPECT_EQ(controlled_k(c, 0.375, 3, 8), 2);
  EXPECT_EQ(controlled_k(c, 0.25, 2, 8), 2);  // within the tolerance
  EXPECT_EQ(controlled_k(c, 0.125, 1, 8), 2);
  EXPECT_EQ(controlled_k(c, 0.06, 4, 64), 4);                               // k_max
  EXPECT_EQ(controlled_k(c, 0.9, 2, 2), 2);                                 // k_min
  EXPECT_EQ(controlled_k({.target = 0.3, .tolerance = 0}, 0.25, 1, 4), 1);  // 0.5 is no nearer
  EXPECT_EQ(controlled_k({.target = 0.9, .tolerance = 0.05}, 0.5, 2, 4), 3);
}

TEST_F(AspaLayer, DensityReachesItsTarget) {
  AspaConfig c = config(DType::f32);
  c.k = 1;
  c.density = {.target = 0.6, .tolerance = 0.05, .k_min = 1, .every = 2};
  const TestLayer layer(c);
  int decisions = 0;
  for (std::uint64_t step = 0; step < 12; ++step) {
    run(*layer, input(c, 2, 30, 60 + step));
    layer->after_step(1);
    if (layer->telemetry().decision) {
      ++decisions;
      EXPECT_EQ(layer->telemetry().decision->k_after, layer->telemetry().decision->k_before + 1);
    }
  }
  EXPECT_EQ(decisions, 2);
  EXPECT_EQ(layer->k(), 3);
  EXPECT_NEAR(layer->telemetry().density, 0.6, 1e-6);
  EXPECT_THROW(layer->set_k(6), ConfigError);
}

TEST(AlphaSchedule, RampsAndSamples) {
  const AlphaSchedule ramp{.kind = AlphaSchedule::Kind::ramp, .alpha = 0.8, .steps = 4};
  EXPECT_EQ(ramp.at(0), 0);
  EXPECT_DOUBLE_EQ(ramp.at(2), 0.4);
  EXPECT_DOUBLE_EQ(ramp.at(40), 0.8);
  const AlphaSchedule sampled{.kind = AlphaSchedule::Kind::sampled, .alpha = 1, .seed = 3};
  std::map<double, int> seen;
  for (int step = 0; step < 500; ++step) ++seen[sampled.at(step)];
  EXPECT_EQ(seen.size(), 5u);
  for (const auto& [alpha, count] : seen) EXPECT_NEAR(count, 100, 45) << alpha;
  EXPECT_EQ(sampled.at(17), sampled.at(17));
}

TEST(LatencyController, SpendsAlphaThenTheWindowAndPutsThemBack) {
  LatencyController controller(1, 0.5, 64);
  const auto after = [&](double ms) {
    std::optional<LatencyController::Decision> decision;
    for (int i = 0; i < 8; ++i) {
      if (auto d = controller.observe(ms)) decision = d;
    }
    return decision ? std::pair(decision->alpha, decision->window)
                    : std::pair(-1.0, std::int64_t{-1});
  };
  using Pair = std::pair<double, std::int64_t>;
  const Pair none{-1, -1};
  EXPECT_EQ(after(0.8), none);
  EXPECT_EQ(after(2), Pair(0.75, 64));
  EXPECT_EQ(after(2), Pair(1, 64));
  EXPECT_EQ(after(2), Pair(1, 32));
  EXPECT_EQ(after(2), Pair(1, 16));
  EXPECT_EQ(after(2), none);  // nothing left to give
  EXPECT_EQ(after(0.1), Pair(1, 32));
  EXPECT_EQ(after(0.1), Pair(1, 64));
  EXPECT_EQ(after(0.1), Pair(0.75, 64));
  EXPECT_EQ(after(0.1), Pair(0.5, 64));
  EXPECT_EQ(after(0.1), none);
  EXPECT_EQ(message_of<ConfigError>([] { LatencyController(0, 1, 4); }),
            "latency: expected a budget above 0 ms, got 0");
}

}  // namespace
}  // namespace proteus
