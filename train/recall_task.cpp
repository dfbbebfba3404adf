#include "train/recall_task.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <utility>
#include <vector>

#include "tensor/error.h"
#include "tensor/parallel.h"

namespace proteus {
namespace {

/// Streams: bit 63 tells evaluation from training, the rest is the batch's number. The seed is
/// changed so that other users of the same seed draw other numbers.
constexpr std::uint64_t kEvalBit = std::uint64_t{1} << 63;
constexpr std::uint64_t kRecallSalt = 0x7265'6361'6c6c'0001;
constexpr std::uint64_t kLengthSalt = 0x7265'6361'6c6c'0002;

// The least length per pair, and what it is made of.
struct Room {
  std::int64_t tokens;
  const char* why;
};
Room room_of(RecallKind kind) {
  switch (kind) {
    case RecallKind::rebind:
      return {5, "key, value, query with a free place, half a rebinding"};
    case RecallKind::stream:
      return {4, "all queries in the last quarter"};
    case RecallKind::mqar:
      break;
  }
  return {3, "key, value and query"};
}

}  // namespace

RecallKind recall_kind(std::string_view name) {
  if (name == "mqar") return RecallKind::mqar;
  if (name == "mqar_rebind") return RecallKind::rebind;
  if (name == "stream") return RecallKind::stream;
  throw ConfigError(
      fmt::format("--task: expected mqar, mqar_rebind, stream or needle, got '{}'", name));
}

RecallTaskConfig recall_config(const Options& options, std::uint64_t seed) {
  const RecallOptions& o = options.recall;
  return {recall_kind(o.task), options.model.context, o.pairs, o.vocab, seed, o.shortest};
}

RecallTask::RecallTask(const RecallTaskConfig& config) : config_(config) {
  const auto& c = config;
  if (c.pairs < 1) {
    throw ConfigError(fmt::format("--pairs: expected at least 1, got {}", c.pairs));
  }
  const Room room = room_of(c.kind);
  if (c.pairs > c.length / room.tokens) {
    throw ConfigError(fmt::format("--pairs: expected at most {} (= --length {} / {}: {}), got {}",
                                  c.length / room.tokens, c.length, room.tokens, room.why,
                                  c.pairs));
  }
  if (c.vocab % 2 != 0 || c.vocab / 2 < c.pairs ||
      c.vocab > std::numeric_limits<std::int32_t>::max()) {
    throw ConfigError(
        fmt::format("--vocab: expected an even number of at least {} (= 2 · --pairs), got {}",
                    2 * c.pairs, c.vocab));
  }
  if (c.shortest == 0) return;
  std::int64_t length = c.shortest;
  while (length >= room.tokens && length < c.length) length *= 2;
  if (length != c.length) {
    throw ConfigError(
        fmt::format("--shortest: expected 0 or --length {} halved some times, at least {}, got {}",
                    c.length, room.tokens, c.shortest));
  }
}

// Cells of two tokens behind the pairs, so that a key and what follows it never meet another key.
// The first of a rebound key's two cells, in time, says the new value: whatever filler follows it.
void RecallTask::place_rebindings(Size size, Draw& draw, const std::vector<std::int32_t>& keys,
                                  std::int32_t* x, std::int32_t* y) {
  const std::int64_t pairs = size.pairs;
  const auto cells = draw.distinct((size.length - 2 * pairs) / 2, pairs + size.rebound());
  const auto place = [&](std::size_t i) { return 2 * pairs + 2 * std::int64_t{cells[i]}; };
  for (std::int64_t i = 0; i < pairs; ++i) {
    const auto n = static_cast<std::size_t>(i);
    std::int64_t said = 2 * i;
    std::int64_t asked = place(n);
    if (i < size.rebound()) {
      said = place(static_cast<std::size_t>(pairs + i));
      if (said > asked) std::swap(said, asked);
      x[said] = keys[n];
    }
    x[asked] = keys[n];
    y[asked] = x[said + 1];
  }
}

RecallTask::Size RecallTask::size_of(RecallSplit split, std::uint64_t index) const {
  Size size{config_.length, config_.pairs};
  if (split == RecallSplit::eval || config_.shortest == 0) return size;
  std::int64_t halvings = 0;
  while (config_.shortest << halvings < config_.length) ++halvings;
  Draw draw({config_.seed ^ kLengthSalt, index});
  const std::int64_t drawn = draw.below(halvings + 1);
  return {size.length >> drawn, std::max<std::int64_t>(1, size.pairs >> drawn)};
}

void RecallTask::fill_row(Size size, RecallSplit split, std::uint64_t index, std::int64_t row,
                          std::int32_t* x, std::int32_t* y) const {
  const auto [T, pairs] = size;
  const std::int64_t half = config_.vocab / 2;
  const std::uint64_t stream = split == RecallSplit::eval ? index | kEvalBit : index & ~kEvalBit;
  // One seed per row; within a row the draws are numbered by the stream's own counter.
  const Philox4 row_seed =
      philox(config_.seed ^ kRecallSalt, static_cast<std::uint64_t>(row), stream);
  Draw draw({(std::uint64_t{row_seed.v[1]} << 32) | row_seed.v[0],
             (std::uint64_t{row_seed.v[3]} << 32) | row_seed.v[2]});

  const bool late = config_.kind == RecallKind::stream;
  const std::int64_t begin = late ? T - T / 4 : 2 * pairs;  // of the queries
  const auto keys = draw.distinct(half, pairs);
  std::vector<std::int32_t> slots;
  if (config_.kind != RecallKind::rebind) slots = draw.distinct(T - begin, pairs);
  for (std::int64_t t = 0; t < T; ++t) {
    x[t] = static_cast<std::int32_t>(half + draw.below(half));
    y[t] = kIgnoredTarget;
  }
  for (std::int64_t i = 0; i < pairs; ++i) {
    x[2 * i] = keys[static_cast<std::size_t>(i)];  // its value is what was drawn for x[2i + 1]
  }
  if (config_.kind == RecallKind::rebind) return place_rebindings(size, draw, keys, x, y);
  for (std::int64_t i = 0; i < pairs; ++i) {
    const auto n = static_cast<std::size_t>(i);
    const std::int64_t slot = begin + slots[n];
    x[slot] = keys[n];
    y[slot] = x[2 * i + 1];
  }
}

Batch RecallTask::batch(RecallSplit split, std::uint64_t index, std::int64_t rows) const {
  const Size size = size_of(split, index);
  rows *= config_.length / size.length;
  Batch batch{Tensor::empty({rows, size.length}, DType::i32),
              Tensor::empty({rows, size.length}, DType::i32)};
  auto* x = batch.inputs.data<std::int32_t>();
  auto* y = batch.targets.data<std::int32_t>();
  constexpr std::int64_t kRowsPerChunk = 16;
  parallel_for(rows, kRowsPerChunk, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r) {
      fill_row(size, split, index, r, x + r * size.length, y + r * size.length);
    }
  });
  return batch;
}

}  // namespace proteus
