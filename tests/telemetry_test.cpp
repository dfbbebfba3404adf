// What a layer reports about its routing: prototypes against learned scores and prototype drift by
// hand, what neither evaluation nor recomputation may change, and the lines of metrics.jsonl.
#include <gtest/gtest.h>

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

ScoreParts parts_of_two_tokens(bool prototypes) {
  const TestLayer layer(two_heads(prototypes));
  const Router& router = layer->router();
  router.gate_weight().value().copy_(Tensor::from({1, 2, -1, 0, 3, 3, 0, 2}, {4, 2}, DType::f64));
  router.gate_state().p.copy_(Tensor::from({1, 0, 0, -1, 0.6, 0.8, 1, 0}, {4, 2}, DType::f64));
  if (prototypes) router.lambda().value().fill_(-2);
  // Token 0 enters head 1 only, token 1 both, token 2 none.
  const Tensor x = Tensor::from({3, 4, 0, 2, 9, 9}, {3, 2}, DType::f64);
  const PackedRows rows =
      ops::pack_rows(Tensor::from({1, -1, 0, 1, -1, -1}, {3, 2}, DType::i32), 2, 1);
  // Packed rows: (head 0, token 1), (head 1, token 0), (head 1, token 1).
  const Tensor share = Tensor::from({0.25, 0.75, 0.5, 0.5, 1, 0}, {3, 2}, DType::f64);
  return router.score_parts(x, rows, share);
}

TEST_F(AspaLayer, ScoresAreTakenApart) {
  const ScoreParts parts = parts_of_two_tokens(true);
  // |w·x̃|: row 0: 0.25·4 + 0.75·0; row 1: 0.5·21 + 0.5·8; row 2: 1·6 + 0·4.
  EXPECT_NEAR(parts.learned, 1 + 10.5 + 4 + 6, 1e-12);
  // |λ·cos|: row 0: 2·(0.25·0 + 0.75·1); row 1: 2·(0.5·1 + 0.5·0.6); row 2: 2·(1·0.8 + 0·0).
  EXPECT_NEAR(parts.prototype, 2 * (0.75 + 0.8 + 0.8), 1e-12);
  EXPECT_NEAR(parts.prototype_share(), 4.7 / (4.7 + 21.5), 1e-12);
}

TEST_F(AspaLayer, WithoutPrototypesScoresAreLearned) {
  const ScoreParts parts = parts_of_two_tokens(false);
  EXPECT_NEAR(parts.learned, 21.5, 1e-12);
  EXPECT_EQ(parts.prototype_share(), 0);
  EXPECT_EQ(ScoreParts().prototype_share(), -1);
}

TEST_F(AspaLayer, TheReportIsThatOfTheLastStep) {
  const AspaConfig c = config();
  const TestLayer layer(c);
  EXPECT_EQ(layer->telemetry().prototype_share, -1);
  run(*layer, input(c, 2, 20));
  EXPECT_EQ(layer->telemetry().prototype_share, -1) << "not before the step";
  layer->after_step(1);
  const double first = layer->telemetry().prototype_share;
  EXPECT_GT(first, 0);
  EXPECT_LT(first, 1);
  layer->set_training(false);
  evaluate(*layer, input(c, 2, 20, 8).value());
  layer->after_step(1);
  EXPECT_EQ(layer->telemetry().prototype_share, first) << "evaluation changes nothing";
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
  EXPECT_EQ(recomputed->telemetry().prototype_share, plain->telemetry().prototype_share);
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
  EXPECT_EQ(off->telemetry().prototype_share, -1);
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
    EXPECT_EQ(std::isnan(line[1].at("prototype_share").get<double>()), shared);
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
