// The JSON header of a safetensors file. A parser of this grammar alone: it accepts no key, type or
// nesting that the format does not have, sees a name that comes twice, and needs less memory than
// the text it reads.
#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <numeric>

#include "tensor/error.h"
#include "train/safetensors.h"
#include "train/utf8.h"
#include "train/whole_number.h"

namespace proteus {
namespace {

struct DTypeName {
  FileDType dtype;
  std::string_view name;
  std::size_t bytes;
};
constexpr DTypeName kDTypes[] = {
    {FileDType::f64, "F64", 8},         {FileDType::f32, "F32", 4},
    {FileDType::bf16, "BF16", 2},       {FileDType::f16, "F16", 2},
    {FileDType::f8_e4m3, "F8_E4M3", 1}, {FileDType::f8_e5m2, "F8_E5M2", 1},
    {FileDType::i64, "I64", 8},         {FileDType::i32, "I32", 4},
    {FileDType::i16, "I16", 2},         {FileDType::i8, "I8", 1},
    {FileDType::u64, "U64", 8},         {FileDType::u32, "U32", 4},
    {FileDType::u16, "U16", 2},         {FileDType::u8, "U8", 1},
    {FileDType::boolean, "BOOL", 1},
};

const DTypeName& entry_of(FileDType dtype) {
  return *std::find_if(std::begin(kDTypes), std::end(kDTypes),
                       [&](const DTypeName& d) { return d.dtype == dtype; });
}

constexpr std::uint64_t kMostSize = std::numeric_limits<std::int64_t>::max();
constexpr std::size_t kMaxMetadataBytes = std::size_t{1} << 20;

/// Control characters in a name would go to the terminal that shows it.
bool is_control(char32_t c) { return c < 0x20 || (c >= 0x7F && c < 0xA0); }

class HeaderParser {
 public:
  HeaderParser(std::string_view text, std::uint64_t data_bytes, const std::string& path)
      : text_(text), data_bytes_(data_bytes), path_(path) {}

  detail::SafetensorsHeader parse() {
    if (text_.empty() || text_[0] != '{') fail("the header does not begin with '{'");
    expect('{');
    if (!accept('}')) {
      do {
        member();
      } while (accept(','));
      expect('}');
    }
    skip_blanks();
    if (at_ != text_.size()) fail("text behind the header's last '}'");
    check_names();
    check_order();
    return std::move(header_);
  }

 private:
  [[noreturn]] void fail(const std::string& why) const {
    throw FileError(fmt::format("{}: not a valid safetensors file: {} (byte {} of the header)",
                                path_, why, at_));
  }

  void skip_blanks() {
    while (at_ < text_.size() &&
           (text_[at_] == ' ' || text_[at_] == '\n' || text_[at_] == '\r' || text_[at_] == '\t')) {
      ++at_;
    }
  }
  bool accept(char c) {
    skip_blanks();
    if (at_ >= text_.size() || text_[at_] != c) return false;
    ++at_;
    return true;
  }
  void expect(char c) {
    if (!accept(c)) fail(fmt::format("expected '{}'", c));
  }

  std::uint32_t hex_digits() {
    if (text_.size() - at_ < 4) fail("a \\u escape is cut");
    std::uint32_t value = 0;
    for (int i = 0; i < 4; ++i) {
      const char c = text_[at_++];
      const int digit = c >= '0' && c <= '9'   ? c - '0'
                        : c >= 'a' && c <= 'f' ? c - 'a' + 10
                        : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                               : -1;
      if (digit < 0) fail("a \\u escape has another digit than 0-9 and a-f");
      value = value << 4 | static_cast<std::uint32_t>(digit);
    }
    return value;
  }

  char32_t unicode_escape() {
    const std::uint32_t first = hex_digits();
    if (first < 0xD800 || first > 0xDFFF) return first;
    if (first > 0xDBFF || text_.substr(at_, 2) != "\\u") fail("half of a surrogate pair");
    at_ += 2;
    const std::uint32_t second = hex_digits();
    if (second < 0xDC00 || second > 0xDFFF) fail("half of a surrogate pair");
    return 0x10000 + ((first - 0xD800) << 10) + (second - 0xDC00);
  }

