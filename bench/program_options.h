// What stands behind the name of a benchmark.
#pragma once

#include <string>
#include <string_view>

namespace proteus::bench {

/// The word after `name`.
inline std::string option(int argc, char** argv, std::string_view name, const char* standard = "") {
  for (int i = 1; i + 1 < argc; ++i) {
    if (argv[i] == name) return argv[i + 1];
  }
  return standard;
}

inline bool flag(int argc, char** argv, std::string_view name) {
  for (int i = 1; i < argc; ++i) {
    if (argv[i] == name) return true;
  }
  return false;
}

}  // namespace proteus::bench
