// train/stream_model.h and train/needle_eval.h: what a model keeps of a text, and the same however
// the text is cut, read and computed.
#include "train/stream_model.h"

#include <gtest/gtest.h>

#include "tensor/error.h"
#include "tensor/parallel.h"
#include "tests/aspa_layers.h"
#include "tests/error_text.h"
#include "train/models.h"
#include "train/needle_eval.h"
#include "train/session.h"

namespace proteus {
namespace {

using testing::message_of;
using testing::randomize_parameters;
using testing::same_bits;

constexpr std::int64_t kVocab = 24;

Options small_options() {
  const std::vector<std::string> args{
      "--layers",       "2",  "--width", "32",  "--head-width",    "16", "--context",       "64",
      "--routed-heads", "4",  "--k",     "2",   "--routing-width", "16", "--shared-window", "5",
      "--window",       "64", "--rope",  "none"};
  return parse_options("duel", args).options;
}

std::unique_ptr<Transformer> random_model(const char* arm = "aspa") {
  auto model = make_model(small_options(), arm_named(arm, "arm"), kVocab, 3);
  randomize_parameters(*model, 32, 4);
  model->set_training(false);
  return model;
}

TokenText text_of(const std::vector<std::int32_t>& ids) {
  return {static_cast<std::int64_t>(ids.size()),
          [&ids](std::int64_t begin, std::span<std::int32_t> out) {
            std::copy_n(ids.begin() + begin, out.size(), out.begin());
          }};
}

std::vector<std::int32_t> random_ids(std::int64_t n) {
  std::vector<std::int32_t> ids(static_cast<std::size_t>(n));
  for (std::size_t t = 0; t < ids.size(); ++t) {
    ids[t] = static_cast<std::int32_t>(random_u32({5, 6}, t) % kVocab);
  }
  return ids;
}

StreamModelConfig small_config(std::int64_t layer, std::int64_t chunk) {
  StreamModelConfig config;
  config.shortlist.buffer = 60;
  config.shortlist.top_p = 1;
  config.shortlist.pool = 0;
  config.shortlist.span = 2;
  config.chunk = chunk;
  config.layer = layer;
  return config;
}

const std::vector<std::int32_t> kPrompt{7, 3, 11};

void expect_same(const Retrieved& a, const Retrieved& b) {
  ASSERT_EQ(a.winners.size(), b.winners.size());
  for (std::size_t i = 0; i < a.winners.size(); ++i) {
    EXPECT_EQ(a.winners[i].token, b.winners[i].token);
    EXPECT_EQ(a.winners[i].score, b.winners[i].score);
    EXPECT_EQ(a.winners[i].head, b.winners[i].head);
    EXPECT_EQ(a.winners[i].query, b.winners[i].query);
  }
  ASSERT_EQ(a.spans.size(), b.spans.size());
  for (std::size_t i = 0; i < a.spans.size(); ++i) {
    EXPECT_EQ(a.spans[i].begin, b.spans[i].begin);
    EXPECT_EQ(a.spans[i].end, b.spans[i].end);
  }
}

TEST(AttentionInput, OfTheFirstLayerIsTheNormOfTheEmbedding) {
  const auto model = random_model();
  const auto ids = random_ids(30);
  const Tensor all =
      model->attention_input(Tensor::from_data<std::int32_t>(ids, {1, 30}), 0).select(0, 0);
  const Tensor one = model->attention_input(
      Tensor::from_data<std::int32_t>(std::span(ids).subspan(9, 1), {1, 1}), 0);
  EXPECT_TRUE(same_bits(all.slice(0, 9, 10).contiguous(), one.select(0, 0)));
  EXPECT_EQ(
      message_of<ConfigError>([&] {
        model->attention_input(Tensor::from_data<std::int32_t>(ids, {1, 30}), 2);
      }),
      "transformer.attention_input: expected evaluation mode and a layer in [0, 2), got layer "
      "2");
}

// max over heads and prompt queries of q·k/√D for every token, by the formula; with `routed` a
// logit is 0 in a head that the query or the key does not enter.
std::vector<double> scores_by_formula(Transformer& model, const std::vector<std::int32_t>& ids,
                                      std::int64_t lead, bool routed) {
  constexpr std::size_t C = 32;
  constexpr std::size_t D = 16;
  constexpr std::size_t H = 4;
  AspaAttention& layer = *aspa_layer(model, 1);
  std::vector<std::int32_t> asked(ids.begin(), ids.begin() + lead);
  asked.insert(asked.end(), kPrompt.begin(), kPrompt.end());
  const auto input = [&](const std::vector<std::int32_t>& of) {
    const auto n = static_cast<std::int64_t>(of.size());
    return model.attention_input(Tensor::from_data<std::int32_t>(of, {1, n}), 1);
  };
  const Tensor text = input(ids);
  const Tensor prompt = input(asked).slice(1, lead, lead + 3).contiguous();
  const auto x = text.to_vector();
  const auto p = prompt.to_vector();
  const auto mu = layer.weights().mu.value().to_vector();
  const auto wq = layer.weights().q.value().to_vector();
  const auto wk = layer.weights().k.value().to_vector();
  const Tensor query_heads = layer.select(Variable(prompt)).query;
  const Tensor key_heads = layer.select(Variable(text)).key;
  const auto enters = [](const Tensor& heads, std::size_t t, std::size_t h) {
    const auto* row = heads.data<std::int32_t>() + static_cast<std::int64_t>(t) * heads.size(1);
    return std::find(row, row + heads.size(1), static_cast<std::int32_t>(h)) != row + heads.size(1);
  };
  std::vector<double> scores(ids.size(), -1e30);
  for (std::size_t t = 0; t < ids.size(); ++t) {
    for (std::size_t h = 0; h < H; ++h) {
      for (std::size_t i = 0; i < kPrompt.size(); ++i) {
        double logit = 0;
        for (std::size_t d = 0; d < D; ++d) {
          double q = 0;
          double k = 0;
          for (std::size_t c = 0; c < C; ++c) {
            const double before = t > 0 ? x[(t - 1) * C + c] : 0;
            q += p[i * C + c] * wq[(h * C + c) * D + d];
            k += (x[t * C + c] + mu[c] * before) * wk[(h * C + c) * D + d];
          }
          logit += q * k / std::sqrt(static_cast<double>(D));
        }
        if (routed && !(enters(query_heads, i, h) && enters(key_heads, t, h))) logit = 0;
        scores[t] = std::max(scores[t], logit);
      }
    }
  }
  return scores;
}

TEST(StreamModel, ScoresAreTheLayersOwnLogits) {
  const auto model = random_model();
  const auto ids = random_ids(40);
  for (const bool routed : {false, true}) {
    StreamModelConfig config = small_config(1, 100);
    config.routed = routed;
    const StreamModel stream(*model, config);
    const Retrieved kept = stream.retrieve(text_of(ids), kPrompt);
    ASSERT_EQ(kept.winners.size(), 40u);
    const auto expected = scores_by_formula(*model, ids, stream.lead(), routed);
    for (const Winner& winner : kept.winners) {
      const double score = expected[static_cast<std::size_t>(winner.token)];
      EXPECT_NEAR(winner.score, score, 1e-4 * std::max(1.0, std::abs(score))) << winner.token;
    }
  }
}

TEST(StreamModel, TheFirstLayerScoresTheSameInChunksOfAnyLength) {
  const auto model = random_model();
  const auto ids = random_ids(500);
  const TokenText text = text_of(ids);
  const Retrieved whole = StreamModel(*model, small_config(0, 1000)).retrieve(text, kPrompt);
  EXPECT_EQ(whole.chunks, 1);
  EXPECT_LE(tokens_of(whole.spans), 60);
  // Of 64 rows or more each: shorter products may round in another way.
  for (const std::int64_t chunk : {100, 125, 250}) {
    const Retrieved cut = StreamModel(*model, small_config(0, chunk)).retrieve(text, kPrompt);
    EXPECT_GT(cut.chunks, 1);
    expect_same(cut, whole);
  }
}

TEST(StreamModel, AChunkIsReadWithWhatTheLayersBelowSee) {
  const auto model = random_model();
  EXPECT_EQ(StreamModel(*model, small_config(0, 64)).lead(), 1);
  EXPECT_EQ(StreamModel(*model, small_config(1, 64)).lead(), 1 + 5 + 1);
}

TEST(StreamModel, KeepsTheSameForAnyNumberOfThreads) {
  const auto model = random_model();
  const auto ids = random_ids(3000);
  const StreamModel stream(*model, small_config(1, 256));
  set_num_threads(1);
  const Retrieved one = stream.retrieve(text_of(ids), kPrompt);
  for (const int threads : {2, 3}) {
    set_num_threads(threads);
    expect_same(stream.retrieve(text_of(ids), kPrompt), one);
  }
  set_num_threads(0);
}

TEST(StreamModel, ASecondRoundAsksForWhatTheFirstOneFound) {
  const auto model = random_model();
  const auto ids = random_ids(400);
  const StreamModel stream(*model, small_config(1, 128));
  const Retrieved first = stream.retrieve(text_of(ids), kPrompt);
  const Retrieved second = stream.retrieve(text_of(ids), kPrompt, 2, [&](const Retrieved& kept) {
    expect_same(kept, first);
    return std::vector<std::int32_t>{ids[static_cast<std::size_t>(kept.winners[0].token)]};
  });
  ASSERT_EQ(second.prompt.size(), kPrompt.size() + 1);
  EXPECT_EQ(second.prompt[0], ids[static_cast<std::size_t>(first.winners[0].token)]);
  // What one of the passes would keep alone: its best are in, with the better score of the two.
  const Retrieved alone = stream.retrieve(text_of(ids), second.prompt);
  for (const Retrieved* pass : {&first, &alone}) {
    const Winner& best =
        *std::min_element(pass->winners.begin(), pass->winners.end(),
                          [](const Winner& a, const Winner& b) { return a.before(b); });
    EXPECT_TRUE(std::any_of(second.winners.begin(), second.winners.end(), [&](const Winner& w) {
      return w.token == best.token && w.score >= best.score;
    }));
  }
}

TEST(StreamModel, ReadingWritesNothing) {
  const auto model = random_model();
  const auto ids = random_ids(300);
  std::vector<Tensor> before;
  for (const Parameter& p : model->parameters()) before.push_back(p.variable.value().clone());
  for (const Buffer& b : model->buffers()) before.push_back(b.tensor.clone());
  const TokenText text = text_of(ids);
  const Retrieved kept = StreamModel(*model, small_config(1, 128)).retrieve(text, kPrompt);
  next_token(*model, final_text(text, kept.spans, kPrompt));
  std::size_t i = 0;
  for (const Parameter& p : model->parameters()) {
    EXPECT_TRUE(same_bits(p.variable.value(), before[i++])) << p.name;
  }
  for (const Buffer& b : model->buffers()) EXPECT_TRUE(same_bits(b.tensor, before[i++])) << b.name;
  EXPECT_EQ(aspa_layer(*model, 1)->config().window, 64) << "the final pass gave its window back";
}

TEST(StreamModel, TheFinalTextIsSpansThenPrompt) {
  const auto ids = random_ids(50);
  const auto text = final_text(text_of(ids), {{0, 2}, {10, 13}}, kPrompt);
  const std::vector<std::int32_t> expected{ids[0],  ids[1],     ids[10],    ids[11],
                                           ids[12], kPrompt[0], kPrompt[1], kPrompt[2]};
  EXPECT_EQ(text, expected);
}

TEST(StreamModel, AWholeViewLooksPastTheWindow) {
  Options options = small_options();
  options.aspa.window = 2;
  options.aspa.shared_window = 2;
  options.aspa.anchors = 0;
  const auto model = make_model(options, arm_named("aspa", "arm"), kVocab, 3);
  randomize_parameters(*model, 32, 4);
  model->set_training(false);
  auto ids = random_ids(60);
  const auto last = [&](bool whole) {
    const Tensor x = Tensor::from_data<std::int32_t>(ids, {1, 60});
    if (!whole) return model->last_logits(x).to_vector();
    const WholeView view(*model, 60);
    return model->last_logits(x).to_vector();
  };
  const auto narrow = last(false);
  const auto wide = last(true);
  EXPECT_NE(narrow, wide);
  // Two layers of windows do not reach back to the first quarter; the whole view does.
  for (std::size_t t = 0; t < 15; ++t) ids[t] = (ids[t] + 1) % kVocab;
  EXPECT_EQ(last(false), narrow);
  EXPECT_NE(last(true), wide);
}

TEST(StreamModel, RefusesWhatCannotScore) {
  const auto model = random_model();
  const auto ids = random_ids(20);
  const auto make = [&](Transformer& of, std::int64_t layer, std::int64_t chunk) {
    return [&of, layer, chunk] { StreamModel(of, small_config(layer, chunk)); };
  };
  EXPECT_EQ(message_of<ConfigError>(make(*model, 2, 64)),
            "--score-layer: expected at most 1 (layers are counted from 0), got 2");
  EXPECT_EQ(message_of<ConfigError>(make(*model, 0, 0)), "--chunk: expected at least 1, got 0");
  const auto dense = random_model("dense");
  EXPECT_EQ(message_of<ConfigError>(make(*dense, -1, 64)),
            "--score-layer 1: expected a layer with routed heads (an ASPA arm), whose queries and "
            "keys make the scores, got one without");
  EXPECT_EQ(message_of<ConfigError>(
                [&] { StreamModel(*model, small_config(0, 8)).retrieve(text_of(ids), {}); }),
            "--prompt: expected a text whose queries choose what is kept, got nothing");
}

TEST(NeedleEval, ANeedleIsRetainedWhenAllOfItIsInOneSpan) {
  NeedleTrial trial;
  trial.needles = {{10, 1, 2, true}, {40, 3, 4, false}};
  EXPECT_TRUE(retained(trial, {{0, 4}, {10, 13}}));
  EXPECT_TRUE(retained(trial, {{8, 30}}));
  EXPECT_FALSE(retained(trial, {{11, 30}}));
  EXPECT_FALSE(retained(trial, {{0, 12}, {40, 43}}));
  trial.needles[1].asked = true;
  EXPECT_FALSE(retained(trial, {{8, 30}}));
  EXPECT_TRUE(retained(trial, {{8, 30}, {40, 50}}));
}

// The study in bench/results, small enough for a test; the rate hardly falls within these steps.
TEST(NeedleEval, ATrainedModelKeepsWhatIsAskedFor) {
  constexpr std::int64_t kWords = 64;
  constexpr std::int64_t kSteps = 600;
  const Options options =
      parse_options("recall", {"--task",       "needle", "--length",       "128", "--width", "64",
                               "--head-width", "32",     "--routed-heads", "4",   "--k",     "2",
                               "--rope",       "none",   "--window",       "64",  "--vocab", "64",
                               "--pairs",      "5",      "--train-length", "64",  "--steps", "2500",
                               "--lr",         "2e-3"})
          .options;
  const NeedleLessons lessons(64, 5, kWords, 1337);
  const auto model = make_model(options, arm_named("aspa", "arm"), kWords, 1337);
  Trainer trainer(*model, trainer_config(options, 1337), [&](std::int64_t i) {
    return lessons.batch(RecallSplit::train, static_cast<std::uint64_t>(i), 64);
  });
  while (trainer.steps_done() < kSteps) trainer.step();
  model->set_training(false);

  const NeedleTask task({.length = 4096, .vocab = kWords, .border = 512, .seed = 1337});
  NeedleEval eval;
  eval.stream.chunk = 512;
  eval.stream.shortlist.buffer = 256;
  eval.stream.shortlist.pool = 0;
  eval.trials = 20;
  const auto score = [&](KeepRule rule) {
    return score_needles(*model, task, NeedleKind::single, rule, eval);
  };
  const NeedleScore asked = score(KeepRule::scores);
  EXPECT_GE(asked.retained, 15);
  EXPECT_GE(asked.answered_retained, asked.retained / 2);
  EXPECT_LE(score(KeepRule::random).retained, 6);
  EXPECT_LE(score(KeepRule::recent).retained, 4);
}

}  // namespace
}  // namespace proteus
