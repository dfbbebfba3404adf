// safetensors files. The input is a whole file; the mutator changes its JSON and then makes the
// length in front of it right again, so that the fuzzer spends its time behind that check.
#include <algorithm>
#include <nlohmann/json.hpp>
#include <random>
#include <string>

#include "tests/fuzz/fuzz.h"
#include "train/safetensors.h"

extern "C" std::size_t LLVMFuzzerMutate(std::uint8_t* data, std::size_t size, std::size_t most);

namespace {

using namespace proteus;

constexpr std::size_t kPrefix = 8;

std::uint64_t header_length(std::string_view file) {
  std::uint64_t length = 0;
  for (std::size_t i = kPrefix; i-- > 0;) {
    length = length << 8 | static_cast<unsigned char>(file[i]);
  }
  return length;
}

/// An accepted header says the same to another JSON parser.
void compare(const detail::SafetensorsHeader& header, std::string_view json) {
  const auto other = nlohmann::json::parse(json);
  std::size_t tensors = other.size();
  if (other.contains("__metadata__")) --tensors;
  fuzz::require(tensors == header.entries.size());
  for (const detail::HeaderEntry& entry : header.entries) {
    const auto& there = other.at(std::string(entry.name));
    fuzz::require(there.at("dtype") == name_of(entry.dtype));
    fuzz::require(there.at("data_offsets").at(0) == entry.begin);
    fuzz::require(there.at("data_offsets").at(1) == entry.end);
    fuzz::require(there.at("shape").size() == entry.rank);
    for (std::size_t i = 0; i < entry.rank; ++i) {
      fuzz::require(there.at("shape").at(i) == header.sizes.at(entry.shape_at + i));
    }
  }
}

/// Puts another number in the place of one of the header's.
void change_number(std::string& json, std::minstd_rand& random) {
  std::size_t at = random() % json.size();
  while (at < json.size() && (json[at] < '0' || json[at] > '9')) ++at;
  std::size_t end = at;
  while (end < json.size() && json[end] >= '0' && json[end] <= '9') ++end;
  if (at == end) return;
  constexpr const char* kNumbers[] = {"0",          "1",
                                      "2",          "8",
                                      "4294967296", "9223372036854775807",
                                      "-1",         "18446744073709551616",
                                      "1e3",        "4611686018427387904"};
  json.replace(at, end - at, kNumbers[random() % std::size(kNumbers)]);
}

/// Repeats a member, or takes one away.
void change_member(std::string& json, std::minstd_rand& random) {
  const std::size_t begin = json.find(",\"", random() % json.size());
  if (begin == std::string::npos) return;
  std::size_t end = json.find(",\"", begin + 1);
  if (end == std::string::npos) end = json.size() - 1;
  if (random() % 2 == 0) {
    json.insert(end, json.substr(begin, end - begin));
  } else {
    json.erase(begin, end - begin);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view file = fuzz::text_of(data, size);
  if (size < kPrefix) return 0;
  const std::uint64_t length = header_length(file);
  if (length > size - kPrefix) return 0;
  const std::string_view json = file.substr(kPrefix, length);
  fuzz::accepts([&] {
    const auto header =
        detail::parse_safetensors_header(json, size - kPrefix - length, "fuzz.safetensors");
    compare(header, json);
  });
  return 0;
}

extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size,
                                               std::size_t most, unsigned seed) {
  std::minstd_rand random(seed);
  const std::string_view file = fuzz::text_of(data, size);
  if (size < kPrefix + 2 || header_length(file) > size - kPrefix || random() % 16 == 0) {
    return LLVMFuzzerMutate(data, size, most);
  }
  std::string json(file.substr(kPrefix, header_length(file)));
  std::string rest(file.substr(kPrefix + json.size()));
  if (json.empty()) json = "{}";
  switch (random() % 4) {
    case 0:
      change_number(json, random);
      break;
    case 1:
      change_member(json, random);
      break;
    case 2:
      rest.resize(random() % 64);
      break;
    default:
      json.resize(json.size() + 32, ' ');
      json.resize(LLVMFuzzerMutate(reinterpret_cast<std::uint8_t*>(json.data()), json.size() - 32,
                                   json.size()));
  }
  std::string out(kPrefix, '\0');
  for (std::size_t i = 0; i < kPrefix; ++i) out[i] = static_cast<char>(json.size() >> (8 * i));
  out += json + rest;
  const std::size_t kept = std::min(out.size(), most);
  std::copy_n(out.begin(), kept, reinterpret_cast<char*>(data));
  return kept;
}
