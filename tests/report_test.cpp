// train/report.h: the run folder, tables and progress.
#include "train/report.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>

#include "tensor/error.h"
#include "tests/error_text.h"
#include "tests/temporary_folder.h"
#include "train/file_ops.h"
#include "train/memory.h"
#include "train/signals.h"

namespace proteus {
namespace {

using testing::message_of;
using testing::TemporaryFolder;
using Json = nlohmann::ordered_json;
namespace fs = std::filesystem;

constexpr double kInf = std::numeric_limits<double>::infinity();

Options options_for(const std::string& out) {
  return parse_options("train", {"--out", out, "--steps", "7"}).options;
}

TEST(RunFolder, HoldsConfigMetricsAndSummary) {
  const TemporaryFolder folder;
  const std::string out = folder.file("runs/a");
  {
    RunFolder run(options_for(out));
    EXPECT_EQ(run.path(), out);
    run.log({{"step", 1}, {"loss", 2.5}});
    run.log({{"step", 2}, {"loss", std::nan("")}});
    EXPECT_EQ(folder.read("runs/a/metrics.jsonl"),
              "{\"step\":1,\"loss\":2.5}\n{\"step\":2,\"loss\":null}\n")
        << "lines are there while the run goes on";
    run.write_summary({{"command", "train"}, {"arms", Json::array({{{"bpb", -kInf}}})}});
  }
  EXPECT_NE(folder.read("runs/a/config.toml").find("steps = 7"), std::string::npos);
  const Json summary = Json::parse(folder.read("runs/a/summary.json"));
  EXPECT_EQ(summary["command"], "train");
  EXPECT_TRUE(summary["arms"][0]["bpb"].is_null());
  for (const auto& entry : fs::directory_iterator(out)) {
    EXPECT_NE(entry.path().extension(), ".tmp");
  }
}

TEST(RunFolder, ANewRunStartsAfreshAndAResumedOneGoesOn) {
  const TemporaryFolder folder;
  const Options options = options_for(folder.file("a"));
  {
    RunFolder run(options);
    for (int step = 1; step <= 5; ++step) run.log({{"step", step}});
    run.write_summary({{"command", "train"}});
  }
  {
    RunFolder run(options, 3);
    EXPECT_TRUE(fs::exists(run.file("summary.json")));
    run.log({{"step", 4}, {"again", true}});
  }
  EXPECT_EQ(folder.read("a/metrics.jsonl"),
            "{\"step\":1}\n{\"step\":2}\n{\"step\":3}\n{\"step\":4,\"again\":true}\n");
  const RunFolder run(options);
  EXPECT_EQ(folder.read("a/metrics.jsonl"), "");
  EXPECT_FALSE(fs::exists(run.file("summary.json"))) << "it told of another run";
}

TEST(RunFolder, DropsATornLastLineWhenResumed) {
  const TemporaryFolder folder;
  fs::create_directory(folder.file("a"));
  folder.write("a/metrics.jsonl", "{\"step\":1}\n{\"step\":2,\"lo");
  const RunFolder run(options_for(folder.file("a")), 10);
  EXPECT_EQ(folder.read("a/metrics.jsonl"), "{\"step\":1}\n");
}

TEST(RunFolder, RefusesWhatItCannotWriteTo) {
  const TemporaryFolder folder;
  const std::string file = folder.write("file", "x");
  const auto make = [](const std::string& out) { return [out] { RunFolder{options_for(out)}; }; };
  EXPECT_EQ(message_of<FileError>(make(file)),
            "--out " + file + ": cannot make the folder: Not a directory; choose another --out");
  const std::string below = file + "/run";
  EXPECT_EQ(message_of<FileError>(make(below)),
            "--out " + below + ": cannot make the folder: Not a directory; choose another --out");
  EXPECT_THROW(make("/proc/proteus")(), FileError);
  if (::geteuid() != 0) {  // root may write everywhere
    fs::create_directory(folder.file("closed"));
    fs::permissions(folder.file("closed"), fs::perms::owner_read | fs::perms::owner_exec);
    EXPECT_THROW(make(folder.file("closed"))(), FileError);
  }
}

TEST(RunFolder, NamesAFreshFolderAfterTheCommand) {
  const TemporaryFolder folder;
  const fs::path before = fs::current_path();
  fs::current_path(folder.path());
  const Options options = parse_options("train", {}).options;
  {
    const RunFolder first(options);
    const RunFolder second(options);
    EXPECT_TRUE(first.path().starts_with("runs/train-2"));
    EXPECT_NE(first.path(), second.path());
  }
  fs::current_path(before);
}

TEST(Files, AreReplacedWhole) {
  const TemporaryFolder folder;
  folder.write("a", "old");
  write_file_atomically(folder.file("a"), "new");
  EXPECT_EQ(folder.read("a"), "new");
  EXPECT_FALSE(fs::exists(folder.file("a.tmp")));
  EXPECT_THROW(write_file_atomically(folder.file("absent/a"), "new"), FileError);
  fs::create_directory(folder.file("d"));
  folder.write("d/x", "");
  EXPECT_THROW(write_file_atomically(folder.file("d"), "new"), FileError);
  EXPECT_FALSE(fs::exists(folder.file("d.tmp"))) << "nothing half-written is left";
  if (fs::exists("/dev/full")) {
    fs::create_symlink("/dev/full", folder.file("full.tmp"));
    EXPECT_EQ(
        message_of<OutOfMemory>([&] { write_file_atomically(folder.file("full"), "new"); }),
        folder.file("full.tmp") + ": cannot write: No space left on device; free some disk space");
  }
}

TEST(JsonText, HasNoNumbersThatAreNone) {
  EXPECT_EQ(json_text({{"a", std::nan("")}, {"b", {1.5, kInf, -kInf}}, {"c", nullptr}}),
            R"({"a":null,"b":[1.5,null,null],"c":null})");
  EXPECT_EQ(json_text({{"sample", "a\xFF z"}}), "{\"sample\":\"a\xEF\xBF\xBD z\"}");
}

TEST(Table, AlignsNumbersRightAndTextLeft) {
  Table table({"arm", "val loss", "tokens/s"});
  table.add_row({"dense", "1.8790", "12.3k"});
  table.add_row({"añpa", "–", "950"});
  EXPECT_EQ(table.text(),
            "arm    val loss  tokens/s\n"
            "-----  --------  --------\n"
            "dense    1.8790     12.3k\n"
            "añpa          –       950\n");
  EXPECT_THROW(table.add_row({"x"}), ShapeError);
}

TEST(Format, NumbersForPeople) {
  EXPECT_EQ(format_number(1.46971), "1.4697");
  EXPECT_EQ(format_number(std::nan("")), "–");
  EXPECT_EQ(format_number(kInf, 2), "–");
  EXPECT_EQ(format_count(950), "950");
  EXPECT_EQ(format_count(12345), "12.3k");
  EXPECT_EQ(format_count(999700), "1.00M");
  EXPECT_EQ(format_count(1.22e6), "1.22M");
  EXPECT_EQ(format_seconds(42.4), "42 s");
  EXPECT_EQ(format_seconds(185), "3:05");
  EXPECT_EQ(format_seconds(3727), "1:02:07");
  EXPECT_EQ(format_seconds(std::nan("")), "–");
  EXPECT_EQ(format_bytes(812'300'000), "812 MB");
  EXPECT_EQ(format_bytes(3'420'000'000), "3.4 GB");
}

std::string progress_text(ProgressMode mode) {
  const TemporaryFolder folder;
  std::FILE* out = std::fopen(folder.file("out").c_str(), "w");
  {
    Progress progress("aspa", 25, 10, mode, out);
    for (int step = 1; step <= 25; ++step) {
      progress.step(step, step == 20 ? std::nan("") : 2.0, 100);
      if (step == 12) progress.note("validation 1.5");
    }
  }
  std::fclose(out);
  return folder.read("out");
}

TEST(Progress, PrintsALinePerLoggedStepOnAPipe) {
  const std::string text = progress_text(ProgressMode::plain);
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 4) << text;
  EXPECT_EQ(text.find("aspa  step 10/25  loss 2.0000  "), 0u) << text;
  EXPECT_NE(text.find("\nvalidation 1.5\naspa  step 20/25  loss –  "), std::string::npos) << text;
  EXPECT_NE(text.find("\naspa  step 25/25  "), std::string::npos);
  EXPECT_NE(text.find(" tokens/s  "), std::string::npos);
  EXPECT_EQ(text.find('\r'), std::string::npos);
}

TEST(Progress, RewritesOneLineOnATerminal) {
  const std::string text = progress_text(ProgressMode::live);
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 2) << "the note and the end: " << text;
  EXPECT_NE(text.find("\r\x1b[Kvalidation 1.5\n"), std::string::npos) << text;
  EXPECT_NE(text.find("step 25/25"), std::string::npos);
}

TEST(Progress, SaysNothingWhenQuiet) {
  EXPECT_EQ(progress_text(ProgressMode::quiet), "");
  const TemporaryFolder folder;
  std::FILE* out = std::fopen(folder.file("out").c_str(), "w");
  EXPECT_EQ(progress_mode(out, false), ProgressMode::plain);
  EXPECT_EQ(progress_mode(out, true), ProgressMode::quiet);
  std::fclose(out);
}

TEST(Progress, LeavesPausesOutOfTheSpeed) {
  Progress progress("aspa", 10, 1, ProgressMode::quiet, stdout);
  EXPECT_EQ(progress.tokens_per_second(), 0);
  progress.step(1, 2.0, 1000);
  progress.pause();
  const double seconds = progress.seconds();
  const double speed = progress.tokens_per_second();
  ::usleep(20'000);
  EXPECT_EQ(progress.seconds(), seconds);
  EXPECT_EQ(progress.tokens_per_second(), speed);
  progress.resume();
  EXPECT_GE(progress.seconds(), seconds);
  EXPECT_LT(progress.seconds(), seconds + 0.02);
}

TEST(Memory, IsKnown) {
  EXPECT_GT(rss_bytes(), 100'000);
  EXPECT_GE(peak_rss_bytes(), 100'000);
  const MachineMemory memory = machine_memory();
  EXPECT_GT(memory.total_bytes, 0);
  EXPECT_LE(memory.available_bytes, memory.total_bytes);
}

TEST(SignalsDeathTest, TheFirstSetsAFlagAndTheSecondKills) {
  EXPECT_EXIT(
      {
        install_interrupt_handler();
        if (interrupted()) std::_Exit(1);
        std::raise(SIGINT);
        if (!interrupted()) std::_Exit(2);
        std::raise(SIGINT);
        std::_Exit(3);
      },
      ::testing::KilledBySignal(SIGINT), "");
}

}  // namespace
}  // namespace proteus