  char32_t escape() {
    if (at_ >= text_.size()) fail("a string is not closed");
    const char c = text_[at_++];
    if (c == 'u') return unicode_escape();
    constexpr std::string_view kLetters = "\"\\/bfnrt";
    constexpr std::string_view kMeanings = "\"\\/\b\f\n\r\t";
    const auto which = kLetters.find(c);
    if (which == std::string_view::npos) fail("an unknown escape in a string");
    return static_cast<char32_t>(kMeanings[which]);
  }

  /// Appends a string of at most `most` bytes; with `plain`, none of them of control characters.
  void string(std::string& out, std::size_t most, bool plain) {
    expect('"');
    const std::size_t begin = out.size();
    for (;;) {
      if (at_ >= text_.size()) fail("a string is not closed");
      if (text_[at_] == '"') break;
      char32_t value = 0;
      if (text_[at_] == '\\') {
        ++at_;
        value = escape();
      } else {
        const CodePoint c = decode_utf8(text_, at_);
        if (c.bytes == 0) fail("a string is not UTF-8");
        if (c.value < 0x20) fail("a control character in a string");
        value = c.value;
        at_ += static_cast<std::size_t>(c.bytes);
      }
      if (plain && is_control(value)) fail("a control character in a name");
      append_utf8(out, value);
      if (out.size() - begin > most) fail(fmt::format("a string of more than {} bytes", most));
    }
    ++at_;
  }

  /// A string where it stands, or its copy where it has escapes.
  std::string_view name() {
    std::string decoded;
    string(decoded, kMaxNameBytes, true);
    const std::string_view raw = text_.substr(at_ - decoded.size() - 1, decoded.size());
    if (raw == decoded) return raw;
    return header_.unescaped.emplace_back(std::move(decoded));
  }

  std::uint64_t number() {
    skip_blanks();
    const WholeNumber number = parse_whole_number(text_, at_);
    if (number.fault) fail(number.fault);
    return number.value;
  }

  void member() {
    if (header_.entries.size() >= kMaxFileTensors) {
      fail(fmt::format("more than {} tensors", kMaxFileTensors));
    }
    detail::HeaderEntry entry;
    entry.name = name();
    expect(':');
    if (entry.name == "__metadata__") {
      metadata();
      return;
    }
    tensor(entry);
    header_.entries.push_back(entry);
  }

  void metadata() {
    if (has_metadata_) fail("__metadata__ twice");
    has_metadata_ = true;
    expect('{');
    if (accept('}')) return;
    do {
      if (header_.metadata.size() >= kMaxMetadata) {
        fail(fmt::format("more than {} entries of __metadata__", kMaxMetadata));
      }
      std::string key, value;
      string(key, kMaxNameBytes, true);
      expect(':');
      string(value, kMaxMetadataBytes, false);
      if (!header_.metadata.emplace(key, value).second) fail("\"" + key + "\" twice");
    } while (accept(','));
    expect('}');
  }

  void tensor(detail::HeaderEntry& entry) {
    const auto fault = [&](std::string_view why) {
      fail(fmt::format("\"{}\" {}", entry.name, why));
    };
    constexpr unsigned kDType = 1, kShape = 2, kOffsets = 4;
    unsigned seen = 0;
    expect('{');
    do {
      std::string key;
      string(key, kMaxNameBytes, true);
      expect(':');
      const unsigned which = key == "dtype"          ? kDType
                             : key == "shape"        ? kShape
                             : key == "data_offsets" ? kOffsets
                                                     : 0u;
      if (which == 0) fault("has a key that the format does not know: " + key);
      if ((seen & which) != 0) fault("has " + key + " twice");
      seen |= which;
      if (which == kDType) dtype(entry);
      if (which == kShape) shape(entry);
      if (which == kOffsets) offsets(entry);
    } while (accept(','));
    expect('}');
    if (seen != (kDType | kShape | kOffsets)) fault("lacks dtype, shape or data_offsets");
    std::uint64_t bytes = size_of(entry.dtype);
    bool empty = false;
    for (std::size_t i = 0; i < entry.rank; ++i) {
      const auto n = static_cast<std::uint64_t>(header_.sizes[entry.shape_at + i]);
      empty = empty || n == 0;
      if (n == 0) continue;
      if (bytes > kMostSize / n) fault("has a shape that overflows");
      bytes *= n;  // strides of an empty tensor must fit as well
    }
    if (empty) bytes = 0;
    if (entry.end < entry.begin || entry.end - entry.begin != bytes) {
      fault("has data_offsets that do not fit its shape");
    }
    if (entry.end > data_bytes_) fault("ends behind the end of the file");
  }

