// train/bpe.h beside the `tokenizers` package, whose results are in tests/fixtures/bpe (make.py
// there).
#include "train/bpe.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <numeric>

#include "tensor/error.h"
#include "tests/error_text.h"
#include "tests/temporary_folder.h"
#include "train/mapped_file.h"
#include "train/tokenizer.h"

namespace proteus {
namespace {

using testing::message_of;
using testing::TemporaryFolder;
using Json = nlohmann::json;

std::string fixture(const std::string& name) { return PROTEUS_FIXTURES "/bpe/" + name; }
std::string read(const std::string& name) { return std::string(MappedFile(fixture(name)).view()); }

std::string decoded(const Bpe& bpe, const std::vector<std::int32_t>& ids) {
  std::string text;
  for (const std::int32_t id : ids) text += bpe.bytes_of(id);
  return text;
}

Bpe loaded() { return Bpe::from_tokenizer_json(read("tokenizer.json"), "tokenizer.json"); }

TEST(Bpe, EncodesTortureAsTheTokenizersPackageDoes) {
  const Bpe bpe = loaded();
  EXPECT_EQ(bpe.vocab(), 700);
  const std::string text = read("torture.txt");
  const auto ids = bpe.encode(text);
  EXPECT_EQ(ids, Json::parse(read("ids.json")).get<std::vector<std::int32_t>>());
  EXPECT_EQ(decoded(bpe, ids), text);
}

TEST(Bpe, ReadsVocabAndMerges) {
  const Bpe bpe = Bpe::from_vocab_and_merges(read("vocab.json"), read("merges.txt"), "gpt2");
  EXPECT_EQ(bpe, loaded());
}

TEST(Bpe, WritesWhatItReads) {
  const Bpe bpe = loaded();
  EXPECT_EQ(Bpe::from_tokenizer_json(bpe.to_tokenizer_json(), "again"), bpe);
  // The same vocab and merges as in the package's own file.
  const Json ours = Json::parse(bpe.to_tokenizer_json());
  const Json theirs = Json::parse(read("tokenizer.json"));
  for (const char* part : {"vocab", "merges"})
    EXPECT_EQ(ours["model"][part], theirs["model"][part]);
  EXPECT_EQ(ours["added_tokens"], theirs["added_tokens"]);
}

TEST(Bpe, RoundTripsAnyBytes) {
  const Bpe bpe = loaded();
  std::string all(256, '\0');
  std::iota(all.begin(), all.end(), '\0');
  std::string mixed = read("torture.txt");
  for (std::size_t i = 7; i < mixed.size(); i += 13) mixed[i] = static_cast<char>(i * 151);
  const std::string cases[] = {"",    " ",        "\n",    all,      all + all,
                               mixed, "\xE2\x82", "\xC3(", "a\xFF b"};
  for (const std::string& text : cases) EXPECT_EQ(decoded(bpe, bpe.encode(text)), text);
}

TEST(Bpe, LongWordsTakeNoSquareOfTheirLength) {
  const Bpe bpe = loaded();
  const std::string word(1 << 20, 'x');
  const auto ids = bpe.encode(word);
  EXPECT_LT(ids.size(), word.size() / 4);
  EXPECT_EQ(decoded(bpe, ids), word);
}

TEST(Bpe, LearnsTheMergesThatThePackageLearns) {
  const Bpe bpe = Bpe::train(read("torture.txt") + read("plain.txt"), 600);
  EXPECT_EQ(bpe.vocab(), 600);
  const Json merges = Json::parse(bpe.to_tokenizer_json())["model"]["merges"];
  EXPECT_EQ(merges, Json::parse(read("learned.json")));
}

TEST(Bpe, LearningEndsWhenNoPairIsLeft) {
  const Bpe bpe = Bpe::train("ab ab", 5000);
  EXPECT_EQ(bpe.vocab(), 258);  // "ab", " ab"
  EXPECT_EQ(bpe.encode("ab ab").size(), 2U);
  EXPECT_NE(message_of<ConfigError>([] { Bpe::train("a", 255); }).find("--vocab-size"),
            std::string::npos);
}

TEST(Bpe, RefusesWhatItDoesNotDo) {
  const Json good = Json::parse(read("tokenizer.json"));
  const auto says = [&](const char* pointer, const Json& value, const char* expected) {
    Json bad = good;
    bad[Json::json_pointer(pointer)] = value;
    const std::string message =
        message_of<FileError>([&] { Bpe::from_tokenizer_json(bad.dump(), "t.json"); });
    EXPECT_NE(message.find(expected), std::string::npos) << pointer << ": " << message;
    EXPECT_EQ(message.find("t.json: "), 0U) << message;
  };
  says("/model/type", "WordPiece", "model.type");
  says("/model/dropout", 0.1, "model.dropout");
  says("/model/byte_fallback", true, "model.byte_fallback");
  says("/normalizer", {{"type", "NFC"}}, "normalizer");
  says("/pre_tokenizer", nullptr, "pre_tokenizer");
  says("/pre_tokenizer/type", "Whitespace", "pre_tokenizer.type");
  says("/pre_tokenizer/add_prefix_space", true, "add_prefix_space");
  says("/model/merges/0", "a", "two tokens");
  says("/model/merges/0", Json::array({"zzzz", "q"}), "not in the vocab");
  says("/model/merges", 5, "model.merges");
  says("/model/vocab", 5, "vocab");
  says("/model/vocab/a", -1, "every id from 0 to 699 once");
  says("/model/vocab/a", 1'000'000, "every id from 0 to 699 once");
  says("/model/vocab/a", "x", "expected an id");
  says("/model/vocab/日", 700, "not written in characters of bytes");
  says("/added_tokens/0/content", 7, "added_tokens");
  Json missing = good;
  missing["model"]["vocab"].erase("a");
  missing["model"]["vocab"]["aaaaaaaaaaa"] = good["model"]["vocab"]["a"];
  EXPECT_NE(message_of<FileError>([&] {
              Bpe::from_tokenizer_json(missing.dump(), "t");
            }).find("no id for byte 0x61"),
            std::string::npos);
  for (const char* text : {"", "{", "[]", "5", "{\"model\": 5}"}) {
    EXPECT_THROW(Bpe::from_tokenizer_json(text, "t"), FileError) << text;
  }
}

// Ids that are not those of the vocab, or stand for other bytes than the tokens they are made of,
// would turn a text into another one.
TEST(Bpe, RefusesSpecialTokensThatStandForOtherBytes) {
  const Json good = Json::parse(read("tokenizer.json"));
  const auto says = [&](const Json& added, const Json& vocab, const std::string& expected) {
    Json bad = good;
    bad["added_tokens"] = added;
    bad["model"]["vocab"].update(vocab);
    EXPECT_EQ(message_of<FileError>([&] { Bpe::from_tokenizer_json(bad.dump(), "t.json"); }),
              "t.json: " + expected);
  };
  const Json& vocab = good["model"]["vocab"];
  // All ids occur once, that of the byte is one behind them.
  says({{{"content", "a"}, {"id", vocab["a"]}}}, {{"a", vocab.size()}},
       "added_tokens: 'a' has id " + vocab["a"].dump() + ", the vocab says " +
           std::to_string(vocab.size()));
  says({{{"content", "Ġ"}, {"id", vocab["Ġ"]}}}, Json::object(),
       "added_tokens: 'Ġ' stands for other bytes in the vocab");
  says({{{"content", "Ġt"}, {"id", vocab["Ġt"]}}}, Json::object(),
       "added_tokens: 'Ġt' stands for other bytes in the vocab");
  Json merged = good;
  merged["added_tokens"] = {{{"content", "日"}, {"id", 700}}, {{"content", "日a"}, {"id", 701}}};
  merged["model"]["vocab"].update(Json{{"日", 700}, {"日a", 701}});
  merged["model"]["merges"].push_back("日 a");
  const std::string message =
      message_of<FileError>([&] { Bpe::from_tokenizer_json(merged.dump(), "t.json"); });
  EXPECT_TRUE(message.ends_with("is not written in characters of bytes")) << message;
}

TEST(Tokenizer, OfBpeIsFoundByPath) {
  const Tokenizer from_folder = Tokenizer::from_path(PROTEUS_FIXTURES "/bpe");
  const Tokenizer from_file = Tokenizer::from_path(fixture("tokenizer.json"));
  EXPECT_EQ(from_folder, from_file);
  EXPECT_EQ(from_file.kind(), TokenizerKind::bpe);
  EXPECT_EQ(from_file.vocab(), 700);
  EXPECT_EQ(Tokenizer::from_json(from_file.to_json(), "checkpoint"), from_file);
  const TemporaryFolder folder;
  EXPECT_NE(message_of<FileError>([&] {
              Tokenizer::from_path(folder.path());
            }).find("vocab.json and merges.txt"),
            std::string::npos);
  folder.write("vocab.json", read("vocab.json"));
  EXPECT_NE(message_of<FileError>([&] { Tokenizer::from_path(folder.path()); }).find("merges.txt"),
            std::string::npos);
  folder.write("merges.txt", read("merges.txt"));
  EXPECT_EQ(Tokenizer::from_path(folder.path()), from_file);
  folder.write("char.json", Tokenizer::chars_of("abc", "x").to_json());
  EXPECT_EQ(Tokenizer::from_path(folder.file("char.json")).vocab(), 3);
}

}  // namespace
}  // namespace proteus
