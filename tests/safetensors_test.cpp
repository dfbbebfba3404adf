// The safetensors format: what the real package writes is read, what is written here it reads, and
// what is not a well-formed file is a FileError.
#include "train/safetensors.h"

#include <gtest/gtest.h>
#include <sys/wait.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>

#include "tensor/error.h"
#include "tests/error_text.h"
#include "tests/temporary_folder.h"
#include "train/file_ops.h"
#include "train/half.h"

namespace proteus {
namespace {

using testing::message_of;
using testing::TemporaryFolder;
using Values = std::vector<double>;

std::string fixture(const std::string& name) {
  return std::string(PROTEUS_FIXTURES) + "/safetensors/" + name + ".safetensors";
}

/// A file of a header and `data_bytes` zeros, whatever the header says.
std::string raw_file(std::string_view header, std::size_t data_bytes) {
  std::string text(8, '\0');
  for (std::size_t i = 0; i < 8; ++i) text[i] = static_cast<char>(header.size() >> (8 * i) & 0xFF);
  return text + std::string(header) + std::string(data_bytes, '\0');
}

constexpr const char* kWritten[][2] = {{"float64", "F64"}, {"float32", "F32"}, {"float16", "F16"},
                                       {"int64", "I64"},   {"int32", "I32"},   {"int16", "I16"},
                                       {"int8", "I8"},     {"uint64", "U64"},  {"uint32", "U32"},
                                       {"uint16", "U16"},  {"uint8", "U8"},    {"bool", "BOOL"}};

TEST(Safetensors, ReadsEveryTypeOfTheRealPackage) {
  const SafetensorsFile file(fixture("every_dtype"));
  EXPECT_EQ(file.count(), std::ssize(kWritten));
  EXPECT_EQ(file.metadata().at("format"), "np");
  EXPECT_EQ(file.metadata().at("made by"), "a \"test\" — ünï\n");
  for (const auto& [name, dtype] : kWritten) {
    const std::int64_t i = file.find(name);
    ASSERT_GE(i, 0) << name;
    const TensorInfo info = file.info(i);
    EXPECT_EQ(name_of(info.dtype), dtype);
    EXPECT_EQ(info.shape, (Shape{2, 3}));
    EXPECT_EQ(file.bytes(i).size(), 6 * size_of(info.dtype));
    if (info.dtype == FileDType::u64) {
      EXPECT_NE(message_of<FileError>([&] { file.read(i); }).find("\"uint64\" is of dtype U64"),
                std::string::npos);
      continue;
    }
    const bool negative = name[0] == 'f' || name[0] == 'i';
    const bool boolean = info.dtype == FileDType::boolean;
    EXPECT_EQ(file.read(i).to_vector(), boolean    ? (Values{0, 1, 1, 1, 1, 1})
                                        : negative ? (Values{-2, -1, 0, 1, 2, 3})
                                                   : (Values{0, 1, 2, 3, 4, 5}))
        << name;
  }
}

TEST(Safetensors, ReadsTheEdgesOfTheRealPackage) {
  EXPECT_EQ(SafetensorsFile(fixture("nothing")).count(), 0);
  const SafetensorsFile edges(fixture("edges"));
  EXPECT_EQ(edges.read("scalar").shape(), Shape{});
  EXPECT_EQ(edges.read("scalar").item(), 2.5);
  EXPECT_EQ(edges.read("empty").shape(), (Shape{0, 3}));
  EXPECT_EQ(edges.read("ünï.☃.\"quoted\"\\").to_vector(), (Values{1, 2, 3}));
  EXPECT_EQ(edges.find("absent"), -1);
  EXPECT_EQ(message_of<FileError>([&] { edges.read("absent"); }),
            fixture("edges") + ": \"absent\" is missing");
  const Values halves = SafetensorsFile(fixture("halves")).read(0).to_vector();
  EXPECT_EQ(Values(halves.begin(), halves.begin() + 5),
            (Values{0x1p-24, 0x3FFp-24, 0x1p-14, 65504, -0x1p-24}));
  EXPECT_EQ(halves[5], -std::numeric_limits<double>::infinity());
  EXPECT_TRUE(std::isnan(halves[6]));
  EXPECT_EQ(halves[7], 1 + 0x1p-10);
  const Tensor b = SafetensorsFile(fixture("bf16")).read("b");
  EXPECT_EQ(b.dtype(), DType::bf16);
  EXPECT_EQ(b.to_vector(), (Values{1, -2, 3.140625}));
}

TEST(Half, RoundsToNearestEvenAndBack) {
  for (std::uint32_t h = 0; h < 0x10000; ++h) {
    const auto half = static_cast<std::uint16_t>(h);
    const float value = float_of_half(half);
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(float_of_half(half_of_float(value))));
      continue;
    }
    ASSERT_EQ(half_of_float(value), half) << h;
    // Halfway to the next one away from zero goes to the even neighbour, a little less to this one.
    if ((h & 0x7FFF) >= 0x7BFF) continue;
    const float next = float_of_half(static_cast<std::uint16_t>(h + 1));
    const float middle = value + (next - value) / 2;
    ASSERT_EQ(half_of_float(middle), h % 2 == 0 ? h : h + 1) << h;
    ASSERT_EQ(half_of_float(std::nextafter(middle, value)), h) << h;
  }
  EXPECT_EQ(half_of_float(65519.9f), 0x7BFF);
  EXPECT_EQ(half_of_float(65520.0f), 0x7C00);
}

