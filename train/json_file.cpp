#include "train/json_file.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <set>
#include <vector>

#include "tensor/error.h"

namespace proteus {
namespace {

using nlohmann::json;

/// Reads a text without keeping it. (A callback of json::parse() could check the same; with one,
/// that looks through a whole list at every object that ends in it.)
class Checker : public nlohmann::json_sax<json> {
 public:
  explicit Checker(const std::string& source) : source_(source) {}

  bool null() override { return true; }
  bool boolean(bool) override { return true; }
  bool number_integer(number_integer_t) override { return true; }
  bool number_unsigned(number_unsigned_t) override { return true; }
  bool number_float(number_float_t, const string_t&) override { return true; }
  bool string(string_t&) override { return true; }
  bool binary(binary_t&) override { return true; }
  bool start_object(std::size_t) override { return open(); }
  bool start_array(std::size_t) override { return open(); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }
  bool key(string_t& name) override {
    if (!keys_.back().insert(name).second) {
      throw FileError(fmt::format("{}: JSON with a key twice: {}", source_, json(name).dump()));
    }
    return true;
  }
  bool parse_error(std::size_t at, const std::string&,
                   const nlohmann::detail::exception&) override {
    throw FileError(fmt::format("{}: not JSON: byte {}", source_, at));
  }

 private:
  bool open() {
    if (keys_.size() == kMaxJsonDepth) {
      throw FileError(fmt::format("{}: JSON nested more than {} deep", source_, kMaxJsonDepth));
    }
    keys_.emplace_back();
    return true;
  }
  bool close() {
    keys_.pop_back();
    return true;
  }

  const std::string& source_;
  std::vector<std::set<std::string>> keys_;  // of the objects and lists that are open
};

}  // namespace

json parse_json_file(std::string_view text, const std::string& source) {
  if (text.size() > kMaxJsonBytes) {
    throw FileError(fmt::format("{}: expected at most {} bytes of JSON, got {}", source,
                                kMaxJsonBytes, text.size()));
  }
  Checker checker(source);
  json::sax_parse(text, &checker);
  return json::parse(text);
}

}  // namespace proteus
