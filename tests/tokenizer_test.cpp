// train/tokenizer.h and train/utf8.h.
#include "train/tokenizer.h"

#include <gtest/gtest.h>

#include <numeric>

#include "tensor/error.h"
#include "tests/error_text.h"
#include "train/utf8.h"

namespace proteus {
namespace {

using testing::message_of;

TEST(Utf8, DecodesEveryLengthAndRefusesWhatIsNot) {
  const std::string good = "a\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80";
  EXPECT_EQ(decode_utf8(good, 0).value, U'a');
  EXPECT_EQ(decode_utf8(good, 1).value, U'é');
  EXPECT_EQ(decode_utf8(good, 3).value, U'€');
  EXPECT_EQ(decode_utf8(good, 6).value, U'\U0001F600');
  EXPECT_EQ(decode_utf8(good, 6).bytes, 4);
  for (const std::string bad :
       {"\x80", "\xC0\x80", "\xC1\xBF", "\xE0\x80\x80", "\xED\xA0\x80", "\xF0\x80\x80\x80",
        "\xF4\x90\x80\x80", "\xF5\x80\x80\x80", "\xC3", "\xE2\x82", "\xE2\x41\x80", "\xFF"}) {
    EXPECT_EQ(decode_utf8(bad, 0).bytes, 0) << ::testing::PrintToString(bad);
  }
}

TEST(Utf8, EncodesWhatItDecodes) {
  for (char32_t c = 0; c < 0x110000; c += c < 0x900 ? 1 : 97) {
    if (c >= 0xD800 && c <= 0xDFFF) continue;
    std::string text;
    append_utf8(text, c);
    const CodePoint back = decode_utf8(text, 0);
    ASSERT_EQ(back.value, c);
    ASSERT_EQ(static_cast<std::size_t>(back.bytes), text.size());
  }
}

TEST(Utf8, RepairsBytesThatAreNoCharacters) {
  EXPECT_EQ(repaired_utf8("a\xFF\xC3\xA9\xE2\x82"),
            "a\xEF\xBF\xBD\xC3\xA9\xEF\xBF\xBD\xEF\xBF\xBD");
  EXPECT_EQ(utf8_length("a\xC3\xA9\xE2\x82\xAC"), 3u);
}

TEST(Tokenizer, CharIdsAreInOrderOfCodePoints) {
  const Tokenizer t = Tokenizer::chars_of("b€aébé", "text");
  EXPECT_EQ(t.vocab(), 4);
  EXPECT_EQ(t.encode("abé€", "text"), (std::vector<std::int32_t>{0, 1, 2, 3}));
  EXPECT_EQ(t.byte_length(0), 1);
  EXPECT_EQ(t.byte_length(3), 3);
}

TEST(Tokenizer, RoundTripsText) {
  const std::string text = "To be, or not to be\n— Γειά, 日本 😀";
  for (const Tokenizer& t : {Tokenizer::chars_of(text, "text"), Tokenizer::bytes()}) {
    const auto ids = t.encode(text, "text");
    EXPECT_EQ(t.decode(ids), text);
  }
  EXPECT_LT(Tokenizer::chars_of(text, "text").encode(text, "").size(), text.size());
}

TEST(Tokenizer, BytesTakeAnything) {
  std::string all(256, '\0');
  std::iota(all.begin(), all.end(), '\0');
  const Tokenizer t = Tokenizer::bytes();
  EXPECT_EQ(t.vocab(), 256);
  const auto ids = t.encode(all, "text");
  for (std::int32_t i = 0; i < 256; ++i) EXPECT_EQ(ids[static_cast<std::size_t>(i)], i);
  EXPECT_EQ(t.decode(ids), all);
}

TEST(Tokenizer, NamesTheUnknownCharacterAndItsOffset) {
  const Tokenizer t = Tokenizer::chars_of("abc é", "text");
  EXPECT_EQ(message_of<FileError>([&] { t.encode("é ab€", "data.txt"); }),
            "data.txt: character '€' (U+20AC) at offset 5 is not among the 5 that the tokenizer "
            "knows; leave it out, or train with --tokenizer byte");
  EXPECT_EQ(message_of<ConfigError>([&] { t.encode_option("ab\n", "--prompt"); }),
            "--prompt: character U+000A at offset 2 is not among the 5 that the tokenizer knows; "
            "leave it out, or train with --tokenizer byte");
}

TEST(Tokenizer, SuggestsTheByteTokenizerForBytesThatAreNotUtf8) {
  EXPECT_EQ(message_of<FileError>([] { Tokenizer::chars_of("caf\xE9 noir", "menu.txt"); }),
            "menu.txt: byte 0xE9 at offset 3 is not UTF-8; use --tokenizer byte, or convert the "
            "text to UTF-8");
  const Tokenizer t = Tokenizer::chars_of("abc", "text");
  EXPECT_EQ(message_of<ConfigError>([&] { t.encode_option("a\xFF", "--prompt"); }),
            "--prompt: byte 0xFF at offset 1 is not UTF-8; use --tokenizer byte, or convert the "
            "text to UTF-8");
}

TEST(Tokenizer, RefusesIdsOutOfRange) {
  const std::int32_t bad[] = {0, 3};
  EXPECT_EQ(message_of<ConfigError>([&] { Tokenizer::chars_of("abc", "text").decode(bad); }),
            "decode(ids): expected ids in [0, 3) (= vocab), got 3");
  const std::int32_t negative[] = {-1};
  EXPECT_THROW(Tokenizer::bytes().decode(negative), ConfigError);
}

TEST(Tokenizer, RoundTripsJson) {
  for (const Tokenizer& t : {Tokenizer::chars_of("a\"\\\n\x01é€😀", "text"), Tokenizer::bytes()}) {
    const Tokenizer back = Tokenizer::from_json(t.to_json(), "config.json");
    EXPECT_EQ(back, t);
    EXPECT_EQ(back.kind(), t.kind());
  }
}

TEST(Tokenizer, RefusesMalformedJson) {
  for (const char* json :
       {"", "{", "[]", "{}", R"({"kind": 1})", R"({"kind": "words"})", R"({"kind": "char"})",
        R"({"kind": "char", "chars": 3})", R"({"kind": "char", "chars": "ba"})",
        R"({"kind": "char", "chars": "aa"})"}) {
    EXPECT_THROW(Tokenizer::from_json(json, "config.json"), FileError) << json;
  }
  EXPECT_EQ(message_of<FileError>(
                [] { Tokenizer::from_json(R"({"kind": "words"})", "runs/a/config.json"); }),
            "runs/a/config.json: tokenizer: kind: expected char or byte, got words");
}

}  // namespace
}  // namespace proteus
