// Checkpoints on a disk that fails, fills up, loses power or has been tampered with: what was there
// before stays loadable, and what is damaged is a FileError.
#include <fcntl.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>

#include "tensor/error.h"
#include "tests/checkpoint_sample.h"
#include "tests/error_text.h"
#include "tests/temporary_folder.h"
#include "train/checkpoint.h"
#include "train/file_ops.h"
#include "train/gates.h"
#include "train/models.h"
#include "train/trainer.h"

namespace proteus {
namespace {

namespace fs = std::filesystem;
using testing::for_each_flip;
using testing::kCheckpointFiles;
using testing::message_of;
using testing::sample_checkpoint;
using testing::TemporaryFolder;

/// The number of the sample that loads from a path, all of it consistent.
int number_at(const std::string& path) {
  const Checkpoint c = load_checkpoint(path);
  const int number = nlohmann::json::parse(c.state)["number"];
  EXPECT_EQ(c.model.size(), 2u);
  for (const auto& [name, tensor] : c.model) {
    if (name != "w") continue;
    EXPECT_EQ(tensor.to_vector(), std::vector<double>(12, number));
  }
  EXPECT_EQ(c.optimizer.at(0).second.to_vector(), std::vector<double>(12, number));
  return number;
}

/// Takes the hook away at the end of a scope.
struct Hook {
  explicit Hook(std::function<int(FileOp, const std::string&)> hook) {
    set_file_hook(std::move(hook));
  }
  ~Hook() { set_file_hook({}); }
  Hook(const Hook&) = delete;
  Hook& operator=(const Hook&) = delete;
};

TEST(CheckpointFolder, KeepsTheLastOnes) {
  const TemporaryFolder folder;
  const std::string path = folder.file("deep/er/c");
  for (int i = 1; i <= 5; ++i) save_checkpoint(path, sample_checkpoint(i), 3);
  EXPECT_EQ(number_at(path), 5);
  EXPECT_EQ(number_at(path + ".1"), 4);
  EXPECT_EQ(number_at(path + ".2"), 3);
  EXPECT_FALSE(fs::exists(path + ".3"));
  save_checkpoint(path, sample_checkpoint(6), 1);
  EXPECT_EQ(number_at(path), 6);
  for (const char* other : {".1", ".2", ".3", ".new"}) EXPECT_FALSE(fs::exists(path + other));
}

TEST(CheckpointFolder, AFailureOfAnyOperationLeavesThePrevious) {
  for (const int error : {EIO, ENOSPC}) {
    for (const std::int64_t keep : {1, 2}) {
      const TemporaryFolder folder;
      const std::string path = folder.file("c");
      save_checkpoint(path, sample_checkpoint(1), keep);
      int previous = 1;
      bool failed = true;
      for (int which = 0; failed; ++which) {
        int op = 0;
        std::string last;
        const Hook hook([&](FileOp, const std::string& on) {
          last = on;
          return op++ == which ? error : 0;
        });
        failed = false;
        try {
          save_checkpoint(path, sample_checkpoint(which + 2), keep);
        } catch (const FileError& e) {
          failed = true;
          EXPECT_EQ(error, EIO) << e.what();
        } catch (const OutOfMemory& e) {
          failed = true;
          EXPECT_EQ(error, ENOSPC) << e.what();
        }
        // A new checkpoint may be in place when only what comes behind it failed.
        const int now = number_at(path);
        EXPECT_TRUE(now == previous || now == which + 2) << which << " at " << last;
        EXPECT_TRUE(failed || now == which + 2) << which;
        previous = now;
      }
      EXPECT_GT(previous, 20) << "operations of a save";
      EXPECT_FALSE(fs::exists(path + ".new"));
    }
  }
}

// A process that dies at any operation, with every byte lost that was not synced by then.
TEST(CheckpointFolder, APowerCutAtAnyOperationLeavesThePrevious) {
  const TemporaryFolder folder;
  const std::string path = folder.file("c");
  save_checkpoint(path, sample_checkpoint(1), 2);
  int previous = 1;
  int status = 1;
  for (int which = 0; status != 0; ++which) {
    const pid_t child = ::fork();
    if (child == 0) {
      int op = 0;
      std::set<std::string> unsynced;
      set_file_hook([&](FileOp kind, const std::string& on) {
        if (op++ == which) {
          for (const std::string& file : unsynced) {
            if (::truncate(file.c_str(), 0) != 0) ::_exit(2);
          }
          ::_exit(1);
        }
        if (kind == FileOp::write) unsynced.insert(on);
        // The operation itself comes after this call: what it syncs is safe at the next one.
        if (kind == FileOp::close) unsynced.erase(on);
        return 0;
      });
      save_checkpoint(path, sample_checkpoint(which + 2), 2);
      ::_exit(0);
    }
    ASSERT_GT(child, 0);
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) < 2);
    const int now = number_at(path);
    EXPECT_TRUE(now == previous || now == which + 2) << which;
    previous = now;
  }
  EXPECT_GT(previous, 20);
}

