#include "train/bpe.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <queue>
#include <set>

#include "tensor/error.h"
#include "train/json_file.h"
#include "train/utf8.h"
#include "train/word_split.h"

namespace proteus {
namespace {

using Json = nlohmann::json;
using OrderedJson = nlohmann::ordered_json;

constexpr int kBytes = 256;
constexpr std::int64_t kMostIds = 1 << 24;

// Vocab files write bytes as printable characters: those that are printable stand for themselves,
// the others for U+0100 onwards in their order.
const std::array<char32_t, kBytes>& characters_of_bytes() {
  static const auto table = [] {
    std::array<char32_t, kBytes> out{};
    char32_t next = 0x100;
    for (char32_t b = 0; b < kBytes; ++b) {
      const bool printable =
          (b >= '!' && b <= '~') || (b >= 0xA1 && b <= 0xAC) || (b >= 0xAE && b <= 0xFF);
      out[b] = printable ? b : next++;
    }
    return out;
  }();
  return table;
}

const std::map<char32_t, char>& bytes_of_characters() {
  static const auto table = [] {
    std::map<char32_t, char> out;
    for (int b = 0; b < kBytes; ++b) {
      out[characters_of_bytes()[static_cast<std::size_t>(b)]] = static_cast<char>(b);
    }
    return out;
  }();
  return table;
}

std::string written(std::string_view bytes) {
  std::string text;
  for (const char b : bytes)
    append_utf8(text, characters_of_bytes()[static_cast<unsigned char>(b)]);
  return text;
}

// The bytes that a token of a vocab file stands for; false if it has a character that stands for
// none.
bool read_written(std::string_view text, std::string& bytes) {
  const auto& table = bytes_of_characters();
  bytes.clear();
  for (std::size_t i = 0; i < text.size();) {
    const CodePoint c = decode_utf8(text, i);
    if (c.bytes == 0) return false;
    const auto it = table.find(c.value);
    if (it == table.end()) return false;
    bytes += it->second;
    i += static_cast<std::size_t>(c.bytes);
  }
  return true;
}

[[noreturn]] void fail(const std::string& source, std::string_view what) {
  throw FileError(fmt::format("{}: {}", source, what));
}

std::map<std::string, std::int64_t> read_vocab(const Json& json, const std::string& source) {
  if (!json.is_object() || json.empty()) fail(source, "vocab: expected an object of token: id");
  std::map<std::string, std::int64_t> vocab;
  for (const auto& [token, id] : json.items()) {
    if (!id.is_number_integer()) fail(source, fmt::format("vocab: '{}': expected an id", token));
    vocab[token] = id.get<std::int64_t>();
  }
  return vocab;
}

// Special tokens stand for themselves, tokens of a vocab for the bytes they are written for: one
// that is both must mean the same, or a text would come back as another.
void check_specials(const std::map<std::string, std::int64_t>& vocab,
                    const std::map<std::string, std::int64_t>& specials,
                    const std::string& source) {
  for (const auto& [text, id] : specials) {
    const auto it = vocab.find(text);
    if (it == vocab.end()) continue;
    if (it->second != id) {
      fail(source,
           fmt::format("added_tokens: '{}' has id {}, the vocab says {}", text, id, it->second));
    }
    std::string bytes;
    if (read_written(text, bytes) && bytes != text) {
      fail(source, fmt::format("added_tokens: '{}' stands for other bytes in the vocab", text));
    }
  }
}

std::pair<std::string, std::string> split_merge(std::string_view line, const std::string& source) {
  const std::size_t blank = line.find(' ');
  if (blank == 0 || blank == std::string_view::npos || blank + 1 == line.size() ||
      line.find(' ', blank + 1) != std::string_view::npos) {
    fail(source, fmt::format("merges: expected two tokens with a blank between, got '{}'", line));
  }
  return {std::string(line.substr(0, blank)), std::string(line.substr(blank + 1))};
}

// Fields that change what a tokenizer does, at the values that this one has.
void check_kind(const Json& json, const std::string& source) {
  const auto demand = [&](bool ok, std::string_view what) {
    if (!ok) fail(source, fmt::format("{}; only byte-level BPE as in GPT-2 is read", what));
  };
  const auto absent = [](const Json& object, const char* key) {
    return !object.contains(key) || object[key].is_null() || object[key] == false ||
           object[key] == "";
  };
  demand(json.is_object() && json.contains("model") && json["model"].is_object(),
         "expected an object with \"model\"");
  const Json& model = json["model"];
  demand(!model.contains("type") || model["type"] == "BPE", "model.type: expected BPE");
  for (const char* key : {"dropout", "continuing_subword_prefix", "end_of_word_suffix",
                          "byte_fallback", "ignore_merges"}) {
    demand(absent(model, key), fmt::format("model.{}: expected none", key));
  }
  demand(absent(json, "normalizer"), "normalizer: expected none");
  demand(json.contains("pre_tokenizer") && json["pre_tokenizer"].is_object(),
         "pre_tokenizer: expected ByteLevel");
  const Json& split = json["pre_tokenizer"];
  demand(split.contains("type") && split["type"] == "ByteLevel",
         "pre_tokenizer.type: expected ByteLevel");
  demand(absent(split, "add_prefix_space"), "pre_tokenizer.add_prefix_space: expected false");
  demand(!split.contains("use_regex") || split["use_regex"] == true,
         "pre_tokenizer.use_regex: expected true");
}

}  // namespace

Bpe::Bpe(const std::map<std::string, std::int64_t>& vocab,
         const std::vector<std::pair<std::string, std::string>>& merges,
         const std::map<std::string, std::int64_t>& specials, const std::string& source) {
  check_specials(vocab, specials, source);
  std::map<std::string, std::int64_t> all = vocab;
  for (const auto& [text, id] : specials) all[text] = id;
  const auto count = static_cast<std::int64_t>(all.size());
  if (count > kMostIds) fail(source, fmt::format("vocab: {} ids, more than {}", count, kMostIds));
  bytes_.resize(static_cast<std::size_t>(count));
  std::vector<bool> seen(bytes_.size());
  for (const auto& [token, id] : all) {
    if (id < 0 || id >= count || seen[static_cast<std::size_t>(id)]) {
      fail(source, fmt::format("vocab: expected every id from 0 to {} once, '{}' has {}", count - 1,
                               token, id));
    }
    seen[static_cast<std::size_t>(id)] = true;
    std::string& bytes = bytes_[static_cast<std::size_t>(id)];
    if (specials.contains(token)) {
      bytes = token;
      specials_[token] = static_cast<std::int32_t>(id);
    } else if (!read_written(token, bytes)) {
      fail(source, fmt::format("vocab: '{}' is not written in characters of bytes", token));
    }
  }
  byte_ids_.assign(kBytes, -1);
  for (int b = 0; b < kBytes; ++b) {
    const std::string text = written(std::string(1, static_cast<char>(b)));
    const auto it = vocab.find(text);
    if (it == vocab.end()) fail(source, fmt::format("vocab: no id for byte 0x{:02X}", b));
    byte_ids_[static_cast<std::size_t>(b)] = static_cast<std::int32_t>(it->second);
  }
  const auto id_of = [&](const std::string& token) {
    const auto it = vocab.find(token);
    if (it == vocab.end()) fail(source, fmt::format("merges: '{}' is not in the vocab", token));
    if (std::string bytes; !read_written(token, bytes)) {
      fail(source, fmt::format("merges: '{}' is not written in characters of bytes", token));
    }
    return static_cast<std::int32_t>(it->second);
  };
  for (const auto& [left, right] : merges)
    add_merge(id_of(left), id_of(right), id_of(left + right));
}

Bpe Bpe::bytes_alone() {
  std::map<std::string, std::int64_t> vocab;
  std::int64_t id = 0;
  for (const auto& [character, byte] : bytes_of_characters())
    vocab[written(std::string(1, byte))] = id++;
  return {vocab, {}, {}, "bytes"};
}

void Bpe::add_merge(std::int32_t left, std::int32_t right, std::int32_t id) {
  const auto rank = static_cast<std::int32_t>(merges_.size());
  merges_.emplace_back(left, right);
  ranks_.try_emplace({left, right}, Merge{rank, id});
}

Bpe Bpe::from_tokenizer_json(std::string_view text, const std::string& source) {
  const Json json = parse_json_file(text, source);
  check_kind(json, source);
  const Json& model = json["model"];
  if (!model.contains("vocab")) fail(source, "model.vocab: expected an object of token: id");
  if (!model.contains("merges") || !model["merges"].is_array()) {
    fail(source, "model.merges: expected a list");
  }
  std::vector<std::pair<std::string, std::string>> merges;
  for (const Json& merge : model["merges"]) {
    const bool pair =
        merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string();
    if (!pair && !merge.is_string()) fail(source, "model.merges: expected pairs of tokens");
    merges.push_back(pair ? std::pair(merge[0].get<std::string>(), merge[1].get<std::string>())
                          : split_merge(merge.get<std::string>(), source));
  }
  std::map<std::string, std::int64_t> specials;
  const Json added = json.value("added_tokens", Json::array());
  if (!added.is_array()) fail(source, "added_tokens: expected a list");
  for (const Json& token : added) {
    if (!token.is_object() || !token.contains("content") || !token["content"].is_string() ||
        token["content"].get<std::string>().empty() || !token.contains("id") ||
        !token["id"].is_number_integer()) {
      fail(source, "added_tokens: expected objects with content and id");
    }
    specials[token["content"].get<std::string>()] = token["id"].get<std::int64_t>();
  }
  return {read_vocab(model["vocab"], source), merges, specials, source};
}

Bpe Bpe::from_vocab_and_merges(std::string_view vocab, std::string_view merges,
                               const std::string& source) {
  std::vector<std::pair<std::string, std::string>> pairs;
  for (std::size_t begin = 0; begin < merges.size();) {
    const std::size_t end = std::min(merges.find('\n', begin), merges.size());
    std::string_view line = merges.substr(begin, end - begin);
    if (line.ends_with('\r')) line.remove_suffix(1);
    const bool version = begin == 0 && line.starts_with("#version");
    if (!line.empty() && !version) pairs.push_back(split_merge(line, source));
    begin = end + 1;
  }
  const auto ids = read_vocab(parse_json_file(vocab, source), source);
  // GPT-2's files list their one special token among the others.
  std::map<std::string, std::int64_t> specials;
  if (const auto it = ids.find("<|endoftext|>"); it != ids.end()) specials.insert(*it);
  return {ids, pairs, specials, source};
}

std::string Bpe::to_tokenizer_json() const {
  OrderedJson vocab = OrderedJson::object();
  OrderedJson added = OrderedJson::array();
  for (std::size_t id = 0; id < bytes_.size(); ++id) {
    const auto special = specials_.find(bytes_[id]);
    const bool is_special =
        special != specials_.end() && special->second == static_cast<std::int32_t>(id);
    if (is_special) {
      added.push_back({{"id", id},
                       {"content", bytes_[id]},
                       {"single_word", false},
                       {"lstrip", false},
                       {"rstrip", false},
                       {"normalized", false},
                       {"special", true}});
    }
    vocab[is_special ? bytes_[id] : written(bytes_[id])] = id;
  }
  OrderedJson merges = OrderedJson::array();
  for (const auto& [left, right] : merges_) {
    merges.push_back({written(bytes_of(left)), written(bytes_of(right))});
  }
  const OrderedJson byte_level{{"type", "ByteLevel"},
                               {"add_prefix_space", false},
                               {"trim_offsets", true},
                               {"use_regex", true}};
  const OrderedJson json{{"version", "1.0"},
                         {"truncation", nullptr},
                         {"padding", nullptr},
                         {"added_tokens", added},
                         {"normalizer", nullptr},
                         {"pre_tokenizer", byte_level},
                         {"post_processor", byte_level},
                         {"decoder", byte_level},
                         {"model",
                          {{"type", "BPE"},
                           {"dropout", nullptr},
                           {"unk_token", nullptr},
                           {"continuing_subword_prefix", nullptr},
                           {"end_of_word_suffix", nullptr},
                           {"fuse_unk", false},
                           {"byte_fallback", false},
                           {"ignore_merges", false},
                           {"vocab", vocab},
                           {"merges", merges}}}};
  return json.dump();
}

// The symbols of a word as a list, and its pairs in a heap by rank, then place: n log n however
// long the word is.
void Bpe::encode_word(std::string_view word, std::vector<std::int32_t>& ids) const {
  struct Symbol {
    std::int32_t id;  // −1: merged into the one before
    std::int32_t before, after;
  };
  struct Candidate {
    std::int32_t rank, left, right_id, id;
    bool operator>(const Candidate& other) const {
      return std::pair(rank, left) > std::pair(other.rank, other.left);
    }
  };
  const auto n = static_cast<std::int32_t>(word.size());
  std::vector<Symbol> symbols(word.size());
  for (std::int32_t i = 0; i < n; ++i) {
    symbols[static_cast<std::size_t>(i)] = {
        byte_ids_[static_cast<unsigned char>(word[static_cast<std::size_t>(i)])], i - 1,
        i + 1 < n ? i + 1 : -1};
  }
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> queue;
  const auto at = [&](std::int32_t i) -> Symbol& { return symbols[static_cast<std::size_t>(i)]; };
  const auto offer = [&](std::int32_t left) {
    if (left < 0 || at(left).after < 0) return;
    const std::int32_t right_id = at(at(left).after).id;
    const auto it = ranks_.find({at(left).id, right_id});
    if (it != ranks_.end()) queue.push({it->second.rank, left, right_id, it->second.id});
  };
  for (std::int32_t i = 0; i + 1 < n; ++i) offer(i);
  while (!queue.empty()) {
    const Candidate c = queue.top();
    queue.pop();
    Symbol& left = at(c.left);
    // Only if both sides are still what they were.
    if (left.id < 0 || left.after < 0 || at(left.after).id != c.right_id) continue;
    const auto it = ranks_.find({left.id, c.right_id});
    if (it == ranks_.end() || it->second.rank != c.rank) continue;
    Symbol& right = at(left.after);
    left.id = c.id;
    right.id = -1;
    left.after = right.after;
    if (left.after >= 0) at(left.after).before = c.left;
    offer(left.before);
    offer(c.left);
  }
  for (const Symbol& s : symbols) {
    if (s.id >= 0) ids.push_back(s.id);
  }
}

void Bpe::encode_plain(std::string_view text, std::vector<std::int32_t>& ids) const {
  // Words come back: most of a text is in here after a page.
  constexpr std::size_t kMostWords = 1 << 16;
  constexpr std::size_t kLongWord = 64;
  std::unordered_map<std::string_view, std::vector<std::int32_t>> known;
  split_words(kPattern, text, [&](std::string_view word) {
    if (word.size() > kLongWord || known.size() >= kMostWords) return encode_word(word, ids);
    const auto [it, fresh] = known.try_emplace(word);
    if (fresh) encode_word(word, it->second);
    ids.insert(ids.end(), it->second.begin(), it->second.end());
  });
}

std::vector<std::int32_t> Bpe::encode(std::string_view text) const {
  std::vector<std::int32_t> ids;
  while (!text.empty()) {
    std::size_t first = text.size();
    const std::pair<const std::string, std::int32_t>* special = nullptr;
    for (const auto& entry : specials_) {
      const std::size_t found = text.find(entry.first);
      const bool longer = special && found == first && entry.first.size() > special->first.size();
      if (found < first || longer) {
        first = found;
        special = &entry;
      }
    }
    encode_plain(text.substr(0, first), ids);
    if (!special) break;
    ids.push_back(special->second);
    text.remove_prefix(first + special->first.size());
  }
  return ids;
}

}  // namespace proteus
