// The life of an ASPA layer: what training steps and evaluation write, recomputation, threads,
// telemetry, errors, and alpha at run time.
#include <gtest/gtest.h>

#include "aspa/reference.h"
#include "aspa/slider.h"
#include "autograd/checkpoint.h"
#include "tensor/error.h"
#include "tensor/parallel.h"
#include "tests/aspa_layers.h"

namespace proteus {
namespace {

using testing::AspaLayer;
using testing::config;
using testing::difference;
using testing::evaluate;
using testing::expect_close;
using testing::expect_same_bits;
using testing::gradients;
using testing::input;
using testing::Results;
using testing::run;
using testing::same_bits;
using testing::TestLayer;

std::map<std::string, Tensor> buffers_of(const AspaAttention& layer) {
  std::map<std::string, Tensor> out;
  for (const Buffer& b : layer.buffers()) out[b.name] = b.tensor.clone();
  return out;
}

// Invariant 8: evaluation writes nothing, with and without recording; training does.
TEST_F(AspaLayer, EvaluationWritesNothing) {
  const AspaConfig c = testing::doubly_sparse(config(DType::f32));
  const TestLayer layer(c);
  const auto before = buffers_of(*layer);
  EXPECT_EQ(before.size(), 13u);
  layer->set_training(false);
  run(*layer, input(c, 2, 40));
  evaluate(*layer, input(c, 2, 40).value());
  layer->begin_probe();
  evaluate(*layer, input(c, 2, 40).value());
  layer->end_probe();
  layer->after_step(1);
  expect_same_bits(buffers_of(*layer), before);
  layer->set_training(true);
  run(*layer, input(c, 2, 40));
  expect_same_bits(buffers_of(*layer), before);  // not before the step
  layer->after_step(1);
  const auto after = buffers_of(*layer);
  for (const char* name : {"router.p", "router.N", "router.P", "router.theta_q", "router.theta_k",
                           "router.steps", "salience.tau_q", "salience.tau_k"}) {
    EXPECT_FALSE(same_bits(after.at(name), before.at(name))) << name;
  }
}

// Invariant 9: recomputation reuses the selection and counts nothing twice.
TEST_F(AspaLayer, CheckpointingReusesTheSelection) {
  const AspaConfig c = testing::doubly_sparse(config(DType::f32));
  const TestLayer plain(c);
  const TestLayer recomputed(c);
  testing::settle(*plain);
  testing::settle(*recomputed);
  const auto through = [](AspaAttention& layer, const Variable& x) {
    return checkpoint([&layer](const std::vector<Variable>& v) { return layer.forward(v[0]); },
                      {x});
  };
  const Variable x = input(c, 2, 40);
  const Results expected = run(*plain, x);
  const Variable y = through(*recomputed, x);
  // New thresholds between forward and backward would choose other heads.
  const Tensor theta = recomputed->router().theta(Role::query);
  const Tensor kept = theta.clone();
  theta.copy_(Tensor::from({0, 50, 0, 50, 50}, {5}));
  EXPECT_FALSE(same_bits(recomputed->select(x).query, plain->select(x).query));
  expect_same_bits(gradients(*recomputed, x, y), expected);
  theta.copy_(kept);
  plain->after_step(1);
  recomputed->after_step(1);
  expect_same_bits(buffers_of(*recomputed), buffers_of(*plain));
  EXPECT_EQ(recomputed->telemetry().query.load, plain->telemetry().query.load);
}

TEST_F(AspaLayer, DropoutIsReusedToo) {
  AspaConfig c = config(DType::f32);
  c.dropout = 0.3;
  const TestLayer plain(c);
  const TestLayer recomputed(c);
  const Variable x = input(c, 2, 40);
  const Results expected = run(*plain, x);
  const Variable y =
      checkpoint([&](const std::vector<Variable>& v) { return recomputed->forward(v[0]); }, {x});
  expect_same_bits(gradients(*recomputed, x, y), expected);
  EXPECT_FALSE(same_bits(run(*plain, x).at("y"), expected.at("y")));  // another mask
  plain->set_training(false);
  EXPECT_TRUE(same_bits(run(*plain, x).at("y"), run(*plain, x).at("y")));
}

TEST_F(AspaLayer, SameBitsForAnyNumberOfThreads) {
  AspaConfig c = config(DType::f32);
  c.width = 32;
  Results expected;
  std::map<std::string, Tensor> state;
  for (const int threads : {1, 2, 3}) {
    set_num_threads(threads);
    const TestLayer layer(c);
    const Results got = run(*layer, input(c, 3, 150));
    layer->after_step(1);
    if (threads == 1) {
      expected = got;
      state = buffers_of(*layer);
    }
    expect_same_bits(got, expected);
    expect_same_bits(buffers_of(*layer), state);
  }
}

// Sums over micro-batches: two halves and a step are the whole and a step.
TEST_F(AspaLayer, StatisticsAddUpOverAccumulation) {
  const AspaConfig c = config();
  const TestLayer whole(c);
  const TestLayer halves(c);
  const Variable x = input(c, 4, 30);
  run(*whole, x);
  for (const std::int64_t b : {0, 2}) run(*halves, Variable(x.value().slice(0, b, b + 2), true));
  whole->after_step(1);
  halves->after_step(1);
  const auto expected = buffers_of(*whole);
  for (const auto& [name, tensor] : buffers_of(*halves)) {
    EXPECT_LE(difference(tensor, expected.at(name)), 1e-12) << name;
  }
  EXPECT_EQ(halves->telemetry().query.load, whole->telemetry().query.load);
  double sum = 0;
  for (const double load : whole->telemetry().key.load) sum += load;
  EXPECT_NEAR(sum, static_cast<double>(c.k), 1e-12);
}

TEST_F(AspaLayer, TiesGoToTheLowerHead) {
  for (const DType dtype : {DType::f64, DType::f32}) {
    const AspaConfig c = config(dtype);
    const TestLayer layer(c);
    layer->router().theta(Role::query).zero_();
    layer->router().theta(Role::key).fill_(0.5);
    const Variable nothing(Tensor::zeros({1, 6, c.width}, dtype), true);  // x̃ = 0, cos = 0
    const Selection selection = layer->select(nothing);
    for (const Tensor& heads : {selection.query, selection.key}) {
      EXPECT_EQ(heads.to_vector(), (std::vector<double>{0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1}));
    }
    for (const auto& [name, tensor] : run(*layer, nothing)) {
      for (const double v : tensor.to_vector()) ASSERT_TRUE(std::isfinite(v)) << name;
    }
  }
}

// Heads that nobody enters, tokens that enter none, queries without keys.
TEST_F(AspaLayer, EmptyHeadsAndAbsentTokens) {
  for (const bool sink : {true, false}) {
    AspaConfig c = config();
    c.sink = sink;
    const TestLayer layer(c);
    const Variable x = input(c, 2, 3);
    const auto heads = [](std::initializer_list<double> v) {
      return Tensor::from(v, {6, 2}, DType::i32);
    };
    // Head 3 has queries without keys, head 4 keys without queries, head 0 nothing at all.
    const Selection selection{heads({1, 3, 3, -1, -1, -1, 1, 2, 1, 3, 2, -1}),
                              heads({1, 4, -1, -1, 2, 4, 1, -1, -1, -1, 2, 4})};
    layer->force_selection(selection);
    expect_close(run(*layer, x), gradients(*layer, x, reference_forward(*layer, x, selection)),
                 1e-10);
    layer->after_step(1);
    EXPECT_GT(layer->telemetry().query.max_vio, 0);
    const Selection none{Tensor::full({6, 2}, -1, DType::i32),
                         Tensor::full({6, 2}, -1, DType::i32)};
    layer->force_selection(none);
    expect_close(run(*layer, x), gradients(*layer, x, reference_forward(*layer, x, none)), 1e-10);
    layer->after_step(1);
    EXPECT_EQ(layer->telemetry().query.max_vio, 0);
  }
}

// The thresholds of salience find the share of tokens that is to be kept, at every alpha.
TEST_F(AspaLayer, SalienceKeepsItsShare) {
  AspaConfig c = config(DType::f32);
  c.salience.keep = 0.4;
  c.salience.guard = 5;
  c.salience.ema = 0.8;
  const TestLayer layer(c);
  EXPECT_EQ(layer->salience()->threshold(Role::query, 1), -1e30);  // keeps all before a step
  constexpr std::int64_t kT = 400;
  for (std::uint64_t step = 0; step < 12; ++step) {
    run(*layer, input(c, 2, kT, 50 + step));
    layer->after_step(1);
  }
  EXPECT_NEAR(layer->telemetry().query.kept, 0.4, 0.06);
  EXPECT_NEAR(layer->telemetry().key.kept, 0.4, 0.06);
  EXPECT_NEAR(layer->telemetry().query.heads, 2 * layer->telemetry().query.kept, 1e-12);
  layer->set_training(false);
  for (const double alpha : {0.1, 0.25, 0.6, 1.0}) {
    layer->set_alpha(alpha);
    const Tensor heads = layer->select(input(c, 2, kT, 99)).query;
    std::int64_t kept = 0;
    for (std::int64_t n = 0; n < 2 * kT; ++n) {
      const bool in = heads.data<std::int32_t>()[n * layer->k()] >= 0;
      kept += in ? 1 : 0;
      if (n % kT < c.salience.guard) {
        EXPECT_TRUE(in) << n;
      }
    }
    EXPECT_NEAR(static_cast<double>(kept) / (2 * kT), slider::keep(alpha, 0.4), 0.07) << alpha;
  }
}

TEST_F(AspaLayer, NucleusTakesAsManyHeadsAsItNeeds) {
  AspaConfig c = config(DType::f32);
  c.k = 4;
  c.k_min = 2;
  c.top_p = 0.6;
  const TestLayer layer(c);
  const Tensor heads = layer->select(input(c, 2, 200)).key;
  std::map<std::int64_t, int> sizes;
  for (std::int64_t n = 0; n < heads.size(0); ++n) {
    std::int64_t size = 0;
    for (std::int64_t j = 0; j < 4; ++j) size += heads.data<std::int32_t>()[n * 4 + j] >= 0;
    ++sizes[size];
  }
  EXPECT_EQ(sizes.begin()->first, 2);
  EXPECT_GT(sizes.size(), 1u);
  layer->set_alpha(0);
  const Tensor all = layer->select(input(c, 1, 9)).key;
  for (const double head : all.to_vector()) EXPECT_GE(head, 0);
}

std::string message_of(const std::function<void()>& fn) {
  try {
    fn();
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

TEST_F(AspaLayer, ErrorsSayWhatToChange) {
  const AspaConfig c = config(DType::f32);
  const TestLayer layer(c);
  EXPECT_EQ(message_of([&] { layer->set_alpha(1.25); }),
            "aspa: alpha: expected a number in [0, 1], got 1.25");
  EXPECT_EQ(layer->alpha(), 1);
  EXPECT_EQ(message_of([&] {
              layer->forward(Variable(Tensor::zeros({2, 3, 7})));
            }),
            "aspa(x): x: expected [B, T, 12] (= width), got [2, 3, 7]");
  AspaConfig greedy = c;
  greedy.k = 9;
  EXPECT_EQ(message_of([&] { const TestLayer bad(greedy); }),
            "aspa: k: expected at most 5 (= routed_heads), got 9");
  layer->force_selection(Selection{Tensor::from({2, 1}, {1, 2}, DType::i32),
                                   Tensor::from({1, 2}, {1, 2}, DType::i32)});
  EXPECT_EQ(message_of([&] {
              layer->forward(Variable(Tensor::zeros({1, 1, 12})));
            }),
            "selection: query: token 0: expected ascending heads below 5 and then -1, got 2, 1");
  EXPECT_EQ(message_of([&] {
              layer->forward(Variable(Tensor::zeros({1, 2, 12})));
            }),
            "selection: query: expected [2, k] (= tokens), got [1, 2]");
}

TEST_F(AspaLayer, AlphaMovesAtRunTime) {
  AspaConfig c = config();
  const TestLayer moving(c);
  const Variable x = input(c, 2, 50);
  for (const double alpha : {0.0, 0.3, 1.0, 0.6}) {
    c.alpha = alpha;
    const TestLayer fixed(c);
    moving->set_alpha(alpha);
    EXPECT_EQ(moving->k(), slider::routed_heads(alpha, 5, 2));
    expect_same_bits(run(*moving, x), run(*fixed, x));
  }
}

TEST_F(AspaLayer, ChurnIsMeasuredBetweenProbes) {
  const AspaConfig c = config(DType::f32);
  const TestLayer layer(c);
  layer->set_training(false);
  const Tensor probe = input(c, 2, 30).value();
  const auto measure = [&] {
    layer->begin_probe();
    evaluate(*layer, probe);
    layer->end_probe();
  };
  measure();
  EXPECT_EQ(layer->telemetry().churn_query, -1);
  measure();
  EXPECT_EQ(layer->telemetry().churn_query, 0);
  layer->router().theta(Role::query).copy_(Tensor::from({50, 0, 50, 0, 50}, {5}));
  measure();
  EXPECT_GT(layer->telemetry().churn_query, 0.2);
  EXPECT_EQ(layer->telemetry().churn_key, 0);
}

TEST_F(AspaLayer, ATallySumsLoadsOfForwardPasses) {
  const AspaConfig c = config(DType::f32);
  const TestLayer layer(c);
  layer->set_training(false);
  EXPECT_FALSE(layer->telemetry().tally);
  std::vector<double> counts(static_cast<std::size_t>(c.routed_heads));
  double tokens = 0;
  layer->gating().begin_tally();
  for (const std::int64_t T : {30, 11}) {
    const Variable x = input(c, 2, T);
    evaluate(*layer, x.value());
    tokens += static_cast<double>(2 * T);
    for (const double head : layer->select(x).query.to_vector()) {
      counts[static_cast<std::size_t>(head)] += 1;
    }
  }
  layer->gating().end_tally();
  ASSERT_TRUE(layer->telemetry().tally);
  const LoadTally& tally = *layer->telemetry().tally;
  for (std::size_t h = 0; h < counts.size(); ++h) {
    EXPECT_NEAR(tally.query.load[h], counts[h] / tokens, 1e-12) << h;
    EXPECT_NEAR(tally.both.load[h], tally.query.load[h] + tally.key.load[h], 1e-12) << h;
  }
  EXPECT_NEAR(tally.both.heads, static_cast<double>(2 * c.k), 1e-12);
  evaluate(*layer, input(c, 2, 30).value());
  EXPECT_NEAR(layer->telemetry().tally->both.heads, static_cast<double>(2 * c.k), 1e-12);
}

// Whether a token is taken depends on the later ones; every head takes its share of each sequence.
TEST_F(AspaLayer, LeakySelectionIsBalancedAndNotCausal) {
  AspaConfig c = config(DType::f32);
  c.leaky_selection = true;
  const TestLayer layer(c);
  layer->set_training(false);
  const std::int64_t T = 2 * c.routed_heads;
  const Tensor x = input(c, 3, T).value();
  const Selection chosen = layer->select(Variable(x));
  check_heads(Role::query, chosen.query, 3 * T, c.routed_heads);
  check_heads(Role::key, chosen.key, 3 * T, c.routed_heads);
  std::vector<int> taken(static_cast<std::size_t>(3 * c.routed_heads));
  for (std::int64_t i = 0; i < chosen.key.numel(); ++i) {
    const std::int32_t head = chosen.key.data<std::int32_t>()[i];
    const std::int64_t row = i / chosen.key.size(1) / T;
    if (head >= 0) ++taken[static_cast<std::size_t>(row * c.routed_heads + head)];
  }
  for (const int n : taken) EXPECT_EQ(n, 2 * c.k);
  Tensor suffix = x.clone();
  suffix.slice(1, T / 2, T).copy_(Tensor::randn({3, T - T / 2, c.width}, {9, 9}));
  EXPECT_FALSE(same_bits(evaluate(*layer, suffix).slice(1, 0, T / 2),
                         evaluate(*layer, x).slice(1, 0, T / 2)));
  const auto state = layer->make_state(CacheType::full);
  AttentionState* const states[] = {state.get()};
  EXPECT_EQ(message_of([&] { layer->step(x.select(0, 0).slice(0, 0, 1), states); }),
            "aspa: step: leaky_selection needs the whole sequence, later tokens too");
}

TEST_F(AspaLayer, AFrozenRouterStaysAsDrawn) {
  AspaConfig c = config();
  c.frozen_router = true;
  const TestLayer layer(c);
  const Results got = run(*layer, input(c, 2, 20));
  for (const char* name : {"router.U", "router.w", "router.lambda"}) {
    for (const double g : got.at(name).to_vector()) ASSERT_EQ(g, 0) << name;
  }
  EXPECT_GT(difference(got.at("routed.q"), Tensor::zeros(got.at("routed.q").shape(), c.dtype)), 0);
}

TEST_F(AspaLayer, Bf16IsNearF32) {
  AspaConfig c = config(DType::f32);
  const TestLayer exact(c);
  c.dtype = DType::bf16;
  const TestLayer rounded(c);
  for (const Parameter& p : exact->parameters()) {
    for (const Parameter& q : rounded->parameters()) {
      if (q.name != p.name) continue;
      q.variable.value().copy_(p.variable.value());
      p.variable.value().copy_(q.variable.value());
    }
  }
  const Tensor x = Tensor::randn({2, 40, c.width}, {3, 2}, DType::bf16);
  const Variable x32(x.to(DType::f32), true);
  const Variable x16(x, true);
  const Selection selection = exact->select(x32);
  exact->force_selection(selection);
  rounded->force_selection(selection);
  const Results got = run(*rounded, x16);
  EXPECT_EQ(got.at("y").dtype(), DType::bf16);
  expect_close(got, run(*exact, x32), 0.06);
}

// A pass that was recorded has room for as many gates of a head as there were then.
TEST(AspaAttention, NumbersOfTheHostFollowAGateThatMoved) {
  const TestLayer layer(config());
  const auto before = layer->gating().host_numbers();
  ASSERT_TRUE(before);
  const Tensor head_of_gate = layer->router().gate_state().head_of_gate;
  head_of_gate.data<std::int32_t>()[0] = 1;
  head_of_gate.bump_version();
  const auto after = layer->gating().host_numbers();
  ASSERT_TRUE(after);
  EXPECT_EQ(after->back(), before->back() + 1);
}

}  // namespace
}  // namespace proteus
