// train/shard.h, datasets made of shards, and files that are not what they say.
#include "train/shard.h"

#include <gtest/gtest.h>

#include <array>
#include <cstring>
#include <filesystem>
#include <numeric>

#include "tensor/error.h"
#include "tests/error_text.h"
#include "tests/temporary_folder.h"
#include "train/dataset.h"

namespace proteus {
namespace {

using testing::message_of;
using testing::TemporaryFolder;
using Ids = std::vector<std::int32_t>;

Ids counting(std::int32_t n, std::int32_t vocab) {
  Ids ids(static_cast<std::size_t>(n));
  for (std::int32_t i = 0; i < n; ++i) ids[static_cast<std::size_t>(i)] = i % vocab;
  return ids;
}

Ids all_of(const Shard& shard, std::int64_t vocab) {
  Ids ids(static_cast<std::size_t>(shard.tokens()));
  shard.copy(0, shard.tokens(), vocab, ids.data());
  return ids;
}

TEST(Shard, ReadsWhatIsWritten) {
  const TemporaryFolder folder;
  for (const std::int32_t vocab : {256, 65536, 65537, 100000}) {
    const Ids ids = counting(3000, vocab);
    Ids with_last = ids;
    with_last.push_back(vocab - 1);
    write_shard(folder.file("a.bin"), with_last, vocab);
    const Shard shard(folder.file("a.bin"));
    EXPECT_EQ(shard.bytes_per_id(), vocab <= 65536 ? 2 : 4);
    EXPECT_EQ(all_of(shard, vocab), with_last);
    EXPECT_EQ(folder.read("a.bin").size(),
              1024 + with_last.size() * static_cast<std::size_t>(shard.bytes_per_id()));
  }
}

TEST(Shard, ReadsIdsWithoutAHeader) {
  const TemporaryFolder folder;
  const std::array<std::uint16_t, 3> ids{7, 65535, 0};
  folder.write("raw.bin", std::string(reinterpret_cast<const char*>(ids.data()), 6));
  EXPECT_EQ(all_of(Shard(folder.file("raw.bin")), 65536), (Ids{7, 65535, 0}));
}

TEST(Shard, RefusesFilesThatAreCutOrLie) {
  const TemporaryFolder folder;
  write_shard(folder.file("good.bin"), counting(10, 100), 100);
  const std::string good = folder.read("good.bin");
  // Without its first bytes a header is ids like others: from 4 bytes on the length has to agree.
  for (std::size_t n = 4; n < good.size(); n += n < 64 ? 1 : 37) {
    folder.write("bad.bin", good.substr(0, n));
    EXPECT_THROW(Shard(folder.file("bad.bin")), FileError) << n;
  }
  const auto with_word = [&](std::size_t i, std::int32_t value) {
    std::string bytes = good;
    std::memcpy(bytes.data() + 4 * i, &value, 4);
    folder.write("bad.bin", bytes);
    return message_of<FileError>([&] { Shard shard(folder.file("bad.bin")); });
  };
  EXPECT_NE(with_word(1, 2).find("version 2, expected 1"), std::string::npos);
  for (const std::int32_t count : {-1, 0, 9, 11, 2147483647}) {
    EXPECT_NE(with_word(2, count).find("the header says"), std::string::npos) << count;
  }
  folder.write("bad.bin", "");
  EXPECT_THROW(Shard(folder.file("bad.bin")), FileError);
  folder.write("bad.bin", "abc");
  EXPECT_THROW(Shard(folder.file("bad.bin")), FileError);
  EXPECT_THROW(Shard(folder.file("missing.bin")), FileError);
  for (const char* target : {"/dev/zero", "link.bin", ".", "/nowhere"}) {
    std::filesystem::remove(folder.file("link.bin"));
    std::filesystem::create_symlink(target, folder.file("link.bin"));
    EXPECT_THROW(Shard(folder.file("link.bin")), FileError) << target;
    EXPECT_THROW(Dataset::from_shards(folder.path(), Tokenizer::bytes()), FileError) << target;
  }
}

TEST(Shard, NamesTheIdThatIsNone) {
  const TemporaryFolder folder;
  write_shard(folder.file("a.bin"), Ids{1, 2, 300}, 1000);
  const Shard shard(folder.file("a.bin"));
  const std::string message = message_of<FileError>([&] { all_of(shard, 256); });
  EXPECT_NE(message.find("a.bin: token 2 is id 300, expected one in [0, 256)"), std::string::npos)
      << message;
  write_shard(folder.file("b.bin"), Ids{-5}, 100000);
  EXPECT_THROW(all_of(Shard(folder.file("b.bin")), 100000), FileError);
}

TEST(Dataset, OfShardsIsTheirTokensInOrder) {
  const TemporaryFolder folder;
  const Ids ids = counting(1000, 256);
  const auto part = [&](const char* name, std::size_t begin, std::size_t end) {
    write_shard(folder.file(name), std::span(ids).subspan(begin, end - begin), 256);
  };
  part("x_train_000000.bin", 0, 300);
  part("x_train_000001.bin", 300, 301);
  part("x_train_000002.bin", 301, 700);
  part("x_val_000000.bin", 700, 1000);
  const Dataset d = Dataset::from_shards(folder.path(), Tokenizer::bytes());
  EXPECT_EQ(d.tokens(), 1000);
  EXPECT_EQ(d.tokens(Split::train), 700);
  EXPECT_EQ(d.tokens(Split::validation), 300);
  EXPECT_EQ(d.bytes_per_target(Split::validation), 1);
  Ids back(1000);
  d.copy_ids(0, 1000, back.data());
  EXPECT_EQ(back, ids);
  for (std::int64_t first = 295; first < 305; ++first) {
    Ids some(10);
    d.copy_ids(first, 10, some.data());
    for (std::size_t i = 0; i < some.size(); ++i) {
      EXPECT_EQ(some[i], (first + static_cast<std::int64_t>(i)) % 256);
    }
  }
  const Batch batch = d.random_batch(1, 2, 4, 32);
  EXPECT_EQ(batch.inputs.data<std::int32_t>()[1], batch.targets.data<std::int32_t>()[0]);
}

TEST(Dataset, OfShardsWithoutValidationKeepsATenth) {
  const TemporaryFolder folder;
  write_shard(folder.file("all.bin"), counting(1000, 256), 256);
  const Dataset d = Dataset::from_shards(folder.file("all.bin"), Tokenizer::bytes());
  EXPECT_EQ(d.tokens(Split::train), 900);
  EXPECT_EQ(d.tokens(Split::validation), 100);
}

TEST(Dataset, OfShardsSaysWhatIsMissing) {
  const TemporaryFolder folder;
  EXPECT_NE(message_of<FileError>([&] { shard_paths(folder.path()); }).find("without .bin files"),
            std::string::npos);
  write_shard(folder.file("val.bin"), counting(100, 256), 256);
  EXPECT_NE(message_of<FileError>([&] {
              Dataset::from_shards(folder.path(), Tokenizer::bytes());
            }).find("every shard is for validation"),
            std::string::npos);
  EXPECT_EQ(tokenizer_beside(folder.file("val.bin")), "");
  folder.write("tokenizer.json", "{}");
  EXPECT_EQ(tokenizer_beside(folder.file("val.bin")), folder.file("tokenizer.json"));
}

}  // namespace
}  // namespace proteus
