// A decoder-only transformer in the manner of GPT-2 with pre-norm blocks and an output head tied to
// the embedding. Positions are rotary ones inside the attention layers, or GPT-2's: learned
// vectors, one per position of the context, added to the embeddings of the tokens
// ("positions.weight").
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "nn/block.h"
#include "nn/embedding.h"
#include "tensor/ops/loss.h"

namespace proteus {

struct TransformerConfig {
  std::int64_t vocab = 0;    ///< V
  std::int64_t context = 0;  ///< longest sequence it is trained on, T
  std::int64_t layers = 0;
  std::int64_t width = 0;  ///< C
  MlpKind mlp = MlpKind::gelu;
  std::int64_t mlp_width = 0;  ///< 0 = the usual one (see Mlp)
  NormKind norm = NormKind::layer;
  bool bias = false;               ///< of norms and of the dense Mlp
  bool learned_positions = false;  ///< attention must then be without rotary ones
  double dropout = 0;
  bool recompute = false;  ///< activation checkpointing of every block
  /// Of activations: f32, or bf16 beside parameters, moments, routing and the loss in f32.
  DType compute = DType::f32;
  std::uint64_t seed = 1;
};

/// What a factory needs to make the attention of one layer.
struct AttentionSite {
  int layer = 0;
  double output_std = 0;  ///< std of the projection into the residual stream
  Generator& init;        ///< draws initial weights
  Generator& generator;   ///< draws dropout masks; outlives the layer
};
using AttentionFactory = std::function<std::unique_ptr<Attention>(const AttentionSite&)>;

/// The same for the feed-forward half of the layer, made after its attention.
struct FeedForwardSite {
  int layer = 0;
  double output_std = 0;
  Generator& init;
  Attention& attention;
};
using FeedForwardFactory = std::function<std::unique_ptr<FeedForward>(const FeedForwardSite&)>;

/// What a transformer remembers of one sequence, layer by layer.
struct DecodeState {
  std::vector<std::unique_ptr<AttentionState>> layers;
  std::int64_t position = 0;  ///< tokens so far

  std::int64_t bytes() const;
};

class Transformer : public Module {
 public:
  /// Without `make_feed_forward` every block has the dense Mlp of the configuration.
  Transformer(const TransformerConfig& config, const AttentionFactory& make_attention,
              const FeedForwardFactory& make_feed_forward = {});

  /// tokens i32 or i64 [B, T], on any device → the final norm's output [B, T, C], of the dtype of
  /// activations. Throws ShapeError for more tokens than there are learned positions.
  Variable hidden(const Tensor& tokens);
  /// What the attention of layer `layer` gets for tokens [B, T] in evaluation mode, [B, T, C],
  /// without gradient: only the layers before it run.
  Tensor attention_input(const Tensor& tokens, std::int64_t layer);
  /// Mean cross-entropy in nats over targets that are not `ignore`; targets [B, T].
  Variable loss(const Tensor& tokens, const Tensor& targets, std::int64_t ignore = -100);
  /// The same with targets that are ready, and tokens where the model is: nothing waits.
  Variable loss(const Tensor& tokens, const ops::Targets& targets);
  /// Logits [B, T, V] of every position, without gradient.
  Tensor logits(const Tensor& tokens);
  /// Logits [B, V] of the last position, without gradient.
  Tensor last_logits(const Tensor& tokens);

  /// A sequence that has not begun, to be decoded token by token.
  DecodeState begin_sequence(CacheType cache = CacheType::full) const;
  /// Appends one token to every sequence: tokens i32 or i64 [B], logits [B, V] for what follows.
  /// Equal to logits() of the whole sequences up to rounding; the work does not grow with their
  /// length where attention is limited to a window. CPU only, evaluation mode, no gradient.
  Tensor step(const Tensor& tokens, std::span<DecodeState* const> sequences);

  /// Sequences that have not begun, to be decoded side by side on the model's device by a Decoder
  /// (nn/decoder.h).
  std::vector<LayerCaches> make_caches(const CacheShape& shape) const;
  /// step() of such sequences on any device: tokens i32 [B] at positions i32 [B] → f32 logits
  /// [B, V]. Neither is looked at on the host.
  Tensor step(const Tensor& tokens, const std::vector<LayerCaches>& caches,
              const Tensor& positions) const;

  /// The final norm of vectors of the residual stream, x [..., C], without gradient: what of them
  /// the output head reads.
  Tensor normed(const Tensor& x) const;
  /// The tied output head: the embedding's [V, C].
  const Tensor& head_weight() const { return embedding_->weight().value(); }

  /// To be called after every optimizer step; see Attention::after_step.
  void after_step(double rate = 1);

  const TransformerConfig& config() const { return config_; }
  std::int64_t layers() const { return static_cast<std::int64_t>(blocks_.size()); }
  Attention& attention(std::int64_t layer) const;
  FeedForward& feed_forward(std::int64_t layer) const;
  /// The stream of dropout masks; part of a checkpoint.
  Generator& generator() { return generator_; }
  double attention_flops_per_token(std::int64_t T) const;
  double total_flops_per_token(std::int64_t T) const;
  /// Parameters that one token uses.
  std::int64_t active_parameter_count() const;

 private:
  /// Throws ShapeError unless there is a position `last`.
  void check_position(std::int64_t last, const char* call) const;
  /// What enters the first block: [B, T, C].
  Variable embedded(const Tensor& tokens, const char* call) const;
  /// The residual stream [B, T, C] before block `layer`.
  Variable stream_before(const Tensor& tokens, std::int64_t layer, const char* call);

  TransformerConfig config_;
  Generator generator_;
  Embedding* embedding_ = nullptr;
  Embedding* positions_ = nullptr;  // null with rotary positions
  std::vector<Block*> blocks_;
  Norm* norm_ = nullptr;
};

}  // namespace proteus
