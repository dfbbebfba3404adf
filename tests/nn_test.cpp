// Modules: names, initial values, causality of the dense model, recomputation, and that it learns.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "nn/transformer.h"
#include "tensor/error.h"
#include "tensor/parallel.h"

namespace proteus {
namespace {

struct Options {
  bool key_shift = false;
  bool output_gate = false;
  bool bias = false;
  double dropout = 0;
  bool recompute = false;
  MlpKind mlp = MlpKind::gelu;
  NormKind norm = NormKind::layer;
  std::int64_t window = 0;
  bool learned_positions = false;
};

constexpr std::int64_t kVocab = 13;

Transformer make_model(const Options& o) {
  TransformerConfig config;
  config.vocab = kVocab;
  config.context = 32;
  config.layers = 2;
  config.width = 24;
  config.mlp = o.mlp;
  config.norm = o.norm;
  config.bias = o.bias;
  config.learned_positions = o.learned_positions;
  config.dropout = o.dropout;
  config.recompute = o.recompute;
  config.seed = 5;
  return Transformer(config, [o](const AttentionSite& site) {
    DenseAttentionConfig dense;
    dense.width = 24;
    dense.heads = 3;
    dense.head_width = 8;
    dense.window = o.window;
    dense.rope = !o.learned_positions;
    dense.key_shift = o.key_shift;
    dense.output_gate = o.output_gate;
    dense.bias = o.bias;
    dense.dropout = o.dropout;
    return std::make_unique<DenseAttention>(dense, site.output_std, site.init, site.generator);
  });
}

Tensor random_tokens(const Shape& shape, std::uint64_t seed) {
  return Tensor::rand(shape, {seed, 77}, DType::f64, 0, kVocab).to(DType::i32);
}

bool same_bits(const Tensor& a, const Tensor& b) {
  const Tensor x = a.contiguous();
  const Tensor y = b.contiguous();
  return x.shape() == y.shape() && x.dtype() == y.dtype() &&
         std::memcmp(x.raw(), y.raw(), static_cast<std::size_t>(x.bytes())) == 0;
}

std::vector<Options> variants() {
  std::vector<Options> all(7);
  all[1].key_shift = true;
  all[2].output_gate = true;
  all[3].key_shift = all[3].output_gate = all[3].bias = true;
  all[4].mlp = MlpKind::swiglu;
  all[4].norm = NormKind::rms;
  all[5].window = 5;
  all[6].learned_positions = all[6].bias = true;
  return all;
}

TEST(Module, NamesAreThePathInTheTree) {
  Options o;
  o.bias = o.key_shift = o.output_gate = true;
  const Transformer model = make_model(o);
  std::vector<std::string> names;
  for (const Parameter& p : model.parameters()) names.push_back(p.name);
  const std::vector<std::string> first{
      "embedding.weight",         "blocks.0.norm1.weight",     "blocks.0.norm1.bias",
      "blocks.0.attn.qkv.weight", "blocks.0.attn.qkv.bias",    "blocks.0.attn.out.weight",
      "blocks.0.attn.out.bias",   "blocks.0.attn.gate.weight", "blocks.0.attn.mu",
      "blocks.0.norm2.weight",    "blocks.0.norm2.bias",       "blocks.0.mlp.up.weight",
      "blocks.0.mlp.up.bias",     "blocks.0.mlp.down.weight",  "blocks.0.mlp.down.bias"};
  ASSERT_GE(names.size(), first.size());
  EXPECT_EQ(std::vector<std::string>(names.begin(), names.begin() + 15), first);
  EXPECT_EQ(names.back(), "norm.bias");
}

TEST(Module, OnlyMatricesDecay) {
  Options o;
  o.bias = o.key_shift = o.output_gate = true;
  for (const Parameter& p : make_model(o).parameters()) {
    const bool matrix = p.name.ends_with("qkv.weight") || p.name.ends_with("out.weight") ||
                        p.name.find("mlp") != std::string::npos || p.name == "embedding.weight";
    EXPECT_EQ(p.decay, matrix && !p.name.ends_with("bias")) << p.name;
  }
}

TEST(Module, InitialWeightsFollowGpt2) {
  const Transformer model = make_model({});
  for (const Parameter& p : model.parameters()) {
    if (p.variable.value().rank() != 2) continue;
    double square = 0;
    for (const double x : p.variable.value().to_vector()) square += x * x;
    const double std = std::sqrt(square / static_cast<double>(p.variable.value().numel()));
    const bool residual = p.name.ends_with("out.weight") || p.name.ends_with("down.weight");
    EXPECT_NEAR(std, residual ? 0.02 / 2 : 0.02, 0.002) << p.name;  // sqrt(2 · 2 layers) = 2
  }
}

TEST(Transformer, SuffixAndOtherRowsLeaveEarlierLogitsUnchanged) {
  for (const Options& o : variants()) {
    Transformer model = make_model(o);
    model.set_training(false);
    const Tensor tokens = random_tokens({3, 32}, 1);
    const Tensor before = model.logits(tokens);
    for (const std::int64_t keep : {1, 7, 16, 31}) {
      const Tensor changed = random_tokens({3, 32}, 2);
      changed.select(0, 1).slice(0, 0, keep).copy_(tokens.select(0, 1).slice(0, 0, keep));
      const Tensor after = model.logits(changed);
      EXPECT_TRUE(
          same_bits(after.select(0, 1).slice(0, 0, keep), before.select(0, 1).slice(0, 0, keep)))
          << "prefix of " << keep;
      EXPECT_FALSE(same_bits(after, before));
    }
  }
}

TEST(Transformer, WhatALayerIsAddedToIsAddedInItsLastProduct) {
  constexpr double kRounding = 5e-6;  // of f32 sums that begin with the residual, up to about 4
  const Tensor in = Tensor::randn({2, 32, 24}, {8, 1});
  const Tensor stream = Tensor::randn({2, 32, 24}, {8, 2});
  for (const Options& o : variants()) {
    Transformer model = make_model(o);
    const auto check = [&](const auto& forward, const auto& forward_onto) {
      const Variable residual(stream, true);
      const Variable sum = forward_onto(Variable(in), residual);
      const auto got = sum.value().to_vector();
      const auto part = forward(Variable(in)).value().to_vector();
      const auto rest = stream.to_vector();
      for (std::size_t i = 0; i < got.size(); ++i)
        EXPECT_NEAR(got[i], part[i] + rest[i], kRounding);
      sum.backward(in);
      EXPECT_TRUE(same_bits(residual.grad(), in));
    };
    Attention& attention = model.attention(0);
    check([&](const Variable& x) { return attention.forward(x); },
          [&](const Variable& x, const Variable& r) { return attention.forward_onto(x, r); });
    FeedForward& mlp = model.feed_forward(0);
    check([&](const Variable& x) { return mlp.forward(x); },
          [&](const Variable& x, const Variable& r) { return mlp.forward_onto(x, r); });
  }
}

TEST(Transformer, SameBitsForAnyNumberOfThreads) {
  Options o;
  o.dropout = 0.2;
  std::vector<Tensor> results;
  for (const int threads : {1, 2, 3}) {
    set_num_threads(threads);
    Transformer model = make_model(o);
    const Variable loss = model.loss(random_tokens({4, 32}, 3), random_tokens({4, 32}, 4));
    loss.backward();
    results.push_back(loss.value());
    results.push_back(model.parameters()[1].variable.grad());
    results.push_back(model.parameters()[0].variable.grad());
  }
  set_num_threads(0);
  for (std::size_t i = 3; i < results.size(); ++i) {
    EXPECT_TRUE(same_bits(results[i], results[i % 3])) << i;
  }
}

TEST(Transformer, RecomputationGivesTheSameGradients) {
  for (const double dropout : {0.0, 0.3}) {
    Options plain;
    plain.dropout = dropout;
    Options recompute = plain;
    recompute.recompute = true;
    Transformer a = make_model(plain);
    Transformer b = make_model(recompute);
    const Tensor tokens = random_tokens({2, 32}, 6);
    const Tensor targets = random_tokens({2, 32}, 7);
    const Variable loss_a = a.loss(tokens, targets);
    const Variable loss_b = b.loss(tokens, targets);
    EXPECT_TRUE(same_bits(loss_a.value(), loss_b.value()));
    loss_a.backward();
    loss_b.backward();
    const auto pa = a.parameters();
    const auto pb = b.parameters();
    for (std::size_t i = 0; i < pa.size(); ++i) {
      EXPECT_TRUE(same_bits(pa[i].variable.grad(), pb[i].variable.grad())) << pa[i].name;
    }
  }
}

TEST(Transformer, LastLogitsAreTheLastOfAllLogits) {
  Transformer model = make_model({});
  model.set_training(false);
  const Tensor tokens = random_tokens({2, 9}, 8);
  const auto all = model.logits(tokens).select(1, 8).to_vector();
  const auto last = model.last_logits(tokens).to_vector();
  for (std::size_t i = 0; i < all.size(); ++i) EXPECT_NEAR(all[i], last[i], 1e-6);
}

TEST(Transformer, FirstLossIsThatOfAGuess) {
  Transformer model = make_model({});
  const double loss =
      model.loss(random_tokens({4, 32}, 9), random_tokens({4, 32}, 10)).value().item();
  EXPECT_NEAR(loss, std::log(static_cast<double>(kVocab)), 0.05);
}

// Plain descent at a rate of 0.5 overshoots: its loss jumps up to where it began.
TEST(Transformer, GradientDescentFitsOneBatch) {
  for (const Options& o : variants()) {
    Transformer model = make_model(o);
    const Tensor tokens = random_tokens({2, 16}, 11);
    const Tensor targets = random_tokens({2, 16}, 12);
    double first = 0;
    double last = 0;
    for (int step = 0; step < 200; ++step) {
      model.zero_grad();
      const Variable loss = model.loss(tokens, targets);
      loss.backward();
      last = loss.value().item();
      if (step == 0) first = last;
      for (const Parameter& p : model.parameters())
        p.variable.value().add_(p.variable.grad(), -0.1);
    }
    EXPECT_LT(last, first - 0.5);
  }
}

TEST(Transformer, CountsParametersAndOperations) {
  const Transformer model = make_model({});
  const std::int64_t C = 24;
  EXPECT_EQ(model.parameter_count(), kVocab * C + 2 * (12 * C * C + 2 * C) + C);
  EXPECT_EQ(model.active_parameter_count(), model.parameter_count());
  // Per token: 4·H·D per visible key; of T tokens the mean sees (T + 1)/2.
  EXPECT_DOUBLE_EQ(model.attention_flops_per_token(31), 2 * 4.0 * 24 * 16);
  EXPECT_DOUBLE_EQ(model.total_flops_per_token(31),
                   2.0 * kVocab * C + 2 * (2.0 * 12 * C * C) + 2 * 4.0 * 24 * 16);
}

TEST(Transformer, LearnedPositionsAreAddedToTheTokens) {
  Transformer model = make_model({.learned_positions = true});
  model.set_training(false);
  const Tensor same = Tensor::zeros({1, 4}, DType::i32);
  const auto table = [&] {
    for (const Parameter& p : model.parameters()) {
      if (p.name == "positions.weight") return p.variable.value();
    }
    return Tensor();
  }();
  ASSERT_EQ(table.shape(), (Shape{32, 24}));
  const Tensor at = model.attention_input(same, 0);
  EXPECT_FALSE(same_bits(at.select(1, 0), at.select(1, 1)));
  table.fill_(0);
  const Tensor nowhere = model.attention_input(same, 0);
  EXPECT_TRUE(same_bits(nowhere.select(1, 0), nowhere.select(1, 1)));
}

TEST(Transformer, NoTokenIsBeyondTheLearnedPositions) {
  Transformer model = make_model({.learned_positions = true});
  model.set_training(false);
  EXPECT_NO_THROW(model.logits(random_tokens({1, 32}, 1)));
  try {
    model.logits(random_tokens({1, 33}, 1));
    FAIL();
  } catch (const ShapeError& error) {
    EXPECT_STREQ(error.what(),
                 "transformer.hidden(tokens): tokens: expected at most 32 (= learned positions), "
                 "got 33; cut the sequence, or use rotary positions");
  }
  DecodeState sequence = model.begin_sequence();
  DecodeState* const one[] = {&sequence};
  const Tensor token = Tensor::zeros({1}, DType::i32);
  for (std::int64_t t = 0; t < 32; ++t) model.step(token, one);
  EXPECT_THROW(model.step(token, one), ShapeError);
}

TEST(Transformer, RejectsWhatMakesNoSense) {
  Transformer model = make_model({});
  EXPECT_THROW(model.logits(random_tokens({8}, 1)), ShapeError);
  EXPECT_THROW(model.loss(random_tokens({1, 8}, 1), random_tokens({1, 7}, 1)), ShapeError);
  EXPECT_ANY_THROW(model.logits(Tensor::full({1, 4}, kVocab, DType::i32)));
  TransformerConfig config;
  EXPECT_THROW(Transformer(config, nullptr), ConfigError);
}

}  // namespace
}  // namespace proteus
