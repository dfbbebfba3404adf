#include "train/json_file.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <set>
#include <vector>

#include "tensor/error.h"

namespace proteus {

using nlohmann::json;

json parse_json_file(std::string_view text, const std::string& source) {
  if (text.size() > kMaxJsonBytes) {
    throw FileError(fmt::format("{}: expected at most {} bytes of JSON, got {}", source,
                                kMaxJsonBytes, text.size()));
  }
  std::vector<std::set<std::string>> keys;  // of the objects that are open
  const auto watch = [&](int depth, json::parse_event_t event, json& value) {
    if (depth > kMaxJsonDepth) {
      throw FileError(fmt::format("{}: JSON nested more than {} deep", source, kMaxJsonDepth));
    }
    if (event == json::parse_event_t::object_start) keys.emplace_back();
    if (event == json::parse_event_t::object_end) keys.pop_back();
    if (event == json::parse_event_t::key && !keys.back().insert(value.get<std::string>()).second) {
      throw FileError(fmt::format("{}: JSON with a key twice: {}", source, value.dump()));
    }
    return true;
  };
  try {
    return json::parse(text, watch);
  } catch (const json::exception& error) {
    throw FileError(fmt::format("{}: not JSON: byte {}", source,
                                dynamic_cast<const json::parse_error*>(&error)
                                    ? static_cast<const json::parse_error&>(error).byte
                                    : 0));
  }
}

}  // namespace proteus
