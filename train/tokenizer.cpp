#include "train/tokenizer.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "tensor/error.h"
#include "train/json_file.h"
#include "train/mapped_file.h"
#include "train/utf8.h"

namespace proteus {
namespace {

constexpr char32_t kCodePoints = 0x110000;

/// The byte at `i` of a text that begins at byte `offset` of its file.
std::string not_utf8(std::string_view text, std::size_t i, std::size_t offset = 0) {
  return fmt::format(
      "byte 0x{:02X} at offset {} is not UTF-8; use --tokenizer byte, or convert the text to UTF-8",
      static_cast<unsigned char>(text[i]), offset + i);
}

/// 'é' (U+00E9); control characters by number alone.
std::string show(char32_t value) {
  if (value < 0x20 || value == 0x7F) return fmt::format("U+{:04X}", static_cast<unsigned>(value));
  std::string text;
  append_utf8(text, value);
  return fmt::format("'{}' (U+{:04X})", text, static_cast<unsigned>(value));
}

}  // namespace

std::string_view name_of(TokenizerKind kind) {
  return kind == TokenizerKind::chars ? "char" : kind == TokenizerKind::bytes ? "byte" : "bpe";
}

Tokenizer Tokenizer::bytes() { return {}; }

void Tokenizer::set_chars(std::vector<char32_t> sorted) {
  kind_ = TokenizerKind::chars;
  chars_ = std::move(sorted);
  low_.fill(-1);
  for (std::size_t i = 0; i < chars_.size() && chars_[i] < low_.size(); ++i) {
    low_[chars_[i]] = static_cast<std::int32_t>(i);
  }
}

Tokenizer Tokenizer::chars_of(std::string_view text, std::string_view source) {
  std::vector<bool> seen(kCodePoints);
  char32_t end = 0;  // behind the largest one
  for (std::size_t i = 0; i < text.size();) {
    const CodePoint c = decode_utf8(text, i);
    if (c.bytes == 0) throw FileError(fmt::format("{}: {}", source, not_utf8(text, i)));
    seen[c.value] = true;
    end = std::max<char32_t>(end, c.value + 1);
    i += static_cast<std::size_t>(c.bytes);
  }
  std::vector<char32_t> chars;
  for (char32_t c = 0; c < end; ++c) {
    if (seen[c]) chars.push_back(c);
  }
  Tokenizer tokenizer;
  tokenizer.set_chars(std::move(chars));
  return tokenizer;
}

Tokenizer Tokenizer::of(Bpe bpe) {
  Tokenizer tokenizer;
  tokenizer.kind_ = TokenizerKind::bpe;
  tokenizer.bpe_ = std::make_shared<const Bpe>(std::move(bpe));
  return tokenizer;
}

Tokenizer Tokenizer::from_path(const std::string& path) {
  namespace fs = std::filesystem;
  const auto here = [&](const char* name) { return (fs::path(path) / name).string(); };
  std::error_code ignored;
  if (!fs::is_directory(path, ignored)) return from_json(MappedFile(path).view(), path);
  if (fs::exists(here("tokenizer.json"), ignored)) return from_path(here("tokenizer.json"));
  if (!fs::exists(here("vocab.json"), ignored)) {
    throw FileError(fmt::format(
        "{}: expected a folder with tokenizer.json, or with vocab.json and merges.txt", path));
  }
  const MappedFile vocab(here("vocab.json"));
  const MappedFile merges(here("merges.txt"));
  return of(Bpe::from_vocab_and_merges(vocab.view(), merges.view(), path));
}

std::int64_t Tokenizer::vocab() const {
  if (bpe_) return bpe_->vocab();
  return kind_ == TokenizerKind::bytes ? 256 : static_cast<std::int64_t>(chars_.size());
}

int Tokenizer::byte_length(std::int32_t id) const {
  return static_cast<int>(decode({&id, 1}).size());
}

std::string Tokenizer::encode_into(std::string_view text, std::vector<std::int32_t>& ids,
                                   std::size_t offset) const {
  if (bpe_) {
    ids = bpe_->encode(text);
    return {};
  }
  ids.reserve(text.size());
  if (kind_ == TokenizerKind::bytes) {
    for (const char c : text) ids.push_back(static_cast<unsigned char>(c));
    return {};
  }
  for (std::size_t i = 0; i < text.size();) {
    const CodePoint c = decode_utf8(text, i);
    if (c.bytes == 0) return not_utf8(text, i, offset);
    std::int32_t id = -1;
    if (c.value < low_.size()) {
      id = low_[c.value];
    } else {
      const auto it = std::lower_bound(chars_.begin(), chars_.end(), c.value);
      if (it != chars_.end() && *it == c.value) id = static_cast<std::int32_t>(it - chars_.begin());
    }
    if (id < 0) {
      return fmt::format(
          "character {} at offset {} is not among the {} that the tokenizer knows; leave it out, "
          "or train with --tokenizer byte",
          show(c.value), offset + i, chars_.size());
    }
    ids.push_back(id);
    i += static_cast<std::size_t>(c.bytes);
  }
  return {};
}

std::vector<std::int32_t> Tokenizer::encode(std::string_view text, std::string_view source,
                                            std::size_t offset) const {
  std::vector<std::int32_t> ids;
  const std::string wrong = encode_into(text, ids, offset);
  if (!wrong.empty()) throw FileError(fmt::format("{}: {}", source, wrong));
  return ids;
}

std::vector<std::int32_t> Tokenizer::encode_option(std::string_view text,
                                                   std::string_view option) const {
  std::vector<std::int32_t> ids;
  const std::string wrong = encode_into(text, ids);
  if (!wrong.empty()) throw ConfigError(fmt::format("{}: {}", option, wrong));
  return ids;
}

std::string Tokenizer::decode(std::span<const std::int32_t> ids) const {
  std::string text;
  text.reserve(ids.size());
  for (const std::int32_t id : ids) {
    if (id < 0 || id >= vocab()) {
      throw ConfigError(
          fmt::format("decode(ids): expected ids in [0, {}) (= vocab), got {}", vocab(), id));
    }
    if (bpe_) {
      text += bpe_->bytes_of(id);
    } else if (kind_ == TokenizerKind::bytes) {
      text += static_cast<char>(id);
    } else {
      append_utf8(text, chars_[static_cast<std::size_t>(id)]);
    }
  }
  return text;
}

std::string Tokenizer::to_json() const {
  if (bpe_) return bpe_->to_tokenizer_json();
  nlohmann::ordered_json json{{"kind", name_of(kind_)}};
  if (kind_ == TokenizerKind::chars) {
    std::string text;
    for (const char32_t c : chars_) append_utf8(text, c);
    json["chars"] = text;
  }
  return json.dump();
}

Tokenizer Tokenizer::from_json(std::string_view json, std::string_view source) {
  const auto fail = [&](std::string_view what) -> FileError {
    return FileError(fmt::format("{}: tokenizer: {}", source, what));
  };
  const auto value = parse_json_file(json, std::string(source) + ": tokenizer");
  if (value.is_object() && value.contains("model")) {
    return of(Bpe::from_tokenizer_json(json, std::string(source)));
  }
  if (!value.is_object() || !value.contains("kind") || !value["kind"].is_string()) {
    throw fail("expected an object with \"kind\"");
  }
  const auto kind = value["kind"].get<std::string>();
  if (kind == "byte") return bytes();
  if (kind != "char") throw fail(fmt::format("kind: expected char or byte, got {}", kind));
  if (!value.contains("chars") || !value["chars"].is_string()) {
    throw fail("expected a string \"chars\"");
  }
  const auto text = value["chars"].get<std::string>();
  Tokenizer tokenizer = chars_of(text, source);
  std::vector<std::int32_t> ids;
  tokenizer.encode_into(text, ids);
  for (std::size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] != static_cast<std::int32_t>(i)) {
      throw fail(
          fmt::format("chars: expected every character once, in ascending order; number {} "
                      "is out of place",
                      i));
    }
  }
  return tokenizer;
}

}  // namespace proteus
