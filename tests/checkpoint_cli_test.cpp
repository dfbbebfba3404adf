// Checkpoints and data files as the commands see them: what inspect shows, and what a checkpoint
// without the optimizer's moments is good for.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "tests/program.h"
#include "tests/temporary_folder.h"
#include "train/checkpoint.h"
#include "train/shard.h"

namespace proteus {
namespace {

namespace fs = std::filesystem;
using testing::Args;
using testing::joined;
using testing::kSmall;
using testing::Outcome;
using testing::run;
using testing::some_text;
using testing::TemporaryFolder;

nlohmann::json listed(const TemporaryFolder& folder, const std::string& path) {
  const Outcome o = run(folder, {"inspect", path, "--json"});
  EXPECT_EQ(o.code, 0) << o.err;
  return nlohmann::json::parse(o.out, nullptr, false);
}

TEST(Inspect, ListsFilesAndRefusesDamagedOnes) {
  const TemporaryFolder folder;
  folder.write("text", "ünï\nx\n");
  folder.write("bytes", "\xFF\xFE");
  const Args data = {"--steps", "2", "--out", "run"};
  ASSERT_EQ(run(folder, joined(joined({"train"}, kSmall), data)).code, 0);
  const auto checkpoint = listed(folder, "run/checkpoint");
  EXPECT_EQ(checkpoint.at("kind"), "checkpoint");
  EXPECT_EQ(checkpoint.at("step"), 2);
  EXPECT_EQ(checkpoint.at("files").size(), 4u);
  const auto model = listed(folder, "run/checkpoint/model.safetensors");
  EXPECT_EQ(model.at("tensors").at(0).at("name"), "embedding.weight");
  EXPECT_EQ(model.at("tensors").at(0).at("dtype"), "F32");
  EXPECT_EQ(model.at("tensors").at(0).at("shape").at(1), 32);
  EXPECT_EQ(listed(folder, "text").at("characters"), 6);
  EXPECT_EQ(listed(folder, "bytes").at("kind"), "bytes");
  EXPECT_EQ(run(folder, {"inspect", "run/checkpoint"}).code, 0);
  EXPECT_EQ(run(folder, {"inspect"}).code, 2);
  EXPECT_EQ(run(folder, {"inspect", "a", "b"}).code, 2);
  EXPECT_EQ(run(folder, {"inspect", "nowhere"}).code, 3);
  fs::resize_file(folder.file("run/checkpoint/model.safetensors"), 1000);
  for (const char* path : {"run/checkpoint", "run/checkpoint/model.safetensors"}) {
    const Outcome o = run(folder, {"inspect", path});
    EXPECT_EQ(o.code, 3) << o.err;
    EXPECT_EQ(std::count(o.err.begin(), o.err.end(), '\n'), 1) << o.err;
  }
  EXPECT_EQ(run(folder, {"sample", "--checkpoint", "run/checkpoint"}).code, 3);
}

TEST(Inspect, ShowsTokenIds) {
  const TemporaryFolder folder;
  const std::vector<std::int32_t> ids = {7, 3, 65535, 4};
  write_shard(folder.file("narrow.bin"), ids, 65536);
  write_shard(folder.file("wide.bin"), std::vector<std::int32_t>{70000, 9}, 70001);
  folder.write("bare.bin", std::string("\x05\x00\x01\x02", 4));
  const auto narrow = listed(folder, "narrow.bin");
  EXPECT_EQ(narrow.at("kind"), "token ids");
  EXPECT_EQ(narrow.at("format"), "llm.c");
  EXPECT_EQ(narrow.at("dtype"), "u16");
  EXPECT_EQ(narrow.at("tokens"), 4);
  EXPECT_EQ(narrow.at("smallest_id"), 3);
  EXPECT_EQ(narrow.at("largest_id"), 65535);
  EXPECT_EQ(narrow.at("bytes"), 1024 + 8);
  EXPECT_EQ(narrow.at("xxh3").get<std::string>().size(), 16u);
  const auto wide = listed(folder, "wide.bin");
  EXPECT_EQ(wide.at("dtype"), "u32");
  EXPECT_EQ(wide.at("smallest_id"), 9);
  EXPECT_EQ(wide.at("largest_id"), 70000);
  const auto bare = listed(folder, "bare.bin");
  EXPECT_EQ(bare.at("format"), "nanoGPT");
  EXPECT_EQ(bare.at("tokens"), 2);
  EXPECT_EQ(bare.at("largest_id"), 513);
  write_shard(folder.file("none.bin"), {}, 10);
  EXPECT_TRUE(listed(folder, "none.bin").at("largest_id").is_null());
  folder.write("odd.bin", "abc");
  EXPECT_EQ(run(folder, {"inspect", "odd.bin"}).code, 3);
}

TEST(Inspect, ShowsTokenizersAndFoldersOfData) {
  const TemporaryFolder folder;
  folder.write("text", some_text(4000));
  ASSERT_EQ(run(folder, {"data", "--data", "text", "--out", "ids", "--quiet"}).code, 0);
  const auto tokenizer = listed(folder, "ids/tokenizer.json");
  EXPECT_EQ(tokenizer.at("kind"), "tokenizer");
  EXPECT_EQ(tokenizer.at("tokenizer"), "char");
  EXPECT_EQ(tokenizer.at("longest_token_bytes"), 1);
  const auto all = listed(folder, "ids");
  EXPECT_EQ(all.at("kind"), "data");
  ASSERT_EQ(all.at("files").size(), 3u);
  EXPECT_EQ(all["files"][0]["kind"], "tokenizer");
  EXPECT_EQ(all["files"][1]["kind"], "token ids");
  EXPECT_LT(all["files"][1]["largest_id"], tokenizer.at("vocab"));
  EXPECT_EQ(all["files"][1]["tokens"].get<int>() + all["files"][2]["tokens"].get<int>(),
            static_cast<int>(folder.read("text").size()));
  const Outcome o = run(folder, {"inspect", "ids"});
  EXPECT_NE(o.out.find("largest id: "), std::string::npos) << o.out;
  for (const char* name : {"vocab.json", "merges.txt"}) {
    fs::copy_file(PROTEUS_FIXTURES "/bpe/" + std::string(name), folder.file(name));
  }
  const auto bpe = listed(folder, "vocab.json");
  EXPECT_EQ(bpe.at("tokenizer"), "bpe");
  EXPECT_EQ(bpe.at("vocab"), 700);
  folder.write("tokenizer.json", "{}");
  EXPECT_EQ(run(folder, {"inspect", "tokenizer.json"}).code, 3);
}

TEST(ModelAlone, IsEnoughForAllButTraining) {
  const TemporaryFolder folder;
  folder.write("text", some_text(4000));
  const Args data = {"--data", "text", "--steps", "2", "--context", "16"};
  const Args train = joined(joined({"train"}, kSmall), data);
  ASSERT_EQ(run(folder, joined(train, {"--model", "aspa", "--out", "aspa"})).code, 0);
  ASSERT_EQ(run(folder, joined(train, {"--model", "dense", "--out", "dense"})).code, 0);
  for (const char* arm : {"aspa", "dense"}) {
    const std::string of = std::string(arm) + "/checkpoint/";
    fs::remove(folder.file(of + "optimizer.safetensors"));
    fs::remove(folder.file(of + "state.json"));
  }
  const auto code = [&](const Args& args) {
    const Outcome o = run(folder, args);
    EXPECT_EQ(o.code, 0) << args[0] << ": " << o.err;
  };
  code({"sample", "--checkpoint", "aspa/checkpoint", "--sample-tokens", "5", "--out", "s"});
  code({"eval", "--checkpoint", "aspa/checkpoint", "--data", "text", "--out", "e"});
  code({"gates", "--checkpoint", "aspa/checkpoint"});
  code({"stream", "--checkpoint", "aspa/checkpoint", "--file", "text", "--prompt", "To be",
        "--chunk", "64", "--buffer", "64", "--per-chunk", "8", "--out", "st"});
  code({"convert", "--checkpoint", "dense/checkpoint", "--save", "converted"});
  const auto seen = listed(folder, "aspa/checkpoint");
  EXPECT_TRUE(seen.at("step").is_null());
  EXPECT_EQ(seen.at("attention"), "packed rows (alpha 1)");
  EXPECT_EQ(listed(folder, "dense/checkpoint").at("attention"), "dense");
  EXPECT_EQ(std::count_if(seen.at("files").begin(), seen.at("files").end(),
                          [](const auto& file) { return file["kind"] == "absent"; }),
            2);
  code({"inspect", "aspa/checkpoint"});
  // What needs the moments says so, and changes nothing.
  const std::string metrics = folder.read("aspa/metrics.jsonl");
  for (const Args& args :
       {Args{"train", "--resume", "--checkpoint", "aspa/checkpoint", "--steps", "4", "--out",
             "aspa"},
        Args{"gates", "--checkpoint", "aspa/checkpoint", "--edit", "clone", "--layer", "0"}}) {
    const Outcome o = run(folder, args);
    EXPECT_EQ(o.code, 3) << args[0];
    EXPECT_NE(
        o.err.find("aspa/checkpoint/state.json: there is no such file, and --resume and edits "
                   "of gates need it"),
        std::string::npos)
        << o.err;
    EXPECT_EQ(std::count(o.err.begin(), o.err.end(), '\n'), 1) << o.err;
  }
  EXPECT_EQ(folder.read("aspa/metrics.jsonl"), metrics);
  // The configuration and the weights must be there.
  fs::remove(folder.file("aspa/checkpoint/model.safetensors"));
  EXPECT_EQ(run(folder, {"sample", "--checkpoint", "aspa/checkpoint"}).code, 3);
  EXPECT_EQ(run(folder, {"inspect", "aspa/checkpoint"}).code, 3);
}

// A checkpoint whose hashes are right and whose tokenizer has more ids than its model.
TEST(Vocabularies, ThatDoNotFitAreFileErrors) {
  const TemporaryFolder folder;
  folder.write("text", some_text(4000));
  const Args train = joined(joined({"train"}, kSmall), {"--data", "text", "--steps", "1"});
  ASSERT_EQ(run(folder, joined(train, {"--out", "run"})).code, 0);
  const std::string path = folder.file("run/checkpoint");
  Checkpoint saved = load_checkpoint(path);
  auto config = nlohmann::json::parse(saved.config);
  config["tokenizer"] = {{"kind", "byte"}};
  saved.config = config.dump();
  save_checkpoint(path, saved);
  for (const Args& args :
       {Args{"sample", "--out", "s"}, Args{"eval", "--data", "text", "--out", "e"},
        Args{"convert", "--save", "c"}}) {
    const Outcome o = run(folder, joined(args, {"--checkpoint", "run/checkpoint"}));
    EXPECT_EQ(o.code, 3) << args[0] << ": " << o.err;
    EXPECT_NE(o.err.find("expected a vocabulary of at least 256"), std::string::npos) << o.err;
  }
  // Ids of another tokenizer than the one beside them.
  ASSERT_EQ(run(folder, {"data", "--data", "text", "--out", "ids", "--quiet"}).code, 0);
  write_shard(folder.file("ids/train_000000.bin"), std::vector<std::int32_t>(4000, 999), 1000);
  const Outcome o = run(
      folder, joined(joined({"train"}, kSmall), {"--data", "ids", "--steps", "1", "--out", "bad"}));
  EXPECT_EQ(o.code, 3) << o.err;
  EXPECT_NE(o.err.find("is id 999, expected one in [0, "), std::string::npos) << o.err;
}

}  // namespace
}  // namespace proteus
