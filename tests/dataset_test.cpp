// train/dataset.h.
#include "train/dataset.h"

#include <gtest/gtest.h>

#include <map>

#include "tensor/error.h"
#include "tests/error_text.h"
#include "tests/temporary_folder.h"

namespace proteus {
namespace {

using testing::message_of;
using testing::TemporaryFolder;

/// `n` characters, no two neighbours of which are the same: the position of a token shows.
std::string counting_text(std::int64_t n) {
  std::string text;
  for (std::int64_t i = 0; i < n; ++i) text += static_cast<char>(i % 251);
  return text;
}

Dataset counting(std::int64_t n) {
  return Dataset::from_text(counting_text(n), TokenizerKind::bytes, "counting");
}

std::vector<std::int32_t> values(const Tensor& t) {
  const auto* p = t.data<std::int32_t>();
  return {p, p + t.numel()};
}

TEST(Dataset, SplitsNineToOne) {
  for (const std::int64_t n : {1, 9, 10, 11, 19, 1234, 1115394}) {
    const Dataset d = counting(n);
    EXPECT_EQ(d.tokens(), n);
    EXPECT_EQ(d.tokens(Split::train), n * 9 / 10);
    EXPECT_EQ(d.tokens(Split::train) + d.tokens(Split::validation), n);
  }
}

TEST(Dataset, ReadsAFile) {
  const TemporaryFolder folder;
  const std::string path = folder.write("a.txt", "héllo wörld, héllo again");
  const Dataset chars = Dataset::from_file(path, TokenizerKind::chars);
  EXPECT_EQ(chars.bytes(), 27);
  EXPECT_EQ(chars.tokens(), 24);
  EXPECT_EQ(Dataset::from_file(path, TokenizerKind::bytes).tokens(), 27);
  EXPECT_EQ(Dataset::from_file(path, chars.tokenizer()).tokens(), 24);
}

TEST(Dataset, CountsBytesPerTarget) {
  // 18 training tokens of which 8 have two bytes; the first, of one byte, is no target.
  const Dataset d = Dataset::from_text("aééééééééaaaaaaaaaaa", TokenizerKind::chars, "text");
  ASSERT_EQ(d.tokens(Split::train), 18);
  EXPECT_DOUBLE_EQ(d.bytes_per_target(Split::train), 25.0 / 17);
  EXPECT_DOUBLE_EQ(d.bytes_per_target(Split::validation), 1.0);
  EXPECT_DOUBLE_EQ(counting(100).bytes_per_target(Split::train), 1.0);
}

TEST(Dataset, RandomBatchesAreShiftedByOneAndFromTheTrainingPart) {
  const Dataset d = counting(240);  // training tokens are 0 … 215
  std::map<std::int32_t, int> starts;
  for (std::uint64_t step = 0; step < 400; ++step) {
    const Batch b = d.random_batch(7, step, 5, 16);
    ASSERT_EQ(b.inputs.shape(), (Shape{5, 16}));
    ASSERT_EQ(b.inputs.dtype(), DType::i32);
    const auto x = values(b.inputs);
    const auto y = values(b.targets);
    for (std::size_t i = 0; i < x.size(); ++i) {
      ASSERT_EQ(y[i], x[i] + 1);
      ASSERT_LT(y[i], 216);
      if (i % 16 == 0) ++starts[x[i]];
    }
  }
  EXPECT_EQ(starts.size(), 200u) << "every start from 0 to 199 occurs";
}

TEST(Dataset, RandomBatchesDependOnSeedAndStepAlone) {
  const Dataset d = counting(5000);
  const auto first = values(d.random_batch(1, 10, 4, 32).inputs);
  values(d.random_batch(1, 11, 4, 32).inputs);
  EXPECT_EQ(values(d.random_batch(1, 10, 4, 32).inputs), first);
  EXPECT_NE(values(d.random_batch(1, 11, 4, 32).inputs), first);
  EXPECT_NE(values(d.random_batch(2, 10, 4, 32).inputs), first);
}

TEST(Dataset, SequentialBatchesCoverEveryTargetOnce) {
  for (const std::int64_t n : {2, 3, 170, 650, 651, 1000, 1279}) {
    const Dataset d = counting(n * 10);  // n validation tokens
    for (const std::int64_t T : {1, 7, 64}) {
      for (const std::int64_t B : {1, 4}) {
        std::vector<std::int32_t> seen;
        const std::int64_t count = d.sequential_batches(Split::validation, B, T);
        for (std::int64_t i = 0; i < count; ++i) {
          const Batch b = d.sequential_batch(Split::validation, i, B, T);
          ASSERT_LE(b.inputs.size(0), B);
          ASSERT_LE(b.inputs.size(1), T);
          const auto x = values(b.inputs);
          const auto y = values(b.targets);
          for (std::size_t j = 0; j < x.size(); ++j) ASSERT_EQ(y[j], (x[j] + 1) % 251);
          seen.insert(seen.end(), y.begin(), y.end());
        }
        std::vector<std::int32_t> expected;
        for (std::int64_t i = 9 * n + 1; i < 10 * n; ++i) {
          expected.push_back(static_cast<std::int32_t>(i % 251));
        }
        ASSERT_EQ(seen, expected) << "n " << n << " T " << T << " B " << B;
      }
    }
  }
  EXPECT_THROW(counting(100).sequential_batch(Split::validation, 99, 1, 4), ConfigError);
}

TEST(Dataset, KeepsLargeVocabulariesInFourBytes) {
  std::string text;
  std::vector<std::string> chars;
  for (std::uint32_t c = 0x10000; c < 0x10000 + 70000; ++c) {  // four-byte characters
    text += static_cast<char>(0xF0 | (c >> 18));
    text += static_cast<char>(0x80 | ((c >> 12) & 0x3F));
    text += static_cast<char>(0x80 | ((c >> 6) & 0x3F));
    text += static_cast<char>(0x80 | (c & 0x3F));
  }
  const Dataset d = Dataset::from_text(text, TokenizerKind::chars, "text");
  EXPECT_EQ(d.tokenizer().vocab(), 70000);
  const auto x = values(d.sequential_batch(Split::validation, 0, 1, 6998).targets);
  EXPECT_EQ(x.back(), 69998);
}

TEST(Dataset, RefusesBadFiles) {
  const TemporaryFolder folder;
  const auto read = [](const std::string& path) {
    return [path] { Dataset::from_file(path, TokenizerKind::chars); };
  };
  const std::string empty = folder.write("empty.txt", "");
  EXPECT_EQ(message_of<FileError>(read(empty)),
            empty + ": the file is empty; expected text to train on");
  EXPECT_EQ(message_of<FileError>(read(folder.path())),
            folder.path() + ": is a directory; expected a file");
  const std::string absent = folder.file("absent.txt");
  EXPECT_EQ(message_of<FileError>(read(absent)),
            absent + ": cannot read: No such file or directory");
  EXPECT_EQ(message_of<FileError>(read("/dev/null")),
            "/dev/null: is not a regular file; copy its contents into one");
  const std::string latin = folder.write("latin.txt", "caf\xE9");
  EXPECT_EQ(message_of<FileError>(read(latin)),
            latin +
                ": byte 0xE9 at offset 3 is not UTF-8; use --tokenizer byte, or convert the "
                "text to UTF-8");
}

TEST(Dataset, TellsATinyTextFromALongContext) {
  EXPECT_EQ(message_of<FileError>([] { counting(200).check_context(64); }),
            "counting: 200 tokens, of which the validation part (last 10%) has 20; --context 64 "
            "needs at least 65 there; use a longer text or --context 19");
  EXPECT_EQ(message_of<FileError>([] { counting(1).check_context(64); }),
            "counting: 1 tokens, of which the training part (first 90%) has 0; --context 64 needs "
            "at least 65 there; use a longer text");
  EXPECT_EQ(message_of<ConfigError>([] { counting(10000).check_context(1000); }),
            "counting: 10000 tokens, of which the validation part (last 10%) has 1000; --context "
            "1000 needs at least 1001 there; use --context 999 or less, or a longer text");
  EXPECT_NO_THROW(counting(10000).check_context(999));
  EXPECT_NO_THROW(counting(200).check_context(19));
  EXPECT_THROW(counting(200).random_batch(1, 0, 2, 20), FileError);
  EXPECT_THROW(counting(10000).check_context(0), ConfigError);
}

}  // namespace
}  // namespace proteus
