// proteus report as others script it: pages from runs that this test makes, and its exit codes.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "tests/markup_check.h"
#include "tests/program.h"
#include "tests/temporary_folder.h"

namespace proteus {
namespace {

namespace fs = std::filesystem;
using testing::Args;
using testing::joined;
using testing::MarkupCheck;
using testing::Outcome;
using testing::run;
using testing::some_text;
using testing::TemporaryFolder;

const Args kQuiet = {"--threads", "1", "--quiet"};

/// A duel, a sweep, a stream of its text and one of random rows: some seconds, made once.
class Report : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder_ = new TemporaryFolder;
    folder_->write("text", some_text(6000) + "</script><b>&\"'");
    make({"duel",       "--data",         "text", "--tokenizer",     "byte", "--arms",
          "dense,aspa", "--layers",       "2",    "--width",         "32",   "--context",
          "16",         "--batch",        "2",    "--steps",         "12",   "--eval-every",
          "4",          "--eval-batches", "2",    "--log-every",     "2",    "--add-heads",
          "1",          "--add-heads-at", "6",    "--sample-tokens", "40",   "--out",
          "my duel"});
    make({"sweep", "--lengths", "64..512", "--width", "32", "--heads", "1", "--repeats", "1",
          "--backward", "--routed-heads", "4", "--alphas", "0,1", "--out", "sweep"});
    make({"stream", "--checkpoint", "my duel/aspa", "--file", "text", "--prompt", "that is",
          "--chunk", "1000", "--buffer", "64", "--per-chunk", "8", "--sample-tokens", "10", "--out",
          "stream"});
    make({"stream", "--length", "2000", "--width", "32", "--heads", "2", "--chunk", "500",
          "--buffer", "128", "--per-chunk", "16", "--out", "rows"});
  }
  static void TearDownTestSuite() {
    delete folder_;
    folder_ = nullptr;
  }
  static void make(const Args& args) {
    const Outcome o = run(*folder_, joined(args, kQuiet));
    ASSERT_EQ(o.code, 0) << args[0] << ": " << o.err;
  }
  static Outcome report(const Args& args) { return run(*folder_, joined({"report"}, args)); }

  static TemporaryFolder* folder_;
};

TemporaryFolder* Report::folder_ = nullptr;

TEST_F(Report, HasEveryPartAndLoadsNothing) {
  const Outcome o =
      report({"my duel", "sweep", "stream", "rows", "--page", "page.html", "--svg", "figures"});
  ASSERT_EQ(o.code, 0) << o.err;
  EXPECT_TRUE(o.out.starts_with("Written to page.html\n")) << o.out;
  const std::string page = folder_->read("page.html");
  EXPECT_EQ(MarkupCheck::fault(page), "");
  for (const char* part : {">my duel (duel)</h2>",
                           "id=\"my-duel-loss\"",
                           "id=\"my-duel-loss-time\"",
                           "id=\"my-duel-speed\"",
                           "id=\"my-duel-memory\"",
                           "id=\"my-duel-load-aspa-seed-1337-layer-1-query\"",
                           "id=\"my-duel-load-aspa-seed-1337-layer-0-key\"",
                           "id=\"my-duel-maxvio\"",
                           "id=\"my-duel-entropy\"",
                           "id=\"my-duel-dead\"",
                           "id=\"my-duel-gates-aspa-seed-1337\"",
                           "add-head, head 16",
                           "id=\"my-duel-prototypes-aspa-seed-1337-layer-1\"",
                           "nearest prototype: gate ",
                           ">Samples</h3>",
                           "<h4>dense, seed 1337</h4>",
                           "id=\"sweep-forward\"",
                           "id=\"sweep-backward\"",
                           "id=\"sweep-memory\"",
                           "dense (slope ",
                           "id=\"stream-scores\"",
                           "id=\"stream-kept\"",
                           "<td class=\"left\">",
                           "id=\"rows-scores\"",
                           "proteus sweep --threads 1",
                           "--out &#39;my duel&#39;",
                           "config.toml"}) {
    EXPECT_NE(page.find(part), std::string::npos) << part;
  }
  EXPECT_EQ(page.find("Not in these runs"), std::string::npos);
  EXPECT_EQ(page.find("http://"), std::string::npos);
  EXPECT_EQ(page.find("https://"), std::string::npos);
  int files = 0;
  for (const auto& entry : fs::directory_iterator(folder_->file("figures"))) {
    EXPECT_EQ(entry.path().extension(), ".svg");
    EXPECT_EQ(MarkupCheck::fault(folder_->read("figures/" + entry.path().filename().string())), "")
        << entry.path();
    ++files;
  }
  EXPECT_GE(files, 20);
}

