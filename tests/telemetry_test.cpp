// What a layer reports about its routing: prototypes against learned scores and prototype drift by
// hand, what neither evaluation nor recomputation may change, and the lines of metrics.jsonl.
#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "aspa/prototypes.h"
#include "autograd/checkpoint.h"
#include "tests/aspa_layers.h"
#include "train/models.h"
#include "train/routing_log.h"

namespace proteus {
namespace {

using nlohmann::ordered_json;
using testing::AspaLayer;
using testing::config;
using testing::evaluate;
using testing::input;
using testing::run;
using testing::same_bits;
using testing::TestLayer;

// Head 0 has gates 0 and 1, head 1 gates 2 and 3, in a plane.
AspaConfig two_heads(bool prototypes) {
  AspaConfig c = config();
  c.routed_heads = 2;
  c.k = 1;
  c.gates_per_head = 2;
  c.routing_width = 2;
  c.prototypes.enabled = prototypes;
  return c;
}

ScoreParts parts_of_three_tokens(bool prototypes) {
  const TestLayer layer(two_heads(prototypes));
  const Router& router = layer->router();
  router.gate_weight().value().copy_(
      Tensor::from({0.1, 0.2, -0.1, 0, 0.3, -0.3, 0, 0.2}, {4, 2}, DType::f64));
  router.gate_state().p.copy_(Tensor::from({1, 0, 0, -1, 0.6, 0.8, 1, 0}, {4, 2}, DType::f64));
  if (prototypes) router.lambda().value().fill_(-2);
  // Token 0 enters head 1 only, token 1 both, token 2 none.
  return router.score_parts({Tensor::from({3, 4, 0, 2, 9, 9}, {3, 2}, DType::f64),
                             Tensor::from({1, -1, 0, 1, -1, -1}, {3, 2}, DType::i32)});
}

/// The share of the first of two gates of equal mass.
double share_of(double score, double other) { return 1 / (1 + std::exp(other - score)); }

TEST_F(AspaLayer, ScoresAreTakenApart) {
  // w·x̃ and λ·cos of the gates: token 1 in head 0: 0.4 + 0, 0 + 2; token 0 in head 1: −0.3 − 2,
  // 0.8 − 1.2; token 1 in head 1: −0.6 − 1.6, 0.4 + 0.
  const double a = share_of(0.4, 2);
  const double b = share_of(-2.3, -0.4);
  const double c = share_of(-2.2, 0.4);
  const double learned = a * 0.4 + b * 0.3 + (1 - b) * 0.8 + c * 0.6 + (1 - c) * 0.4;
  const double prototype = (1 - a) * 2 + b * 2 + (1 - b) * 1.2 + c * 1.6;
  const ScoreParts parts = parts_of_three_tokens(true);
  EXPECT_NEAR(parts.learned, learned, 1e-12);
  EXPECT_NEAR(parts.prototype, prototype, 1e-12);
  EXPECT_NEAR(parts.prototype_share(), prototype / (prototype + learned), 1e-12);
}

TEST_F(AspaLayer, WithoutPrototypesScoresAreLearned) {
  const double a = share_of(0.4, 0);
  const double b = share_of(-0.3, 0.8);
  const double c = share_of(-0.6, 0.4);
  const ScoreParts parts = parts_of_three_tokens(false);
  EXPECT_NEAR(parts.learned, a * 0.4 + b * 0.3 + (1 - b) * 0.8 + c * 0.6 + (1 - c) * 0.4, 1e-12);
  EXPECT_EQ(parts.prototype_share(), 0);
  EXPECT_EQ(ScoreParts().prototype_share(), -1);
}

TEST_F(AspaLayer, TheReportIsThatOfTheLastTrainingPass) {
  const AspaConfig c = config();
  const TestLayer layer(c);
  const auto share = [&] { return layer->gating().prototype_share(); };
  EXPECT_EQ(share(), -1);
  run(*layer, input(c, 2, 20));
  layer->after_step(1);
  const double first = share();
  EXPECT_GT(first, 0);
  EXPECT_LT(first, 1);
  layer->set_training(false);
  evaluate(*layer, input(c, 2, 20, 8).value());
  layer->after_step(1);
  EXPECT_EQ(share(), first) << "evaluation changes nothing";
  layer->set_training(true);
  run(*layer, input(c, 2, 20, 8));
  EXPECT_NE(share(), first);
}

TEST_F(AspaLayer, RecomputationIsNotMeasuredTwice) {
  const AspaConfig c = config();
  const TestLayer plain(c);
  const TestLayer recomputed(c);
  const Variable x = input(c, 2, 20);
  run(*plain, x);
  const Variable y =
      checkpoint([&](const std::vector<Variable>& v) { return recomputed->forward(v[0]); }, {x});
  testing::gradients(*recomputed, x, y);
  plain->after_step(1);
  recomputed->after_step(1);
  EXPECT_EQ(recomputed->gating().prototype_share(), plain->gating().prototype_share());
}

TEST_F(AspaLayer, MeasuringDecidesNothing) {
  const AspaConfig c = config();
  const TestLayer on(c);
  const TestLayer off(c);
  off->gating().set_telemetry(false);
  for (std::uint64_t step = 0; step < 3; ++step) {
    testing::expect_same_bits(run(*off, input(c, 2, 20, step)), run(*on, input(c, 2, 20, step)));
    on->after_step(1);
    off->after_step(1);
  }
  EXPECT_EQ(off->gating().prototype_share(), -1);
  EXPECT_EQ(off->telemetry().query.load, on->telemetry().query.load);
  EXPECT_TRUE(same_bits(off->router().gate_state().p, on->router().gate_state().p));
}

TEST(PrototypeDrift, IsTheMeanOfOneMinusTheCosine) {
  const Tensor before = Tensor::from({1, 0, 0, 1, 0.6, 0.8}, {3, 2}, DType::f64);
  const Tensor after = Tensor::from({0, 1, 0, 1, -0.6, -0.8}, {3, 2}, DType::f64);
  EXPECT_NEAR(prototype_drift(before, before), 0, 1e-12);
  EXPECT_NEAR(prototype_drift(before, after), (1 + 0 + 2) / 3.0, 1e-12);
  EXPECT_EQ(prototype_drift(before, Tensor::zeros({4, 2}, DType::f64)), -1);
  EXPECT_EQ(prototype_drift({}, after), -1);
}

std::unique_ptr<Transformer> model_of(const char* arm, const std::vector<std::string>& more = {}) {
  std::vector<std::string> args{"--layers", "2", "--width", "32", "--context", "16"};
  args.insert(args.end(), more.begin(), more.end());
  const Options options = parse_options("duel", args).options;
  return make_model(options, arm_named(arm, "--arms"), 11, 3);
}

void train_step(Transformer& model) {
  const Tensor tokens = Tensor::rand({2, 16}, {4, 4}, DType::f64, 0, 11).to(DType::i32);
  model.loss(tokens, tokens).backward();
  model.zero_grad();
  model.after_step(1);
}

TEST(RoutingLog, DescribesEveryLayer) {
  const auto model = model_of("aspa");
  RoutingLog log;
  train_step(*model);
  const ordered_json first = log.line(*model);
  ASSERT_EQ(first.size(), 2u);
  for (std::size_t l = 0; l < 2; ++l) {
    const ordered_json& layer = first[l];
    EXPECT_EQ(layer.at("layer"), l);
    EXPECT_EQ(layer.at("part"), "attention");
    EXPECT_EQ(layer.at("k"), 4);
    EXPECT_EQ(layer.at("dead_gates"), 0);
    EXPECT_NEAR(layer.at("density"), 4.0 / 16, 1e-9);
    EXPECT_GT(layer.at("prototype_share"), 0);
    EXPECT_TRUE(std::isnan(layer.at("prototype_drift").get<double>())) << "null in the file";
    for (const char* role : {"query", "key"}) {
      double sum = 0;
      for (const double share : layer.at(role).at("load")) sum += share;
      EXPECT_EQ(layer.at(role).at("load").size(), 16u);
      EXPECT_NEAR(sum, 4, 1e-2);
      EXPECT_GE(layer.at(role).at("maxvio"), 0);
      EXPECT_GT(layer.at(role).at("entropy"), 0.5);
      EXPECT_EQ(layer.at(role).at("kept"), 1);
    }
  }
  EXPECT_NEAR(log.line(*model)[0].at("prototype_drift"), 0, 1e-6);
  train_step(*model);
  const ordered_json third = log.line(*model);
  const double drift = third[0].at("prototype_drift");
  EXPECT_GT(drift, 0);
  EXPECT_LT(drift, 2);
}

TEST(RoutingLog, ExpertsHaveTheirOwnEntry) {
  for (const bool shared : {false, true}) {
    const auto model = model_of("aspa", {"--experts", shared ? "16" : "4", "--expert-router",
                                         shared ? "attention" : "own"});
    RoutingLog log;
    train_step(*model);
    const ordered_json line = log.line(*model);
    ASSERT_EQ(line.size(), 4u);
    EXPECT_EQ(line[1].at("part"), "mlp");
    EXPECT_EQ(line[1].at("query").at("load").size(), shared ? 16u : 4u);
    EXPECT_TRUE(line[1].at("key").is_null());
    EXPECT_GT(line[1].at("prototype_share"), 0);
    EXPECT_EQ(std::isnan(line[1].at("lambda").get<double>()), shared) << "the attention's";
  }
}

TEST(RoutingLog, IsNullWhereNothingIsRouted) {
  RoutingLog log;
  EXPECT_TRUE(log.line(*model_of("dense")).is_null());
  EXPECT_TRUE(log.line(*model_of("aspa", {"--routed-heads", "0"})).is_null());
  RoutingLog other;
  const ordered_json line = other.line(*model_of("aspa_no_prototypes"));
  EXPECT_TRUE(line[0].at("query").is_null()) << "before a step";
  EXPECT_TRUE(std::isnan(line[0].at("lambda").get<double>()));
}

}  // namespace
}  // namespace proteus
