// Invariant 5: logits of one token at a time equal those of a full forward, for batches of unequal
// length too, and what is remembered does not grow where attention is limited.
#include <gtest/gtest.h>

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
Tensor decoded(Attention& layer, const Tensor& x, std::int64_t late = 0) {
  const std::int64_t B = x.size(0);
  const std::int64_t T = x.size(1);
  std::vector<std::unique_ptr<AttentionState>> states;
  for (std::int64_t b = 0; b < B; ++b) states.push_back(layer.make_state());
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
    ::testing::Values(Case{.name = "Dense"}, Case{.name = "DenseWindow", .dense = {.window = 6}},
                      Case{.name = "DenseExtras",
                           .dense = {.key_shift = true, .output_gate = true, .bias = true}},
                      Case{.name = "DenseNoRope", .dense = {.rope = false}},
                      Case{.name = "Aspa", .aspa = true},
                      Case{.name = "AspaHalf", .aspa = true, .alpha = 0.5},
                      Case{.name = "AspaDense", .aspa = true, .alpha = 0},
                      Case{.name = "AspaBare",
                           .aspa = true,
                           .change =
                               [](AspaConfig& c) {
                                 c.key_shift = c.shared_gate = c.sink = c.query_gate = c.key_bias =
                                     false;
                                 c.prototypes.enabled = false;
                                 c.routed_rope = RopeSpan::none;
                                 c.anchors = 0;
                               }},
                      Case{.name = "AspaDoublySparse",
                           .aspa = true,
                           .change = [](AspaConfig& c) { c = testing::doubly_sparse(c); }},
                      Case{.name = "AspaNewHead", .aspa = true, .new_head = true},
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
  const auto state = layer->make_state();
  AttentionState* const states[] = {state.get()};
  for (std::int64_t t = 0; t < 4000; ++t) {
    layer->step(Tensor::randn({1, kWidth}, {9, static_cast<std::uint64_t>(t)}), states);
  }
  // Per head anchors and twice the window, in vectors that may have doubled; k, v, bias; and
  // x_{t−1}.
  const std::int64_t entries = 2 * (2 + 2 * 5 + 1) + 6 * (2 + 2 * 4 + 1);
  EXPECT_LE(state->bytes(), 2 * entries * (2 * 8 + 1) * 4 + kWidth * 4);
}

TEST(DecodeState, ErrorsSayWhatToChange) {
  Generator generator{1};
  const auto layer = make_attention({.name = "", .aspa = true}, DType::f32, 2, generator);
  const auto state = layer->make_state();
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
