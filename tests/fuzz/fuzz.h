// What the fuzz targets share. A parser may refuse its input with one of the errors it promises;
// anything else that leaves it is a finding, as are faults that the sanitizers see.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <optional>
#include <string_view>

#include "tensor/error.h"

namespace proteus::fuzz {

inline std::string_view text_of(const std::uint8_t* data, std::size_t size) {
  return {reinterpret_cast<const char*>(data), size};
}

/// Whether `parse` takes the input. Only FileError and ConfigError say that it does not.
template <class F>
bool accepts(F&& parse) {
  try {
    parse();
    return true;
  } catch (const FileError&) {
    return false;
  } catch (const ConfigError&) {
    return false;
  }
}

/// What `parse` makes of the input, or nothing where it refuses it. What comes of it afterwards is
/// outside: there an error is a finding.
template <class F>
auto accepted(F&& parse) {
  std::optional<decltype(parse())> result;
  accepts([&] { result.emplace(parse()); });
  return result;
}

/// Ends the run as a finding.
inline void require(bool holds) {
  if (!holds) std::abort();
}

}  // namespace proteus::fuzz
