// UTF-8 (RFC 3629): strict decoding, encoding, and repair for output.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace proteus {

struct CodePoint {
  char32_t value = 0;
  int bytes = 0;  ///< 0 when the bytes at this place are not UTF-8
};

/// The code point that starts at `offset` < text.size(). Overlong forms, surrogates and values
/// above U+10FFFF are not UTF-8.
CodePoint decode_utf8(std::string_view text, std::size_t offset);
void append_utf8(std::string& text, char32_t value);
/// `text` with U+FFFD in place of every byte that is not part of a character.
std::string repaired_utf8(std::string_view text);
/// Code points in a text that is UTF-8: its width in columns, near enough for tables.
std::size_t utf8_length(std::string_view text);

}  // namespace proteus