TEST(CheckpointFolder, EveryCutIsAFileError) {
  const TemporaryFolder folder;
  const std::string path = folder.file("c");
  save_checkpoint(path, sample_checkpoint(1));
  for (const char* name : kCheckpointFiles) {
    const std::string file = path + "/" + name;
    const std::string whole = folder.read(std::string("c/") + name);
    for (std::size_t n = whole.size(); n-- > 0;) {
      fs::resize_file(file, n);
      // Blanks at the end of a manifest say nothing.
      if (name == std::string("manifest.json") && n + 1 == whole.size()) continue;
      ASSERT_THROW(load_checkpoint(path), FileError) << name << " cut to " << n;
    }
    fs::remove(file);
    ASSERT_THROW(load_checkpoint(path), FileError) << name;
    folder.write(std::string("c/") + name, whole);
  }
  EXPECT_EQ(number_at(path), 1);
}

TEST(CheckpointFolder, EveryFlippedBitIsAFileError) {
  const TemporaryFolder folder;
  const std::string path = folder.file("c");
  save_checkpoint(path, sample_checkpoint(1));
  const std::int64_t before = memory_stats(DeviceType::cpu).live_bytes;
  for (const char* name : kCheckpointFiles) {
    const std::string file = path + "/" + name;
    reset_peak_memory(DeviceType::cpu);
    for_each_flip(file, 8 * fs::file_size(file), [&](std::size_t bit) {
      EXPECT_THROW(load_checkpoint(path), FileError) << name << " bit " << bit;
    });
    // At most the tensors of the file that is right.
    EXPECT_LE(memory_stats(DeviceType::cpu).peak_bytes - before, 2 * 8 * 12) << name;
  }
  EXPECT_EQ(number_at(path), 1);
}

TEST(CheckpointFolder, ADamagedOneNamesTheOneBefore) {
  const TemporaryFolder folder;
  const std::string path = folder.file("c");
  save_checkpoint(path, sample_checkpoint(1), 2);
  save_checkpoint(path, sample_checkpoint(2), 2);
  std::string model = folder.read("c/model.safetensors");
  model.back() = static_cast<char>(model.back() ^ 1);
  folder.write("c/model.safetensors", model);
  const std::string message = message_of<FileError>([&] { load_checkpoint(path); });
  EXPECT_NE(message.find("model.safetensors: damaged: expected the hash"), std::string::npos);
  EXPECT_TRUE(message.ends_with(path + ".1 is the checkpoint before it")) << message;
  EXPECT_EQ(number_at(path + ".1"), 1);
}

TEST(CheckpointFolder, FromANewerVersion) {
  const TemporaryFolder folder;
  save_checkpoint(folder.file("c"), sample_checkpoint(1));
  auto manifest = nlohmann::json::parse(folder.read("c/manifest.json"));
  manifest["version"] = 2;
  folder.write("c/manifest.json", manifest.dump());
  EXPECT_EQ(message_of<FileError>([&] { load_checkpoint(folder.file("c")); }),
            folder.file("c") +
                "/manifest.json: expected version 1, got 2; the checkpoint is of a "
                "newer version of proteus");
}

