// The KV bank: its rule by hand, and the invariants of the layer with it.
#include "aspa/bank.h"

#include <gtest/gtest.h>

#include <set>

#include "aspa/reference.h"
#include "autograd/checkpoint.h"
#include "autograd/gradcheck.h"
#include "tensor/error.h"
#include "tests/aspa_layers.h"

namespace proteus {
namespace {

using testing::AspaLayer;
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

// One stream of entries with keys of width 2, a row of `share` each.
struct Stream {
  std::vector<double> k, v, share, score;
  BankRule rule{.delta = 0.9, .delta_v = 0.5};
  std::int64_t anchors = 0;

  void add(double kx, double ky, double vx, double vy, int gate, double e) {
    k.insert(k.end(), {kx, ky});
    v.insert(v.end(), {vx, vy});
    share.insert(share.end(), {gate == 0 ? 0.7 : 0.3, gate == 0 ? 0.3 : 0.7});
    score.push_back(e);
  }
  // What M slots hold after all entries were offered.
  std::vector<double> bank(std::int64_t M, std::int64_t head = 0) const {
    const auto n = static_cast<std::int64_t>(score.size());
    // Streams of other heads before this one are empty.
    std::vector<double> offsets(static_cast<std::size_t>(head) + 1, 0.0);
    offsets.push_back(static_cast<double>(n));
    std::vector<double> first(static_cast<std::size_t>(head), 0.0);
    first.push_back(static_cast<double>(n));
    const Tensor slots = ops::bank_select(
        {Tensor::from(k, {n, 2}, DType::f64), Tensor::from(v, {n, 2}, DType::f64),
         Tensor::from(share, {n, 2}, DType::f64), Tensor::from(score, {n}, DType::f64)},
        Tensor::from(offsets, {head + 2}, DType::i32),
        Tensor::from(first, {head + 1, 1}, DType::i32), M, anchors, 1, rule);
    return slots.select(0, head).to_vector();
  }
};

using Slots = std::vector<double>;

TEST(BankRule, AlikeKeepsTheBetterOfTheTwo) {
  Stream s;
  s.add(1, 0, 1, 0, 0, -1);
  s.add(2, 0.1, 1, 0.2, 0, -0.5);  // alike and better: replaces
  EXPECT_EQ(s.bank(3), (Slots{1, -1, -1}));
  s.add(1, 0, 1, 0, 0, -0.7);  // alike and worse: dropped
  EXPECT_EQ(s.bank(3), (Slots{1, -1, -1}));
  s.add(1, 0, 1, 0, 0, -0.5);  // alike and equal: the older stays
  EXPECT_EQ(s.bank(3), (Slots{1, -1, -1}));
}

TEST(BankRule, AnotherGateKeyOrValueIsNotAlike) {
  Stream s;
  s.add(1, 0, 1, 0, 0, -1);
  s.add(1, 0, 1, 0, 1, -2);   // another gate
  s.add(0, 1, 1, 0, 0, -3);   // another key
  s.add(1, 0, -1, 0, 0, -4);  // another value
  EXPECT_EQ(s.bank(5), (Slots{0, 1, 2, 3, -1}));
  s.add(0, 0, 1, 0, 0, -0.1);  // a zero is like nothing
  EXPECT_EQ(s.bank(5), (Slots{0, 1, 2, 3, 4}));
}

TEST(BankRule, TheFirstSlotThatIsAlikeDecides) {
  Stream s;
  s.rule.delta = 0.6;
  s.add(1, 0, 1, 0, 0, -1);
  s.add(0, 1, 1, 0, 0, -3);
  s.add(1, 1, 1, 0, 0, -2);  // like both, better than the second, not than the first
  EXPECT_EQ(s.bank(3), (Slots{0, 1, -1}));
}

TEST(BankRule, AFullBankGivesUpItsSmallestScore) {
  Stream s;
  s.add(1, 0, 1, 0, 0, -2);
  s.add(0, 1, 1, 0, 0, -2);
  s.add(-1, 0, 1, 0, 0, -2);  // not larger: dropped
  EXPECT_EQ(s.bank(2), (Slots{0, 1}));
  s.add(0, -1, 1, 0, 0, -1);  // the lower slot of two equal ones goes
  EXPECT_EQ(s.bank(2), (Slots{3, 1}));
}

TEST(BankRule, EqualSharesBelongToTheFirstGate) {
  Stream s;
  s.add(1, 0, 1, 0, 0, -1);
  s.add(1, 0, 1, 0, 0, 0);
  s.share = {0.7, 0.3, 0.5, 0.5};
  EXPECT_EQ(s.bank(2), (Slots{1, -1}));
}

TEST(BankRule, AnchorsAreNeverOffered) {
  Stream s;
  s.anchors = 2;
  for (int i = 0; i < 4; ++i) s.add(i - 1.5, 1, 1, 0, i % 2, -i);
  EXPECT_EQ(s.bank(4), (Slots{2, 3, -1, -1}));
}

TEST(BankRule, ControlsAlwaysMakeRoom) {
  Stream s;
  s.rule.delta = 1;
  s.rule.eviction = BankEviction::fifo;
  for (int i = 0; i < 6; ++i) s.add(1, i, 1, 0, 0, -i);
  EXPECT_EQ(s.bank(4), (Slots{4, 5, 2, 3}));
  s.rule.eviction = BankEviction::random;
  for (int i = 0; i < 94; ++i) s.add(1, i, 1, 0, 0, -i);
  const Slots drawn = s.bank(4);
  EXPECT_EQ(drawn, s.bank(4));
  std::set<Slots> draws;
  for (std::int64_t head = 0; head < 8; ++head) draws.insert(s.bank(4, head));
  EXPECT_EQ(draws.size(), 8u);
  s.rule.seed = 9;
  EXPECT_NE(s.bank(4), drawn);
  for (const double row : drawn) EXPECT_GE(row, 4);  // the first ones are long gone
}

AspaConfig config(DType dtype = DType::f64) {
  AspaConfig c = testing::config(dtype);
  c.anchors = 1;
  c.bank = {.slots = 3, .stride = 8, .delta = 0.5, .delta_v = 0.3};
  return c;
}

// The times of the entries that each stride's banks hold.
std::vector<std::set<double>> times(const AspaAttention& layer, const RoutedRows& rows) {
  std::vector<std::set<double>> out;
  const Tensor& slots = layer.bank();
  const auto values = slots.to_vector();
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (i % static_cast<std::size_t>(slots.size(2)) == 0) out.emplace_back();
    if (values[i] >= 0) {
      out.back().insert(rows.key.time.data<std::int32_t>()[static_cast<int>(values[i])]);
    }
  }
  return out;
}

// Invariant 4, forwards and backwards: packed against a masked-dense evaluation of the same rule.
TEST_F(AspaLayer, BankEqualsMaskedReference) {
  for (int variant = 0; variant < 9; ++variant) {
    for (const double alpha : {0.3, 1.0}) {
      AspaConfig c = config();
      c.alpha = alpha;
      c.bank.eviction = static_cast<BankEviction>(variant % 3);
      if (variant >= 6) c = testing::doubly_sparse(c);
      c.bank.stride = std::vector<std::int64_t>{1, 7, 16}[static_cast<std::size_t>(variant / 3)];
      c.anchors = variant % 3;
      c.shared_heads = variant % 2;
      c.key_bias = variant != 4;
      c.prototypes.enabled = variant != 5;
      c.routed_rope = variant == 7 ? RopeSpan::full : RopeSpan::half;
      SCOPED_TRACE(::testing::Message() << "variant " << variant << " alpha " << alpha);
      const TestLayer layer(c, 5 + static_cast<std::uint64_t>(variant));
      testing::settle(*layer);
      for (const std::int64_t T : {1, 17, 131}) {
        const Variable x = input(c, 2, T);
        const Selection selection = layer->select(x);
        expect_close(run(*layer, x), gradients(*layer, x, reference_forward(*layer, x, selection)),
                     1e-10);
      }
    }
  }
}

// What is compared above is not an empty bank, or one that keeps everything.
TEST_F(AspaLayer, BankKeepsSomethingAndForgetsSomething) {
  AspaConfig c = config();
  const TestLayer layer(c);
  const Variable x = input(c, 2, 131);
  const Tensor with = evaluate(*layer, x.value());
  const Tensor slots = layer->bank();
  EXPECT_EQ(to_string(slots.shape()), "[10, 17, 3]");
  const auto values = slots.to_vector();
  EXPECT_EQ(values.front(), -1);
  EXPECT_GE(values.back(), 0);
  c.bank.eviction = BankEviction::fifo;
  EXPECT_FALSE(same_bits(evaluate(*TestLayer(c), x.value()), with));
  c.bank.slots = 0;
  const TestLayer without(c);
  EXPECT_FALSE(same_bits(evaluate(*without, x.value()), with));
  EXPECT_FALSE(without->bank().defined());
}

// Invariant 2: nothing leaves the window at alpha = 0, and there are no slots.
TEST_F(AspaLayer, BankAtAlphaZeroIsNotThere) {
  AspaConfig c = config(DType::f32);
  c.alpha = 0;
  const TestLayer layer(c);
  const Variable x = input(c, 2, 50);
  const Results with = run(*layer, x);
  c.bank = {};
  expect_same_bits(with, run(*TestLayer(c), x));
  EXPECT_FALSE(layer->bank().defined());
}

// Invariant 3: where everything is seen anyway a bank changes nothing.
TEST_F(AspaLayer, BankBehindAnEndlessWindowChangesNothing) {
  AspaConfig c = config();
  c.window = std::int64_t{1} << 30;
  const Variable x = input(c, 2, 50);
  const Results with = run(*TestLayer(c), x);
  c.bank = {};
  expect_close(with, run(*TestLayer(c), x), 1e-12);
}

// Invariant 1, bit for bit, across refreshes.
TEST_F(AspaLayer, BankIsCausalBitForBit) {
  for (const auto& [alpha, sparse] :
       std::vector<std::pair<double, bool>>{{0.5, false}, {1.0, false}, {1.0, true}}) {
    AspaConfig c = config(DType::f32);
    if (sparse) c = testing::doubly_sparse(c);
    c.alpha = alpha;
    const TestLayer layer(c);
    testing::settle(*layer);
    layer->set_training(false);
    constexpr std::int64_t kT = 150;
    constexpr std::int64_t kPackedRows = 16;
    const Tensor x = input(c, 3, kT).value();
    const Tensor y = evaluate(*layer, x);
    for (const std::int64_t cut : {3, 7, 8, 9, 63, 64, 65, 100, 149}) {
      SCOPED_TRACE(::testing::Message() << "alpha " << alpha << " cut " << cut);
      const Tensor expected = y.slice(1, 0, cut);
      Tensor suffix = x.clone();
      suffix.slice(1, cut, kT).copy_(Tensor::randn({3, kT - cut, c.width}, {9, 9}));
      EXPECT_TRUE(same_bits(evaluate(*layer, suffix).slice(1, 0, cut), expected)) << "suffix";
      // Products of fewer rows than kPackedRows take another path, with other rounding.
      const Tensor shorter = evaluate(*layer, x.slice(1, 0, cut));
      if (3 * cut >= kPackedRows) {
        EXPECT_TRUE(same_bits(shorter, expected)) << "length";
      }
      EXPECT_LE(difference(shorter, expected), 1e-5) << "length";
    }
    for (std::int64_t row = 0; row < 3; ++row) {
      EXPECT_TRUE(
          same_bits(evaluate(*layer, x.slice(0, row, row + 1)).select(0, 0), y.select(0, row)));
    }
  }
}

// Invariant 9: a recomputation keeps what the first pass kept.
TEST_F(AspaLayer, CheckpointingReusesTheBank) {
  const AspaConfig c = testing::doubly_sparse(config(DType::f32));
  const TestLayer plain(c);
  const TestLayer recomputed(c);
  testing::settle(*plain);
  testing::settle(*recomputed);
  const Variable x = input(c, 2, 60);
  const Results expected = run(*plain, x);
  const Variable y =
      checkpoint([&](const std::vector<Variable>& v) { return recomputed->forward(v[0]); }, {x});
  // Another choice from here on: without the first pass's own, nothing would be kept.
  const Tensor bank = recomputed->bank();
  Selection other = recomputed->select(x);
  other.bank = Tensor::full(bank.shape(), -1, DType::i32);
  recomputed->force_selection(other);
  EXPECT_FALSE(same_bits(evaluate(*recomputed, x.value()), expected.at("y")));
  expect_same_bits(gradients(*recomputed, x, y), expected);
  EXPECT_TRUE(same_bits(recomputed->bank(), bank));
}

TEST_F(AspaLayer, BankHasTheSameBitsForAnyNumberOfThreads) {
  AspaConfig c = config(DType::f32);
  c.width = 32;
  Results expected;
  for (const int threads : {1, 2, 3}) {
    set_num_threads(threads);
    const TestLayer layer(c);
    const Results got = run(*layer, input(c, 3, 150));
    if (threads == 1) expected = got;
    expect_same_bits(got, expected);
  }
}

// Never more than M, none twice, only entries that have left the window and are no anchors.
TEST_F(AspaLayer, BankIsBounded) {
  const AspaConfig c = config(DType::f32);
  const TestLayer layer(c);
  const Variable x = input(c, 2, 300);
  evaluate(*layer, x.value());
  const Tensor visible = Tensor::full({301}, static_cast<double>(c.window), DType::i32);
  for (int n = 0; n < c.window; ++n) visible.data<std::int32_t>()[n] = n;
  const RoutedRows rows = pack_selection(layer->select(x), 2, c.routed_heads, visible);
  const Tensor first = bank_first(rows.key, visible, c.bank.stride);
  const auto* offsets = rows.key.offsets.data<std::int32_t>();
  const auto slots = layer->bank().to_vector();
  const auto firsts = first.to_vector();
  const auto held = times(*layer, rows);
  ASSERT_EQ(held.size(), firsts.size());
  for (std::size_t i = 0; i < held.size(); ++i) {
    const std::size_t stream = i / static_cast<std::size_t>(first.size(1));
    std::size_t in_use = 0;
    for (std::size_t m = 0; m < 3; ++m) {
      const double row = slots[i * 3 + m];
      if (row < 0) continue;
      ++in_use;
      EXPECT_GE(row - offsets[stream], c.anchors);
      EXPECT_LT(row - offsets[stream], firsts[i]);
    }
    EXPECT_EQ(held[i].size(), in_use);
  }
}

// Invariant 6: every parameter, with the selection and the bank frozen.
TEST_F(AspaLayer, BankGradcheck) {
  for (const bool sparse : {false, true}) {
    AspaConfig c = config();
    if (sparse) c = testing::doubly_sparse(c);
    c.window = 2;
    c.bank.stride = 4;
    const TestLayer layer(c);
    testing::settle(*layer);
    const Variable x = input(c, 1, 18);
    Selection frozen = layer->select(x);
    run(*layer, x);
    frozen.bank = layer->bank();
    const auto slots = frozen.bank.to_vector();
    EXPECT_TRUE(std::any_of(slots.begin(), slots.end(), [](double row) { return row >= 0; }));
    layer->force_selection(frozen);
    testing::expect_gradients(*layer, x);
  }
}

// Invariant 8: evaluation writes nothing.
TEST_F(AspaLayer, BankEvaluationWritesNothing) {
  const TestLayer layer(config(DType::f32));
  layer->set_training(false);
  std::vector<Tensor> before;
  for (const Buffer& b : layer->buffers()) before.push_back(b.tensor.clone());
  evaluate(*layer, input(layer->config(), 2, 60).value());
  layer->after_step(1);
  for (std::size_t i = 0; i < before.size(); ++i) {
    EXPECT_TRUE(same_bits(layer->buffers()[i].tensor, before[i])) << layer->buffers()[i].name;
  }
}

TEST_F(AspaLayer, BankCountsItsWork) {
  AspaConfig c = config(DType::f32);
  c.shared_heads = 0;
  c.anchors = 0;
  c.bank.slots = 6;
  c.bank.stride = 10;  // 4 entries per head
  const double flops = TestLayer(c)->attention_flops_per_token(4000);
  // 2 heads: the window, the bank, and on average 2.5 entries of the stride.
  EXPECT_NEAR(flops, 4.0 * 8 * 2 * (4 + 6 + 2.5), 4);
  c.bank.slots = 0;
  EXPECT_LT(TestLayer(c)->attention_flops_per_token(4000), flops / 2);
}

TEST(BankConfig, ErrorsSayWhatIsAllowed) {
  const auto message = [](void (*change)(BankConfig&)) -> std::string {
    AspaConfig c = config();
    change(c.bank);
    try {
      c.validate();
    } catch (const ConfigError& e) {
      return e.what();
    }
    return "";
  };
  EXPECT_EQ(message([](BankConfig& b) { b.slots = -1; }),
            "aspa: bank.slots: expected at least 0, got -1");
  EXPECT_EQ(message([](BankConfig& b) { b.stride = 0; }),
            "aspa: bank.stride: expected at least 1, got 0");
  EXPECT_EQ(message([](BankConfig& b) { b.delta = 1.5; }),
            "aspa: bank.delta: expected a number in [0, 1], got 1.5");
  EXPECT_EQ(message([](BankConfig& b) { b.delta_v = -0.5; }),
            "aspa: bank.delta_v: expected a number in [0, 1], got -0.5");
}

}  // namespace
}  // namespace proteus
