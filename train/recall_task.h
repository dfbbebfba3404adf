// Multi-query associative recall (Arora et al., "Zoology", arXiv:2312.04927): a sequence opens with
// key-value pairs; later every key comes once more, at a random place among filler, and the model
// has to answer with its value. Keys are ids [0, V/2), values and filler ids [V/2, V).
#pragma once

#include <cstdint>

#include "train/batch.h"

namespace proteus {

struct RecallTaskConfig {
  std::int64_t length = 128;  ///< T
  std::int64_t pairs = 16;    ///< key-value pairs, each asked for once
  std::int64_t vocab = 1024;  ///< V
  std::uint64_t seed = 1337;
};

/// Training and evaluation batches come from random streams that never meet.
enum class RecallSplit : std::uint8_t { train, eval };

class RecallTask {
 public:
  /// Throws ConfigError when the pairs and their queries do not fit into the length, or there are
  /// fewer keys than pairs.
  explicit RecallTask(const RecallTaskConfig& config);

  const RecallTaskConfig& config() const { return config_; }
  /// Batch number `index` of `rows` sequences: a pure function of (seed, split, index). Targets are
  /// kIgnoredTarget except at the queries, where they are the key's value.
  Batch batch(RecallSplit split, std::uint64_t index, std::int64_t rows) const;

 private:
  void fill_row(RecallSplit split, std::uint64_t index, std::int64_t row, std::int32_t* x,
                std::int32_t* y) const;

  RecallTaskConfig config_;
};

}  // namespace proteus
