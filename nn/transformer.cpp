#include "nn/transformer.h"

#include "autograd/beside.h"
#include "autograd/checkpoint.h"
#include "autograd/dropout.h"
#include "autograd/elementwise.h"
#include "autograd/loss.h"
#include "autograd/tape.h"
#include "autograd/view.h"
#include "nn/init.h"
#include "tensor/error.h"
#include "tensor/ops/elementwise.h"
#include "tensor/ops/gemm.h"

namespace proteus {

namespace {
// Weights and dropout masks come from one seed but never from the same stream.
constexpr std::uint64_t kInitStream = 0;
constexpr std::uint64_t kDropoutStream = std::uint64_t{1} << 32;

const TransformerConfig& checked(const TransformerConfig& c) {
  if (c.vocab < 1 || c.context < 1 || c.layers < 1 || c.width < 1) {
    throw ConfigError("transformer: vocab, context, layers and width must be at least 1, got " +
                      std::to_string(c.vocab) + ", " + std::to_string(c.context) + ", " +
                      std::to_string(c.layers) + ", " + std::to_string(c.width));
  }
  if (!(c.dropout >= 0 && c.dropout < 1)) {
    throw ConfigError("transformer: dropout: expected 0 <= p < 1, got " +
                      std::to_string(c.dropout));
  }
  return c;
}
}  // namespace

Transformer::Transformer(const TransformerConfig& config, const AttentionFactory& make_attention,
                         const FeedForwardFactory& make_feed_forward)
    : config_(checked(config)), generator_(config.seed, kDropoutStream) {
  Generator init(config.seed, kInitStream);
  embedding_ =
      &add_child("embedding", std::make_unique<Embedding>(config.vocab, config.width, init));
  if (config.learned_positions) {
    positions_ =
        &add_child("positions", std::make_unique<Embedding>(config.context, config.width, init));
  }
  const double output_std = residual_std(config.layers);
  for (std::int64_t layer = 0; layer < config.layers; ++layer) {
    auto attention = make_attention({static_cast<int>(layer), output_std, init, generator_});
    std::unique_ptr<FeedForward> mlp;
    if (make_feed_forward) {
      mlp = make_feed_forward({static_cast<int>(layer), output_std, init, *attention});
    } else {
      mlp = std::make_unique<Mlp>(config.mlp, config.width, config.mlp_width, config.bias,
                                  output_std, init);
    }
    blocks_.push_back(
        &add_child("blocks." + std::to_string(layer),
                   std::make_unique<Block>(std::move(attention), config.norm, std::move(mlp),
                                           config.width, config.bias, config.dropout, generator_)));
  }
  norm_ = &add_child("norm", std::make_unique<Norm>(config.norm, config.width, config.bias));
}

void Transformer::check_position(std::int64_t last, const char* call) const {
  if (!positions_ || last < config_.context) return;
  throw ShapeError(std::string("transformer.") + call + "(tokens): tokens: expected at most " +
                   std::to_string(config_.context) + " (= learned positions), got " +
                   std::to_string(last + 1) + "; cut the sequence, or use rotary positions");
}

Variable Transformer::embedded(const Tensor& tokens, const char* call) const {
  const std::int64_t T = tokens.size(1);
  check_position(T - 1, call);
  const Variable x = embedding_->forward(tokens);
  return positions_ ? add(x, slice(positions_->weight(), 0, 0, T)) : x;
}

Variable Transformer::stream_before(const Tensor& tokens, std::int64_t layer, const char* call) {
  if (tokens.rank() != 2) {
    throw ShapeError(std::string("transformer.") + call +
                     "(tokens): tokens: expected [B, T], got " + to_string(tokens.shape()));
  }
  Variable x = embedded(tokens, call);
  if (config_.compute != x.dtype()) x = cast(x, config_.compute);
  if (training()) x = dropout(x, config_.dropout, generator_);
  for (std::int64_t i = 0; i < layer; ++i) {
    Block* const block = blocks_[static_cast<std::size_t>(i)];
    if (config_.recompute) {
      x = checkpoint([block](const std::vector<Variable>& in) { return block->forward(in[0]); },
                     {x});
    } else {
      x = block->forward(x);
    }
  }
  return x;
}

Variable Transformer::hidden(const Tensor& tokens) {
  return norm_->forward(stream_before(tokens, layers(), "hidden"));
}

Tensor Transformer::attention_input(const Tensor& tokens, std::int64_t layer) {
  if (training() || layer < 0 || layer >= layers()) {
    throw ConfigError("transformer.attention_input: expected evaluation mode and a layer in [0, " +
                      std::to_string(layers()) + "), got layer " + std::to_string(layer) +
                      (training() ? " in training mode" : ""));
  }
  const NoGradGuard no_grad;
  const Variable x = stream_before(tokens, layer, "attention_input");
  return blocks_[static_cast<std::size_t>(layer)]->attention_input(x).value();
}

Variable Transformer::loss(const Tensor& tokens, const Tensor& targets, std::int64_t ignore) {
  if (tokens.shape() != targets.shape()) {
    throw ShapeError("transformer.loss(tokens, targets): targets: expected " +
                     to_string(tokens.shape()) + " (= tokens.shape), got " +
                     to_string(targets.shape()));
  }
  return cross_entropy(hidden(tokens), embedding_->weight(), targets, ignore);
}

Variable Transformer::loss(const Tensor& tokens, const ops::Targets& targets) {
  return cross_entropy(hidden(tokens), embedding_->weight(), targets);
}

Tensor Transformer::logits(const Tensor& tokens) {
  const NoGradGuard no_grad;
  return ops::linear(hidden(tokens).value().to(head_weight().dtype()), head_weight(), {});
}

Tensor Transformer::last_logits(const Tensor& tokens) {
  const NoGradGuard no_grad;
  const Tensor h = hidden(tokens).value();
  const Tensor last = h.select(1, h.size(1) - 1).contiguous();
  return ops::linear(last.to(head_weight().dtype()), head_weight(), {});
}

std::int64_t DecodeState::bytes() const {
  std::int64_t sum = 0;
  for (const auto& layer : layers) sum += layer->bytes();
  return sum;
}

DecodeState Transformer::begin_sequence(CacheType cache) const {
  DecodeState state;
  for (const Block* block : blocks_) state.layers.push_back(block->attention().make_state(cache));
  return state;
}

Tensor Transformer::step(const Tensor& tokens, std::span<DecodeState* const> sequences) {
  const auto B = static_cast<std::int64_t>(sequences.size());
  if (tokens.shape() != Shape{B}) {
    throw ShapeError("transformer.step(tokens, sequences): tokens: expected [" + std::to_string(B) +
                     "] (= sequences), got " + to_string(tokens.shape()));
  }
  const NoGradGuard no_grad;
  Tensor x = embedding_->forward(tokens).value();
  if (positions_) {
    const Tensor at = Tensor::empty({B}, DType::i32);
    for (std::int64_t b = 0; b < B; ++b) {
      const std::int64_t position = sequences[static_cast<std::size_t>(b)]->position;
      check_position(position, "step");
      at.data<std::int32_t>()[b] = static_cast<std::int32_t>(position);
    }
    x = ops::add(x, positions_->forward(at).value());
  }
  std::vector<AttentionState*> states(sequences.size());
  for (std::size_t layer = 0; layer < blocks_.size(); ++layer) {
    for (std::size_t b = 0; b < states.size(); ++b) {
      states[b] = sequences[b]->layers.at(layer).get();
    }
    x = blocks_[layer]->step(x, states);
  }
  for (DecodeState* sequence : sequences) ++sequence->position;
  return ops::linear(norm_->forward(Variable(x)).value(), head_weight(), {});
}

std::vector<LayerCaches> Transformer::make_caches(const CacheShape& shape) const {
  std::vector<LayerCaches> caches;
  for (const Block* block : blocks_) caches.push_back(block->attention().make_caches(shape));
  return caches;
}

Tensor Transformer::step(const Tensor& tokens, const std::vector<LayerCaches>& caches,
                         const Tensor& positions) const {
  const NoGradGuard no_grad;
  Variable x = embedding_->forward(tokens);
  if (positions_) x = add(x, positions_->forward(positions));
  x = cast(x, config_.compute);
  for (std::size_t layer = 0; layer < blocks_.size(); ++layer) {
    x = Variable(blocks_[layer]->step(x.value(), caches.at(layer), positions));
  }
  // Logits are sums in f32, of factors as wide as what flows between the layers.
  x = norm_->forward(x);
  const Tensor head = value_beside(embedding_->weight(), x);
  Tensor logits = Tensor::empty({tokens.size(0), config_.vocab}, DType::f32, x.device());
  ops::gemm_into(logits, x.value(), head.transpose(0, 1));
  return logits;
}

Tensor Transformer::normed(const Tensor& x) const {
  const NoGradGuard no_grad;
  return norm_->forward(Variable(x)).value();
}

void Transformer::after_step(double rate) {
  for (Block* block : blocks_) {
    block->attention().after_step(rate);
    block->mlp().after_step(rate);
  }
}

Attention& Transformer::attention(std::int64_t layer) const {
  return blocks_.at(static_cast<std::size_t>(layer))->attention();
}

FeedForward& Transformer::feed_forward(std::int64_t layer) const {
  return blocks_.at(static_cast<std::size_t>(layer))->mlp();
}

double Transformer::attention_flops_per_token(std::int64_t T) const {
  double flops = 0;
  for (const Block* block : blocks_) flops += block->attention().attention_flops_per_token(T);
  return flops;
}

double Transformer::total_flops_per_token(std::int64_t T) const {
  double flops = 2.0 * static_cast<double>(config_.vocab * config_.width);
  for (const Block* block : blocks_) {
    flops += block->attention().total_flops_per_token(T) + block->mlp().flops_per_token();
  }
  return flops;
}

std::int64_t Transformer::active_parameter_count() const {
  std::int64_t n = parameter_count();
  for (const Block* block : blocks_) {
    n += block->attention().active_parameter_count() - block->attention().parameter_count();
    n += block->mlp().active_parameter_count() - block->mlp().parameter_count();
  }
  return n;
}

}  // namespace proteus
