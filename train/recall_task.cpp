#include "train/recall_task.h"

#include <fmt/format.h>

#include <limits>

#include "tensor/error.h"
#include "tensor/parallel.h"
#include "train/draw.h"

namespace proteus {
namespace {

/// Streams: bit 63 tells evaluation from training, the rest is the batch's number. The seed is
/// changed so that other users of the same seed draw other numbers.
constexpr std::uint64_t kEvalBit = std::uint64_t{1} << 63;
constexpr std::uint64_t kRecallSalt = 0x7265'6361'6c6c'0001;

}  // namespace

RecallTask::RecallTask(const RecallTaskConfig& config) : config_(config) {
  const auto& c = config;
  if (c.pairs < 1) {
    throw ConfigError(fmt::format("--pairs: expected at least 1, got {}", c.pairs));
  }
  if (c.pairs > c.length / 3) {
    throw ConfigError(fmt::format(
        "--pairs: expected at most {} (= --length {} / 3: key, value and query), got {}",
        c.length / 3, c.length, c.pairs));
  }
  if (c.vocab % 2 != 0 || c.vocab / 2 < c.pairs ||
      c.vocab > std::numeric_limits<std::int32_t>::max()) {
    throw ConfigError(
        fmt::format("--vocab: expected an even number of at least {} (= 2 · --pairs), got {}",
                    2 * c.pairs, c.vocab));
  }
}

void RecallTask::fill_row(RecallSplit split, std::uint64_t index, std::int64_t row, std::int32_t* x,
                          std::int32_t* y) const {
  const std::int64_t T = config_.length;
  const std::int64_t pairs = config_.pairs;
  const std::int64_t half = config_.vocab / 2;
  const std::uint64_t stream = split == RecallSplit::eval ? index | kEvalBit : index & ~kEvalBit;
  // One seed per row; within a row the draws are numbered by the stream's own counter.
  const Philox4 row_seed =
      philox(config_.seed ^ kRecallSalt, static_cast<std::uint64_t>(row), stream);
  Draw draw({(std::uint64_t{row_seed.v[1]} << 32) | row_seed.v[0],
             (std::uint64_t{row_seed.v[3]} << 32) | row_seed.v[2]});

  const auto keys = draw.distinct(half, pairs);
  const auto slots = draw.distinct(T - 2 * pairs, pairs);
  for (std::int64_t t = 0; t < T; ++t) {
    x[t] = static_cast<std::int32_t>(half + draw.below(half));
    y[t] = kIgnoredTarget;
  }
  for (std::int64_t i = 0; i < pairs; ++i) {
    const auto n = static_cast<std::size_t>(i);
    x[2 * i] = keys[n];  // its value is what was drawn for x[2i + 1]
    const std::int64_t slot = 2 * pairs + slots[n];
    x[slot] = keys[n];
    y[slot] = x[2 * i + 1];
  }
}

Batch RecallTask::batch(RecallSplit split, std::uint64_t index, std::int64_t rows) const {
  Batch batch{Tensor::empty({rows, config_.length}, DType::i32),
              Tensor::empty({rows, config_.length}, DType::i32)};
  auto* x = batch.inputs.data<std::int32_t>();
  auto* y = batch.targets.data<std::int32_t>();
  constexpr std::int64_t kRowsPerChunk = 16;
  parallel_for(rows, kRowsPerChunk, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r) {
      fill_row(split, index, r, x + r * config_.length, y + r * config_.length);
    }
  });
  return batch;
}

}  // namespace proteus
