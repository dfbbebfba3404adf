// The streamed pass: rows from every source, staged in every way, and what must not depend on it.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <limits>

#include "tensor/error.h"
#include "tests/aspa_layers.h"
#include "tests/error_text.h"
#include "tests/fake_device.h"
#include "tests/temporary_folder.h"
#include "train/memory.h"
#include "train/random_rows.h"
#include "train/safetensors.h"
#include "train/stream_pass.h"

namespace proteus {
namespace {

namespace fs = std::filesystem;
using testing::message_of;
using testing::same_bits;
using testing::TemporaryFolder;
using testing::TestLayer;

std::vector<float> random_rows(std::int64_t first, std::int64_t n, std::int64_t C) {
  std::vector<float> out(static_cast<std::size_t>(n * C));
  normal_rows({5, 9}, first, n, C, out.data());
  return out;
}

TEST(RandomRows, ARowIsAFunctionOfItsNumber) {
  for (const std::int64_t C : {1, 6, 128, 133}) {
    const auto all = random_rows(0, 300, C);
    const auto part = random_rows(170, 130, C);
    EXPECT_TRUE(std::equal(part.begin(), part.end(), all.begin() + 170 * C)) << C;
  }
  set_num_threads(3);
  const auto three = random_rows(0, 500, 37);
  set_num_threads(1);
  EXPECT_EQ(three, random_rows(0, 500, 37));
  set_num_threads(0);
}

TEST(RandomRows, AreStandardNormal) {
  const auto x = random_rows(0, 4000, 64);
  const auto n = static_cast<double>(x.size());
  double sum = 0;
  double square = 0;
  double fourth = 0;
  double neighbours = 0;
  double beyond = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double v = x[i];
    sum += v;
    square += v * v;
    fourth += v * v * v * v;
    beyond += std::abs(v) > 2 ? 1 : 0;
    if (i > 0) neighbours += v * x[i - 1];
  }
  EXPECT_NEAR(sum / n, 0, 5 / std::sqrt(n));
  EXPECT_NEAR(square / n, 1, 5 * std::sqrt(2 / n));
  EXPECT_NEAR(fourth / n, 3, 5 * std::sqrt(96 / n));
  EXPECT_NEAR(neighbours / n, 0, 5 / std::sqrt(n));
  EXPECT_NEAR(beyond / n, 0.0455, 5 * std::sqrt(0.0455 / n));
}

// Philox integers through the definition, in f64: the layout of counters is part of the promise.
TEST(RandomRows, AreBoxMullerOfPhilox) {
  const auto row = random_rows(7, 1, 256);
  for (std::int64_t c = 0; c < 256; ++c) {
    const std::int64_t part = c / 128 * 32 + c % 32;  // which counter
    const std::int64_t number = c % 128 / 32;         // which of its four numbers
    const Philox4 p = philox(5, 7, (std::uint64_t{9} << 32) | static_cast<std::uint64_t>(part));
    const std::uint32_t a = p.v[number / 2 * 2];
    const std::uint32_t b = p.v[number / 2 * 2 + 1];
    const double u = (a / 2 + 0.5) * 0x1p-31;
    const double turn = 2 * M_PI * static_cast<std::int32_t>(b) * 0x1p-32;
    const double r = std::sqrt(-2 * std::log(u));
    const double expected = r * (number % 2 == 0 ? std::cos(turn) : std::sin(turn));
    EXPECT_NEAR(row[static_cast<std::size_t>(c)], expected, 1e-5) << c;
  }
}

void write_npy(const std::string& path, const std::string& type, const std::string& shape,
               const void* data, std::size_t bytes, const std::string& fortran = "False") {
  std::string header =
      "{'descr': '" + type + "', 'fortran_order': " + fortran + ", 'shape': (" + shape + "), }";
  header.resize((header.size() + 10 + 1 + 63) / 64 * 64 - 10 - 1, ' ');
  header += '\n';
  std::string text("\x93NUMPY\x01\x00", 8);
  text += static_cast<char>(header.size() & 0xff);
  text += static_cast<char>(header.size() >> 8);
  text += header;
  text.append(static_cast<const char*>(data), bytes);
  std::ofstream(path, std::ios::binary) << text;
}

std::vector<double> all_rows(const RowSource& source) {
  const Tensor block = Tensor::empty({source.rows + 3, source.row_bytes()}, DType::i8);
  const std::int64_t n = source.read(block.raw(), block.size(0));
  EXPECT_EQ(n, source.rows);
  return rows_of(block, n, source.width, source.format).to_vector();
}

TEST(RowSource, ReadsNpyInF32AndF16) {
  const TemporaryFolder folder;
  const std::vector<float> wide = {1, -2.5F, 3e-30F, 4, 5, 6};
  write_npy(folder.file("a.npy"), "<f4", "3, 2", wide.data(), 24);
  EXPECT_EQ(all_rows(embedding_source(folder.file("a.npy"), 2)),
            std::vector<double>(wide.begin(), wide.end()));
  // 1, −2, largest, smallest normal, smallest subnormal, −0, 1/3 rounded, infinity.
  const std::vector<std::uint16_t> half = {0x3c00, 0xc000, 0x7bff, 0x0400,
                                           0x0001, 0x8000, 0x3555, 0x7c00};
  write_npy(folder.file("b.npy"), "<f2", "2, 4", half.data(), 16);
  const std::vector<double> expected = {
      1, -2, 65504, 0x1p-14, 0x1p-24, 0, 0.333251953125, std::numeric_limits<double>::infinity()};
  EXPECT_EQ(all_rows(embedding_source(folder.file("b.npy"), 4)), expected);
}

TEST(RowSource, ReadsSafetensors) {
  const TemporaryFolder folder;
  const Tensor x = Tensor::randn({5, 4}, {1, 1});
  for (const DType dtype : {DType::f32, DType::bf16}) {
    write_safetensors(folder.file("x.safetensors"), NamedTensors{{"x", x.to(dtype)}});
    EXPECT_EQ(all_rows(embedding_source(folder.file("x.safetensors"), 4)), x.to(dtype).to_vector());
  }
}

TEST(RowSource, SaysWhatIsWrongWithAFile) {
  const TemporaryFolder folder;
  const std::vector<float> data(12, 1.0F);
  const auto error = [&](const std::string& name, std::int64_t width = 4) {
    const std::string text =
        message_of<FileError>([&] { embedding_source(folder.file(name), width); });
    return text.substr(std::min(text.size(), folder.file(name).size() + 2));
  };
  EXPECT_EQ(error("missing.npy"), "cannot read: No such file or directory");
  EXPECT_EQ(error("x.csv").substr(0, 8), "cannot r");
  folder.write("x.csv", "1,2");
  EXPECT_EQ(error("x.csv"),
            "expected a file .npy or .safetensors, or - for raw f32 on standard input");
  fs::create_directory(folder.file("d.npy"));
  EXPECT_EQ(error("d.npy"), "is not a regular file; give a pipe as -");
  folder.write("short.npy", "abc");
  EXPECT_EQ(error("short.npy"), "not an .npy file");
  write_npy(folder.file("x.npy"), "<f4", "3, 4", data.data(), 48);
  EXPECT_EQ(error("x.npy", 5), "expected [rows, 5] (= --width), got [3, 4]");
  write_npy(folder.file("x.npy"), "<f4", "12", data.data(), 48);
  EXPECT_EQ(error("x.npy"), "expected [rows, 4] (= --width), got [12]");
  write_npy(folder.file("x.npy"), "<f4", "4, 4", data.data(), 48);
  EXPECT_EQ(error("x.npy"), "its header promises 4 rows of 16 bytes, but 48 bytes follow");
  write_npy(folder.file("x.npy"), "<f4", "0, 4", data.data(), 0);
  EXPECT_EQ(error("x.npy"), "has no rows");
  write_npy(folder.file("x.npy"), "<f8", "3, 2", data.data(), 48);
  EXPECT_EQ(error("x.npy"), "expected an array of f32 or f16 ('<f4', '<f2'), got '<f8'");
  write_npy(folder.file("x.npy"), "<f4", "3, 4", data.data(), 48, "True");
  EXPECT_EQ(error("x.npy"), "expected rows one after the other, got an array in Fortran order");
  write_safetensors(folder.file("x.safetensors"),
                    NamedTensors{{"a", Tensor::zeros({3, 4})}, {"b", Tensor::zeros({3, 4})}});
  EXPECT_EQ(error("x.safetensors"), "expected one tensor [rows, width], got 2");
  folder.write("x.safetensors", std::string("\xff\xff\xff\xff\xff\xff\xff\xff{}", 10));
  EXPECT_EQ(
      error("x.safetensors"),
      "not a valid safetensors file: a header of 18446744073709551615 bytes, expected at most 2");
}

TEST(RowSource, FirstRowsAreThereOrItSaysHowManyAre) {
  EXPECT_EQ(message_of<FileError>([] {
              first_rows(random_source({1, 1}, 5, 4), 6, "text");
            }),
            "text: has 5 rows; expected at least 6 (= --length)");
  RowSource pipe = random_source({1, 1}, 5, 4);
  pipe.rows = -1;
  const RowSource six = first_rows(std::move(pipe), 6, "text");
  const Tensor block = Tensor::empty({8, 16}, DType::i8);
  EXPECT_EQ(message_of<FileError>([&] { six.read(block.raw(), 8); }),
            "text: has 5 rows; expected at least 6 (= --length)");
}

// Writes `n` rows of 8 bytes whose value is their number, in blocks, and reads parts of them.
void stage_and_check(Staging& staging, std::int64_t n, std::int64_t block) {
  for (std::int64_t at = 0; at < n; at += block) {
    const Tensor room = staging.room();
    const std::int64_t rows = std::min(block, n - at);
    for (std::int64_t i = 0; i < rows; ++i) static_cast<std::int64_t*>(room.raw())[i] = at + i;
    staging.commit(rows);
  }
  EXPECT_EQ(staging.rows(), n);
  for (const auto& [first, count] : std::vector<std::pair<std::int64_t, std::int64_t>>{
           {0, n}, {n - 1, 1}, {block - 1, 2}, {block, 0}, {3, 2 * block}}) {
    std::vector<std::int64_t> got(static_cast<std::size_t>(count), -1);
    staging.read(first, count, got.data());
    for (std::int64_t i = 0; i < count; ++i) {
      ASSERT_EQ(got[static_cast<std::size_t>(i)], first + i);
    }
  }
}

TEST(Staging, GivesRowsBackFromMemoryDiskAndBoth) {
  const TemporaryFolder folder;
  struct Case {
    std::int64_t ram_limit, rows;
    bool disk;
  };
  for (const Case& c : {Case{1 << 20, 105, false},
                        {1 << 20, -1, false},
                        {0, 105, true},
                        {839, 105, true},
                        {840, 105, false},
                        {0, -1, true},
                        {300, -1, true}}) {
    Staging staging({8, 10, c.ram_limit, folder.path(), c.rows});
    stage_and_check(staging, 105, 10);
    EXPECT_EQ(staging.on_disk(), c.disk) << c.ram_limit;
    EXPECT_EQ(staging.spilled_bytes(), c.disk ? 840 : 0) << c.ram_limit;
    EXPECT_TRUE(fs::is_empty(folder.path())) << "the file must have no name";
  }
}

TEST(Staging, ReadsAFileThatIsThere) {
  const TemporaryFolder folder;
  std::vector<std::int64_t> rows(106);
  for (std::size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<std::int64_t>(i) - 1;
  folder.write("rows", {reinterpret_cast<const char*>(rows.data()), rows.size() * 8});
  Staging staging({8, 10, 0, folder.path(), 105}, RowFile::existing(folder.file("rows"), 8));
  stage_and_check(staging, 105, 10);
  EXPECT_EQ(staging.spilled_bytes(), 0);
  fs::resize_file(folder.file("rows"), 400);
  std::int64_t row = 0;
  EXPECT_NE(message_of<FileError>([&] {
              staging.read(104, 1, &row);
            }).find("ends at byte 840, 8 bytes early; did it shrink while it was read?"),
            std::string::npos);
}

TEST(Staging, SaysWhereItCannotSpill) {
  const TemporaryFolder folder;
  const std::string gone = folder.file("gone");
  EXPECT_EQ(message_of<OutOfMemory>([&] {
              Staging({8, 10, 0, gone, 100});
            }),
            "--spill-dir " + gone +
                ": cannot make a file: No such file or directory; choose another --spill-dir or a "
                "larger --ram-limit");
  // A text of unknown length finds out when it has grown, and what it had stays readable.
  fs::create_directory(gone);
  Staging staging({8, 10, 200, gone, -1});
  fs::remove(gone);
  staging.room();
  staging.commit(10);
  staging.room();
  staging.commit(10);
  EXPECT_NE(message_of<OutOfMemory>([&] { staging.room(); }).find("cannot make a file"),
            std::string::npos);
  std::int64_t row = 0;
  staging.read(19, 1, &row);
}

constexpr std::int64_t kWidth = 24;
constexpr std::int64_t kBlock = 4096;
constexpr std::int64_t kTokens = 2 * kBlock + 1234;

TEST(StreamPass, BlocksOfWideRowsAreShorter) {
  EXPECT_EQ(stream_block(kWidth), kBlock);
  EXPECT_EQ(stream_block(512), kBlock);
  EXPECT_EQ(stream_block(4096), 1024);
  EXPECT_EQ(stream_block(std::int64_t{1} << 20), 64);
}

AspaConfig layer_config() {
  AspaConfig c;
  c.width = kWidth;
  c.head_width = 8;
  c.shared_heads = 0;
  c.routed_heads = 3;
  c.k = 2;
  c.routing_width = 8;
  c.salience.keep = 0.5;
  return c;
}

struct Streamed {
  std::vector<Winner> winners;
  std::vector<Span> spans;
  std::vector<double> rows;  // of the spans
};

Streamed stream(const RowSource& source, Staging& staging, std::int64_t chunk = 5000,
                Device device = kCpu) {
  const TestLayer layer(layer_config());
  layer->to(device);
  const TokenScorer scorer(*layer, Tensor::randn({4, kWidth}, {3, 1}), true);
  ShortlistConfig c;
  c.buffer = 300;
  c.per_chunk = 150;
  c.top_p = 1;
  c.salience = 0.1;
  Shortlist list(c);
  std::int64_t tokens = 0;
  stream_chunks(source, staging, scorer, chunk, list,
                [&](const ChunkReport& report) { tokens += report.tokens; });
  EXPECT_EQ(tokens, list.tokens());
  Streamed out{list.winners(), list.spans(), {}};
  const Tensor rows = Tensor::empty({tokens_of(out.spans), kWidth});
  read_spans(staging, source, out.spans, rows);
  out.rows = rows.to_vector();
  return out;
}

void expect_same(const Streamed& a, const Streamed& b) {
  ASSERT_EQ(a.winners.size(), b.winners.size());
  for (std::size_t i = 0; i < a.winners.size(); ++i) {
    EXPECT_EQ(a.winners[i].token, b.winners[i].token);
    EXPECT_EQ(a.winners[i].score, b.winners[i].score);
    EXPECT_EQ(a.winners[i].head, b.winners[i].head);
    EXPECT_EQ(a.winners[i].query, b.winners[i].query);
  }
  EXPECT_EQ(a.rows, b.rows);
}

RowSource numbers() { return random_source({5, 9}, kTokens, kWidth); }

StagingConfig staging_config(const TemporaryFolder& folder, std::int64_t ram_limit,
                             std::int64_t rows = kTokens) {
  return {kWidth * 4, kBlock, ram_limit, folder.path(), rows};
}

TEST(StreamPass, KeepsTheSameWhereverTheRowsComeFromAndWait) {
  const TemporaryFolder folder;
  Staging memory(staging_config(folder, std::int64_t{1} << 30));
  const Streamed expected = stream(numbers(), memory);
  ASSERT_EQ(expected.winners.size(), 300u);

  Staging disk(staging_config(folder, 0));
  expect_same(stream(numbers(), disk), expected);
  EXPECT_TRUE(disk.on_disk());

  RowSource pipe = numbers();
  pipe.rows = -1;
  pipe.waits = true;
  Staging both(staging_config(folder, kBlock * kWidth * 4, -1));
  expect_same(stream(pipe, both), expected);
  EXPECT_TRUE(both.on_disk());

  const auto rows = random_rows(0, kTokens, kWidth);
  write_npy(folder.file("x.npy"), "<f4", std::to_string(kTokens) + ", " + std::to_string(kWidth),
            rows.data(), rows.size() * sizeof(float));
  const RowSource file = embedding_source(folder.file("x.npy"), kWidth);
  Staging there(staging_config(folder, 0), file.file);
  expect_same(stream(file, there), expected);
}

TEST(StreamPass, KeepsTheSameOnAnyNumberOfThreads) {
  const TemporaryFolder folder;
  set_num_threads(1);
  Staging one(staging_config(folder, std::int64_t{1} << 30));
  const Streamed expected = stream(numbers(), one);
  set_num_threads(3);
  Staging three(staging_config(folder, 0));
  expect_same(stream(numbers(), three), expected);
  set_num_threads(0);
}

// The layer on a device whose memory host code must not touch, with its own kernels' slots.
TEST(StreamPass, KeepsTheSameOnADevice) {
  const TemporaryFolder folder;
  Staging host(staging_config(folder, std::int64_t{1} << 30));
  const Streamed expected = stream(numbers(), host);
  const testing::FakeDevice device;
  Staging staging(staging_config(folder, std::int64_t{1} << 30));
  expect_same(stream(numbers(), staging, 5000, testing::kFakeDevice), expected);
}

TEST(StreamPass, ChunksNeedNotBeBlocks) {
  const TemporaryFolder folder;
  for (const std::int64_t chunk : {std::int64_t{700}, kBlock, kTokens}) {
    Staging staging(staging_config(folder, std::int64_t{1} << 30));
    EXPECT_EQ(stream(numbers(), staging, chunk).winners.size(), chunk == kTokens ? 150u : 300u);
  }
}

TEST(StreamPass, AFileThatShrinksIsAnError) {
  const TemporaryFolder folder;
  const auto rows = random_rows(0, kTokens, kWidth);
  write_npy(folder.file("x.npy"), "<f4", std::to_string(kTokens) + ", " + std::to_string(kWidth),
            rows.data(), rows.size() * sizeof(float));
  const RowSource file = embedding_source(folder.file("x.npy"), kWidth);
  fs::resize_file(folder.file("x.npy"), 500'000);
  Staging staging(staging_config(folder, 0), file.file);
  EXPECT_NE(message_of<FileError>([&] { stream(file, staging); }).find("did it shrink"),
            std::string::npos);
}

TEST(Memory, ParsesSizes) {
  EXPECT_EQ(parse_bytes("0"), 0);
  EXPECT_EQ(parse_bytes("123"), 123);
  EXPECT_EQ(parse_bytes("256M"), 256 << 20);
  EXPECT_EQ(parse_bytes("4G"), std::int64_t{4} << 30);
  for (const char* bad : {"", "M", "-1", "1.5G", "256m", "256MB", "1 M", "9999999999999T"}) {
    EXPECT_EQ(parse_bytes(bad), -1) << bad;
  }
}

}  // namespace
}  // namespace proteus
