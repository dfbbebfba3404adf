// Needles in a made-up stream. A needle `key -> value` is three tokens: the mark (id 0), the key,
// the value; keys and values are words, the ids [1, V). The haystack is drawn uniformly from all
// ids, the mark included: neither the mark nor a key tells a needle from hay, only the mark before
// the asked key, a pair that hay never has. The question is "mark key", the answer the word that
// follows.
//   single       one needle;
//   distractors  eight more needles of other keys;
//   two_hop      key -> key2 and key2 -> value, in any order: the value is asked for.
// A token of the haystack is a pure function of (seed, trial, position): streams of any length are
// never held in memory.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "train/batch.h"
#include "train/draw.h"
#include "train/recall_task.h"

namespace proteus {

enum class NeedleKind : std::uint8_t { single, distractors, two_hop };
std::string_view name_of(NeedleKind kind);
/// Throws ConfigError naming --needles, also when there is none or one twice.
std::vector<NeedleKind> needle_kinds(const std::vector<std::string>& names);

constexpr std::int32_t kNeedleMark = 0;
constexpr std::int64_t kNeedleTokens = 3;
constexpr std::int64_t kDistractors = 8;
/// Needles are spread over so many depths: trial i's asked needle lies in part i % kNeedleDepths.
constexpr std::int64_t kNeedleDepths = 10;

struct NeedleTaskConfig {
  std::int64_t length = std::int64_t{1} << 20;  ///< tokens of a haystack
  std::int64_t vocab = 512;                     ///< V: the mark and the words
  std::int64_t border = 0;  ///< chunk length that some needles are put across; 0 = at random only
  std::uint64_t seed = 1337;
};

struct Needle {
  std::int64_t position = 0;  ///< of its mark
  std::int32_t key = 0;
  std::int32_t value = 0;
  bool asked = false;  ///< the answer needs it
};

struct NeedleTrial {
  std::uint64_t index = 0;
  std::int64_t depth = 0;           ///< of the first needle asked for, in [0, kNeedleDepths)
  std::vector<Needle> needles;      ///< in time order
  std::vector<std::int32_t> chain;  ///< the key, then what follows it hop by hop

  std::vector<std::int32_t> question() const { return {kNeedleMark, chain.front()}; }
};

class NeedleTask {
 public:
  /// Throws ConfigError when a haystack does not hold the needles, or there are too few words.
  explicit NeedleTask(const NeedleTaskConfig& config);

  const NeedleTaskConfig& config() const { return config_; }

  /// Trial number `index`. Of the first trials of every depth one begins (depth 0) or ends (the
  /// last depth) the stream, and two lie across a border.
  NeedleTrial trial(NeedleKind kind, std::uint64_t index) const;
  /// Tokens [begin, begin + out.size()) of a trial's haystack.
  void fill(const NeedleTrial& trial, std::int64_t begin, std::span<std::int32_t> out) const;

 private:
  std::int64_t asked_position(std::uint64_t index, Draw& draw) const;
  void add_needle(NeedleTrial& trial, Needle needle, Draw& draw) const;

  NeedleTaskConfig config_;
};

/// Short texts to learn it from: `pairs` needles among hay that is made of marks and of their keys
/// more often than by chance, then every key asked for, in random order: "mark key value", with a
/// target at the key.
class NeedleLessons {
 public:
  /// Throws ConfigError like RecallTask.
  NeedleLessons(std::int64_t length, std::int64_t pairs, std::int64_t vocab, std::uint64_t seed);

  /// A pure function of (seed, split, index), see RecallTask::batch.
  Batch batch(RecallSplit split, std::uint64_t index, std::int64_t rows) const;

 private:
  void fill_row(Draw draw, std::int32_t* x, std::int32_t* y) const;

  std::int64_t length_;
  std::int64_t pairs_;
  std::int64_t vocab_;
  std::uint64_t seed_;
};

}  // namespace proteus