TEST(CheckpointFolder, SizesInAManifestAreCounts) {
  const TemporaryFolder folder;
  const std::string path = folder.file("c");
  save_checkpoint(path, sample_checkpoint(1));
  const auto manifest = nlohmann::json::parse(folder.read("c/manifest.json"));
  const auto refused = [&](const nlohmann::json& bytes) {
    auto bad = manifest;
    bad["files"]["model.safetensors"]["bytes"] = bytes;
    folder.write("c/manifest.json", bad.dump());
    return message_of<FileError>([&] { load_checkpoint(path); });
  };
  for (const nlohmann::json& bytes :
       {nlohmann::json(-1), nlohmann::json(1.5), nlohmann::json("9"), nlohmann::json(nullptr)}) {
    EXPECT_TRUE(refused(bytes).ends_with("model.safetensors: expected its bytes and xxh3"))
        << bytes;
  }
  for (const std::uint64_t bytes : {std::uint64_t{0}, ~std::uint64_t{0}}) {
    EXPECT_NE(refused(bytes).find("damaged: expected " + std::to_string(bytes) + " bytes"),
              std::string::npos);
  }
}

TEST(CheckpointFolder, LinksAndNamesLeadNowhereElse) {
  const TemporaryFolder folder;
  const std::string path = folder.file("c");
  save_checkpoint(path, sample_checkpoint(1));
  const std::string manifest = folder.read("c/manifest.json");
  const auto with_name = [&](const std::string& name) {
    std::string text = manifest;
    text.replace(text.find("model.safetensors"), 17, name);
    folder.write("c/manifest.json", text);
    EXPECT_THROW(load_checkpoint(path), FileError) << name;
  };
  with_name("../../etc/passwd");
  with_name("/etc/passwd");
  with_name("model\\u0000.safetensors");
  folder.write("c/manifest.json", manifest);
  const std::string model = path + "/model.safetensors";
  for (const char* target :
       {"/dev/zero", "/dev/full", "/etc/passwd", "model.safetensors", ".", "/nowhere"}) {
    fs::remove(model);
    fs::create_symlink(target, model);
    EXPECT_THROW(load_checkpoint(path), FileError) << target;
  }
  // A link where the new folder is to be made is replaced, not followed.
  folder.write("precious", "data");
  fs::create_directory(folder.file("elsewhere"));
  folder.write("elsewhere/file", "data");
  fs::create_directory_symlink(folder.file("elsewhere"), path + ".new");
  save_checkpoint(path, sample_checkpoint(2));
  EXPECT_EQ(number_at(path), 2);
  EXPECT_EQ(folder.read("elsewhere/file"), "data");
  EXPECT_FALSE(fs::exists(folder.file("elsewhere/model.safetensors")));
}

TEST(CheckpointFolder, AFileInItsPlaceIsAFileError) {
  const TemporaryFolder folder;
  folder.write("c", "not a folder");
  EXPECT_THROW(load_checkpoint(folder.file("c")), FileError);
  EXPECT_THROW(save_checkpoint(folder.file("c") + "/below", sample_checkpoint(1)), FileError);
  EXPECT_THROW(load_checkpoint(folder.file("absent")), FileError);
}

TEST(CheckpointWriter, WritesWhatTheTensorsWereWhenItWasAsked) {
  const TemporaryFolder folder;
  CheckpointWriter writer(folder.file("c"), 1);
  const Checkpoint c = sample_checkpoint(1);
  writer.save(c);
  c.model[0].second.fill_(77);
  c.optimizer[0].second.fill_(77);
  writer.finish();
  EXPECT_EQ(number_at(folder.file("c")), 1);
  for (int i = 2; i < 6; ++i) writer.save(sample_checkpoint(i));
  writer.finish();
  EXPECT_EQ(number_at(folder.file("c")), 5);
}