  void dtype(detail::HeaderEntry& entry) {
    std::string name;
    string(name, kMaxNameBytes, true);
    for (const DTypeName& d : kDTypes) {
      if (d.name != name) continue;
      entry.dtype = d.dtype;
      return;
    }
    fail(fmt::format("\"{}\" has an unknown dtype {}", entry.name, name));
  }

  void shape(detail::HeaderEntry& entry) {
    entry.shape_at = static_cast<std::uint32_t>(header_.sizes.size());
    expect('[');
    if (accept(']')) return;
    do {
      if (entry.rank == kMaxRank) {
        fail(fmt::format("\"{}\" has more than {} dimensions", entry.name, int{kMaxRank}));
      }
      header_.sizes.push_back(static_cast<std::int64_t>(number()));
      ++entry.rank;
    } while (accept(','));
    expect(']');
  }

  void offsets(detail::HeaderEntry& entry) {
    expect('[');
    entry.begin = number();
    expect(',');
    entry.end = number();
    expect(']');
  }

  void check_names() {
    std::vector<std::uint32_t> order(header_.entries.size());
    std::iota(order.begin(), order.end(), 0u);
    const auto name = [&](std::uint32_t i) { return header_.entries[i].name; };
    std::sort(order.begin(), order.end(),
              [&](std::uint32_t a, std::uint32_t b) { return name(a) < name(b); });
    for (std::size_t i = 1; i < order.size(); ++i) {
      if (name(order[i]) == name(order[i - 1])) fail(fmt::format("\"{}\" twice", name(order[i])));
    }
  }

  void check_order() {
    auto& entries = header_.entries;
    std::sort(entries.begin(), entries.end(), [](const auto& a, const auto& b) {
      return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
    });
    std::uint64_t at = 0;
    for (const detail::HeaderEntry& entry : entries) {
      if (entry.begin != at) {
        fail(fmt::format("\"{}\" overlaps another tensor or leaves a hole", entry.name));
      }
      at = entry.end;
    }
    if (at != data_bytes_) {
      fail(
          fmt::format("its tensors have {} bytes, the file {} behind the header", at, data_bytes_));
    }
  }

  std::string_view text_;
  std::uint64_t data_bytes_;
  const std::string& path_;
  std::size_t at_ = 0;
  bool has_metadata_ = false;
  detail::SafetensorsHeader header_;
};

}  // namespace

std::string_view name_of(FileDType dtype) { return entry_of(dtype).name; }

std::size_t size_of(FileDType dtype) { return entry_of(dtype).bytes; }

FileDType file_dtype(DType dtype) {
  switch (dtype) {
    case DType::f64:
      return FileDType::f64;
    case DType::f32:
      return FileDType::f32;
    case DType::bf16:
      return FileDType::bf16;
    case DType::i8:
      return FileDType::i8;
    case DType::i32:
      return FileDType::i32;
    case DType::i64:
      return FileDType::i64;
  }
  throw_dtype("file_dtype(dtype)", dtype, "one that files have");
}

namespace detail {

SafetensorsHeader parse_safetensors_header(std::string_view json, std::uint64_t data_bytes,
                                           const std::string& path) {
  return HeaderParser(json, data_bytes, path).parse();
}

}  // namespace detail
}  // namespace proteus
