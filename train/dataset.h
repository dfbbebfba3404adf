// A text as token ids, split once and for all: the first 90% of the tokens are for training, the
// last 10% for validation. A text is memory-mapped and encoded when it is opened; ids are kept in
// two bytes where the vocabulary allows, in four otherwise. Shards (train/shard.h) stay where they
// are.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "train/batch.h"
#include "train/shard.h"
#include "train/tokenizer.h"

namespace proteus {

enum class Split : std::uint8_t { train, validation };

/// "training part (first 90%)", "validation part (last 10%)".
std::string_view name_of(Split split);

class Dataset {
 public:
  /// Reads a file and makes a tokenizer of the wanted kind from it. Throws FileError when the file
  /// is missing, a directory, empty or, for the char tokenizer, not UTF-8.
  static Dataset from_file(const std::string& path, TokenizerKind kind);
  /// Reads a file with a tokenizer that is already there (a checkpoint's); throws FileError also
  /// when a character has no id.
  static Dataset from_file(const std::string& path, const Tokenizer& tokenizer);
  /// The same for text in memory; `source` is its name in messages.
  static Dataset from_text(std::string_view text, TokenizerKind kind, const std::string& source);
  static Dataset from_text(std::string_view text, const Tokenizer& tokenizer,
                           const std::string& source);

  /// Shards, with the tokenizer that made their ids: those whose names say so are the validation
  /// part, without any the last 10% are. Throws FileError.
  static Dataset from_shards(const std::string& path, const Tokenizer& tokenizer);

  const Tokenizer& tokenizer() const { return tokenizer_; }
  const std::string& source() const { return source_; }
  /// Size of the text, or of the shards' ids, in bytes.
  std::int64_t bytes() const { return bytes_; }
  std::int64_t tokens() const;
  std::int64_t tokens(Split split) const;
  /// ids[first, first + n) to `out`, training part first. Throws FileError for ids of shards that
  /// the tokenizer does not know.
  void copy_ids(std::int64_t first, std::int64_t n, std::int32_t* out) const;
  std::int64_t begin_of(Split split) const;
  /// Bytes of text per target of a part: bits per byte = loss / (ln 2 · bytes_per_target).
  double bytes_per_target(Split split) const;

  /// Throws unless both parts hold a sequence of `context` ids and the id after it: FileError when
  /// the text is too small for the smallest usual context, otherwise ConfigError naming --context.
  void check_context(std::int64_t context) const;

  /// Batch number `step` of `rows` random sequences from the training part: a pure function of
  /// (seed, step), so that a run resumes from its counter alone. Throws like check_context.
  Batch random_batch(std::uint64_t seed, std::uint64_t step, std::int64_t rows,
                     std::int64_t context) const;

  /// A part in order: its targets are cut into sequences of `context`, `rows` to a batch; the last
  /// of these batches may have fewer rows, and what is left over comes as one more batch [1, rest].
  /// Over all batches every target comes exactly once.
  std::int64_t sequential_batches(Split split, std::int64_t rows, std::int64_t context) const;
  Batch sequential_batch(Split split, std::int64_t index, std::int64_t rows,
                         std::int64_t context) const;

 private:
  explicit Dataset(Tokenizer tokenizer) : tokenizer_(std::move(tokenizer)) {}

  Tokenizer tokenizer_;
  std::string source_;
  std::int64_t bytes_ = 0;
  std::int64_t train_tokens_ = 0;
  std::variant<std::vector<std::uint16_t>, std::vector<std::int32_t>, std::vector<Shard>> ids_;
};

}  // namespace proteus
