// proteus stream --checkpoint as others script it: a small model reads a text.
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <thread>

#include "tests/program.h"

namespace proteus {
namespace {

using testing::Args;
using testing::Outcome;
using testing::Program;
using testing::run;
using testing::TemporaryFolder;

std::string some_text(std::size_t bytes) {
  std::string text;
  while (text.size() < bytes) text += "To be, or not to be: that is the question.\n";
  return text;
}

class StreamText : public ::testing::Test {
 protected:
  StreamText() {
    folder.write("text", some_text(6000));
    const Outcome o =
        run(folder,
            {"train",   "--data",  "text",      "--layers", "2",     "--width", "32",
             "--batch", "2",       "--steps",   "3",        "--k",   "2",       "--routed-heads",
             "4",       "--quiet", "--threads", "1",        "--out", "run"});
    EXPECT_EQ(o.code, 0) << o.err;
  }

  Args stream(const Args& changes) const {
    std::map<std::string, std::string> options = {{"--checkpoint", "run/checkpoint"},
                                                  {"--file", "text"},
                                                  {"--prompt", "the quest"},
                                                  {"--chunk", "1000"},
                                                  {"--buffer", "100"},
                                                  {"--out", "read"},
                                                  {"--sample-tokens", "5"},
                                                  {"--threads", "1"}};
    for (std::size_t i = 0; i + 1 < changes.size(); i += 2) options[changes[i]] = changes[i + 1];
    Args args = {"stream"};
    for (const auto& [name, value] : options) {
      if (value.empty()) continue;
      args.push_back(name);
      args.push_back(value);
    }
    return args;
  }
  nlohmann::json summary() const { return nlohmann::json::parse(folder.read("read/summary.json")); }
  void expect_error(const Args& changes, int code, const std::string& says) const {
    const Outcome o = run(folder, stream(changes));
    EXPECT_EQ(o.code, code) << o.err;
    EXPECT_NE(o.err.find(says), std::string::npos) << o.err;
    EXPECT_EQ(std::count(o.err.begin(), o.err.end(), '\n'), 1) << o.err;
  }

  TemporaryFolder folder;
};

TEST_F(StreamText, SaysWhatItKeptAndWhy) {
  const Outcome o = run(folder, stream({}));
  ASSERT_EQ(o.code, 0) << o.err;
  EXPECT_NE(o.out.find("Kept "), std::string::npos);
  EXPECT_NE(o.out.find("the quest"), std::string::npos);
  const auto s = summary();
  const auto tokens = static_cast<std::int64_t>(folder.read("text").size());
  EXPECT_EQ(s["tokens"], tokens);
  EXPECT_EQ(s["chunks"], (tokens + 999) / 1000);
  EXPECT_EQ(s["storage"], "memory");
  const auto kept = nlohmann::json::parse(folder.read("read/kept.json"));
  EXPECT_EQ(kept["answer_ids"].size(), 5U);
  EXPECT_EQ(kept["prompt_ids"].size(), 9U);
  std::int64_t end = -1;
  std::int64_t retained = 0;
  for (const auto& span : kept["spans"]) {
    EXPECT_GT(span["begin"].get<std::int64_t>(), end) << "in order, apart";
    end = span["end"];
    EXPECT_EQ(span["ids"].size(),
              static_cast<std::size_t>(end - span["begin"].get<std::int64_t>()));
    retained += static_cast<std::int64_t>(span["ids"].size());
  }
  EXPECT_EQ(s["retained"], retained);
  EXPECT_LE(retained, 100);
  EXPECT_EQ(s["final_tokens"], retained + 9);
  ASSERT_GT(kept["winners"].size(), 0U);
  for (const auto& winner : kept["winners"]) {
    EXPECT_LT(winner["head"].get<int>(), 4);
    EXPECT_LT(winner["query"].get<int>(), 9);
  }
}

TEST_F(StreamText, KeepsTheSameFromAPipeOnDiskAndWithMoreThreads) {
  ASSERT_EQ(run(folder, stream({})).code, 0);
  const std::string kept = folder.read("read/kept.json");
  ASSERT_EQ(run(folder, stream({"--threads", "2"})).code, 0);
  EXPECT_EQ(folder.read("read/kept.json"), kept);
  ASSERT_EQ(run(folder, stream({"--ram-limit", "1K", "--spill-dir", "."})).code, 0);
  EXPECT_EQ(folder.read("read/kept.json"), kept);
  EXPECT_EQ(summary()["storage"], "disk");
  ASSERT_EQ(::mkfifo(folder.file("pipe").c_str(), 0600), 0);
  std::thread writer([&] { folder.write("pipe", folder.read("text")); });
  const Outcome piped = run(folder, stream({"--file", "pipe"}));
  writer.join();
  ASSERT_EQ(piped.code, 0) << piped.err;
  EXPECT_EQ(folder.read("read/kept.json"), kept);
}

TEST_F(StreamText, ASecondRoundAsksForMore) {
  const Outcome o = run(folder, stream({"--rounds", "2", "--score-layer", "0"}));
  ASSERT_EQ(o.code, 0) << o.err;
  const auto kept = nlohmann::json::parse(folder.read("read/kept.json"));
  EXPECT_GT(kept["prompt_ids"].size(), 9U) << "what the first found, and the prompt";
  EXPECT_EQ(summary()["rounds"], 2);
}

TEST_F(StreamText, BadInputEndsWithItsCodeAndOneLine) {
  folder.write("strange", some_text(500) + "@");
  folder.write("empty", "");
  expect_error({"--checkpoint", "none"}, 3, "none");
  expect_error({"--file", "none"}, 3, "none: cannot read");
  expect_error({"--file", "empty"}, 3, "empty: is empty; expected a text");
  expect_error({"--file", "strange"}, 3, "character '@' (U+0040) at offset 516 is not among");
  expect_error({"--file", ""}, 2, "--checkpoint: expected it together with --file");
  expect_error({"--checkpoint", ""}, 2, "--file: expected it together with --checkpoint");
  expect_error({"--prompt", "#"}, 2, "--prompt: character '#'");
  expect_error({"--prompt", ""}, 2, "--prompt: expected a text");
  expect_error({"--buffer", "8"}, 2, "--prompt: expected at most 8 tokens (= --buffer), got 9");
  expect_error({"--score-layer", "2"}, 2, "--score-layer: expected at most 1");
  expect_error({"--top-a", "5"}, 2, "--top-a: expected at most 4 (= routed heads), got 5");
}

}  // namespace
}  // namespace proteus
