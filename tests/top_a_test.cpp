// Top-A: consensus and agreement of the routed heads by hand, decoding against the forward pass,
// and text that does not change where Top-A has nothing to say.
#include "aspa/top_a.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tensor/error.h"
#include "tests/aspa_layers.h"
#include "tests/error_text.h"
#include "train/generate.h"
#include "train/models.h"

namespace proteus {
namespace {

using testing::AspaLayer;
using testing::config;
using testing::difference;
using testing::evaluate;
using testing::input;
using testing::message_of;
using testing::same_bits;
using testing::TestLayer;

// Heads 0, 1, 2 with D = 1 write along (1, 0), (0, 1) and (1, 1).
Tensor three_directions() { return Tensor::from({1, 0, 0, 1, 1, 1}, {3, 1, 2}, DType::f64); }

HeadOutputs said(std::vector<std::int32_t> heads, const std::vector<double>& values) {
  HeadOutputs out{std::move(heads), {}};
  for (const double v : values) out.gated.push_back(Tensor::from({v}, {1}, DType::f64));
  return out;
}

TEST(HeadAgreement, IsTheCosineWithTheOthers) {
  // y = (2, 0), (0, 1), (3, 3): the others are (3, 4), (5, 3), (2, 1).
  const auto a = head_agreement(said({0, 1, 2}, {2, 1, 3}), three_directions());
  ASSERT_EQ(a.size(), 3u);
  EXPECT_NEAR(a[0], 3.0 / 5, 1e-12);
  EXPECT_NEAR(a[1], 3.0 / std::sqrt(34.0), 1e-12);
  EXPECT_NEAR(a[2], 9.0 / (3 * std::sqrt(2.0) * std::sqrt(5.0)), 1e-12);
  const auto opposed = head_agreement(said({0, 0}, {2, -5}), three_directions());
  EXPECT_EQ(opposed, (std::vector<double>{-1, -1}));
}

TEST(HeadAgreement, NeedsOthersAndADirection) {
  EXPECT_TRUE(head_agreement(said({}, {}), three_directions()).empty());
  EXPECT_TRUE(head_agreement(said({2}, {1}), three_directions()).empty());
  EXPECT_TRUE(head_agreement(said({0, 1}, {1, 0}), three_directions()).empty());
  // A silent third head takes nothing from the other two.
  EXPECT_EQ(head_agreement(said({0, 1, 2}, {1, 1, 0}), three_directions()),
            (std::vector<double>{0, 0}));
}

TEST(AgreementSummary, MeanLeastLargest) {
  AgreementSummary summary;
  EXPECT_EQ(summary.count(), 0);
  summary.add(std::vector<double>{0.5, -0.25});
  summary.add({});
  summary.add(std::vector<double>{0.5});
  EXPECT_EQ(summary.count(), 3);
  EXPECT_EQ(summary.mean(), 0.25);
  EXPECT_EQ(summary.min(), -0.25);
  EXPECT_EQ(summary.max(), 0.5);
}

// Without what the shared heads say the layer's output is the consensus.
TEST_F(AspaLayer, ConsensusIsWhatRoutedHeadsAdd) {
  for (const double alpha : {0.0, 0.4, 1.0}) {
    AspaConfig c = config();
    c.alpha = alpha;
    const TestLayer layer(c);
    layer->weights().out.value().zero_();
    layer->set_training(false);
    layer->watch_consensus(true);
    const Tensor y = evaluate(*layer, input(c, 2, 20).value());
    EXPECT_LE(difference(layer->consensus().c, y), 1e-12) << alpha;
    EXPECT_EQ(layer->consensus().agreement.size(), 2u);
    const auto heads = static_cast<std::size_t>(alpha == 0 ? c.routed_heads : layer->k());
    EXPECT_EQ(layer->consensus().agreement[0].size(), heads) << alpha;
  }
}

// A_h of the last token from the outputs of a layer whose other heads are silenced.
TEST_F(AspaLayer, AgreementIsThatOfTheHeadsOutputs) {
  const AspaConfig c = config();
  const TestLayer layer(c);
  layer->weights().out.value().zero_();
  layer->set_training(false);
  const Tensor x = input(c, 1, 15).value();
  const Tensor w_out = layer->weights().o.value();
  const Tensor whole = w_out.clone();
  std::vector<std::vector<double>> y;  // of the heads that say something
  for (std::int64_t h = 0; h < c.routed_heads; ++h) {
    w_out.zero_();
    w_out.select(0, h).copy_(whole.select(0, h));
    const auto out = evaluate(*layer, x).select(1, 14).to_vector();
    if (std::any_of(out.begin(), out.end(), [](double v) { return v != 0; })) y.push_back(out);
  }
  w_out.copy_(whole);
  layer->watch_consensus(true);
  evaluate(*layer, x);
  ASSERT_EQ(y.size(), 2u);
  bool defined = false;
  const double expected = cosine(y[0].data(), y[1].data(), c.width, defined);
  const auto& got = layer->consensus().agreement.at(0);
  ASSERT_EQ(got.size(), 2u);
  EXPECT_NEAR(got[0], expected, 1e-10);
  EXPECT_NEAR(got[1], expected, 1e-10);
}

TEST_F(AspaLayer, StepsAgreeWithTheForwardPass) {
  for (const double alpha : {0.0, 0.5, 1.0}) {
    for (const bool sparse : {false, true}) {
      AspaConfig c = sparse ? testing::doubly_sparse(config()) : config();
      c.alpha = alpha;
      const TestLayer layer(c);
      if (sparse) testing::settle(*layer);
      layer->set_training(false);
      layer->watch_consensus(true);
      const std::int64_t T = 17;
      const Tensor x = input(c, 2, T).value();
      const auto a = layer->make_state(CacheType::full);
      const auto b = layer->make_state(CacheType::full);
      AttentionState* const states[] = {a.get(), b.get()};
      for (std::int64_t t = 0; t < T; ++t) {
        layer->step(x.select(1, t).contiguous(), states);
        const Consensus stepped = layer->consensus();
        evaluate(*layer, x.slice(1, 0, t + 1).contiguous());
        const Consensus& whole = layer->consensus();
        EXPECT_LE(difference(stepped.c, whole.c.select(1, t)), 1e-11) << t;
        ASSERT_EQ(stepped.agreement.size(), whole.agreement.size());
        for (std::size_t row = 0; row < 2; ++row) {
          ASSERT_EQ(stepped.agreement[row].size(), whole.agreement[row].size()) << t;
          for (std::size_t h = 0; h < whole.agreement[row].size(); ++h) {
            EXPECT_NEAR(stepped.agreement[row][h], whole.agreement[row][h], 1e-9) << t;
          }
        }
      }
    }
  }
}

TEST_F(AspaLayer, WatchingChangesNoBit) {
  const AspaConfig c = config(DType::f32);
  const TestLayer layer(c);
  layer->set_training(false);
  const Tensor x = input(c, 2, 30).value();
  const auto step = [&] {
    const auto a = layer->make_state(CacheType::full);
    const auto b = layer->make_state(CacheType::full);
    AttentionState* const states[] = {a.get(), b.get()};
    Tensor y;
    for (std::int64_t t = 0; t < 9; ++t) y = layer->step(x.select(1, t).contiguous(), states);
    return y;
  };
  const Tensor forward = evaluate(*layer, x);
  const Tensor stepped = step();
  layer->watch_consensus(true);
  EXPECT_TRUE(same_bits(evaluate(*layer, x), forward));
  EXPECT_TRUE(same_bits(step(), stepped));
}

TEST_F(AspaLayer, ConsensusNeedsRoutedHeadsAndAPass) {
  AspaConfig c = config(DType::f32);
  const TestLayer layer(c);
  EXPECT_EQ(message_of<ConfigError>([&] { layer->consensus(); }),
            "aspa: consensus: nothing was watched; call watch_consensus(true) and run the layer");
  c.routed_heads = 0;
  const TestLayer shared(c);
  EXPECT_EQ(message_of<ConfigError>([&] { shared->watch_consensus(true); }),
            "aspa: router: this layer has no routed heads");
}

Tokenizer tokenizer() { return Tokenizer::chars_of("abcdefgh\n", "text"); }

std::unique_ptr<Transformer> small_model(const char* arm) {
  Options options =
      parse_options("duel", {"--layers", "2", "--width", "32", "--context", "24"}).options;
  return make_model(options, arm_named(arm, "--arms"), tokenizer().vocab(), 3);
}

Generated text_of(Transformer& model, const SamplingOptions& options) {
  return generate(model, tokenizer(), options, 5);
}

// Prompt, decoding, and 20 tokens beyond the context.
SamplingOptions some_text(const char* top_a) {
  SamplingOptions o;
  o.prompt = "abcab";
  o.sample_tokens = 40;
  o.top_p = 0.9;
  o.top_a = top_a;
  return o;
}

TEST(TopAText, NothingToSayChangesNothing) {
  const auto model = small_model("aspa");
  const std::string plain = text_of(*model, some_text("off")).text;
  SamplingOptions o = some_text("blend");
  o.top_a_weight = 0;
  EXPECT_EQ(text_of(*model, o).text, plain);
  o = some_text("filter");
  o.top_a_threshold = -1;
  EXPECT_EQ(text_of(*model, o).text, plain);
}

TEST(TopAText, BothKindsChangeTheText) {
  const auto model = small_model("aspa");
  const std::string plain = text_of(*model, some_text("off")).text;
  SamplingOptions o = some_text("blend");
  o.top_a_weight = 5;
  EXPECT_NE(text_of(*model, o).text, plain);
  o = some_text("filter");
  o.top_a_threshold = 0.1;
  EXPECT_NE(text_of(*model, o).text, plain);
  o.temperature = 0;  // one candidate is left: the likeliest
  const std::string greedy = text_of(*model, o).text;
  o.top_a = "off";
  EXPECT_EQ(text_of(*model, o).text, greedy);
}

TEST(TopAText, AgreementIsReportedForEveryTokenDrawn) {
  const auto model = small_model("aspa");
  const AgreementSummary a = text_of(*model, some_text("off")).agreement;
  // k = 4; a head whose stream is still empty has nothing to say.
  EXPECT_LE(a.count(), 40 * 4);
  EXPECT_GT(a.count(), 40 * 3);
  EXPECT_LE(a.min(), a.mean());
  EXPECT_LE(a.mean(), a.max());
  EXPECT_GE(a.min(), -1);
  EXPECT_LE(a.max(), 1);
  EXPECT_EQ(text_of(*small_model("dense"), some_text("off")).agreement.count(), 0);
}

TEST(TopAText, ADenseModelIsRefused) {
  const auto model = small_model("dense");
  EXPECT_EQ(message_of<ConfigError>([&] { text_of(*model, some_text("filter")); }),
            "--top-a: expected a model whose last layer has routed heads (an ASPA arm), got one "
            "without; use --top-a off");
  EXPECT_TRUE(model->training()) << "as before";
}

}  // namespace
}  // namespace proteus
