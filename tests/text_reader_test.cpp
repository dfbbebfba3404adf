// train/text_reader.h: ids of files of any size and of pipes, and what is wrong with them.
#include "train/text_reader.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>
#include <thread>

#include "tensor/error.h"
#include "tests/error_text.h"
#include "tests/temporary_folder.h"

namespace proteus {
namespace {

using testing::message_of;
using testing::TemporaryFolder;

constexpr std::size_t kPiece = std::size_t{1} << 20;

std::vector<std::int32_t> read_all(TextReader& reader) {
  std::vector<std::int32_t> all;
  for (auto ids = reader.next(); !ids.empty(); ids = reader.next()) {
    all.insert(all.end(), ids.begin(), ids.end());
  }
  return all;
}

// Characters of one to four bytes: pieces of a megabyte end inside of them.
std::string mixed_text(std::size_t bytes) {
  std::string text = "x";
  while (text.size() < bytes) text += "aé€𝄞";
  return text;
}

TEST(TextReader, GivesTheIdsOfTheWholeTextAndCutsNoCharacter) {
  const TemporaryFolder folder;
  for (const std::size_t bytes : {std::size_t{10}, 3 * kPiece + 5}) {
    const std::string text = mixed_text(bytes);
    const std::string path = folder.write("text", text);
    for (const Tokenizer& tokenizer : {Tokenizer::chars_of(text, "text"), Tokenizer::bytes()}) {
      TextReader reader(tokenizer, path);
      EXPECT_EQ(read_all(reader), tokenizer.encode(text, "text"));
      EXPECT_EQ(reader.bytes(), static_cast<std::int64_t>(text.size()));
      EXPECT_TRUE(reader.next().empty());
    }
  }
}

// Words, contractions, numbers, runs of spaces and of line ends, other scripts, bytes that are no
// UTF-8: pieces end in all of them, as every length of the first word moves the borders by one.
TEST(TextReader, CutsNothingThatByteMergesMayJoin) {
  const TemporaryFolder folder;
  const std::string unit =
      "They're here   now,\n\n\n 12345 times!  naïve \xF0\x9F\x99\x82\xF0\x9F\x99\x82 日本語  "
      "\t\tend\xff\xfe.\r\n";
  const Tokenizer tokenizer = Tokenizer::of(Bpe::train(unit + unit + " They There the then", 320));
  for (std::size_t first = 0; first < unit.size(); ++first) {
    std::string text(first, 'x');
    while (text.size() < kPiece + 2 * unit.size()) text += unit;
    const std::string path = folder.write("text", text);
    TextReader reader(tokenizer, path);
    ASSERT_EQ(read_all(reader), tokenizer.encode(text, "text")) << first;
    EXPECT_EQ(reader.bytes(), static_cast<std::int64_t>(text.size()));
  }
}

TEST(TextReader, ReadsAPipe) {
  const TemporaryFolder folder;
  const std::string text = mixed_text(kPiece + 100);
  ASSERT_EQ(::mkfifo(folder.file("pipe").c_str(), 0600), 0);
  std::thread writer([&] { folder.write("pipe", text); });
  const Tokenizer tokenizer = Tokenizer::chars_of(text, "text");
  TextReader reader(tokenizer, folder.file("pipe"));
  EXPECT_EQ(read_all(reader), tokenizer.encode(text, "text"));
  writer.join();
}

TEST(TextReader, SaysWhereACharacterIsWrong) {
  const TemporaryFolder folder;
  const Tokenizer tokenizer = Tokenizer::chars_of("ab", "text");
  const std::string good(kPiece + 7, 'a');
  const auto message = [&](const std::string& text) {
    const std::string path = folder.write("text", text);
    const std::string said = message_of<FileError>([&] {
      TextReader reader(tokenizer, path);
      read_all(reader);
    });
    EXPECT_EQ(said.substr(0, path.size()), path);
    return said.substr(path.size());
  };
  EXPECT_EQ(
      message(good + "c"),
      ": character 'c' (U+0063) at offset 1048583 is not among the 2 that the tokenizer knows; "
      "leave it out, or train with --tokenizer byte");
  EXPECT_EQ(message(good + "\xE9"),
            ": byte 0xE9 at offset 1048583 is not UTF-8; use --tokenizer byte, or convert the text "
            "to UTF-8");
}

TEST(TextReader, SaysThatAFileBecameShorter) {
  const TemporaryFolder folder;
  const Tokenizer tokenizer = Tokenizer::bytes();
  const std::string path = folder.write("text", std::string(3 * kPiece, 'a'));
  TextReader reader(tokenizer, path);
  EXPECT_EQ(reader.next().size(), kPiece);
  std::filesystem::resize_file(path, 2 * kPiece);
  EXPECT_EQ(message_of<FileError>([&] { read_all(reader); }),
            path +
                ": it had 3145728 bytes when it was opened and ended after 2097152; leave it alone "
                "while it is read");
}

TEST(TextReader, NeedsAFile) {
  const TemporaryFolder folder;
  const Tokenizer tokenizer = Tokenizer::bytes();
  EXPECT_EQ(message_of<FileError>([&] { TextReader(tokenizer, folder.file("none")); }),
            folder.file("none") + ": cannot read: No such file or directory");
  EXPECT_EQ(message_of<FileError>([&] { TextReader(tokenizer, folder.path()); }),
            folder.path() + ": is a directory; expected a file");
}

}  // namespace
}  // namespace proteus
