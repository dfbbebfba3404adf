// The chunked shortlist: what is kept, by hand and against a plain sort; scores against the
// formula.
#include "aspa/shortlist.h"

#include <algorithm>
#include <limits>

#include "aspa/salience.h"
#include "aspa/token_scorer.h"
#include "tensor/error.h"
#include "tests/aspa_layers.h"
#include "tests/error_text.h"

namespace proteus {
namespace {

using testing::difference;
using testing::message_of;
using testing::same_bits;
using testing::TestLayer;

ShortlistConfig plain_config() {
  ShortlistConfig c;
  c.buffer = 100;
  c.top_p = 1;
  c.pool = 0;
  c.span = 0;
  c.anchors = 0;
  return c;
}

// Scores of one head, query 0.
TokenScores one_head(std::initializer_list<double> scores) {
  const auto n = static_cast<std::int64_t>(scores.size());
  return {Tensor::from(scores, {n, 1}), Tensor::zeros({n, 1}, DType::i32)};
}

std::vector<std::int64_t> kept(const Shortlist& list) {
  std::vector<std::int64_t> tokens;
  for (const Winner& w : list.winners()) tokens.push_back(w.token);
  return tokens;
}

using Ids = std::vector<std::int64_t>;

TEST(Shortlist, KeepsTheBestAndOfEqualOnesTheEarlier) {
  ShortlistConfig c = plain_config();
  c.buffer = 3;
  Shortlist list(c);
  list.add(one_head({1, 5, 2, 5}));
  EXPECT_EQ(kept(list), (Ids{1, 2, 3}));
  const ChunkReport second = list.add(one_head({5, 0, 2, 7}));
  EXPECT_EQ(kept(list), (Ids{1, 3, 7})) << "token 4 has the score of 1 and 3, but came later";
  EXPECT_EQ(second.entered, 1) << "7 took the place of 2; then 4 found none";
  EXPECT_EQ(list.tokens(), 8);
  EXPECT_EQ(list.chunks(), 2);
  EXPECT_EQ(second.least, 5);
  EXPECT_EQ(second.best, 7);
}

TEST(Shortlist, TopPSaysHowManyAndTheBudgetCapsIt) {
  // The softmax of log 4, log 3, log 2, log 1 is 0.4, 0.3, 0.2, 0.1.
  const auto chunk = [] {
    return one_head({std::log(1.0), std::log(4.0), std::log(2.0), std::log(3.0)});
  };
  const auto chosen = [&](double top_p, std::int64_t per_chunk, double chunk_keep) {
    ShortlistConfig c = plain_config();
    c.top_p = top_p;
    c.per_chunk = per_chunk;
    c.chunk_keep = chunk_keep;
    Shortlist list(c);
    list.add(chunk());
    return kept(list);
  };
  EXPECT_EQ(chosen(0.39, 10, 1), (Ids{1}));
  EXPECT_EQ(chosen(0.41, 10, 1), (Ids{1, 3}));
  EXPECT_EQ(chosen(0.8, 10, 1), (Ids{1, 2, 3}));
  EXPECT_EQ(chosen(0.8, 2, 1), (Ids{1, 3}));
  EXPECT_EQ(chosen(0.8, 10, 0.25), (Ids{1}));
  EXPECT_EQ(chosen(0.8, 10, 0.3), (Ids{1, 3})) << "shares are rounded up";
}

TEST(Shortlist, TopADropsWhatTooFewHeadsAgreeWith) {
  // Budget 2: head 0's best are tokens 0 and 1, head 1's 1 and 2.
  const TokenScores chunk{Tensor::from({9, 0, 8, 6, 1, 7, 0, 1}, {4, 2}),
                          Tensor::from({0, 1, 2, 3, 4, 5, 6, 7}, {4, 2}, DType::i32)};
  ShortlistConfig c = plain_config();
  c.per_chunk = 2;
  c.top_a = 2;
  Shortlist list(c);
  const ChunkReport report = list.add(chunk);
  EXPECT_EQ(kept(list), (Ids{1}));
  EXPECT_EQ(report.chosen, 2);
  EXPECT_EQ(report.disagreed, 1);
  EXPECT_DOUBLE_EQ(report.agreement, 0.75);
  EXPECT_EQ(list.winners()[0].head, 0);
  EXPECT_EQ(list.winners()[0].query, 2);
  EXPECT_EQ(list.winners()[0].agree, 2);
}

TEST(Shortlist, PoolsOverNeighboursWithinTheChunkAndAddsSalience) {
  ShortlistConfig c = plain_config();
  c.pool = 1;
  c.salience = 2;
  TokenScores chunk = one_head({3, 0, 0, 6});
  chunk.salience = Tensor::from({0, 0.5, 0, -1}, {4});
  Shortlist list(c);
  list.add(chunk);
  std::vector<float> scores;
  for (const Winner& w : list.winners()) scores.push_back(w.score);
  EXPECT_EQ(scores, (std::vector<float>{1.5F, 2, 2, 1}));
}

TEST(Shortlist, SpansHoldAnchorsAndTheBestNeighbourhoodsThatFit) {
  ShortlistConfig c = plain_config();
  c.buffer = 9;
  c.span = 1;
  c.anchors = 2;
  Shortlist list(c);
  list.add(one_head({0, 0, 0, 0, 9, 0, 8, 0, 0, 0, 0, 7}));
  // 0 1 | 3 4 5 | 6 7 are seven; 10 11 makes nine, and then the next winner does not fit.
  const std::vector<Span> spans = list.spans();
  ASSERT_EQ(spans.size(), 3u);
  EXPECT_EQ(spans[0].begin, 0);
  EXPECT_EQ(spans[0].end, 2);
  EXPECT_EQ(spans[1].begin, 3);
  EXPECT_EQ(spans[1].end, 8);
  EXPECT_EQ(spans[2].begin, 10);
  EXPECT_EQ(spans[2].end, 12);
  EXPECT_EQ(tokens_of(spans), 9);
}

TEST(Shortlist, EqualsAPlainSortOfEveryChunkAndThenOfAll) {
  ShortlistConfig c = plain_config();
  c.buffer = 40;
  c.per_chunk = 17;
  Shortlist list(c);
  std::vector<Winner> expected;
  std::int64_t first = 0;
  for (const std::int64_t n : {50, 7, 64, 1, 33}) {
    // Few different scores, so that many are equal.
    const Tensor draw = Tensor::rand({n, 3}, {7, static_cast<std::uint64_t>(n)}, DType::f32, 0, 9);
    for (std::int64_t i = 0; i < draw.numel(); ++i) {
      draw.data<float>()[i] = std::floor(draw.data<float>()[i]);
    }
    list.add({draw, Tensor::zeros({n, 3}, DType::i32)});
    std::vector<Winner> chunk;
    for (std::int64_t t = 0; t < n; ++t) {
      const float* row = draw.data<float>() + 3 * t;
      chunk.push_back({.token = first + t, .score = std::max({row[0], row[1], row[2]})});
    }
    std::sort(chunk.begin(), chunk.end(), [](auto& a, auto& b) { return a.before(b); });
    chunk.resize(std::min<std::size_t>(chunk.size(), 17));
    expected.insert(expected.end(), chunk.begin(), chunk.end());
    first += n;
  }
  std::sort(expected.begin(), expected.end(), [](auto& a, auto& b) { return a.before(b); });
  expected.resize(40);
  Ids tokens;
  for (const Winner& w : expected) tokens.push_back(w.token);
  std::sort(tokens.begin(), tokens.end());
  EXPECT_EQ(kept(list), tokens);
}

TEST(Shortlist, ANumberThatIsNoneStopsItAndLeavesTheBufferAsItWas) {
  Shortlist list(plain_config());
  list.add(one_head({1, 2}));
  const double inf = std::numeric_limits<double>::infinity();
  for (const double bad : {std::nan(""), inf, -inf}) {
    EXPECT_EQ(message_of<NumericError>([&] {
                list.add(one_head({3, bad}));
              }),
              "shortlist: the score of token 3 is not a finite number; look at the embeddings "
              "there");
  }
  EXPECT_EQ(kept(list), (Ids{0, 1}));
  EXPECT_EQ(list.tokens(), 2);
}

TEST(Shortlist, RefusesWhatMakesNoSense) {
  const auto refused = [](auto change) {
    ShortlistConfig c = plain_config();
    change(c);
    return message_of<ConfigError>([&] { Shortlist list(c); });
  };
  EXPECT_EQ(refused([](auto& c) { c.buffer = 0; }),
            "shortlist: buffer: expected at least 1, got 0");
  EXPECT_EQ(refused([](auto& c) { c.top_p = 0; }),
            "shortlist: top_p: expected a number in (0, 1], got 0");
  EXPECT_EQ(refused([](auto& c) { c.anchors = 101; }),
            "shortlist: anchors: expected at most 100 (= buffer), got 101");
  Shortlist list(plain_config());
  EXPECT_EQ(message_of<ShapeError>([&] {
              list.add({Tensor::zeros({3, 2}), Tensor::zeros({3, 1}, DType::i32)});
            }),
            "Shortlist::add(chunk): query: expected [3, 2] (= best), got [3, 1]");
}

AspaConfig layer_config() {
  AspaConfig c;
  c.width = 24;
  c.head_width = 8;
  c.shared_heads = 1;
  c.routed_heads = 3;
  c.k = 2;
  c.routing_width = 8;
  c.salience.keep = 0.5;
  return c;
}

// max_i q_{i,h}·k_{t,h}/√D in f64, from the definition.
double plain_score(const AspaAttention& layer, const std::vector<double>& prompt,
                   const std::vector<double>& x, std::int64_t t, std::int64_t h) {
  const std::int64_t C = layer.config().width;
  const std::int64_t D = layer.config().head_width;
  const auto wq = layer.weights().q.value().to_vector();
  const auto wk = layer.weights().k.value().to_vector();
  const bool bias = layer.config().bias;
  const auto bq = bias ? layer.weights().q_bias.value().to_vector() : std::vector<double>();
  const auto bk = bias ? layer.weights().k_bias.value().to_vector() : std::vector<double>();
  const auto mu = layer.weights().mu.value().to_vector();
  const auto at = [](const std::vector<double>& v, std::int64_t i) {
    return v[static_cast<std::size_t>(i)];
  };
  double best = -1e30;
  for (std::int64_t i = 0; i * C < static_cast<std::int64_t>(prompt.size()); ++i) {
    double sum = 0;
    for (std::int64_t d = 0; d < D; ++d) {
      double q = bias ? at(bq, h * D + d) : 0;
      double k = bias ? at(bk, h * D + d) : 0;
      for (std::int64_t c = 0; c < C; ++c) {
        const double shifted = at(x, t * C + c) + (t > 0 ? at(mu, c) * at(x, (t - 1) * C + c) : 0);
        q += at(prompt, i * C + c) * at(wq, (h * C + c) * D + d);
        k += shifted * at(wk, (h * C + c) * D + d);
      }
      sum += q * k;
    }
    best = std::max(best, sum / std::sqrt(static_cast<double>(D)));
  }
  return best;
}

// With W_K inside the queries, and with keys.
class TokenScorerFormula : public ::testing::TestWithParam<bool> {};

TEST_P(TokenScorerFormula, HoldsForShortPromptsAndLongOnes) {
  AspaConfig config = layer_config();
  config.bias = GetParam();
  const TestLayer layer(config);
  const Tensor x = Tensor::randn({90, 24}, {3, 2});
  for (const std::int64_t P : {1, 5, 40}) {
    const Tensor prompt = Tensor::randn({P, 24}, {3, 1});
    const TokenScorer scorer(*layer, prompt, false);
    EXPECT_EQ(scorer.flops_per_token(), P < 40 ? 2 * 3 * P * 24 : 2 * (3 * P * 8 + 3 * 8 * 24));
    const TokenScores scores = scorer.score(x, {});
    ASSERT_EQ(scores.best.shape(), (Shape{90, 3}));
    EXPECT_FALSE(scores.salience.defined());
    std::vector<double> expected;
    for (std::int64_t t = 0; t < 90; ++t) {
      for (std::int64_t h = 0; h < 3; ++h) {
        expected.push_back(plain_score(*layer, prompt.to_vector(), x.to_vector(), t, h));
      }
    }
    EXPECT_LE(difference(scores.best, Tensor::from(expected, {90, 3})), 1e-5) << P;
    // The query that is named is the one that decides: alone it gives the same score.
    for (std::int64_t t = 0; t < 90; t += 13) {
      const std::int64_t i = scores.query.data<std::int32_t>()[t * 3 + 1];
      const TokenScorer alone(*layer, prompt.slice(0, i, i + 1), false);
      EXPECT_NEAR(alone.score(x, {}).best.data<float>()[t * 3 + 1],
                  scores.best.data<float>()[t * 3 + 1], 1e-5);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Bias, TokenScorerFormula, ::testing::Bool());

TEST(TokenScorer, TakesTheTextInPartsAndOnAnyNumberOfThreads) {
  const TestLayer layer(layer_config());
  const Tensor prompt = Tensor::randn({4, 24}, {3, 1});
  const Tensor x = Tensor::randn({400, 24}, {3, 2});
  const TokenScorer scorer(*layer, prompt, true);
  set_num_threads(1);
  const TokenScores whole = scorer.score(x, {});
  set_num_threads(3);
  const TokenScores again = scorer.score(x, {});
  EXPECT_TRUE(same_bits(whole.best, again.best));
  EXPECT_TRUE(same_bits(whole.query, again.query));
  EXPECT_TRUE(same_bits(whole.salience, again.salience));
  const TokenScores parts = joined_scores(
      {scorer.score(x.slice(0, 0, 150), {}), scorer.score(x.slice(0, 150, 400), x.select(0, 149))});
  set_num_threads(0);
  EXPECT_LE(difference(parts.best, whole.best), 1e-6);
  EXPECT_LE(difference(parts.salience, whole.salience), 1e-6);
}

TEST(TokenScorer, SalienceIsTheLayersOwn) {
  const TestLayer layer(layer_config());
  const Tensor x = Tensor::randn({20, 24}, {3, 2});
  const Tensor before = Tensor::randn({24}, {3, 3});
  const TokenScores scores = TokenScorer(*layer, x.slice(0, 0, 2), true).score(x, before);
  const auto rows = x.to_vector();
  const auto first = before.to_vector();
  const auto mu = layer->weights().mu.value().to_vector();
  std::vector<double> keys;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    keys.push_back(rows[i] + mu[i % 24] * (i < 24 ? first[i] : rows[i - 24]));
  }
  const Tensor x_key = Tensor::from(keys, {1, 20, 24});
  const NoGradGuard no_grad;
  const Variable projected = layer->router().project(Variable(x_key));
  const Tensor nearest = layer->router().logits_and_nearest(projected.value()).nearest;
  const Tensor p = layer->router().gate_state().p;
  EXPECT_LE(difference(scores.salience, layer->salience()->scores(projected, p, nearest).value()),
            1e-5);
}

TEST(TokenScorer, RefusesWhatDoesNotFit) {
  AspaConfig c = layer_config();
  c.salience.keep = 1;
  const TestLayer layer(c);
  const Tensor prompt = Tensor::zeros({2, 24});
  EXPECT_EQ(message_of<ConfigError>([&] { TokenScorer(*layer, prompt, true); }),
            "TokenScorer(layer, prompt): the layer has no token salience; make it with token keep "
            "below 1, or score without");
  EXPECT_EQ(message_of<ShapeError>([&] {
              TokenScorer(*layer, Tensor::zeros({2, 25}), false);
            }),
            "TokenScorer(layer, prompt): prompt: expected [n, 24] (= width), got [2, 25]");
  EXPECT_EQ(message_of<ShapeError>([&] {
              TokenScorer(*layer, Tensor::zeros({0, 24}), false);
            }),
            "TokenScorer(layer, prompt): prompt: expected at least one token, got [0, 24]");
  const TokenScorer scorer(*layer, prompt, false);
  EXPECT_EQ(message_of<ShapeError>([&] { scorer.score(Tensor::zeros({24}), {}); }),
            "TokenScorer::score(x, before): x: expected [n, 24] (= width), got [24]");
  const Tensor bad = Tensor::full({3, 24}, std::nan(""));
  EXPECT_TRUE(std::isnan(TokenScorer(*layer, Tensor::randn({2, 24}, {1, 1}), false)
                             .score(bad, {})
                             .best.data<float>()[0]));
}

TEST(Shortlist, WinnersOfAnEarlierPassCompete) {
  ShortlistConfig c = plain_config();
  c.buffer = 4;
  Shortlist first(c);
  first.add(one_head({9, 0, 6, 0, 5, 0, 0, 0}));
  Shortlist second(c);
  second.add(one_head({1, 8, 7, 0, 0, 0, 2, 3}));
  second.merge(first.winners());
  EXPECT_EQ(kept(second), (Ids{0, 1, 2, 4}));
  EXPECT_EQ(second.winners()[2].score, 7) << "the better of the two passes";
  const std::vector<Winner> before = second.winners();
  second.merge(before);
  EXPECT_EQ(kept(second), (Ids{0, 1, 2, 4}));
  second.add(one_head({10}));
  EXPECT_EQ(kept(second), (Ids{0, 1, 2, 8})) << "the worst has left";
}

}  // namespace
}  // namespace proteus