std::vector<OutputTensor> one_of_each() {
  const auto make = [](const char* name, FileDType dtype, DType from) {
    return OutputTensor{name, Tensor::from({0, 1, 0, 1, 1, 0}, {3, 2}, from), dtype};
  };
  std::vector<OutputTensor> list = {
      make("f64", FileDType::f64, DType::f32),     make("f32", FileDType::f32, DType::f64),
      make("bf16", FileDType::bf16, DType::f32),   make("f16", FileDType::f16, DType::bf16),
      make("i64", FileDType::i64, DType::f32),     make("i32", FileDType::i32, DType::i64),
      make("i16", FileDType::i16, DType::i32),     make("i8", FileDType::i8, DType::i64),
      make("u64", FileDType::u64, DType::i64),     make("u32", FileDType::u32, DType::f64),
      make("u16", FileDType::u16, DType::i32),     make("u8", FileDType::u8, DType::i8),
      make("bool", FileDType::boolean, DType::i32)};
  list.push_back({"scalar", Tensor::scalar(7), FileDType::f32});
  list.push_back({"empty", Tensor::zeros({0, 4}), FileDType::f32});
  list.push_back({"transposed", Tensor::arange(6, DType::f32).reshape({2, 3}).transpose(0, 1),
                  FileDType::f16});
  return list;
}

TEST(Safetensors, WritesEveryTypeAndReadsItBack) {
  const TemporaryFolder folder;
  const std::string path = folder.file("t");
  const FileStamp stamp = write_safetensors(path, one_of_each(), {{"made by", "a \"test\""}});
  EXPECT_EQ(stamp.bytes, std::filesystem::file_size(path));
  EXPECT_EQ(stamp.hash, file_hash(folder.read("t")));
  const SafetensorsFile file(path);
  EXPECT_EQ(file.metadata(), (Metadata{{"made by", "a \"test\""}}));
  ASSERT_EQ(file.count(), std::ssize(one_of_each()));
  for (const OutputTensor& t : one_of_each()) {
    const std::int64_t i = file.find(t.name);
    EXPECT_EQ(file.info(i).dtype, t.dtype);
    EXPECT_EQ(file.info(i).shape, t.tensor.shape());
    if (t.dtype == FileDType::u64) continue;  // no tensor holds them
    EXPECT_EQ(file.read(i).to_vector(), t.tensor.to_vector());
  }
}

