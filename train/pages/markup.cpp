#include "train/pages/markup.h"

#include <fmt/format.h>

#include <cmath>

#include "train/memory.h"
#include "train/utf8.h"

namespace proteus {

std::string escaped(std::string_view text) {
  std::string out;
  for (const char c : repaired_utf8(text)) {
    const auto byte = static_cast<unsigned char>(c);
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      case '\'':
        out += "&#39;";
        break;
      case '\n':
      case '\t':
        out += c;
        break;
      default:
        if (byte < 0x20 || byte == 0x7F) {
          out += "\uFFFD";
        } else {
          out += c;
        }
    }
  }
  return out;
}

std::string coordinate(double value) {
  std::string text = fmt::format("{:.2f}", value);
  text.erase(text.find_last_not_of('0') + 1);
  if (text.ends_with('.')) text.pop_back();
  return text == "-0" ? "0" : text;
}

std::string short_number(double value) {
  if (!std::isfinite(value)) return "–";
  const double size = std::abs(value);
  if (size >= 1000 && size < 1e15 && value == std::floor(value)) {
    std::string digits = fmt::format("{:.0f}", size);
    for (auto at = static_cast<std::ptrdiff_t>(digits.size()) - 3; at > 0; at -= 3) {
      digits.insert(static_cast<std::size_t>(at), ",");
    }
    return (value < 0 ? "-" : "") + digits;
  }
  return fmt::format("{:.4g}", value);
}

std::string bytes_text(double value) {
  constexpr double kMost = 9e18;
  return value >= 0 && value < kMost ? format_bytes(static_cast<std::int64_t>(value)) : "–";
}

}  // namespace proteus
