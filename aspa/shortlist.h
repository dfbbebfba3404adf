// The chunked shortlist: a text of any length streams by in chunks, a buffer of fixed size keeps
// the tokens that the prompt's queries ask for, and a final pass reads those (docs/streaming.md).
//   s_t = mean_{|j−t| ≤ pool} max_h max_i q_{i,h}·k_{j,h}/√D + β_S·S_t
// Here is what is kept; aspa/token_scorer.h has the scores. A choice depends on scores and their
// order alone: neither threads nor the place where the text is stored can change it.
#pragma once

#include <cstdint>
#include <vector>

#include "tensor/tensor.h"

namespace proteus {

struct ShortlistConfig {
  std::int64_t buffer = 32768;    ///< most tokens that are kept of the whole text
  std::int64_t per_chunk = 4096;  ///< most winners of a chunk
  double chunk_keep = 1;          ///< and at most this share of its tokens, rounded up
  double top_p = 0.9;             ///< the fewest tokens whose softmax(s) over the chunk reaches it
  std::int64_t pool = 1;          ///< neighbours on either side, within the chunk; 0 = none
  double salience = 0;            ///< β_S
  std::int64_t top_a = 0;         ///< a winner has so many heads that agree, or more; 0 = off
  std::int64_t span = 4;          ///< tokens kept on either side of a winner
  std::int64_t anchors = 4;       ///< first tokens of the text, kept always

  /// Throws ConfigError naming the option, the value and what is allowed.
  void validate() const;
};

/// What is known of n consecutive tokens, on the CPU.
struct TokenScores {
  Tensor best;        ///< f32 [n, H]: max_i q_{i,h}·k_{t,h}/√D
  Tensor query;       ///< i32 [n, H]: the prompt query i that decided, the first of equal ones
  Tensor salience{};  ///< f32 [n]: S_t; undefined where nobody asked
};

/// The scores of consecutive parts as one. All have H heads, and salience either all or none.
TokenScores joined_scores(const std::vector<TokenScores>& parts);

/// A token in the buffer, and why it is there.
struct Winner {
  std::int64_t token = 0;
  float score = 0;         ///< s_t
  std::int32_t head = 0;   ///< the head that decided, the lowest of equal ones
  std::int32_t query = 0;  ///< and the prompt query
  std::int32_t agree = 0;  ///< heads for which the token is among the best of its chunk

  /// Ranked before another: a larger score, or an equal one at a lower index.
  bool before(const Winner& other) const {
    return score != other.score ? score > other.score : token < other.token;
  }
};

/// What became of a chunk.
struct ChunkReport {
  std::int64_t tokens = 0;
  std::int64_t wanted = 0;     ///< by top-p; the budget and one more where it is over the budget
  std::int64_t chosen = 0;     ///< after the budget
  std::int64_t disagreed = 0;  ///< of them, dropped by Top-A
  std::int64_t entered = 0;    ///< found a place in the buffer, for now
  double agreement = 0;        ///< mean share of the heads that agree with a chosen token
  float best = 0;              ///< largest s_t
  float least = 0;             ///< smallest s_t in the buffer
};

/// Tokens [begin, end).
struct Span {
  std::int64_t begin = 0;
  std::int64_t end = 0;
};

class Shortlist {
 public:
  /// Throws ConfigError.
  explicit Shortlist(const ShortlistConfig& config);

  /// The next chunk of the text. The winners are chosen in this order: top-p says how many, the
  /// budget min(per_chunk, ⌈chunk_keep·n⌉) caps it, and the best so many that at least top_a heads
  /// agree with compete for the buffer. A head agrees with the tokens whose own score is among the
  /// budget's many largest of the chunk. Throws ShapeError, DTypeError, and NumericError naming
  /// the token when a score is not a finite number; the buffer is then as it was.
  ChunkReport add(const TokenScores& chunk);

  /// Winners of an earlier pass over the same text compete for the buffer, too. Of a token that is
  /// there already the better score counts.
  void merge(const std::vector<Winner>& earlier);

  const ShortlistConfig& config() const { return config_; }
  /// Tokens that went by.
  std::int64_t tokens() const { return tokens_; }
  std::int64_t chunks() const { return chunks_; }
  /// Tokens in the buffer.
  std::int64_t kept() const { return static_cast<std::int64_t>(heap_.size()); }
  /// The buffer in the order of the text.
  std::vector<Winner> winners() const;
  /// What the final pass reads, in the order of the text: the anchors and, from the best winner on,
  /// `span` tokens around each for as long as all of it fits into `buffer` tokens. No two overlap
  /// or touch.
  std::vector<Span> spans() const;

 private:
  ShortlistConfig config_;
  std::int64_t tokens_ = 0;
  std::int64_t chunks_ = 0;
  std::vector<Winner> heap_;  // the last in rank at the front
};

/// Tokens in all spans.
std::int64_t tokens_of(const std::vector<Span>& spans);

}  // namespace proteus
