// Prototypes, dead gates, thresholds, load statistics and churn, against numbers worked out by
// hand.
#include <gtest/gtest.h>

#include <cmath>

#include "aspa/balance.h"
#include "aspa/prototypes.h"

namespace proteus {
namespace {

constexpr DType kF64 = DType::f64;

Tensor heads(std::initializer_list<double> values, const Shape& shape) {
  return Tensor::from(values, shape, DType::i32);
}

// Two heads with two gates each in a plane.
GateState four_gates() {
  return {.w = Tensor::from({1, 0, 0, 1, -1, 0, 0, -1}, {4, 2}, kF64),
          .p = Tensor::from({1, 0, 0, 1, -1, 0, 0, -1}, {4, 2}, kF64),
          .N = Tensor::from({1, 1, 1, 1}, {4}, kF64),
          .P = Tensor::from({1, 0, 0, 1, -1, 0, 0, -1}, {4, 2}, kF64),
          .mass = Tensor::from({0.5, 0.5, 0.25, 0.75}, {4}, kF64),
          .head_of_gate = heads({0, 0, 1, 1}, {4}),
          .starving = heads({0, 0, 0, 0}, {4})};
}

GateUpdate only_gate_zero() {
  return {.weight_sum = Tensor::from({100, 0, 100, 100}, {4}, kF64),
          .weighted_sum = Tensor::from({300, 400, 0, 0, -100, 0, 0, -100}, {4, 2}, kF64),
          .recent = Tensor::from({1, 0.1, 5, 5, -1, 0.2}, {3, 2}, kF64)};
}

TEST(Prototypes, FollowTheMovingAverage) {
  const GateState s = four_gates();
  PrototypeConfig config;
  config.ema = 0.9;
  update_prototypes(config, s, only_gate_zero());
  EXPECT_NEAR(s.N.to_vector()[0], 0.9 + 10, 1e-12);
  EXPECT_NEAR(s.N.to_vector()[1], 0.9, 1e-12);
  EXPECT_NEAR(s.P.to_vector()[0], 0.9 + 30, 1e-12);
  EXPECT_NEAR(s.P.to_vector()[1], 40, 1e-12);
  const double norm = std::hypot(30.9, 40);
  EXPECT_NEAR(s.p.to_vector()[0], 30.9 / norm, 1e-12);
  EXPECT_NEAR(s.p.to_vector()[1], 40 / norm, 1e-12);
  EXPECT_NEAR(s.p.to_vector()[3], 1, 1e-12);  // no tokens: the direction stays
}

TEST(Prototypes, NothingCollectedChangesNothing) {
  const GateState s = four_gates();
  const auto before = s.P.to_vector();
  const auto version = s.P.version();
  update_prototypes({}, s, {});
  EXPECT_EQ(s.P.to_vector(), before);
  EXPECT_EQ(s.P.version(), version);
  PrototypeConfig off;
  off.enabled = false;
  update_prototypes(off, s, only_gate_zero());
  EXPECT_EQ(s.P.to_vector(), before);
}

TEST(Prototypes, AGateThatStarvesLongEnoughIsDead) {
  const GateState s = four_gates();
  PrototypeConfig config;
  config.ema = 0.5;
  config.dead_steps = 3;
  update_prototypes(config, s, only_gate_zero());  // N_1 = 0.5 against a mean of 38
  update_prototypes(config, s, only_gate_zero());
  EXPECT_TRUE(dead_gates(config, s).empty());
  update_prototypes(config, s, only_gate_zero());
  EXPECT_EQ(dead_gates(config, s), std::vector<std::int64_t>{1});
  GateUpdate fed = only_gate_zero();
  fed.weight_sum = Tensor::from({100, 100, 100, 100}, {4}, kF64);
  update_prototypes(config, s, fed);
  EXPECT_TRUE(dead_gates(config, s).empty());
}

TEST(Prototypes, ADeadGateBecomesHalfOfTheBusiest) {
  const GateState s = four_gates();
  PrototypeConfig config;
  config.dead_steps = 3;
  config.clone_noise = 0;
  s.starving.data<std::int32_t>()[1] = 3;
  s.N.data<double>()[3] = 9;  // the busiest, in the other head
  s.N.data<double>()[1] = 0.1;
  const auto revived = revive_gates(config, s, only_gate_zero(), {1, 1});
  ASSERT_EQ(revived.size(), 1u);
  EXPECT_EQ(revived[0].gate, 1);
  EXPECT_EQ(revived[0].source, 3);
  EXPECT_EQ(s.head_of_gate.to_vector(), (std::vector<double>{0, 1, 1, 1}));
  EXPECT_EQ(s.mass.to_vector(), (std::vector<double>{1, 0.375, 0.25, 0.375}));
  EXPECT_EQ(s.N.to_vector(), (std::vector<double>{1, 4.5, 1, 4.5}));
  EXPECT_EQ(s.w.to_vector()[2], 0);  // w of gate 3
  EXPECT_EQ(s.w.to_vector()[3], -1);
  EXPECT_EQ(s.P.to_vector()[7], -0.5);
  // Of the recent tokens (5, 5) is farthest from the prototypes (±1, 0), (0, ±1).
  EXPECT_NEAR(s.p.to_vector()[2], std::sqrt(0.5), 1e-12);
  EXPECT_NEAR(s.p.to_vector()[3], std::sqrt(0.5), 1e-12);
  EXPECT_NEAR(s.P.to_vector()[2], 4.5 * 5, 1e-12);
  EXPECT_EQ(s.starving.to_vector()[1], 0);
  EXPECT_TRUE(dead_gates(config, s).empty());
}

TEST(Prototypes, AHeadKeepsItsLastGate) {
  GateState s = four_gates();
  s.head_of_gate = heads({0, 1, 2, 2}, {4});
  s.mass = Tensor::from({1, 1, 0.25, 0.75}, {4}, kF64);
  PrototypeConfig config;
  config.dead_steps = 1;
  s.starving.data<std::int32_t>()[1] = 1;
  s.N.data<double>()[3] = 9;
  const auto revived = revive_gates(config, s, only_gate_zero(), {1, 1});
  ASSERT_EQ(revived.size(), 1u);
  EXPECT_EQ(revived[0].source, 1);
  EXPECT_EQ(s.head_of_gate.to_vector(), (std::vector<double>{0, 1, 2, 2}));
  EXPECT_EQ(s.mass.to_vector(), (std::vector<double>{1, 1, 0.25, 0.75}));
  EXPECT_EQ(s.N.to_vector()[3], 9);
  EXPECT_NEAR(s.p.to_vector()[2], std::sqrt(0.5), 1e-12);
}

TEST(Balance, ThresholdsMoveAgainstTheLoad) {
  const Tensor q = Tensor::zeros({3}, kF64);
  const Tensor k = Tensor::zeros({3}, kF64);
  BalanceConfig config;
  config.u = 0.5;
  config.max_role_gap = 100;
  const RoleLoads loads{{0.75, 0.5, 0.25}, {0.1, 0.6, 0.8}};
  // Over the mean: query {.25, 0, -.25}, key {-.4, .1, .3}, both {-.15, .1, .05}. The middle moves
  // by u against the last, the difference by u times the difference of the first two signs.
  update_thresholds(config, 1, loads, q, k);
  EXPECT_EQ(q.to_vector(), (std::vector<double>{0, 0.25, 0}));
  EXPECT_EQ(k.to_vector(), (std::vector<double>{-1, 0.75, 1}));
  update_thresholds(config, 0.5, loads, q, k);
  EXPECT_EQ(q.to_vector(), (std::vector<double>{0, 0.375, 0}));
  config.follow_rate = false;
  update_thresholds(config, 0.25, loads, q, k);
  EXPECT_EQ(q.to_vector(), (std::vector<double>{0, 0.625, 0}));
  EXPECT_EQ(k.to_vector(), (std::vector<double>{-2.5, 1.875, 2.5}));
  config.enabled = false;
  update_thresholds(config, 1, loads, q, k);
  EXPECT_EQ(q.to_vector(), (std::vector<double>{0, 0.625, 0}));
}

TEST(Balance, ThresholdsOfTheRolesStayTogether) {
  const Tensor q = Tensor::zeros({3}, kF64);
  const Tensor k = Tensor::zeros({3}, kF64);
  BalanceConfig config;
  config.u = 1;
  config.max_role_gap = 0.5;
  update_thresholds(config, 1, {{0.9, 0.5, 0.1}, {0.1, 0.9, 0.1}}, q, k);
  // Both {.13, .53, -.67} over the mean.
  EXPECT_EQ(q.to_vector(), (std::vector<double>{1.25, 0.75, -1}));
  EXPECT_EQ(k.to_vector(), (std::vector<double>{0.75, 1.25, -1}));
}

TEST(Balance, OneThresholdForBothRoles) {
  const Tensor q = Tensor::zeros({3}, kF64);
  const Tensor k = Tensor::zeros({3}, kF64);
  BalanceConfig config;
  config.u = 1;
  config.max_role_gap = 0;
  update_thresholds(config, 1, {{0.9, 0.1, 0.8}, {0.8, 0.75, 0}}, q, k);
  EXPECT_EQ(q.to_vector(), (std::vector<double>{1, -1, -1}));
  EXPECT_EQ(k.to_vector(), q.to_vector());
}

TEST(Balance, LoadIsDescribed) {
  const RoleTelemetry even = describe_load({0.25, 0.25, 0.25, 0.25});
  EXPECT_EQ(even.max_vio, 0);
  EXPECT_NEAR(even.entropy, 1, 1e-12);
  const RoleTelemetry skewed = describe_load({1, 0, 0, 0});
  EXPECT_EQ(skewed.max_vio, 3);
  EXPECT_EQ(skewed.entropy, 0);
}

TEST(Balance, ChurnCountsChoicesNotPositions) {
  const Tensor before = heads({0, 1, 2, 3}, {2, 2});
  EXPECT_EQ(churn(before, before), 0);
  EXPECT_EQ(churn(before, heads({1, 0, 2, 4}, {2, 2})), 0.25);
  EXPECT_EQ(churn(before, heads({4, 5, 6, 7}, {2, 2})), 1);
  EXPECT_EQ(churn(before, heads({1, -1, -1, -1}, {2, 2})), 0);
  EXPECT_EQ(churn(before, heads({0, 1, 5, 2, 3, 5}, {2, 3})), 2.0 / 6);
  EXPECT_THROW(churn(before, heads({1, 2}, {1, 2})), ShapeError);
}

}  // namespace
}  // namespace proteus
