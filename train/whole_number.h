// Whole numbers in headers of files.
#pragma once

#include <cstdint>
#include <string_view>

namespace proteus {

/// A parsed number, or what is wrong with it.
struct WholeNumber {
  std::uint64_t value = 0;
  const char* fault = nullptr;
};

/// Decimal digits of `text` from `at` on, which moves behind them: no sign, no leading 0, at most
/// 2^63 − 1.
WholeNumber parse_whole_number(std::string_view text, std::size_t& at);

}  // namespace proteus
