#include "train/npy.h"

#include <fmt/format.h>

#include <limits>

#include "tensor/error.h"
#include "train/whole_number.h"

namespace proteus {
namespace {

constexpr std::string_view kMagic = "\x93NUMPY";
constexpr std::size_t kMaxHeader = std::size_t{1} << 16;
constexpr std::size_t kMaxDimensions = 64;  // NumPy's own limit
constexpr std::uint64_t kMostBytes = std::numeric_limits<std::int64_t>::max();

[[noreturn]] void throw_not_npy(const std::string& path, const std::string& why) {
  throw FileError(fmt::format("{}: not a valid .npy file: {}", path, why));
}

/// The dictionary of a header, a Python literal with exactly three keys:
/// {'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }
class DictParser {
 public:
  DictParser(std::string_view text, const std::string& path) : text_(text), path_(path) {}

  NpyInfo parse() {
    NpyInfo info;
    int seen = 0;
    expect('{');
    while (!accept('}')) {
      const std::string key = string();
      expect(':');
      const int which = key == "descr" ? 1 : key == "fortran_order" ? 2 : key == "shape" ? 4 : 0;
      if (which == 0) fail(fmt::format("an unknown key '{}'", key));
      if ((seen & which) != 0) fail(fmt::format("'{}' twice", key));
      seen |= which;
      if (which == 1) info.descr = string();
      if (which == 2) info.fortran_order = boolean();
      if (which == 4) info.shape = tuple();
      if (!accept(',')) {
        expect('}');
        break;
      }
    }
    skip_blanks();
    if (at_ != text_.size()) fail("text behind the dictionary");
    if (seen != 7) fail("expected descr, fortran_order and shape");
    return info;
  }

 private:
  [[noreturn]] void fail(const std::string& why) const { throw_not_npy(path_, why); }
  void skip_blanks() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\n')) ++at_;
  }
  bool accept(char c) {
    skip_blanks();
    if (at_ >= text_.size() || text_[at_] != c) return false;
    ++at_;
    return true;
  }
  void expect(char c) {
    if (!accept(c)) fail(fmt::format("expected '{}' in its header", c));
  }
  std::string string() {
    skip_blanks();
    const char quote = at_ < text_.size() ? text_[at_] : '\0';
    if (quote != '\'' && quote != '"') fail("expected a string in its header");
    const std::size_t end = text_.find(quote, at_ + 1);
    if (end == std::string_view::npos) fail("a string that is not closed");
    const std::string_view inside = text_.substr(at_ + 1, end - at_ - 1);
    for (const char c : inside) {
      if (c < 0x20 || c > 0x7E || c == '\\') fail("a string of other than plain characters");
    }
    at_ = end + 1;
    return std::string(inside);
  }
  bool boolean() {
    skip_blanks();
    for (const std::string_view word : {"True", "False"}) {
      if (text_.substr(at_, word.size()) != word) continue;
      at_ += word.size();
      return word == "True";
    }
    fail("expected True or False");
  }
  std::int64_t number() {
    skip_blanks();
    const WholeNumber number = parse_whole_number(text_, at_);
    if (number.fault) fail(number.fault);
    return static_cast<std::int64_t>(number.value);
  }
  std::vector<std::int64_t> tuple() {
    std::vector<std::int64_t> sizes;
    expect('(');
    while (!accept(')')) {
      if (sizes.size() == kMaxDimensions) fail("more than 64 dimensions");
      sizes.push_back(number());
      if (!accept(',')) {
        expect(')');
        break;
      }
    }
    return sizes;
  }

  std::string_view text_;
  const std::string& path_;
  std::size_t at_ = 0;
};

/// Bytes of an element of '<f4' and the like; 0 for anything but one plain number.
std::uint64_t element_bytes(std::string_view descr) {
  if (descr.size() < 3 || descr.size() > 4) return 0;
  if (std::string_view("<>|=").find(descr[0]) == std::string_view::npos) return 0;
  if (std::string_view("?bifuc").find(descr[1]) == std::string_view::npos) return 0;
  std::uint64_t bytes = 0;
  for (const char c : descr.substr(2)) {
    if (c < '0' || c > '9') return 0;
    bytes = bytes * 10 + static_cast<std::uint64_t>(c - '0');
  }
  return bytes;
}

}  // namespace

bool is_npy(std::string_view file) { return file.starts_with(kMagic); }

NpyInfo parse_npy_header(std::string_view file, const std::string& path) {
  const auto fail = [&](const std::string& why) { throw_not_npy(path, why); };
  const auto byte = [&](std::size_t i) {
    return static_cast<std::size_t>(static_cast<unsigned char>(file[i]));
  };
  if (!is_npy(file)) fail("it does not begin like one");
  std::size_t at = kMagic.size() + 2;  // the version's two bytes
  if (file.size() < at + 4) fail("it is cut");
  const std::size_t version = byte(kMagic.size());
  if (version < 1 || version > 3) {
    fail(fmt::format("expected version 1 to 3, got {}", version));
  }
  std::size_t length = byte(at) | byte(at + 1) << 8;
  if (version > 1) length |= byte(at + 2) << 16 | byte(at + 3) << 24;
  at += version > 1 ? 4 : 2;
  if (length > kMaxHeader || length > file.size() - at) fail("its header is cut or too long");
  NpyInfo info = DictParser(file.substr(at, length), path).parse();
  info.data_at = at + length;
  info.element_bytes = element_bytes(info.descr);
  if (info.element_bytes == 0) {
    fail(fmt::format("expected a plain number as its type, got {}", info.descr));
  }
  return info;
}

NpyInfo parse_npy(std::string_view file, const std::string& path) {
  const NpyInfo info = parse_npy_header(file, path);
  const auto fail = [&](const std::string& why) { throw_not_npy(path, why); };
  std::uint64_t bytes = info.element_bytes;
  bool empty = false;
  for (const std::int64_t size : info.shape) {
    const auto n = static_cast<std::uint64_t>(size);
    empty = empty || n == 0;
    if (n == 0) continue;
    if (bytes > kMostBytes / n) fail("a shape that overflows");
    bytes *= n;
  }
  if (empty) bytes = 0;
  if (bytes != file.size() - info.data_at) {
    fail(fmt::format("expected {} bytes behind its header, got {}", bytes,
                     file.size() - info.data_at));
  }
  return info;
}

}  // namespace proteus
