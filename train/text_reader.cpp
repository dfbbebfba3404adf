#include "train/text_reader.h"

#include <fmt/format.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstring>

#include "tensor/error.h"
#include "train/utf8.h"

namespace proteus {
namespace {

constexpr std::size_t kPiece = std::size_t{1} << 20;

// Bytes at the end of a text that may be the beginning of a character: at most three.
std::size_t cut_character(std::string_view text) {
  for (std::size_t back = 1; back <= 3 && back <= text.size(); ++back) {
    const auto byte = static_cast<unsigned char>(text[text.size() - back]);
    if (byte < 0x80) return 0;
    if (byte < 0xC0) continue;  // a byte inside a character
    const std::size_t length = byte >= 0xF0 ? 4 : byte >= 0xE0 ? 3 : 2;
    return length > back ? back : 0;
  }
  return 0;
}

// Bytes behind the last line break that stands alone. No token of a byte-level encoding reaches
// across one: words begin behind it, and a run of blanks it would be part of there is none.
std::size_t cut_line(std::string_view text) {
  const auto blank = [](char c) { return c == ' ' || (c >= '\t' && c <= '\r'); };
  for (std::size_t i = text.size(); i-- > 2;) {
    const bool alone = !blank(text[i]) && text[i - 1] == '\n' && !blank(text[i - 2]);
    // Blanks beyond ASCII are runs of blanks, too: only bytes of ASCII may stand beside it.
    const bool plain = static_cast<unsigned char>(text[i]) < 0x80 &&
                       static_cast<unsigned char>(text[i - 2]) < 0x80;
    if (alone && plain) return text.size() - i;
  }
  return text.size();
}

}  // namespace

TextReader::TextReader(const Tokenizer& tokenizer, std::string path)
    : tokenizer_(tokenizer), path_(std::move(path)) {
  file_ = path_ == "-" ? stdin : std::fopen(path_.c_str(), "rb");
  if (!file_) throw FileError(fmt::format("{}: cannot read: {}", path_, std::strerror(errno)));
  struct stat status {};
  if (fstat(fileno(file_), &status) != 0) return;
  if (S_ISDIR(status.st_mode)) {
    std::fclose(file_);
    throw FileError(path_ + ": is a directory; expected a file");
  }
  if (S_ISREG(status.st_mode)) size_ = status.st_size;
}

TextReader::~TextReader() {
  if (file_ && file_ != stdin) std::fclose(file_);
}

std::size_t TextReader::unfinished(std::string_view text) const {
  switch (tokenizer_.kind()) {
    case TokenizerKind::chars:
      return cut_character(text);
    case TokenizerKind::bpe:
      return cut_line(text);
    case TokenizerKind::bytes:
      break;
  }
  return 0;
}

std::vector<std::int32_t> TextReader::next() {
  std::vector<std::int32_t> ids;
  while (ids.empty() && !ended_) {
    std::string text = std::move(rest_);
    const std::size_t kept = text.size();
    text.resize(kept + kPiece);
    const std::size_t got = std::fread(text.data() + kept, 1, kPiece, file_);
    text.resize(kept + got);
    if (std::ferror(file_)) {
      throw FileError(fmt::format("{}: cannot read: {}", path_, std::strerror(errno)));
    }
    ended_ = got < kPiece;
    const auto read = bytes_ + static_cast<std::int64_t>(text.size());
    if (ended_ && path_ != "-" && read < size_) {
      throw FileError(
          fmt::format("{}: it had {} bytes when it was opened and ended after {}; leave it alone "
                      "while it is read",
                      path_, size_, read));
    }
    const std::size_t cut = ended_ ? 0 : unfinished(text);
    rest_ = text.substr(text.size() - cut);
    text.resize(text.size() - cut);
    ids = tokenizer_.encode(text, path_, static_cast<std::size_t>(bytes_));
    bytes_ += static_cast<std::int64_t>(text.size());
  }
  return ids;
}

}  // namespace proteus
