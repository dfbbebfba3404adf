// Invariant 5: logits of one token at a time equal those of a full forward, for batches of unequal
// length too, and what is remembered does not grow where attention is limited.
#include <gtest/gtest.h>

#include <numeric>

#include "aspa/bank_stream.h"
#include "aspa/surgery.h"
#include "nn/transformer.h"
#include "tensor/error.h"
#include "tests/aspa_layers.h"

namespace proteus {
namespace {

using testing::difference;

constexpr std::int64_t kVocab = 13;
constexpr std::int64_t kWidth = 24;

struct Case {
  const char* name;
  bool aspa = false;
  double alpha = 1;
  DenseAttentionConfig dense{};
  void (*change)(AspaConfig&) = nullptr;
  bool new_head = false;  ///< beside the k
  bool learned_positions = false;
};

void PrintTo(const Case& c, std::ostream* os) { *os << c.name; }

AspaConfig aspa_config(const Case& c, DType dtype) {
  AspaConfig a;
  a.width = kWidth;
  a.head_width = 8;
  a.shared_window = 5;
  a.anchors = 2;
  a.routed_heads = 6;
  a.k = 2;
  a.window = 4;
  a.gates_per_head = 2;
  a.routing_width = 8;
  a.alpha = c.alpha;
  a.dtype = dtype;
  if (c.change) c.change(a);
  // Whether two entries are alike is decided on bf16 rows in a forward pass, on f32 rows in
  // decoding.
  if (dtype == DType::bf16) a.bank.delta = 1;
  return a;
}

std::unique_ptr<Attention> make_attention(const Case& c, DType dtype, std::uint64_t seed,
                                          Generator& generator) {
  Generator init(seed);
  if (c.aspa) {
    auto layer = std::make_unique<AspaAttention>(aspa_config(c, dtype), 0.3, init, generator);
    testing::randomize(*layer, seed);
    if (layer->salience()) testing::settle(*layer);
    if (c.new_head) {
      add_head(*layer, {}, {seed, 9});
      layer->weights().o.value().copy_(
          Tensor::randn(layer->weights().o.shape(), {seed, 10}, dtype, 0, 0.3));
    }
    return layer;
  }
  DenseAttentionConfig d = c.dense;
  d.width = kWidth;
  d.heads = 3;
  d.head_width = 8;
  d.dtype = dtype;
  return std::make_unique<DenseAttention>(d, 0.3, init, generator);
}

/// forward() of x [B, T, C], one step at a time; row b starts b · late steps later than row 0.
Tensor decoded(Attention& layer, const Tensor& x, std::int64_t late = 0,
               CacheType cache = CacheType::full) {
  const std::int64_t B = x.size(0);
  const std::int64_t T = x.size(1);
  std::vector<std::unique_ptr<AttentionState>> states;
  for (std::int64_t b = 0; b < B; ++b) states.push_back(layer.make_state(cache));
  Tensor y = Tensor::empty(x.shape(), x.dtype());
  for (std::int64_t time = 0; time < T + (B - 1) * late; ++time) {
    std::vector<AttentionState*> now;
    std::vector<std::int64_t> row;
    for (std::int64_t b = 0; b < B; ++b) {
      if (time - b * late < 0 || time - b * late >= T) continue;
      now.push_back(states[static_cast<std::size_t>(b)].get());
      row.push_back(b);
    }
    Tensor in = Tensor::empty({static_cast<std::int64_t>(row.size()), x.size(2)}, x.dtype());
    const auto at = [&](const Tensor& t, std::size_t i) {
      return t.select(0, row[i]).select(0, time - row[i] * late);
    };
    for (std::size_t i = 0; i < row.size(); ++i) {
      in.select(0, static_cast<std::int64_t>(i)).copy_(at(x, i));
    }
    const Tensor out = layer.step(in, now);
    for (std::size_t i = 0; i < row.size(); ++i) {
      at(y, i).copy_(out.select(0, static_cast<std::int64_t>(i)));
    }
  }
  return y;
}

void with_bank(AspaConfig& c) { c.bank = {.slots = 3, .stride = 8, .delta = 0.5, .delta_v = 0.3}; }

class Decode : public ::testing::TestWithParam<Case> {};

TEST_P(Decode, StepsEqualTheForwardPass) {
  for (const auto& [dtype, tolerance] :
       {std::pair{DType::f64, 1e-11}, {DType::f32, 1e-5}, {DType::bf16, 3e-2}}) {
    Generator generator{1};
    const auto layer = make_attention(GetParam(), dtype, 5, generator);
    layer->set_training(false);
    const Tensor x = Tensor::randn({3, 41, kWidth}, {7, 1}, dtype);
    const Tensor expected = layer->forward(Variable(x)).value();
    EXPECT_LE(difference(decoded(*layer, x), expected), tolerance) << name_of(dtype);
    EXPECT_LE(difference(decoded(*layer, x, 7), expected), tolerance) << name_of(dtype);
  }
}

TEST_P(Decode, WholeModels) {
  TransformerConfig config{.vocab = kVocab, .context = 30, .layers = 2, .width = kWidth};
  config.learned_positions = GetParam().learned_positions;
  Transformer model(config, [](const AttentionSite& site) {
    return make_attention(GetParam(), DType::f32, 3 + static_cast<std::uint64_t>(site.layer),
                          site.generator);
  });
  model.set_training(false);
  const Tensor tokens = Tensor::rand({2, 30}, {4, 4}, DType::f64, 0, double{kVocab}).to(DType::i32);
  const Tensor expected = model.logits(tokens);
  DecodeState a = model.begin_sequence();
  DecodeState b = model.begin_sequence();
  DecodeState* const both[] = {&a, &b};
  for (std::int64_t t = 0; t < 30; ++t) {
    const Tensor logits = model.step(tokens.select(1, t).contiguous(), both);
    EXPECT_LE(difference(logits, expected.select(1, t)), 1e-5) << t;
  }
  EXPECT_EQ(a.position, 30);
  EXPECT_GT(a.bytes(), 0);
}

INSTANTIATE_TEST_SUITE_P(
    Layers, Decode,
    ::testing::Values(
        Case{.name = "Dense"}, Case{.name = "DenseWindow", .dense = {.window = 6}},
        Case{.name = "DenseExtras",
             .dense = {.key_shift = true, .output_gate = true, .bias = true}},
        Case{.name = "DenseNoRope", .dense = {.rope = false}},
        Case{
            .name = "DenseGpt2", .dense = {.rope = false, .bias = true}, .learned_positions = true},
        Case{.name = "AspaGpt2",
             .aspa = true,
             .change =
                 [](AspaConfig& c) {
                   c.bias = true;
                   c.shared_rope = false;
                   c.routed_rope = RopeSpan::none;
                 },
             .learned_positions = true},
        Case{.name = "Aspa", .aspa = true}, Case{.name = "AspaHalf", .aspa = true, .alpha = 0.5},
        Case{.name = "AspaDense", .aspa = true, .alpha = 0},
        Case{.name = "AspaBare",
             .aspa = true,
             .change =
                 [](AspaConfig& c) {
                   c.key_shift = c.shared_gate = c.sink = c.query_gate = c.key_bias = false;
                   c.prototypes.enabled = false;
                   c.routed_rope = RopeSpan::none;
                   c.anchors = 0;
                 }},
        Case{.name = "AspaDoublySparse",
             .aspa = true,
             .change = [](AspaConfig& c) { c = testing::doubly_sparse(c); }},
        Case{.name = "AspaNewHead", .aspa = true, .new_head = true},
        Case{.name = "AspaBank", .aspa = true, .change = with_bank},
        Case{.name = "AspaBankHalf", .aspa = true, .alpha = 0.5, .change = with_bank},
        Case{.name = "AspaBankRandom",
             .aspa = true,
             .change =
                 [](AspaConfig& c) {
                   with_bank(c);
                   c.bank.eviction = BankEviction::random;
                   c.routed_rope = RopeSpan::full;
                 }},
        Case{.name = "AspaBankDoublySparse",
             .aspa = true,
             .change =
                 [](AspaConfig& c) {
                   c = testing::doubly_sparse(c);
                   with_bank(c);
                   c.bank.stride = 1;
                   c.key_bias = false;
                 }},
        Case{.name = "AspaSharedOnly",
             .aspa = true,
             .change = [](AspaConfig& c) { c.routed_heads = 0; }},
        Case{.name = "AspaRoutedOnly",
             .aspa = true,
             .change = [](AspaConfig& c) { c.shared_heads = 0; }}),
    [](const auto& decode) { return std::string(decode.param.name); });

TEST(DecodeState, DoesNotGrowWithTheSequence) {
  Generator generator{1};
  const Case sparse{.name = "", .aspa = true};
  const auto layer = make_attention(sparse, DType::f32, 2, generator);
  const auto state = layer->make_state(CacheType::full);
  AttentionState* const states[] = {state.get()};
  for (std::int64_t t = 0; t < 4000; ++t) {
    layer->step(Tensor::randn({1, kWidth}, {9, static_cast<std::uint64_t>(t)}), states);
  }
  // Per head anchors and twice the window, in vectors that may have doubled; k, v, bias; and
  // x_{t−1}.
  const std::int64_t entries = 2 * (2 + 2 * 5 + 1) + 6 * (2 + 2 * 4 + 1);
  EXPECT_LE(state->bytes(), 2 * entries * (2 * 8 + 1) * 4 + kWidth * 4);
}

TEST(DecodeState, ABankDoesNotGrowEither) {
  Generator generator{1};
  const Case banked{.name = "", .aspa = true, .change = with_bank};
  const auto layer = make_attention(banked, DType::f32, 2, generator);
  const auto state = layer->make_state(CacheType::full);
  AttentionState* const states[] = {state.get()};
  for (std::int64_t t = 0; t < 800; ++t) {
    layer->step(Tensor::randn({1, kWidth}, {9, static_cast<std::uint64_t>(t)}), states);
  }
  // As above, with windows that grow by up to a stride between refreshes, and three slots a head.
  const std::int64_t entries = 2 * (2 + 2 * 5 + 1) + 6 * (2 + 2 * (4 + 8) + 1 + 3);
  const auto judged = static_cast<std::int64_t>((4 + 2 * 8) * sizeof(JudgedKey<float>));
  const auto held = static_cast<std::int64_t>(3 * (8 * 4 + sizeof(BankEntry<float>)));
  EXPECT_LE(state->bytes(), 2 * (entries * (2 * 8 + 1) * 4 + 6 * (judged + held)) + kWidth * 4);
}

// What is in the state when alpha or the window moves stays usable.
TEST(DecodeState, AlphaMayMoveUnderABank) {
  Generator generator{1};
  const Case banked{.name = "", .aspa = true, .change = with_bank};
  const auto layer = make_attention(banked, DType::f32, 2, generator);
  auto& aspa = dynamic_cast<AspaAttention&>(*layer);
  const auto state = layer->make_state(CacheType::full);
  AttentionState* const states[] = {state.get()};
  std::uint64_t t = 0;
  for (const double alpha : {0.0, 1.0, 0.1, 0.5, 1.0, 0.0, 1.0}) {
    aspa.set_alpha(alpha);
    aspa.set_window(alpha == 0.5 ? 2 : 4);
    for (int i = 0; i < 41; ++i) {
      const Tensor y = layer->step(Tensor::randn({1, kWidth}, {9, t++}), states);
      EXPECT_LT(difference(y, Tensor::zeros(y.shape())), 1e8) << "alpha " << alpha << " t " << t;
    }
  }
}

// 8-bit caches: everywhere within a fiftieth of the largest output.
TEST_P(Decode, Int8StaysNear) {
  Generator generator{1};
  const auto layer = make_attention(GetParam(), DType::f32, 5, generator);
  layer->set_training(false);
  const Tensor x = Tensor::randn({3, 41, kWidth}, {7, 1});
  const Tensor expected = layer->forward(Variable(x)).value();
  EXPECT_LE(difference(decoded(*layer, x, 0, CacheType::int8), expected), 2e-2);
}

TEST(DecodeState, Int8TakesLess) {
  constexpr std::int64_t kD = 64;
  KeyStream<float> full(kD, 0, CacheType::full);
  KeyStream<float> codes(kD, 0, CacheType::int8);
  const Tensor row = Tensor::randn({kD}, {1, 1});
  for (int i = 0; i < 256; ++i) {
    full.append(row.data<float>(), row.data<float>(), 0);
    codes.append(row.data<float>(), row.data<float>(), 0);
  }
  EXPECT_EQ(full.bytes(), 256 * (2 * kD + 1) * 4);
  EXPECT_EQ(codes.bytes(), 256 * (2 * (kD + 4) + 4));
}

// Exact integer sums whatever the width, also where a code is at its limit.
TEST(KeyCache, DotProductsOfCodesAreExact) {
  for (const std::int64_t D : {1, 8, 63, 64, 65, 130, 256}) {
    std::vector<std::uint8_t> keys;
    std::vector<std::int8_t> q;
    std::int32_t expected = 0;
    for (std::int64_t d = 0; d < D; ++d) {
      keys.push_back(static_cast<std::uint8_t>(d % 3 == 0 ? 255 : 1 + d * 37 % 255));
      q.push_back(static_cast<std::int8_t>(d % 2 == 0 ? 127 : -127 + d % 100));
      expected += std::int32_t{keys.back()} * std::int32_t{q.back()};
    }
    keys.insert(keys.end(), static_cast<std::size_t>(D), 1);
    std::int32_t got[2];
    detail::dot_codes(keys.data(), q.data(), 2, D, got);
    EXPECT_EQ(got[0], expected) << D;
    EXPECT_EQ(got[1], std::accumulate(q.begin(), q.end(), 0)) << D;
  }
}

TEST(KeyCache, CodesAreWithinHalfAStep) {
  const Tensor row = Tensor::randn({64}, {1, 1});
  double top = 0;
  for (const double x : row.to_vector()) top = std::max(top, std::abs(x));
  CachedRows<float> rows(64, CacheType::int8);
  rows.set(0, row.data<float>());
  rows.set(1, Tensor::zeros({64}).data<float>());
  std::vector<float> back(64);
  rows.read(0, back.data());
  for (std::size_t d = 0; d < 64; ++d) {
    EXPECT_NEAR(back[d], row.to_vector()[d], top / 127 / 2 * 1.001);
  }
  rows.read(1, back.data());
  EXPECT_EQ(back, std::vector<float>(64, 0.0F));
}

TEST(DecodeState, ErrorsSayWhatToChange) {
  Generator generator{1};
  const auto layer = make_attention({.name = "", .aspa = true}, DType::f32, 2, generator);
  const auto state = layer->make_state(CacheType::full);
  AttentionState* const states[] = {state.get()};
  EXPECT_THROW(layer->step(Tensor::zeros({2, kWidth}), states), ShapeError);
  EXPECT_THROW(layer->step(Tensor::zeros({1, kWidth + 1}), states), ShapeError);
  auto& aspa = dynamic_cast<AspaAttention&>(*layer);
  aspa.force_selection(
      Selection{Tensor::zeros({1, 1}, DType::i32), Tensor::zeros({1, 1}, DType::i32)});
  EXPECT_THROW(layer->step(Tensor::zeros({1, kWidth}), states), ConfigError);
}

}  // namespace
}  // namespace proteus
