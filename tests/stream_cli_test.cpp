// proteus stream as others script it: what it leaves behind, and how it ends.
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <thread>

#include "tests/program.h"

namespace proteus {
namespace {

namespace fs = std::filesystem;
using testing::Args;
using testing::Outcome;
using testing::Program;
using testing::run;
using testing::TemporaryFolder;

// A small stream with options changed or added.
Args stream(const Args& changes) {
  std::map<std::string, std::string> options = {
      {"--width", "64"},     {"--heads", "4"}, {"--chunk", "5000"},  {"--buffer", "1000"},
      {"--length", "20000"}, {"--out", "run"}, {"--spill-dir", "."}, {"--threads", "1"}};
  for (std::size_t i = 0; i + 1 < changes.size(); i += 2) options[changes[i]] = changes[i + 1];
  Args args = {"stream", "--quiet"};
  for (const auto& [name, value] : options) {
    args.push_back(name);
    args.push_back(value);
  }
  return args;
}

nlohmann::json summary(const TemporaryFolder& folder) {
  return nlohmann::json::parse(folder.read("run/summary.json"));
}

TEST(Stream, WritesWhatItKeptAndWhy) {
  const TemporaryFolder folder;
  const Outcome o = run(folder, stream({}));
  ASSERT_EQ(o.code, 0) << o.err;
  const auto s = summary(folder);
  EXPECT_EQ(s["tokens"], 20000);
  EXPECT_EQ(s["chunks"], 4);
  EXPECT_GT(s["retained"].get<int>(), 990);
  EXPECT_LE(s["retained"].get<int>(), 1000);
  EXPECT_EQ(s["storage"], "memory");
  EXPECT_EQ(s["spilled_bytes"], 0);
  EXPECT_TRUE(fs::exists(folder.file(s["indices_file"].get<std::string>())));
  for (const char* name :
       {"stream_s", "stream_tokens_per_s", "final_s", "tokens_per_s", "peak_rss_bytes"}) {
    EXPECT_GT(s[name].get<double>(), 0) << name;
  }
  const std::string metrics = folder.read("run/metrics.jsonl");
  EXPECT_EQ(std::count(metrics.begin(), metrics.end(), '\n'), 4);
}

TEST(Stream, KeepsTheSameInMemoryAndOnDisk) {
  const TemporaryFolder folder;
  ASSERT_EQ(run(folder, stream({})).code, 0);
  const std::string kept = folder.read("run/kept.safetensors");
  ASSERT_EQ(run(folder, stream({"--ram-limit", "1M", "--threads", "2"})).code, 0);
  EXPECT_EQ(folder.read("run/kept.safetensors"), kept);
  EXPECT_EQ(summary(folder)["storage"], "disk");
  EXPECT_EQ(summary(folder)["spilled_bytes"], 20000 * 64 * 4);
}

void from_file(const TemporaryFolder& folder, const char* name) {
  ::dup2(::open(folder.file(name).c_str(), O_RDONLY), 0);
}

TEST(Stream, TakesAPipe) {
  const TemporaryFolder folder;
  const std::string rows(20000 * 64 * 4, '\x3c');
  folder.write("rows", rows);
  const Args args = stream({"--embeddings", "-", "--length", "0", "--ram-limit", "1M"});
  const Outcome o = run(folder, args, [&] { from_file(folder, "rows"); });
  ASSERT_EQ(o.code, 0) << o.err;
  EXPECT_EQ(summary(folder)["tokens"], 20000);
  EXPECT_EQ(summary(folder)["storage"], "disk");
  folder.write("rows", rows.substr(0, rows.size() - 10));
  const Outcome torn = run(folder, args, [&] { from_file(folder, "rows"); });
  EXPECT_EQ(torn.code, 3);
  EXPECT_EQ(torn.err,
            "proteus: standard input: ends inside a row; expected f32 rows of 256 bytes\n");
}

struct BadInput {
  const char* name;
  Args args;
  int code;
  const char* says;
};

void PrintTo(const BadInput& bad, std::ostream* os) { *os << bad.name; }

class BadStreams : public ::testing::TestWithParam<BadInput> {};

TEST_P(BadStreams, EndWithTheirCodeAndOneLine) {
  const TemporaryFolder folder;
  const Outcome o = run(folder, stream(GetParam().args));
  EXPECT_EQ(o.code, GetParam().code) << o.err;
  EXPECT_NE(o.err.find(GetParam().says), std::string::npos) << o.err;
  EXPECT_EQ(std::count(o.err.begin(), o.err.end(), '\n'), 1) << o.err;
  EXPECT_FALSE(fs::exists(folder.file("run")));
}

INSTANTIATE_TEST_SUITE_P(
    All, BadStreams,
    ::testing::Values(
        BadInput{"length", {"--length", "-1"}, 2, "--length: expected at least 0, got -1"},
        BadInput{"width", {"--width", "0"}, 2, "--width: expected at least 1, got 0"},
        BadInput{"chunk", {"--chunk", "0"}, 2, "--chunk: expected at least 1, got 0"},
        BadInput{"long_chunk",
                 {"--chunk", "20001"},
                 2,
                 "--chunk: expected at most 20000 (= --length), got 20001"},
        BadInput{"buffer", {"--buffer", "0"}, 2, "--buffer: expected at least 1, got 0"},
        BadInput{"per_chunk", {"--per-chunk", "-3"}, 2, "--per-chunk: expected at least 1"},
        BadInput{"keep", {"--chunk-keep", "0"}, 2, "--chunk-keep: expected a number in (0, 1]"},
        BadInput{"top_a", {"--top-a", "5"}, 2, "--top-a: expected at most 4, got 5"},
        BadInput{"long_prompt",
                 {"--prompt-tokens", "1001"},
                 2,
                 "--prompt-tokens: expected at most 1000 (= --buffer), got 1001"},
        BadInput{"ram_limit",
                 {"--ram-limit", "lots"},
                 2,
                 "--ram-limit: expected a size, as 256M or 4G, got 'lots'"},
        BadInput{"no_file", {"--embeddings", "none.npy"}, 3, "none.npy: cannot read"},
        BadInput{"no_spill_dir",
                 {"--ram-limit", "1M", "--spill-dir", "none"},
                 4,
                 "--spill-dir none: cannot make a file: No such file or directory"}),
    [](const auto& bad) { return std::string(bad.param.name); });

std::string npy(std::int64_t rows, float value, std::int64_t bad_row = -1) {
  std::string header =
      "{'descr': '<f4', 'fortran_order': False, 'shape': (" + std::to_string(rows) + ", 64), }";
  header.resize(117, ' ');
  std::string text("\x93NUMPY\x01\x00\x76\x00", 10);
  text += header + "\n";
  std::vector<float> data(static_cast<std::size_t>(rows * 64), value);
  if (bad_row >= 0) data[static_cast<std::size_t>(bad_row * 64 + 5)] = std::nanf("");
  text.append(reinterpret_cast<const char*>(data.data()), data.size() * 4);
  return text;
}

TEST(Stream, NamesTheTokenThatIsNotANumber) {
  const TemporaryFolder folder;
  folder.write("x.npy", npy(20000, 0.5F, 12345));
  const Outcome o = run(folder, stream({"--embeddings", "x.npy"}));
  EXPECT_EQ(o.code, 5);
  EXPECT_EQ(o.err,
            "proteus: shortlist: the score of token 12345 is not a finite number; look at the "
            "embeddings there\n");
  EXPECT_FALSE(fs::exists(folder.file("run")));
  folder.write("p.npy", npy(3, 0.5F, 1));
  const Outcome prompt = run(folder, stream({"--prompt-embeddings", "p.npy"}));
  EXPECT_EQ(prompt.code, 5);
  EXPECT_EQ(prompt.err, "proteus: p.npy: row 1 has a number that is not finite\n");
  folder.write("p.npy", npy(1001, 0.5F));
  EXPECT_EQ(run(folder, stream({"--prompt-embeddings", "p.npy"})).code, 2);
}

TEST(Stream, AFullDiskIsFoundBeforeTheWorkAndLeavesNothing) {
  const TemporaryFolder folder;
  const Outcome o = run(folder, stream({"--ram-limit", "1M"}), [] {
    const rlimit limit{1 << 20, 1 << 20};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    std::signal(SIGXFSZ, SIG_IGN);
  });
  EXPECT_EQ(o.code, 4);
  EXPECT_NE(o.err.find("--spill-dir .: cannot write: File too large; free some disk space"),
            std::string::npos)
      << o.err;
  EXPECT_FALSE(fs::exists(folder.file("run")));
  for (const auto& entry : fs::directory_iterator(folder.path())) {
    EXPECT_TRUE(entry.path().filename().string().starts_with("std")) << entry.path();
  }
}

TEST(Stream, AnInterruptLeavesNothing) {
  const TemporaryFolder folder;
  for (const bool pipe : {false, true}) {
    int ends[2];
    ASSERT_EQ(::pipe(ends), 0);
    const Args more = pipe ? Args{"--embeddings", "-", "--length", "0", "--ram-limit", "1M"}
                           : Args{"--length", "100000000", "--ram-limit", "1G"};
    const Program program(folder, stream(more), [&] {
      ::dup2(ends[0], 0);
      ::close(ends[1]);
    });
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(60);
    while (!fs::exists(folder.file("run/metrics.jsonl")) &&
           std::chrono::steady_clock::now() < end) {
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    program.interrupt();
    const Outcome o = program.wait();
    ::close(ends[0]);
    ::close(ends[1]);
    EXPECT_EQ(o.code, 130) << o.err;
    EXPECT_EQ(o.err, "proteus: interrupted; nothing is kept\n");
    for (const auto& entry : fs::directory_iterator(folder.path())) {
      EXPECT_TRUE(entry.path().filename().string().starts_with("std")) << entry.path();
    }
  }
}

#ifndef __SANITIZE_ADDRESS__  // which keeps freed memory
TEST(Stream, MemoryDoesNotGrowWithTheText) {
  const TemporaryFolder folder;
  const auto peak = [&](const char* length) {
    EXPECT_EQ(run(folder, stream({"--length", length, "--ram-limit", "1M"})).code, 0);
    return summary(folder)["peak_rss_bytes"].get<double>();
  };
  const double small = peak("50000");
  EXPECT_LE(peak("500000"), 1.1 * small);
}
#endif

}  // namespace
}  // namespace proteus