TEST(CheckpointWriter, KeepsTheMemoryOfItsCopies) {
  const TemporaryFolder folder;
  const std::string path = folder.file("c");
  CheckpointWriter writer(path, 1);
  Checkpoint c = sample_checkpoint(1);
  writer.prepare(c.model, c.optimizer);
  const std::int64_t live = memory_stats(DeviceType::cpu).live_bytes;
  reset_peak_memory(DeviceType::cpu);
  for (int i = 0; i < 3; ++i) writer.save(c);
  writer.finish();
  EXPECT_EQ(memory_stats(DeviceType::cpu).peak_bytes, live);
  // Shapes and names change where gates are operated on, and tensors come and go.
  c.model = {{"steps", Tensor::arange(3)}, {"w", Tensor::full({2, 2}, 5)}};
  c.optimizer.emplace_back("v.w", Tensor::full({3, 4}, 6));
  writer.save(c);
  writer.finish();
  const Checkpoint loaded = load_checkpoint(path);
  EXPECT_EQ(loaded.model.at(0).second.to_vector(), (std::vector<double>{0, 1, 2}));
  EXPECT_EQ(loaded.model.at(1).second.to_vector(), std::vector<double>(4, 5));
  EXPECT_EQ(loaded.optimizer.at(1).second.to_vector(), std::vector<double>(12, 6));
  c = sample_checkpoint(2);
  writer.save(c);
  writer.finish();
  EXPECT_EQ(number_at(path), 2);
}

TEST(CheckpointWriter, TellsOfAFailureAtTheNextCall) {
  const TemporaryFolder folder;
  const std::string path = folder.file("c");
  CheckpointWriter writer(path, 1);
  writer.save(sample_checkpoint(1));
  writer.finish();
  {
    const Hook hook([](FileOp op, const std::string&) { return op == FileOp::write ? ENOSPC : 0; });
    writer.save(sample_checkpoint(2));
    EXPECT_NE(message_of<OutOfMemory>([&] { writer.finish(); }).find("free some disk space"),
              std::string::npos);
    writer.finish();  // told once
    writer.save(sample_checkpoint(3));
    EXPECT_THROW(writer.save(sample_checkpoint(4)), OutOfMemory);
  }
  EXPECT_EQ(number_at(path), 1);
  writer.save(sample_checkpoint(5));
  writer.finish();
  EXPECT_EQ(number_at(path), 5);
}

TEST(SavedModels, ThatClaimToBeHugeAreRefusedBeforeTheyAreMade) {
  const Options small = parse_options("duel", {"--layers", "1", "--width", "32"}).options;
  const auto m = make_model(small, arm_named("aspa", "arm"), 11, 1);
  const NamedTensors tensors = module_tensors(*m);
  EXPECT_NO_THROW(saved_model({small, "aspa", 11, 1, ""}, tensors, "here"));
  const auto refused = [&](const std::vector<std::string>& args, std::int64_t vocab = 11) {
    const Options large = parse_options("duel", args).options;
    for (const char* arm : {"aspa", "dense"}) {
      EXPECT_NE(message_of<FileError>([&] {
                  saved_model({large, arm, vocab, 1, ""}, tensors, "here");
                }).find("here: "),
                std::string::npos);
    }
  };
  refused({"--layers", "4096"});
  refused({"--width", "1048576"});
  refused({"--layers", "1", "--width", "32"}, 2'000'000'000);
  const Options heads = parse_options("duel", {"--routed-heads", "1048576", "--gates-per-head",
                                               "4096", "--layers", "1"})
                            .options;
  EXPECT_THROW(saved_model({heads, "aspa", 11, 1, ""}, tensors, "here"), FileError);
  const Options experts = parse_options("duel", {"--experts", "1048576", "--layers", "1"}).options;
  EXPECT_THROW(saved_model({experts, "aspa", 11, 1, ""}, tensors, "here"), FileError);
}

TEST(TrainerStates, AreCheckedCounters) {
  const auto state = [](const std::string& step) {
    return R"({"step":)" + step + R"(,"batches":6,"dropout_seed":1,"dropout_stream":2})";
  };
  EXPECT_EQ(parse_trainer_state(state("3"), "c").step, 3);
  for (const char* bad : {"-1", "1.5", "\"3\"", "null", "18446744073709551615", "[3]"}) {
    EXPECT_EQ(message_of<FileError>([&] { parse_trainer_state(state(bad), "c"); }),
              "c: state.json: expected the counter \"step\"")
        << bad;
  }
  EXPECT_THROW(parse_trainer_state("", "c"), FileError);
  EXPECT_THROW(parse_trainer_state("[]", "c"), FileError);
  EXPECT_THROW(parse_trainer_state(state("3,\"step\":4"), "c"), FileError);
  EXPECT_THROW(parse_trainer_state(std::string(100000, '['), "c"), FileError);
}

}  // namespace
}  // namespace proteus
