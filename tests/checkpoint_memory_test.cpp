// What is read of damaged files takes no more memory than twice the file. Its operator new counts,
// so that this is a program of its own.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <malloc.h>

#include <atomic>
#include <cstdlib>
#include <filesystem>

#include "tensor/error.h"
#include "tensor/storage.h"
#include "tests/checkpoint_sample.h"
#include "tests/temporary_folder.h"
#include "train/checkpoint.h"

namespace {

// What operator new has given and not got back, and the most that it was since it was asked last.
// Tensors have memory of their own, which memory_stats() counts.
std::atomic<std::int64_t> heap_live = 0, heap_peak = 0;

void count_heap(std::int64_t bytes) {
  const std::int64_t now = heap_live += bytes;
  for (std::int64_t most = heap_peak; now > most && !heap_peak.compare_exchange_weak(most, now);) {
  }
}

}  // namespace

// Not inline: g++ would see malloc() meet operator delete, and warn.
[[gnu::noinline]] void* operator new(std::size_t bytes) {
  void* p = std::malloc(bytes);
  if (!p) throw std::bad_alloc();
  count_heap(static_cast<std::int64_t>(::malloc_usable_size(p)));
  return p;
}
[[gnu::noinline]] void operator delete(void* p) noexcept {
  if (p) count_heap(-static_cast<std::int64_t>(::malloc_usable_size(p)));
  std::free(p);
}
void operator delete(void* p, std::size_t) noexcept { operator delete(p); }

namespace proteus {
namespace {

namespace fs = std::filesystem;
using testing::for_each_flip;
using testing::kCheckpointFiles;
using testing::sample_checkpoint;
using testing::TemporaryFolder;

/// The most memory that `fn` takes, of tensors and of everything else.
template <class F>
std::int64_t memory_of(F&& fn) {
  reset_peak_memory(DeviceType::cpu);
  const std::int64_t tensors = memory_stats(DeviceType::cpu).live_bytes;
  const std::int64_t heap = heap_live;
  heap_peak = heap;
  fn();
  return memory_stats(DeviceType::cpu).peak_bytes - tensors + (heap_peak - heap);
}

// Files of sizes as they occur: what is read of a damaged checkpoint takes no more memory than
// twice the file that it is in, and messages.
TEST(CheckpointMemory, DamagedFilesTakeAtMostTwiceTheirSize) {
  constexpr std::int64_t kMessages = 16384;
  const TemporaryFolder folder;
  const std::string path = folder.file("c");
  Checkpoint c = sample_checkpoint(1);
  c.model.emplace_back("large", Tensor::zeros({64, 256}));
  c.optimizer.emplace_back("m.large", Tensor::zeros({64, 256}));
  save_checkpoint(path, c);
  const auto all = static_cast<std::int64_t>(fs::file_size(path + "/model.safetensors"));
  const auto refused = [&](const std::string& what) {
    const std::int64_t bytes =
        memory_of([&] { EXPECT_THROW(load_checkpoint(path), FileError) << what; });
    EXPECT_LE(bytes, 2 * all + kMessages) << what;
  };
  for (const char* name : kCheckpointFiles) {
    const std::string file = path + "/" + name;
    const std::string whole = folder.read(std::string("c/") + name);
    const std::size_t header = std::min<std::size_t>(whole.size(), 8 + whole.find("}}"));
    for_each_flip(file, 8 * std::min(header, whole.size()),
                  [&](std::size_t bit) { refused(fmt::format("{} bit {}", name, bit)); });
    // Every byte of what is parsed, and some of the data behind it.
    for (std::size_t n = whole.size() - 1; n-- > 0; n -= n > header + 997 ? 997 : 0) {
      fs::resize_file(file, n);
      refused(fmt::format("{} cut to {}", name, n));
    }
    folder.write(std::string("c/") + name, whole);
  }
  EXPECT_NO_THROW(load_checkpoint(path));
}

// The header's parser alone, without the hash in front of it: taken or refused, and small.
TEST(CheckpointMemory, HeadersWithFlippedBitsStaySmall) {
  const TemporaryFolder folder;
  const std::string path = folder.file("t");
  NamedTensors written = sample_checkpoint(1).model;
  written.emplace_back("large", Tensor::zeros({64, 256}));
  write_safetensors(path, written);
  const auto bytes = static_cast<std::int64_t>(fs::file_size(path));
  int taken = 0;
  const std::size_t header_bits = 8 * folder.read("t").find("}}");
  for_each_flip(path, header_bits, [&](std::size_t bit) {
    const std::int64_t took = memory_of([&] {
      try {
        const NamedTensors tensors = read_safetensors(path);
        EXPECT_EQ(tensors.size(), 3u) << bit;
        ++taken;
      } catch (const FileError&) {
      }
    });
    EXPECT_LE(took, 2 * bytes) << bit;
  });
  EXPECT_GT(taken, 0) << "another name, another type of the same size";
}

// A header of a great many tensors: what it becomes is no larger than twice the file.
TEST(CheckpointMemory, AHeaderOfManyTensorsStaysSmall) {
  std::string json = "{";
  constexpr int kCount = 20000;
  for (int i = 0; i < kCount; ++i) {
    json += (i > 0 ? ",\"" : "\"") + std::to_string(i) +
            R"(":{"dtype":"U8","shape":[0,0,0,0,0,0,0,0],"data_offsets":[0,0]})";
  }
  json += "}";
  const auto header = detail::parse_safetensors_header(json, 0, "here");
  ASSERT_EQ(header.entries.size(), static_cast<std::size_t>(kCount));
  const std::size_t entry = sizeof(detail::HeaderEntry) + 8 * sizeof(std::int64_t) +
                            2 * sizeof(std::uint32_t);  // sorted by name, for find() as well
  EXPECT_TRUE(header.unescaped.empty());
  EXPECT_LE(kCount * entry, 2 * json.size());
}

}  // namespace
}  // namespace proteus
