// JSON of files: what is refused before it becomes objects, and how long that takes.
#include "train/json_file.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "tensor/error.h"
#include "tests/error_text.h"

namespace proteus {
namespace {

using testing::message_of;

std::string refused(const std::string& text) {
  return message_of<FileError>([&] { parse_json_file(text, "a.json"); });
}

TEST(JsonFile, IsReadAsItStands) {
  EXPECT_EQ(parse_json_file(R"({"a": [1, -2, 3.5, null, true, "x"], "b": {"a": {}}})", "a").dump(),
            R"({"a":[1,-2,3.5,null,true,"x"],"b":{"a":{}}})");
  EXPECT_EQ(parse_json_file(R"([{"a":1},{"a":2}])", "a").size(), 2u) << "keys of other objects";
}

TEST(JsonFile, RefusesWhatIsNot) {
  EXPECT_EQ(refused(""), "a.json: not JSON: byte 1");
  EXPECT_EQ(refused("{\"a\":}"), "a.json: not JSON: byte 6");
  EXPECT_EQ(refused("{} {}"), "a.json: not JSON: byte 4");
  EXPECT_TRUE(refused("1e999").starts_with("a.json: not JSON: byte "));
  EXPECT_TRUE(refused("\"\xFF\"").starts_with("a.json: not JSON: byte "));
  EXPECT_EQ(refused(R"({"b":{"a":1,"\u0061":2}})"), "a.json: JSON with a key twice: \"a\"");
  const auto nested = [](int depth) {
    const auto n = static_cast<std::size_t>(depth);
    return std::string(n, '[') + std::string(n, ']');
  };
  EXPECT_NO_THROW(parse_json_file(nested(kMaxJsonDepth), "a"));
  EXPECT_EQ(refused(nested(kMaxJsonDepth + 1)), "a.json: JSON nested more than 16 deep");
  EXPECT_EQ(refused(std::string(1'000'000, '[')), "a.json: JSON nested more than 16 deep");
  EXPECT_EQ(refused(std::string(kMaxJsonBytes + 1, ' ')),
            "a.json: expected at most 16777216 bytes of JSON, got 16777217");
}

// What looks through the list at each of them takes hours.
TEST(JsonFile, AMillionObjectsInAListTakeNoSquareOfTheirNumber) {
  constexpr int kObjects = 1 << 20;
  std::string text = "[{}";
  for (int i = 1; i < kObjects; ++i) text += ",{}";
  EXPECT_EQ(parse_json_file(text + "]", "a").size(), static_cast<std::size_t>(kObjects));
}

}  // namespace
}  // namespace proteus
