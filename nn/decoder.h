// Decoding of sequences side by side where the model is. Positions, caches and the tokens are there
// too, and nothing of a step waits for the host or depends on how long the sequences are: on a
// device that can, a step is recorded once and replayed (tensor/queue.h). Sequences begin together
// and have the same length.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "nn/transformer.h"

namespace proteus {

struct DecoderConfig {
  std::int64_t batch = 1;
  std::int64_t longest = 0;  ///< tokens a sequence may have; 0 = the model's context
  CacheType cache = CacheType::full;
  bool record = true;
};

class Decoder {
 public:
  /// Writes the tokens that come next, i32 [B], given logits f32 [B, V] of what follows positions
  /// i32 [B]; part of the step.
  using Choose =
      std::function<void(const Tensor& tokens, const Tensor& logits, const Tensor& positions)>;

  /// The model, in evaluation mode, must outlive this, stay where it is, and not change. Without
  /// `choose` tokens stay what they were set to.
  Decoder(Transformer& model, const DecoderConfig& config, Choose choose = {});

  /// Tokens i32 [B], from any device, that the next step takes.
  void set_tokens(const Tensor& tokens);
  /// Appends its token to every sequence. Throws ShapeError where there is no position for it.
  void step();

  /// What the next step takes, i32 [B]: it stays where it is.
  const Tensor& tokens() const { return tokens_; }
  /// f32 [B, V], of the last step.
  const Tensor& logits() const { return logits_; }
  /// Tokens of a sequence so far.
  std::int64_t position() const { return position_; }
  /// As if so many tokens had been appended, with keys and values as they are in memory: for
  /// benchmarks. 0 begins anew.
  void set_position(std::int64_t position);
  std::int64_t longest() const { return config_.longest; }
  /// Memory of what is remembered.
  std::int64_t bytes() const;
  /// Steps that were replayed.
  std::int64_t replays() const { return replays_; }

 private:
  void queue_step();
  bool record();

  Transformer& model_;
  DecoderConfig config_;
  Choose choose_;
  Tensor tokens_;
  Tensor positions_;  // i32 [B]
  Tensor logits_;
  std::vector<LayerCaches> caches_;
  std::unique_ptr<Recording> recording_;
  std::int64_t position_ = 0;
  std::int64_t steps_ = 0;
  std::int64_t replays_ = 0;
  bool failed_ = false;
};

}  // namespace proteus
