// Headers of .npy files: what is taken, and what is refused and how. tests/fuzz/npy_fuzz.cpp looks
// for what nobody thought of.
#include "train/npy.h"

#include <gtest/gtest.h>

#include "tensor/error.h"
#include "tests/error_text.h"

namespace proteus {
namespace {

using testing::message_of;

std::string npy(const std::string& header, std::size_t data, char version = 1) {
  std::string file = "\x93NUMPY";
  file += version;
  file += '\0';
  const std::size_t length_bytes = version == 1 ? 2 : 4;
  for (std::size_t i = 0; i < length_bytes; ++i) {
    file += static_cast<char>(header.size() >> (8 * i) & 0xFF);
  }
  return file + header + std::string(data, '\0');
}

std::string with(const std::string& shape, const std::string& descr = "<f4") {
  return "{'descr': '" + descr + "', 'fortran_order': False, 'shape': " + shape + ", }";
}

TEST(Npy, ReadsHeadersOfAllVersions) {
  for (const char version : {char{1}, char{2}, char{3}}) {
    const std::string file = npy(with("(2, 3)"), 24, version);
    const NpyInfo info = parse_npy(file, "a.npy");
    EXPECT_EQ(info.shape, (std::vector<std::int64_t>{2, 3}));
    EXPECT_EQ(info.descr, "<f4");
    EXPECT_EQ(info.element_bytes, 4u);
    EXPECT_EQ(info.data_at, file.size() - 24);
    EXPECT_FALSE(info.fortran_order);
  }
  EXPECT_EQ(parse_npy(npy(with("()"), 4), "a").shape.size(), 0u);
  EXPECT_EQ(parse_npy(npy(with("(0, 9223372036854775807)", "|i1"), 0), "a").shape.size(), 2u);
}

struct BadHeader {
  std::string header;
  std::size_t data;
  const char* says;
};

TEST(Npy, RefusesWhatIsNotOfTheFormat) {
  const BadHeader cases[] = {
      {"", 4, "expected '{'"},
      {"{", 4, "expected a string"},
      {"{}", 0, "expected descr, fortran_order and shape"},
      {with("(2,)") + "x", 8, "text behind"},
      {"{'descr': '<f4', 'descr': '<f4'}", 0, "'descr' twice"},
      {"{'dtype': '<f4'}", 0, "an unknown key 'dtype'"},
      {"{'descr': '<f4", 0, "not closed"},
      {"{'fortran_order': 1}", 0, "expected True or False"},
      {with("(-1,)"), 4, "expected a whole number of at least 0"},
      {with("(1.5,)"), 4, "expected ')'"},
      {with("(01,)"), 4, "a number with a leading 0"},
      {with("(9223372036854775808,)"), 4, "a number that overflows"},
      {with("(99999999999999999999999999,)"), 4, "a number that overflows"},
      {with("(4611686018427387904, 4)"), 0, "a shape that overflows"},
      {with("(0, 4611686018427387904)"), 0, "a shape that overflows"},
      {with("(2,)"), 7, "expected 8 bytes behind its header, got 7"},
      {with("(2,)"), 9, "expected 8 bytes behind its header, got 9"},
      {with("(1,)", "|O8"), 8, "expected a plain number as its type, got |O8"},
      {with("(1,)", "<f0"), 0, "expected a plain number as its type, got <f0"},
      {with("(1,)", "<f4294967296"), 4, "expected a plain number"},
  };
  for (const BadHeader& bad : cases) {
    const std::string message =
        message_of<FileError>([&] { parse_npy(npy(bad.header, bad.data), "a.npy"); });
    EXPECT_TRUE(message.starts_with("a.npy: not a valid .npy file: ")) << message;
    EXPECT_NE(message.find(bad.says), std::string::npos) << bad.header << ": " << message;
  }
  EXPECT_THROW(parse_npy(npy(with("(1,)"), 4, 4), "a"), FileError) << "version 4";
  std::string many = "(";
  for (int i = 0; i < 65; ++i) many += "1,";
  EXPECT_THROW(parse_npy(npy(with(many + ")"), 4), "a"), FileError);
  const std::string whole = npy(with("(2, 3)"), 24);
  for (std::size_t n = 0; n < whole.size(); ++n) {
    EXPECT_THROW(parse_npy(whole.substr(0, n), "a"), FileError) << n;
  }
}

}  // namespace
}  // namespace proteus
