#include "train/whole_number.h"

#include <limits>

namespace proteus {

WholeNumber parse_whole_number(std::string_view text, std::size_t& at) {
  constexpr std::uint64_t kMost = std::numeric_limits<std::int64_t>::max();
  const std::size_t begin = at;
  WholeNumber number;
  for (; at < text.size() && text[at] >= '0' && text[at] <= '9'; ++at) {
    const auto digit = static_cast<std::uint64_t>(text[at] - '0');
    if (number.value > (kMost - digit) / 10) return {0, "a number that overflows"};
    number.value = number.value * 10 + digit;
  }
  if (at == begin) return {0, "expected a whole number of at least 0"};
  if (text[begin] == '0' && at - begin > 1) return {0, "a number with a leading 0"};
  return number;
}

}  // namespace proteus