TEST_F(Report, IsTheSameForTheSameRuns) {
  ASSERT_EQ(report({"my duel", "stream", "--page", "first.html"}).code, 0);
  ASSERT_EQ(report({"my duel", "stream", "--page", "second.html", "--threads", "2"}).code, 0);
  EXPECT_EQ(folder_->read("first.html"), folder_->read("second.html"));
}

TEST_F(Report, GoesIntoTheRunFolderAndSaysWhatIsNotThere) {
  ASSERT_EQ(report({"sweep/"}).code, 0);
  const std::string page = folder_->read("sweep/report.html");
  EXPECT_EQ(MarkupCheck::fault(page), "");
  EXPECT_NE(page.find("Not in these runs"), std::string::npos);
  EXPECT_NE(page.find("proteus stream --checkpoint"), std::string::npos);
}

TEST_F(Report, MapsAnotherText) {
  folder_->write("other", "Zebra");
  const Outcome o = report({"my duel", "--text", "other", "--page", "other.html"});
  ASSERT_EQ(o.code, 0) << o.err;
  EXPECT_NE(folder_->read("other.html").find("&#39;Z&#39;: as a query in heads "),
            std::string::npos);
}

TEST_F(Report, TellsFromARunThatWasKilled) {
  fs::copy(folder_->file("my duel"), folder_->file("killed"), fs::copy_options::recursive);
  fs::remove(folder_->file("killed/summary.json"));
  folder_->write("killed/metrics.jsonl", folder_->read("my duel/metrics.jsonl") + "{\"arm\":\"de");
  const Outcome o = report({"killed"});
  ASSERT_EQ(o.code, 0) << o.err;
  const std::string page = folder_->read("killed/report.html");
  EXPECT_NE(page.find("has not finished"), std::string::npos);
  EXPECT_NE(page.find("id=\"killed-loss\""), std::string::npos);
}

TEST_F(Report, RefusesWhatItCannotRead) {
  folder_->write("file", "");
  fs::create_directory(folder_->file("empty"));
  fs::copy(folder_->file("my duel"), folder_->file("broken"), fs::copy_options::recursive);
  folder_->write("broken/summary.json", "{");
  fs::copy(folder_->file("my duel"), folder_->file("cut"), fs::copy_options::recursive);
  folder_->write("cut/aspa/model.safetensors", "short");
  struct Case {
    Args args;
    int code;
    const char* says;
  };
  const std::vector<Case> cases = {{{}, 2, "expected run folders"},
                                   {{"absent"}, 3, "absent: no such run folder"},
                                   {{"file"}, 3, "file: no such run folder"},
                                   {{"empty"}, 3, "no config.toml"},
                                   {{"sweep", "broken"}, 3, "broken/summary.json: not JSON"},
                                   {{"cut"}, 3, "cut/aspa"},
                                   {{"my duel", "--text", "absent"}, 3, "absent"},
                                   {{"sweep", "--pages", "x"}, 2, "did you mean --page?"},
                                   {{"sweep", "--runs", "stream"}, 2, "--runs: not together"}};
  for (const Case& c : cases) {
    const Outcome o = report(joined(c.args, {"--page", "refused.html"}));
    EXPECT_EQ(o.code, c.code) << c.says << ": " << o.err;
    EXPECT_NE(o.err.find(c.says), std::string::npos) << o.err;
    EXPECT_EQ(std::count(o.err.begin(), o.err.end(), '\n'), 1) << o.err;
    EXPECT_FALSE(fs::exists(folder_->file("refused.html"))) << c.says;
  }
}

// What the page needs is written by the runs themselves.
TEST_F(Report, RunsSayHowTheyWereCalled) {
  const auto line = nlohmann::json::parse(folder_->read("my duel/commands.jsonl"));
  EXPECT_TRUE(line["command_line"].get<std::string>().starts_with("proteus duel --threads 1"));
  EXPECT_NE(line["command_line"].get<std::string>().find(" --out 'my duel'"), std::string::npos);
  for (const char* key : {"started", "version", "compiler", "system", "cpu", "device"}) {
    EXPECT_TRUE(line[key].is_string()) << key;
  }
  const auto kept = nlohmann::json::parse(folder_->read("stream/kept.json"));
  EXPECT_EQ(kept["spans"][0]["text"].get<std::string>().substr(0, 4), "To b") << "anchors";
}

}  // namespace
}  // namespace proteus
