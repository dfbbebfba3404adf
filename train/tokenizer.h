// Tokenizers: text to ids and back. The byte tokenizer has 256 ids and takes anything; the char
// tokenizer has one id per Unicode code point that occurs in the text it was made from, in
// ascending order; the bpe tokenizer is a byte-level byte-pair encoding (train/bpe.h) and takes
// anything.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "train/bpe.h"

namespace proteus {

enum class TokenizerKind : std::uint8_t { chars, bytes, bpe };

/// "char", "byte", "bpe".
std::string_view name_of(TokenizerKind kind);

class Tokenizer {
 public:
  static Tokenizer bytes();
  /// The char tokenizer of `text`, which must be UTF-8; throws FileError naming `source`, the
  /// offset of the first byte that is not, and the byte tokenizer as the way out.
  static Tokenizer chars_of(std::string_view text, std::string_view source);

  static Tokenizer of(Bpe bpe);
  /// A file: tokenizer.json as the field has it, or what to_json writes; or a folder with
  /// tokenizer.json, or with vocab.json and merges.txt. Throws FileError.
  static Tokenizer from_path(const std::string& path);

  TokenizerKind kind() const { return kind_; }
  /// Number of ids.
  std::int64_t vocab() const;
  /// Bytes of an id's text. Throws ConfigError when the id is not in [0, vocab).
  int byte_length(std::int32_t id) const;

  /// Ids of a data file's text, or of a part of it that begins at byte `offset`. Throws FileError
  /// naming `source`, the character and its offset in bytes when a character has no id or is not
  /// UTF-8.
  std::vector<std::int32_t> encode(std::string_view text, std::string_view source,
                                   std::size_t offset = 0) const;
  /// The same for text from an option (a prompt): throws ConfigError naming `option`.
  std::vector<std::int32_t> encode_option(std::string_view text, std::string_view option) const;
  /// The text of ids. That of bytes and of bpe may begin or end in the middle of a character.
  /// Throws ConfigError when an id is not in [0, vocab).
  std::string decode(std::span<const std::int32_t> ids) const;

  /// {"kind": "char", "chars": "…"}, {"kind": "byte"}, or the field's tokenizer.json.
  std::string to_json() const;
  /// Throws FileError naming `source` when `json` is none of these.
  static Tokenizer from_json(std::string_view json, std::string_view source);

  friend bool operator==(const Tokenizer& a, const Tokenizer& b) {
    const bool same_bpe = a.bpe_ == b.bpe_ || (a.bpe_ && b.bpe_ && *a.bpe_ == *b.bpe_);
    return a.kind_ == b.kind_ && a.chars_ == b.chars_ && same_bpe;
  }

 private:
  Tokenizer() = default;
  /// Fills `ids`; returns what is wrong, or an empty string.
  std::string encode_into(std::string_view text, std::vector<std::int32_t>& ids,
                          std::size_t offset = 0) const;
  void set_chars(std::vector<char32_t> sorted);

  TokenizerKind kind_ = TokenizerKind::bytes;
  std::vector<char32_t> chars_;          ///< id → code point, ascending
  std::array<std::int32_t, 256> low_{};  ///< code point below 256 → id or −1
  std::shared_ptr<const Bpe> bpe_;
};

}  // namespace proteus
