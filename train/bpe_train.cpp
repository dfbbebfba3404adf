// Learning the merges of a byte-pair encoding.
#include <fmt/format.h>

#include <queue>
#include <set>

#include "tensor/error.h"
#include "train/bpe.h"
#include "train/word_split.h"

namespace proteus {
namespace {

using Pair = std::pair<std::int32_t, std::int32_t>;

constexpr std::int64_t kBytes = 256;

/// A distinct word of the text: its symbols now, and how often it occurs.
struct Word {
  std::vector<std::int32_t> ids;
  std::int64_t count = 0;
};

struct PairEntry {
  std::int64_t count = 0;
  std::set<std::size_t> words;  // that have had it
};

class PairCounts {
 public:
  explicit PairCounts(std::vector<Word> words) : words_(std::move(words)) {
    for (std::size_t w = 0; w < words_.size(); ++w) count(w, 1);
    for (const auto& [pair, entry] : pairs_) queue_.push({entry.count, pair});
  }

  /// The most frequent pair; of equals, the one with the smaller ids. False when there is none.
  bool best(Pair& pair) {
    while (!queue_.empty()) {
      const Candidate top = queue_.top();
      queue_.pop();
      const std::int64_t now = pairs_.at(top.pair).count;
      if (now <= 0) continue;
      if (now != top.count) {
        queue_.push({now, top.pair});
        continue;
      }
      pair = top.pair;
      return true;
    }
    return false;
  }

  void merge(const Pair& pair, std::int32_t id) {
    const std::set<std::size_t> words = std::move(pairs_.at(pair).words);
    touched_.clear();
    for (const std::size_t w : words) {
      count(w, -1);
      std::vector<std::int32_t>& ids = words_[w].ids;
      std::size_t kept = 0;
      for (std::size_t i = 0; i < ids.size(); ++i, ++kept) {
        const bool here = i + 1 < ids.size() && ids[i] == pair.first && ids[i + 1] == pair.second;
        ids[kept] = here ? id : ids[i];
        i += here;
      }
      ids.resize(kept);
      count(w, 1);
    }
    pairs_.at(pair).count = 0;
    for (const Pair& p : touched_) {
      if (pairs_.at(p).count > 0) queue_.push({pairs_.at(p).count, p});
    }
  }

 private:
  struct Candidate {
    std::int64_t count;
    Pair pair;
    bool operator<(const Candidate& other) const {
      return count != other.count ? count < other.count : pair > other.pair;
    }
  };

  void count(std::size_t w, std::int64_t sign) {
    const Word& word = words_[w];
    for (std::size_t i = 0; i + 1 < word.ids.size(); ++i) {
      const Pair pair{word.ids[i], word.ids[i + 1]};
      PairEntry& entry = pairs_[pair];
      entry.count += sign * word.count;
      if (sign < 0) continue;
      entry.words.insert(w);
      touched_.insert(pair);
    }
  }

  std::vector<Word> words_;
  std::map<Pair, PairEntry> pairs_;
  std::set<Pair> touched_;
  std::priority_queue<Candidate> queue_;
};

}  // namespace

Bpe Bpe::train(std::string_view text, std::int64_t vocab) {
  if (vocab < kBytes) {
    throw ConfigError(
        fmt::format("--vocab-size: expected at least {} (one id a byte), got {}", kBytes, vocab));
  }
  Bpe bpe = bytes_alone();
  std::map<std::string_view, std::int64_t> counts;
  split_words(kPattern, text, [&](std::string_view word) { ++counts[word]; });
  std::vector<Word> words;
  for (const auto& [word, count] : counts) {
    Word& w = words.emplace_back();
    w.count = count;
    for (const char b : word) w.ids.push_back(bpe.byte_ids_[static_cast<unsigned char>(b)]);
  }
  PairCounts pairs(std::move(words));
  for (Pair pair; bpe.vocab() < vocab && pairs.best(pair);) {
    const auto id = static_cast<std::int32_t>(bpe.vocab());
    bpe.bytes_.push_back(bpe.bytes_of(pair.first) + bpe.bytes_of(pair.second));
    bpe.add_merge(pair.first, pair.second, id);
    pairs.merge(pair, id);
  }
  return bpe;
}

}  // namespace proteus
