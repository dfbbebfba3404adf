// Byte-level byte-pair encoding (Sennrich et al., arXiv:1508.07909; bytes as in GPT-2): text is
// split into words by a regular expression, a word's bytes are merged pair by pair, the pair with
// the lowest rank first. Ids cover all 256 bytes, so that any bytes come back as they were. Reads
// and writes the field's files: tokenizer.json, or vocab.json with merges.txt.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace proteus {

class Bpe {
 public:
  /// GPT-2's split into words; bytes that are not UTF-8 are words of their own.
  static constexpr const char* kPattern =
      "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| "
      "?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

  /// tokenizer.json of a byte-level BPE with that split: no normalizer, no prefix space. Throws
  /// FileError naming `source` for anything else.
  static Bpe from_tokenizer_json(std::string_view json, const std::string& source);
  /// vocab.json and merges.txt. Throws FileError.
  static Bpe from_vocab_and_merges(std::string_view vocab, std::string_view merges,
                                   const std::string& source);
  /// Learns merges from a text until there are `vocab` ids (256 bytes, then the most frequent pair
  /// each time; of equals the one with the smaller ids) or no pair is left. Throws ConfigError for
  /// a vocab under 256.
  static Bpe train(std::string_view text, std::int64_t vocab);

  std::int64_t vocab() const { return static_cast<std::int64_t>(bytes_.size()); }
  /// Any bytes. Special tokens (<|endoftext|>) that occur in the text become their ids.
  std::vector<std::int32_t> encode(std::string_view text) const;
  /// The bytes of an id in [0, vocab()).
  const std::string& bytes_of(std::int32_t id) const {
    return bytes_[static_cast<std::size_t>(id)];
  }
  /// What from_tokenizer_json reads.
  std::string to_tokenizer_json() const;

  friend bool operator==(const Bpe& a, const Bpe& b) {
    return a.bytes_ == b.bytes_ && a.merges_ == b.merges_ && a.specials_ == b.specials_;
  }

 private:
  using Pair = std::pair<std::int32_t, std::int32_t>;
  struct PairHash {
    std::size_t operator()(const Pair& p) const {
      return static_cast<std::size_t>(p.first) * 0x9E37'79B9'7F4A'7C15U ^
             static_cast<std::size_t>(p.second);
    }
  };
  struct Merge {
    std::int32_t rank = 0;
    std::int32_t id = 0;
  };

  /// Tokens as they are written in vocab files → ids, and merges in order of rank.
  Bpe(const std::map<std::string, std::int64_t>& vocab,
      const std::vector<std::pair<std::string, std::string>>& merges,
      const std::map<std::string, std::int64_t>& specials, const std::string& source);
  /// 256 ids in the order of the characters that bytes are written as, no merges.
  static Bpe bytes_alone();
  void add_merge(std::int32_t left, std::int32_t right, std::int32_t id);
  void encode_word(std::string_view word, std::vector<std::int32_t>& ids) const;
  void encode_plain(std::string_view text, std::vector<std::int32_t>& ids) const;

  std::vector<std::string> bytes_;  ///< id → its bytes
  std::vector<Pair> merges_;        ///< in order of rank
  std::unordered_map<Pair, Merge, PairHash> ranks_;
  std::vector<std::int32_t> byte_ids_;            ///< byte → id
  std::map<std::string, std::int32_t> specials_;  ///< text → id
};

}  // namespace proteus
