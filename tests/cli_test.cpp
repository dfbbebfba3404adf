// The program as others script it: exit codes, one line on stderr, nothing half-written, and a run
// that is stopped and resumed.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <sstream>
#include <thread>

#include "tests/program.h"
#include "tests/temporary_folder.h"

namespace proteus {
namespace {

namespace fs = std::filesystem;
using testing::Args;
using testing::joined;
using testing::kSmall;
using testing::Outcome;
using testing::Program;
using testing::run;
using testing::some_text;
using testing::TemporaryFolder;

struct BadInput {
  const char* name;
  Args args;
  int code;
  const char* says;  ///< part of the line on stderr
};

void PrintTo(const BadInput& bad, std::ostream* os) { *os << bad.name; }

class BadInputs : public ::testing::TestWithParam<BadInput> {};

TEST_P(BadInputs, EndWithTheirCodeAndOneLineAndLeaveNothing) {
  const TemporaryFolder folder;
  folder.write("good", some_text(4000));
  folder.write("empty", "");
  folder.write("tiny", "abc");
  folder.write("latin1", some_text(500) + "caf\xE9 " + some_text(500));
  folder.write("file", "");
  fs::create_directory(folder.file("directory"));
  for (const char* command : {"duel", "train"}) {
    const Outcome o = run(folder, joined(joined({command}, kSmall), GetParam().args));
    EXPECT_EQ(o.code, GetParam().code) << command << ": " << o.err;
    EXPECT_NE(o.err.find(GetParam().says), std::string::npos) << command << ": " << o.err;
    EXPECT_EQ(std::count(o.err.begin(), o.err.end(), '\n'), 1) << command << ": " << o.err;
    EXPECT_EQ(o.out, "") << command;
    EXPECT_FALSE(fs::exists(folder.file("run/summary.json"))) << command;
    EXPECT_FALSE(fs::exists(folder.file("run/checkpoint"))) << command;
    // Only numbers that went bad are seen after the run has begun.
    EXPECT_EQ(fs::exists(folder.file("run")), GetParam().code == 5) << command;
    fs::remove_all(folder.file("run"));
  }
}

const Args kRun = {"--data", "good", "--out", "run"};

INSTANTIATE_TEST_SUITE_P(
    Cli, BadInputs,
    ::testing::Values(
        BadInput{"EmptyFile", {"--data", "empty", "--out", "run"}, 3, "empty"},
        BadInput{"TinyFile", {"--data", "tiny", "--out", "run"}, 3, "tiny"},
        BadInput{"MissingFile", {"--data", "nowhere", "--out", "run"}, 3, "nowhere"},
        BadInput{"Directory", {"--data", "directory", "--out", "run"}, 3, "directory"},
        BadInput{"NotUtf8", {"--data", "latin1", "--out", "run"}, 3, "UTF-8"},
        BadInput{"ContextLongerThanData", joined(kRun, {"--context", "5000"}), 2, "--context"},
        BadInput{"HeadsThatDoNotDivide", joined(kRun, {"--heads", "3"}), 2, "--heads"},
        BadInput{"AlphaAboveOne", joined(kRun, {"--alpha", "1.5"}), 2, "--alpha"},
        BadInput{"AlphaBelowZero", joined(kRun, {"--alpha=-0.5"}), 2, "--alpha"},
        BadInput{"AlphaNotANumber", joined(kRun, {"--alpha", "nan"}), 2, "--alpha"},
        BadInput{"MoreHeadsThanThereAre", joined(kRun, {"--k", "17"}), 2, "--k"},
        BadInput{"UnknownOption", joined(kRun, {"--stepz", "1"}), 2, "--steps"},
        BadInput{"UnknownArgument", joined(kRun, {"fast"}), 2, "fast"},
        BadInput{"OutUnderAFile", {"--data", "good", "--out", "file/run"}, 3, "file/run"},
        BadInput{"NumbersGoBad", joined(kRun, {"--lr", "1e30", "--warmup", "0", "--clip", "0"}), 5,
                 "--lr"}),
    [](const auto& bad) { return std::string(bad.param.name); });

std::vector<nlohmann::json> losses(const TemporaryFolder& folder, const std::string& run) {
  std::vector<nlohmann::json> lines;
  std::istringstream in(folder.read(run + "/metrics.jsonl"));
  for (std::string line; std::getline(in, line);) {
    const nlohmann::json json = nlohmann::json::parse(line);
    if (json.contains("loss")) lines.push_back({json["step"], json["loss"]});
  }
  return lines;
}

// The line that an interrupted run prints, as arguments.
Args resume_command(const std::string& out) {
  std::istringstream in(out.substr(out.find("proteus train")));
  std::string word;
  in >> word;
  Args args;
  while (in >> word) args.push_back(word);
  return args;
}

class Interrupted : public ::testing::TestWithParam<const char*> {};

TEST_P(Interrupted, GoesOnAsIfItHadNotBeen) {
  const TemporaryFolder folder;
  folder.write("text", some_text(4000));
  const std::string command = GetParam();
  const Args arm = command == "duel" ? Args{"--arms", "aspa"} : Args{"--model", "aspa"};
  const Args args = joined(joined(joined({command}, kSmall), arm),
                           {"--data", "text", "--steps", "400", "--eval-every", "0", "--log-every",
                            "1", "--dropout", "0.1", "--context", "16"});
  ASSERT_EQ(run(folder, joined(args, {"--out", "whole"})).code, 0);

  const Program stopped(folder, joined(args, {"--out", "run"}));
  const auto size = [&] {
    std::error_code error;
    const auto bytes = fs::file_size(folder.file("run/metrics.jsonl"), error);
    return error ? 0 : bytes;
  };
  while (size() == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  stopped.interrupt();
  const Outcome o = stopped.wait();
  ASSERT_EQ(o.code, 130) << o.err;
  ASSERT_LT(losses(folder, "run").size(), 400U);
  ASSERT_NE(o.out.find("proteus train --resume"), std::string::npos) << o.out;

  Args go_on = resume_command(o.out);
  if (command == "duel") go_on = joined(go_on, {"--out", "rest"});
  const Outcome resumed = run(folder, joined(go_on, {"--quiet"}));
  ASSERT_EQ(resumed.code, 0) << resumed.err;
  std::vector<nlohmann::json> lines = losses(folder, "run");
  if (command == "duel") {
    const auto rest = losses(folder, "rest");
    lines.insert(lines.end(), rest.begin(), rest.end());
  }
  EXPECT_EQ(lines, losses(folder, "whole"));
}

TEST(Cli, ARunFolderIsNotACheckpointButNamesIts) {
  const TemporaryFolder folder;
  folder.write("text", some_text(4000));
  const Args data = {"--data", "text", "--steps", "1", "--arms", "dense", "--out", "run"};
  ASSERT_EQ(run(folder, joined(joined({"duel"}, kSmall), data)).code, 0);
  const Outcome wrong = run(folder, {"sample", "--checkpoint", "run"});
  EXPECT_EQ(wrong.code, 3);
  EXPECT_NE(wrong.err.find("name run/dense"), std::string::npos) << wrong.err;
  EXPECT_EQ(run(folder, {"sample", "--checkpoint", "run/dense"}).code, 0);
}

TEST(Cli, EveryLoggedStepHasItsRouting) {
  const TemporaryFolder folder;
  folder.write("text", some_text(4000));
  const Args data = {"--data", "text", "--steps", "5", "--log-every", "2", "--eval-every", "0"};
  const Args train = joined(joined({"train"}, kSmall), data);
  ASSERT_EQ(run(folder, joined(train, {"--model", "aspa", "--out", "aspa"})).code, 0);
  std::vector<int> steps;
  std::istringstream in(folder.read("aspa/metrics.jsonl"));
  for (std::string text; std::getline(in, text);) {
    const nlohmann::json line = nlohmann::json::parse(text);
    if (!line.contains("routing")) continue;
    EXPECT_EQ(line.at("arm"), "aspa");
    steps.push_back(line.at("step"));
    ASSERT_EQ(line.at("routing").size(), 1u);
    const nlohmann::json& layer = line["routing"][0];
    for (const char* key : {"layer", "alpha", "k", "density", "dead_gates", "lambda",
                            "prototype_share", "prototype_drift", "query", "key"}) {
      EXPECT_TRUE(layer.contains(key)) << key;
    }
    EXPECT_EQ(layer["prototype_drift"].is_null(), steps.size() == 1);
    for (const char* key : {"load", "maxvio", "entropy", "heads", "kept"}) {
      EXPECT_TRUE(layer["query"].contains(key)) << key;
      EXPECT_TRUE(layer["key"].contains(key)) << key;
    }
  }
  EXPECT_EQ(steps, (std::vector<int>{2, 4, 5}));
  ASSERT_EQ(run(folder, joined(train, {"--model", "dense", "--out", "dense"})).code, 0);
  EXPECT_EQ(folder.read("dense/metrics.jsonl").find("routing"), std::string::npos);
}

TEST(Cli, TopAReportsAgreementAndRefusesADenseModel) {
  const TemporaryFolder folder;
  folder.write("text", some_text(4000));
  const Args train = joined(joined({"train"}, kSmall), {"--data", "text", "--steps", "2"});
  ASSERT_EQ(run(folder, joined(train, {"--model", "aspa", "--out", "aspa"})).code, 0);
  ASSERT_EQ(run(folder, joined(train, {"--model", "dense", "--out", "dense"})).code, 0);
  const auto sample = [&](const char* model, const char* top_a) {
    return run(folder, {"sample", "--checkpoint", std::string(model) + "/checkpoint", "--top-a",
                        top_a, "--sample-tokens", "5", "--out", std::string(model) + "-sample"});
  };
  for (const char* top_a : {"off", "filter", "blend"}) {
    EXPECT_EQ(sample("aspa", top_a).code, 0) << top_a;
    const auto summary = nlohmann::json::parse(folder.read("aspa-sample/summary.json"));
    const auto& agreement = summary.at("agreement");
    EXPECT_LE(agreement.at("min"), agreement.at("mean")) << top_a;
    EXPECT_LE(agreement.at("mean"), agreement.at("max")) << top_a;
  }
  EXPECT_EQ(sample("dense", "off").code, 0);
  const auto summary = nlohmann::json::parse(folder.read("dense-sample/summary.json"));
  EXPECT_TRUE(summary.at("agreement").is_null());
  const Outcome refused = sample("dense", "filter");
  EXPECT_EQ(refused.code, 2);
  EXPECT_NE(refused.err.find("--top-a off"), std::string::npos) << refused.err;
  EXPECT_EQ(std::count(refused.err.begin(), refused.err.end(), '\n'), 1) << refused.err;
}

TEST(Cli, GatesAreShownAndEdited) {
  const TemporaryFolder folder;
  folder.write("text", some_text(4000));
  const Args data = {"--data", "text", "--steps", "3", "--out", "run"};
  ASSERT_EQ(run(folder, joined(joined({"train"}, kSmall), data)).code, 0);
  const Args gates = {"gates", "--checkpoint", "run/checkpoint"};
  const auto list = [&](const Args& more) {
    const Outcome o = run(folder, joined(joined(gates, {"--json"}), more));
    EXPECT_EQ(o.code, 0) << o.err;
    return nlohmann::json::parse(o.out);
  };
  const std::size_t before = list({}).at("gates").size();
  EXPECT_GT(before, 0u);
  const auto cloned = list({"--layer", "0", "--edit", "clone", "--gate", "1", "--save", "edited"});
  EXPECT_LT(cloned["edit"]["logit_change"], 1e-5);
  EXPECT_EQ(cloned["edit"]["gate"], 1);
  EXPECT_EQ(list({}).at("gates").size(), before);  // the first checkpoint is as it was
  const Outcome edited = run(folder, {"gates", "--checkpoint", "edited", "--json"});
  EXPECT_EQ(nlohmann::json::parse(edited.out)["gates"].size(), before + 1);
  EXPECT_EQ(run(folder, {"sample", "--checkpoint", "edited", "--sample-tokens", "5"}).code, 0);
  list({"--layer", "0", "--edit", "add-head"});
  EXPECT_EQ(run(folder, {"sample", "--checkpoint", "run/checkpoint", "--sample-tokens", "5"}).code,
            0);
  for (const Args& wrong : std::vector<Args>{{"--layer", "99"},
                                             {"--edit", "clone"},
                                             {"--layer", "0", "--edit", "clone", "--gate", "999"},
                                             {"--layer", "0", "--edit", "merge", "--gate", "0"},
                                             {"--edit", "fold"}}) {
    const Outcome o = run(folder, joined(gates, wrong));
    EXPECT_EQ(o.code, 2) << o.err;
    EXPECT_EQ(std::count(o.err.begin(), o.err.end(), '\n'), 1) << o.err;
  }
  EXPECT_EQ(run(folder, {"gates", "--checkpoint", "nowhere"}).code, 3);
}

TEST(Cli, GatesOfExperts) {
  const TemporaryFolder folder;
  folder.write("text", some_text(4000));
  const auto train = [&](const Args& more) {
    const Args args = joined(joined({"train"}, kSmall), {"--data", "text", "--steps", "3"});
    EXPECT_EQ(run(folder, joined(args, more)).code, 0);
  };
  train({"--out", "run", "--experts", "6"});
  const auto list = [&](const Args& more) {
    const Outcome o =
        run(folder, joined({"gates", "--part", "mlp", "--json", "--checkpoint"}, more));
    EXPECT_EQ(o.code, 0) << o.err;
    return nlohmann::json::parse(o.out);
  };
  EXPECT_EQ(list({"run/checkpoint"})["gates"].size(), 24u);
  const auto edited = list({"run/checkpoint", "--layer", "0", "--edit", "add-head", "--save", "e"});
  EXPECT_LT(edited["edit"]["logit_change"], 1e-5);
  EXPECT_EQ(edited["edit"]["head"], 6);
  EXPECT_EQ(list({"e"})["gates"].size(), 28u);
  EXPECT_EQ(run(folder, {"sample", "--checkpoint", "e", "--sample-tokens", "5"}).code, 0);
  train({"--out", "dense"});
  train({"--out", "shared", "--experts", "16", "--expert-router", "attention"});
  for (const auto& [name, says] :
       {std::pair{"dense", "no experts"}, {"shared", "share the gates"}}) {
    const std::string checkpoint = std::string(name) + "/checkpoint";
    const Outcome o = run(folder, {"gates", "--part", "mlp", "--checkpoint", checkpoint});
    EXPECT_EQ(o.code, 2);
    EXPECT_NE(o.err.find(says), std::string::npos) << o.err;
  }
}

TEST(Cli, TheLeakIsMeasuredAndNeverUsed) {
  const TemporaryFolder folder;
  folder.write("text", some_text(4000));
  const Args data = {"--data", "text", "--steps", "2", "--out", "run"};
  const Outcome duel = run(folder, joined(joined({"duel", "--arms", "aspa_leak"}, kSmall), data));
  ASSERT_EQ(duel.code, 0) << duel.err;
  EXPECT_NE(duel.out.find("aspa_leak (NOT causal)"), std::string::npos) << duel.out;
  EXPECT_FALSE(fs::exists(folder.file("run/aspa_leak")));
  EXPECT_EQ(nlohmann::json::parse(folder.read("run/summary.json"))["arms"][0]["causal"], false);
  EXPECT_EQ(run(folder, joined(joined({"train", "--model", "aspa_leak"}, kSmall), data)).code, 2);

  ASSERT_EQ(run(folder, joined(joined({"train"}, kSmall), data)).code, 0);
  nlohmann::json config = nlohmann::json::parse(folder.read("run/checkpoint/config.json"));
  config["arm"] = "aspa_leak";
  folder.write("run/checkpoint/config.json", config.dump());
  const Outcome changed = run(folder, {"sample", "--checkpoint", "run/checkpoint"});
  EXPECT_EQ(changed.code, 3);
  EXPECT_NE(changed.err.find("config.json: damaged"), std::string::npos) << changed.err;
  // Somebody who means it changes the manifest too.
  const auto seen =
      nlohmann::json::parse(run(folder, {"inspect", "run/checkpoint/config.json", "--json"}).out);
  auto manifest = nlohmann::json::parse(folder.read("run/checkpoint/manifest.json"));
  for (const char* key : {"bytes", "xxh3"}) manifest["files"]["config.json"][key] = seen[key];
  folder.write("run/checkpoint/manifest.json", manifest.dump());
  for (const char* command : {"sample", "eval"}) {
    const Outcome o = run(folder, {command, "--checkpoint", "run/checkpoint"});
    EXPECT_EQ(o.code, 2) << o.err;
    EXPECT_NE(o.err.find("expected a causal model"), std::string::npos) << o.err;
  }
}

TEST(Cli, EvalMovesAlpha) {
  const TemporaryFolder folder;
  folder.write("text", some_text(4000));
  for (const char* model : {"aspa", "dense"}) {
    const Args data = {"--data", "text", "--steps", "2", "--model", model, "--out", model};
    ASSERT_EQ(run(folder, joined(joined({"train"}, kSmall), data)).code, 0);
  }
  const auto flops = [&](const char* alpha) {
    const Outcome o = run(folder, {"eval", "--checkpoint", "aspa/checkpoint", "--data", "text",
                                   "--out", "eval", "--alpha", alpha});
    EXPECT_EQ(o.code, 0) << o.err;
    const auto summary = nlohmann::json::parse(folder.read("eval/summary.json"));
    EXPECT_EQ(summary["alpha"], std::stod(alpha));
    return summary["attention_flops_per_token"].get<double>();
  };
  EXPECT_LT(flops("1"), flops("0.5"));
  EXPECT_LT(flops("0.5"), flops("0"));
  const Outcome dense =
      run(folder, {"eval", "--checkpoint", "dense/checkpoint", "--data", "text", "--alpha", "0.5"});
  EXPECT_EQ(dense.code, 2);
  EXPECT_NE(dense.err.find("--alpha: expected a model with ASPA layers"), std::string::npos);
}

// Two values: half of the answers are right by chance once the model answers with values at all.
TEST(Cli, RecallStopsAfterTwoGoodEvaluations) {
  const TemporaryFolder folder;
  const Args task = {"recall", "--length", "8",     "--pairs",   "1",   "--vocab",
                     "4",      "--arms",   "dense", "--steps",   "500", "--eval-every",
                     "3",      "--lr",     "1e-2",  "--stop-at", "0.2", "--out",
                     "run"};
  const Outcome o = run(folder, joined(task, kSmall));
  ASSERT_EQ(o.code, 0) << o.err;
  const auto arm = nlohmann::json::parse(folder.read("run/summary.json"))["arms"][0];
  EXPECT_TRUE(fs::exists(folder.file("run/dense/model.safetensors")));
  const auto history = arm["history"];
  ASSERT_GE(history.size(), 2u);
  EXPECT_EQ(arm["steps"], 3 * history.size()) << "evaluated once at the end";
  for (std::size_t i = 1; i < history.size(); ++i) {
    const bool both = history[i - 1]["accuracy"] >= 0.2 && history[i]["accuracy"] >= 0.2;
    EXPECT_EQ(both, i + 1 == history.size()) << i;
  }
}

INSTANTIATE_TEST_SUITE_P(Cli, Interrupted, ::testing::Values("train", "duel"));

TEST(Cli, SweepWritesItsRows) {
  const TemporaryFolder folder;
  const Args command = {"sweep", "--lengths", "8..32",     "--alphas", "0.5,1", "--width",
                        "16",    "--heads",   "2",         "--k",      "2",     "--quiet",
                        "--out", "run",       "--threads", "1"};
  const Outcome o = run(folder, command);
  ASSERT_EQ(o.code, 0) << o.err;
  EXPECT_EQ(o.err, "");
  const auto json = nlohmann::json::parse(folder.read("run/summary.json"));
  EXPECT_EQ(json["command"], "sweep");
  ASSERT_EQ(json["rows"].size(), 9U);
  for (const auto& row : json["rows"]) {
    EXPECT_GT(row["fwd_ms"], 0);
    EXPECT_TRUE(row["fwdbwd_ms"].is_null());
    EXPECT_TRUE(row["error"].is_null());
    const double tokens = row["length"].get<double>() * row["batch"].get<double>();
    EXPECT_NEAR(row["bytes_per_token"], row["peak_memory_bytes"].get<double>() / tokens, 1e-6);
    EXPECT_EQ(row["alpha"].is_null(), row["arm"] == "dense");
  }
  EXPECT_TRUE(json["slope"].contains("dense"));
  EXPECT_TRUE(json["slope"]["aspa 0.5"]["fwd"].is_number());
  EXPECT_TRUE(json["crossover"].contains("aspa 1"));

  const Outcome refused = run(folder, {"sweep", "--lengths", "64..32"});
  EXPECT_EQ(refused.code, 2);
  EXPECT_EQ(std::count(refused.err.begin(), refused.err.end(), '\n'), 1) << refused.err;
}

TEST(Cli, DataIsTrainedOnAsTheTextIs) {
  const TemporaryFolder folder;
  folder.write("text", some_text(6000));
  ASSERT_EQ(run(folder, {"data", "--data", "text", "--tokenizer", "byte", "--shard-tokens", "2000",
                         "--out", "shards", "--quiet"})
                .code,
            0);
  const Args train = joined({"train", "--steps", "3", "--context", "16"}, kSmall);
  const auto loss = [&](const Args& more) {
    const Outcome o = run(folder, joined(joined(train, more), {"--out", "run"}));
    EXPECT_EQ(o.code, 0) << o.err;
    return nlohmann::json::parse(folder.read("run/summary.json"))["arms"][0];
  };
  const auto from_text = loss({"--data", "text", "--tokenizer", "byte"});
  const auto from_shards = loss({"--data", "shards"});
  for (const char* key : {"train_loss", "val_loss", "val_bpb"}) {
    EXPECT_EQ(from_text[key], from_shards[key]) << key;
  }
  const Outcome shown = run(folder, {"data", "--data", "shards", "--show", "3"});
  EXPECT_EQ(shown.code, 0) << shown.err;
  EXPECT_NE(shown.out.find("train_000002.bin"), std::string::npos) << shown.out;
  EXPECT_NE(shown.out.find("84 \"T\""), std::string::npos) << shown.out;
  EXPECT_FALSE(fs::exists(folder.file("runs"))) << "only looked at";
  fs::remove(folder.file("shards/tokenizer.json"));
  const Outcome alone = run(folder, {"data", "--data", "shards"});
  EXPECT_EQ(alone.code, 3);
  EXPECT_NE(alone.err.find("tokenizer.json"), std::string::npos) << alone.err;
}

TEST(Cli, ADenseModelIsConvertedAndTrainedOn) {
  const TemporaryFolder folder;
  folder.write("text", some_text(6000));
  const Args train = joined({"train", "--model", "dense", "--steps", "5", "--context", "16",
                             "--heads", "4", "--data", "text", "--out", "dense"},
                            kSmall);
  ASSERT_EQ(run(folder, train).code, 0);
  const Outcome made = run(folder, {"convert", "--checkpoint", "dense/checkpoint", "--save", "aspa",
                                    "--alpha-schedule", "ramp", "--alpha-ramp", "4"});
  ASSERT_EQ(made.code, 0) << made.err;
  const auto loss = [&](const char* checkpoint, const Args& more) {
    const Outcome o =
        run(folder,
            joined({"eval", "--checkpoint", checkpoint, "--data", "text", "--out", "e", "--quiet"},
                   more));
    EXPECT_EQ(o.code, 0) << o.err;
    return nlohmann::json::parse(folder.read("e/summary.json"))["val_loss"].get<double>();
  };
  EXPECT_NEAR(loss("aspa", {"--alpha", "0"}), loss("dense/checkpoint", {}), 1e-5);
  EXPECT_NE(loss("aspa", {"--alpha", "1"}), loss("dense/checkpoint", {}));
  const Outcome on = run(folder, {"train", "--resume", "--checkpoint", "aspa", "--data", "text",
                                  "--steps", "8", "--out", "on", "--quiet"});
  EXPECT_EQ(on.code, 0) << on.err;
  EXPECT_EQ(nlohmann::json::parse(folder.read("on/summary.json"))["arms"][0]["steps"], 8);
  const Outcome twice = run(folder, {"convert", "--checkpoint", "aspa", "--save", "again"});
  EXPECT_EQ(twice.code, 2);
  EXPECT_NE(twice.err.find("expected a dense"), std::string::npos) << twice.err;
  EXPECT_EQ(run(folder, {"convert", "--checkpoint", "dense/checkpoint"}).code, 2);
  EXPECT_EQ(run(folder, {"convert", "--checkpoint", "nowhere", "--save", "x"}).code, 3);
}

TEST(Cli, Gpt2ComesInIsTrainedOnAndGoesOut) {
  const TemporaryFolder folder;
  folder.write("t.txt", std::string(3000, 'a'));
  const std::string theirs = PROTEUS_FIXTURES "/gpt2/text";
  const auto ok = [&](const Args& args) {
    const Outcome o = Program(folder, args).wait();
    EXPECT_EQ(o.code, 0) << o.err;
  };
  ok({"convert", "--from-gpt2", theirs, "--save", "in", "--tokenizer", "byte"});
  ok({"sample", "--checkpoint", "in", "--sample-tokens", "20", "--out", "s"});
  ok({"convert", "--checkpoint", "in", "--to-gpt2", "same"});
  ok({"train", "--resume", "--checkpoint", "in", "--data", "t.txt", "--steps", "3", "--out", "o"});
  ok({"convert", "--checkpoint", "in", "--to-gpt2", "out"});
  EXPECT_NE(folder.read("same/model.safetensors"), folder.read("out/model.safetensors"));
  EXPECT_EQ(folder.read("same/config.json"), folder.read("out/config.json"));
  ok({"convert", "--from-gpt2", "out", "--save", "again", "--tokenizer", "byte"});
}

}  // namespace
}  // namespace proteus
