// JSON that comes from a file: size, depth and keys are bounded before it becomes objects, which
// need many times the memory of the text.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

namespace proteus {

constexpr std::size_t kMaxJsonBytes = std::size_t{16} << 20;
constexpr int kMaxJsonDepth = 16;

/// Throws FileError "source: …" when the text is not JSON, too long, too deep, or has a key twice
/// in one object.
nlohmann::json parse_json_file(std::string_view text, const std::string& source);

}  // namespace proteus