TEST(Safetensors, TheRealPackageReadsWhatIsWritten) {
  const char* named = std::getenv("PROTEUS_PYTHON");
  const std::string python = named ? named : "python3";
  const auto succeeds = [](const std::string& command) {
    return std::system((command + " 2>/dev/null").c_str()) == 0;  // NOLINT(cert-env33-c)
  };
  if (!succeeds(python + " -c 'import safetensors, numpy'")) {
    GTEST_SKIP() << python << " has no safetensors and numpy; name one that has in PROTEUS_PYTHON";
  }
  const TemporaryFolder folder;
  write_safetensors(folder.file("t"), one_of_each(), {{"key", "ünï \"quoted\""}});
  ASSERT_TRUE(succeeds(python + " " PROTEUS_FIXTURES "/read_safetensors.py " + folder.file("t") +
                       " > " + folder.file("seen")));
  const auto seen = nlohmann::json::parse(folder.read("seen"));
  EXPECT_EQ(seen.at("metadata").at("key"), "ünï \"quoted\"");
  EXPECT_EQ(seen.size(), one_of_each().size() + 1);
  for (const OutputTensor& t : one_of_each()) {
    const auto& entry = seen.at(t.name);
    EXPECT_EQ(entry.at("dtype"), name_of(t.dtype));
    EXPECT_EQ(entry.at("shape").get<std::vector<std::int64_t>>(),
              std::vector<std::int64_t>(t.tensor.shape().begin(), t.tensor.shape().end()));
    if (t.dtype == FileDType::bf16) continue;  // numpy has none
    EXPECT_EQ(entry.at("values").get<Values>(), t.tensor.to_vector()) << t.name;
  }
}

TEST(Safetensors, RefusesToWriteWhatATypeDoesNotHold) {
  const TemporaryFolder folder;
  const auto refusal = [&](double value, FileDType dtype, DType from = DType::f64) {
    return message_of<FileError>([&] {
      write_safetensors(folder.file("t"),
                        std::vector<OutputTensor>{{"x", Tensor::scalar(value, from), dtype}});
    });
  };
  EXPECT_EQ(refusal(70000, FileDType::i16),
            folder.file("t") + ": \"x\" as I16: 70000 does not fit");
  EXPECT_NE(refusal(-1, FileDType::u64, DType::i32), "");
  EXPECT_NE(refusal(0.5, FileDType::i32), "");
  EXPECT_NE(refusal(std::nan(""), FileDType::i64), "");
  EXPECT_NE(refusal(1e300, FileDType::i64), "");
  EXPECT_NE(refusal(2, FileDType::boolean), "");
  EXPECT_NE(refusal(1, FileDType::f8_e4m3), "");
  const auto named = [&](const std::string& a, const std::string& b) {
    const Tensor x = Tensor::scalar(1);
    return message_of<FileError>([&] {
      write_safetensors(folder.file("t"), NamedTensors{{a, x}, {b, x}});
    });
  };
  EXPECT_NE(named("a", "a").find("\"a\" twice"), std::string::npos);
  EXPECT_NE(named("a", "\xFF").find("UTF-8"), std::string::npos);
  EXPECT_NE(named("a", "b\n").find("control character"), std::string::npos);
  EXPECT_NE(named("a", std::string(2000, 'x')).find("1024 bytes"), std::string::npos);
  EXPECT_NE(named("a", "__metadata__"), "");
}

struct BadFile {
  const char* header;
  std::size_t data;
  const char* says;
};

