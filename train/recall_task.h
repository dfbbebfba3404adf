// Synthetic recall tasks. Keys are ids [0, V/2), values and filler ids [V/2, V).
//   mqar    multi-query associative recall (Arora et al., "Zoology", arXiv:2312.04927): a sequence
//           opens with key-value pairs; later every key comes once more, at a random place among
//           filler, and the model has to answer with its value;
//   rebind  the same, but half of the keys get another value on the way; what was said last counts;
//   stream  the same as mqar, but every key is asked for in the last quarter: what was said first
//           has to last.
// In all of them the answer to a key is the token that followed it when it came last.
#pragma once

#include <cstdint>
#include <string_view>

#include "train/batch.h"
#include "train/draw.h"
#include "train/options.h"

namespace proteus {

enum class RecallKind : std::uint8_t { mqar, rebind, stream };
/// "mqar", "mqar_rebind" or "stream". Throws ConfigError naming --task.
RecallKind recall_kind(std::string_view name);

struct RecallTaskConfig {
  RecallKind kind = RecallKind::mqar;
  std::int64_t length = 128;  ///< T
  std::int64_t pairs = 16;    ///< key-value pairs, each asked for once
  std::int64_t vocab = 1024;  ///< V
  std::uint64_t seed = 1337;
  /// Above 0, training batches draw their length from shortest, 2·shortest, … up to `length`, with
  /// as many tokens in all and as many pairs per token: what is learned on short sequences, whose
  /// queries come more often, carries over to long ones. Evaluation has the whole length.
  std::int64_t shortest = 0;
};
RecallTaskConfig recall_config(const Options& options, std::uint64_t seed);

/// Training and evaluation batches come from random streams that never meet.
enum class RecallSplit : std::uint8_t { train, eval };

class RecallTask {
 public:
  /// Throws ConfigError when the pairs and what comes later do not fit into the length, or there
  /// are fewer keys than pairs.
  explicit RecallTask(const RecallTaskConfig& config);

  const RecallTaskConfig& config() const { return config_; }
  /// Batch number `index` of `rows` sequences of `length` tokens, or of as many tokens: a pure
  /// function of (seed, split, index). Targets are kIgnoredTarget except at the queries, where they
  /// are the key's value.
  Batch batch(RecallSplit split, std::uint64_t index, std::int64_t rows) const;

 private:
  /// What a sequence holds.
  struct Size {
    std::int64_t length, pairs;
    std::int64_t rebound() const { return pairs / 2; }
  };
  Size size_of(RecallSplit split, std::uint64_t index) const;
  static void place_rebindings(Size size, Draw& draw, const std::vector<std::int32_t>& keys,
                               std::int32_t* x, std::int32_t* y);
  void fill_row(Size size, RecallSplit split, std::uint64_t index, std::int64_t row,
                std::int32_t* x, std::int32_t* y) const;

  RecallTaskConfig config_;
};

}  // namespace proteus
