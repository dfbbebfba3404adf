#include "train/needle_task.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <limits>

#include "tensor/error.h"
#include "tensor/parallel.h"

namespace proteus {
namespace {

// Changed seeds: other users of the same seed draw other numbers.
constexpr std::uint64_t kHaySalt = 0x6e65'6564'6c65'0001;
constexpr std::uint64_t kTrialSalt = 0x6e65'6564'6c65'0002;
constexpr std::uint64_t kLessonSalt = 0x6e65'6564'6c65'0003;
constexpr std::uint64_t kEvalBit = std::uint64_t{1} << 63;

// Of a lesson's hay so many of 4 tokens are marks, and so many its keys: what is almost a needle.
constexpr std::int64_t kMarkQuarters = 1;
constexpr std::int64_t kKeyQuarters = 1;

constexpr std::array kKinds{NeedleKind::single, NeedleKind::distractors, NeedleKind::two_hop};

// Uniform in [0, n) from 32 bits: the bias is below n / 2^32.
std::int32_t scaled(std::uint32_t bits, std::int64_t n) {
  return static_cast<std::int32_t>((std::uint64_t{bits} * static_cast<std::uint64_t>(n)) >> 32);
}

Draw row_draw(std::uint64_t seed, std::uint64_t row, std::uint64_t stream) {
  const Philox4 own = philox(seed, row, stream);
  return Draw(
      {(std::uint64_t{own.v[1]} << 32) | own.v[0], (std::uint64_t{own.v[3]} << 32) | own.v[2]});
}

bool overlap(const Needle& a, std::int64_t position) {
  return position < a.position + kNeedleTokens && a.position < position + kNeedleTokens;
}

void check_words(std::int64_t vocab, std::int64_t least, const char* why) {
  if (vocab >= least && vocab <= std::numeric_limits<std::int32_t>::max()) return;
  throw ConfigError(fmt::format("--vocab: expected at least {} (= {}), got {}", least, why, vocab));
}

}  // namespace

std::string_view name_of(NeedleKind kind) {
  switch (kind) {
    case NeedleKind::single:
      return "single";
    case NeedleKind::distractors:
      return "distractors";
    case NeedleKind::two_hop:
      break;
  }
  return "two_hop";
}

std::vector<NeedleKind> needle_kinds(const std::vector<std::string>& names) {
  std::vector<NeedleKind> kinds;
  for (const std::string& name : names) {
    const auto kind = std::find_if(kKinds.begin(), kKinds.end(),
                                   [&](NeedleKind k) { return name_of(k) == name; });
    if (kind == kKinds.end()) {
      throw ConfigError(fmt::format(
          "--needles: expected some of single, distractors and two_hop, got '{}'", name));
    }
    if (std::find(kinds.begin(), kinds.end(), *kind) != kinds.end()) {
      throw ConfigError(fmt::format("--needles: expected every kind once, got '{}' twice", name));
    }
    kinds.push_back(*kind);
  }
  if (kinds.empty()) throw ConfigError("--needles: expected at least one kind, got an empty list");
  return kinds;
}

NeedleTask::NeedleTask(const NeedleTaskConfig& config) : config_(config) {
  // In each part one needle, and room to put it across a border.
  constexpr std::int64_t kLeast = kNeedleDepths * 4 * kNeedleTokens;
  if (config.length < kLeast) {
    throw ConfigError(fmt::format("--length: expected at least {} (= room for {} needles), got {}",
                                  kLeast, kDistractors + 1, config.length));
  }
  check_words(config.vocab, 2 * (kDistractors + 2), "words for keys and values");
}

// Word `t` of hay: random access, so that a chunk can begin anywhere.
void NeedleTask::fill(const NeedleTrial& trial, std::int64_t begin,
                      std::span<std::int32_t> out) const {
  const auto n = static_cast<std::int64_t>(out.size());
  const std::int64_t V = config_.vocab;
  const std::uint64_t seed = config_.seed ^ kHaySalt;
  Philox4 block{};
  const auto word = [&](std::int64_t t, bool fresh) {
    const auto at = static_cast<std::uint64_t>(t);
    if (fresh || at % 4 == 0) block = philox(seed, at / 4, trial.index);
    return scaled(block.v[at % 4], V);
  };
  std::int32_t previous = begin > 0 ? word(begin - 1, true) : -1;
  for (std::int64_t i = 0; i < n; ++i) {
    std::int32_t id = word(begin + i, i == 0);
    const std::int32_t drawn = id;
    // The mark before a key of the chain would be another needle: the next word takes its place.
    if (previous == kNeedleMark) {
      while (std::find(trial.chain.begin(), trial.chain.end(), id) != trial.chain.end()) {
        id = id + 1 < V ? id + 1 : 1;
      }
    }
    out[static_cast<std::size_t>(i)] = id;
    previous = drawn;
  }
  for (const Needle& needle : trial.needles) {
    const std::int32_t tokens[kNeedleTokens] = {kNeedleMark, needle.key, needle.value};
    for (std::int64_t j = 0; j < kNeedleTokens; ++j) {
      const std::int64_t at = needle.position + j - begin;
      if (at >= 0 && at < n) out[static_cast<std::size_t>(at)] = tokens[j];
    }
  }
}

std::int64_t NeedleTask::asked_position(std::uint64_t index, Draw& draw) const {
  const auto depth = static_cast<std::int64_t>(index % kNeedleDepths);
  const auto turn = static_cast<std::int64_t>(index / kNeedleDepths);
  const std::int64_t begin = config_.length * depth / kNeedleDepths;
  const std::int64_t end = config_.length * (depth + 1) / kNeedleDepths - kNeedleTokens;
  if (turn == 0 && depth == 0) return 0;
  if (turn == 0 && depth == kNeedleDepths - 1) return config_.length - kNeedleTokens;
  const std::int64_t position = begin + draw.below(end - begin + 1);
  if (config_.border == 0 || turn == 0 || turn >= kNeedleTokens) return position;
  // `turn` of its tokens before a border, where this part of the stream has one.
  const std::int64_t first = begin / config_.border + 1;
  const std::int64_t last = end / config_.border;
  if (last < first) return position;
  return (first + draw.below(last - first + 1)) * config_.border - turn;
}

void NeedleTask::add_needle(NeedleTrial& trial, Needle needle, Draw& draw) const {
  const auto taken = [&](const Needle& other) { return overlap(other, needle.position); };
  do {
    needle.position = draw.below(config_.length - kNeedleTokens + 1);
  } while (std::any_of(trial.needles.begin(), trial.needles.end(), taken));
  trial.needles.push_back(needle);
}

NeedleTrial NeedleTask::trial(NeedleKind kind, std::uint64_t index) const {
  Draw draw = row_draw(config_.seed ^ kTrialSalt, static_cast<std::uint64_t>(kind), index);
  const std::int64_t others = kind == NeedleKind::distractors ? kDistractors : 0;
  const bool hops = kind == NeedleKind::two_hop;
  // The chain's words, then the distractors' keys: all different.
  std::vector<std::int32_t> words = draw.distinct(config_.vocab - 1, others + (hops ? 3 : 2));
  for (std::int32_t& word : words) ++word;
  NeedleTrial trial;
  trial.index = index;
  trial.depth = static_cast<std::int64_t>(index % kNeedleDepths);
  trial.chain.assign(words.begin(), words.begin() + (hops ? 3 : 2));
  trial.needles.push_back({asked_position(index, draw), words[0], words[1], true});
  if (hops) add_needle(trial, {0, words[1], words[2], true}, draw);
  for (std::int64_t i = 0; i < others; ++i) {
    const auto value = static_cast<std::int32_t>(1 + draw.below(config_.vocab - 1));
    add_needle(trial, {0, words[static_cast<std::size_t>(2 + i)], value, false}, draw);
  }
  std::sort(trial.needles.begin(), trial.needles.end(),
            [](const Needle& a, const Needle& b) { return a.position < b.position; });
  return trial;
}

NeedleLessons::NeedleLessons(std::int64_t length, std::int64_t pairs, std::int64_t vocab,
                             std::uint64_t seed)
    : length_(length), pairs_(pairs), vocab_(vocab), seed_(seed) {
  constexpr std::int64_t kTokensPerPair = 3 * kNeedleTokens;
  if (pairs < 1 || pairs > length / kTokensPerPair) {
    throw ConfigError(
        fmt::format("--pairs: expected from 1 to {} (= --train-length {} / {}: needle, question "
                    "and as much hay), got {}",
                    length / kTokensPerPair, length, kTokensPerPair, pairs));
  }
  check_words(vocab, 2 * pairs + 2, "the mark and 2 · --pairs words");
}

void NeedleLessons::fill_row(Draw draw, std::int32_t* x, std::int32_t* y) const {
  const std::int64_t hay = length_ - kNeedleTokens * pairs_;
  std::vector<std::int32_t> keys = draw.distinct(vocab_ - 1, pairs_);
  std::vector<bool> is_key(static_cast<std::size_t>(vocab_));
  for (std::int32_t& key : keys) is_key[static_cast<std::size_t>(++key)] = true;
  const auto key_of = [&](std::int64_t i) { return keys[static_cast<std::size_t>(i)]; };
  const auto word = [&] { return static_cast<std::int32_t>(1 + draw.below(vocab_ - 1)); };
  for (std::int64_t t = 0; t < hay; ++t) {
    const std::int64_t quarter = draw.below(4);
    x[t] = quarter < kMarkQuarters                  ? kNeedleMark
           : quarter < kMarkQuarters + kKeyQuarters ? key_of(draw.below(pairs_))
                                                    : word();
  }
  // Cells of three tokens, the same shift for all: needles do not meet.
  const std::int64_t shift = draw.below(hay % kNeedleTokens + 1);
  const auto cells = draw.distinct(hay / kNeedleTokens, pairs_);
  std::vector<std::int32_t> values;
  std::vector<bool> needle(static_cast<std::size_t>(hay));
  for (std::int64_t i = 0; i < pairs_; ++i) {
    const std::int64_t at = shift + kNeedleTokens * cells[static_cast<std::size_t>(i)];
    values.push_back(word());
    x[at] = kNeedleMark;
    x[at + 1] = key_of(i);
    x[at + 2] = values.back();
    needle[static_cast<std::size_t>(at + 1)] = true;
  }
  // A key behind a mark that is not its needle would be a second answer.
  for (std::int64_t t = 1; t < hay; ++t) {
    if (x[t - 1] != kNeedleMark || needle[static_cast<std::size_t>(t)]) continue;
    while (is_key[static_cast<std::size_t>(x[t])]) x[t] = word();
  }
  std::fill(y, y + length_, kIgnoredTarget);
  const auto order = draw.distinct(pairs_, pairs_);
  for (std::int64_t i = 0; i < pairs_; ++i) {
    const auto asked = order[static_cast<std::size_t>(i)];
    std::int32_t* at = x + hay + kNeedleTokens * i;
    at[0] = kNeedleMark;
    at[1] = key_of(asked);
    at[2] = values[static_cast<std::size_t>(asked)];
    y[hay + kNeedleTokens * i + 1] = at[2];
  }
}

Batch NeedleLessons::batch(RecallSplit split, std::uint64_t index, std::int64_t rows) const {
  const std::uint64_t stream = split == RecallSplit::eval ? index | kEvalBit : index & ~kEvalBit;
  Batch batch{Tensor::empty({rows, length_}, DType::i32),
              Tensor::empty({rows, length_}, DType::i32)};
  auto* x = batch.inputs.data<std::int32_t>();
  auto* y = batch.targets.data<std::int32_t>();
  constexpr std::int64_t kRowsPerChunk = 16;
  parallel_for(rows, kRowsPerChunk, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r) {
      fill_row(row_draw(seed_ ^ kLessonSalt, static_cast<std::uint64_t>(r), stream),
               x + r * length_, y + r * length_);
    }
  });
  return batch;
}

}  // namespace proteus