TEST(Safetensors, RefusesWhatIsNotOfTheFormat) {
  const TemporaryFolder folder;
#define X(shape, offsets) R"({"x":{"dtype":"F32","shape":)" shape R"(,"data_offsets":)" offsets "}}"
  const BadFile cases[] = {
      {"", 0, "does not begin with '{'"},
      {"[]", 0, "does not begin with '{'"},
      {" {}", 0, "does not begin with '{'"},
      {"{", 0, "expected '\"'"},
      {"{}}", 0, "behind the header's last '}'"},
      {"{}", 4, "its tensors have 0 bytes, the file 4"},
      {R"({"x":7})", 0, "expected '{'"},
      {R"({"x":{}})", 0, "expected '\"'"},
      {R"({"x":{"dtype":"F32"}})", 0, "\"x\" lacks dtype, shape or data_offsets"},
      {R"({"x":{"dtype":"F32","dtype":"F32"}})", 0, "\"x\" has dtype twice"},
      {R"({"x":{"type":"F32"}})", 0, "\"x\" has a key that the format does not know: type"},
      {R"({"x":{"dtype":"F33","shape":[],"data_offsets":[0,4]}})", 4, "unknown dtype F33"},
      {X("[1]", "[0,8]"), 8, "\"x\" has data_offsets that do not fit its shape"},
      {X("[2]", "[0,8]"), 4, "\"x\" ends behind the end of the file"},
      {X("[2]", "[8,0]"), 8, "do not fit its shape"},
      {X("[1]", "[4,8]"), 8, "\"x\" overlaps another tensor or leaves a hole"},
      {X("[-1]", "[0,4]"), 4, "expected a whole number"},
      {X("[1.0]", "[0,4]"), 4, "expected ']'"},
      {X("[1e0]", "[0,4]"), 4, "expected ']'"},
      {X("[01]", "[0,4]"), 4, "leading 0"},
      {X("[9223372036854775808]", "[0,4]"), 4, "a number that overflows"},
      {X("[4611686018427387904,4]", "[0,0]"), 0, "\"x\" has a shape that overflows"},
      {X("[0,4611686018427387904,4]", "[0,0]"), 0, "\"x\" has a shape that overflows"},
      {X("[1,1,1,1,1,1,1,1,1]", "[0,4]"), 4, "\"x\" has more than 8 dimensions"},
      {X("[1]", "[0,4,4]"), 4, "expected ']'"},
      {R"({"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
       R"("x":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
       2, "\"x\" twice"},
      {R"({"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
       R"("\u0078":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
       2, "\"x\" twice"},
      {R"({"x":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},)"
       R"("y":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}})",
       3, "\"y\" overlaps"},
      {R"({"a\nb":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 1, "control character"},
      {"{\"\xC0\x80\":{", 0, "not UTF-8"},
      {R"({"\uD800x":{)", 0, "half of a surrogate pair"},
      {R"({"\u12)", 0, "a \\u escape is cut"},
      {R"({"\q":{)", 0, "an unknown escape"},
      {R"({"__metadata__":{"a":1}})", 0, "expected '\"'"},
      {R"({"__metadata__":{"a":"1","a":"2"}})", 0, "\"a\" twice"},
      {R"({"__metadata__":{},"__metadata__":{}})", 0, "__metadata__ twice"},
  };
#undef X
  for (const BadFile& bad : cases) {
    const std::string path = folder.write("bad", raw_file(bad.header, bad.data));
    const std::string message = message_of<FileError>([&] { SafetensorsFile{path}; });
    EXPECT_TRUE(message.starts_with(path + ": not a valid safetensors file: ")) << message;
    EXPECT_NE(message.find(bad.says), std::string::npos) << bad.header << ": " << message;
  }
  EXPECT_THROW(SafetensorsFile{folder.file("absent")}, FileError);
  EXPECT_THROW(SafetensorsFile{folder.path()}, FileError);
  EXPECT_THROW(SafetensorsFile{folder.write("short", "1234567")}, FileError);
  EXPECT_THROW(SafetensorsFile{folder.write("long", std::string(8, '\xFF') + "{}")}, FileError);
}

TEST(Safetensors, TakesWhatIsUnusualButOfTheFormat) {
  const TemporaryFolder folder;
  const std::string header =
      "{ \"b\" : {\n\"data_offsets\":[0, 4],\"shape\":[ 1,1 ],\t\"dtype\":\"F32\"} , "
      "\"__metadata__\":{\"k\":\"\\ud83d\\ude00\\t\"}, "
      "\"\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[4,4]}}   ";
  const SafetensorsFile file(folder.write("odd", raw_file(header, 4)));
  EXPECT_EQ(file.count(), 2);
  EXPECT_EQ(file.metadata().at("k"), "😀\t");
  EXPECT_EQ(file.read("b").shape(), (Shape{1, 1}));
  EXPECT_EQ(file.read("").numel(), 0);
}

TEST(Safetensors, CutFilesAreFileErrors) {
  const TemporaryFolder folder;
  const std::string path = folder.file("t");
  write_safetensors(path, NamedTensors{{"a", Tensor::arange(5)}, {"b", Tensor::zeros({2, 3})}});
  const std::string whole = folder.read("t");
  for (std::size_t n = 0; n < whole.size(); ++n) {
    const std::string cut = folder.write("cut", whole.substr(0, n));
    EXPECT_THROW(read_safetensors(cut), FileError) << n;
  }
  EXPECT_THROW(read_safetensors(folder.write("more", whole + '\0')), FileError);
}

}  // namespace
}  // namespace proteus
