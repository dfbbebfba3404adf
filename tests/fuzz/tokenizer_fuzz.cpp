// The tokenizer of a config.json, or a tokenizer.json: what is taken writes itself back to the
// same, and gives a text back that it has turned into ids.
#include <string>

#include "tests/fuzz/fuzz.h"
#include "train/tokenizer.h"

using namespace proteus;

void check(const Tokenizer& tokenizer) {
  fuzz::require(Tokenizer::from_json(tokenizer.to_json(), "again") == tokenizer);
  const std::int64_t vocab = tokenizer.vocab();
  std::vector<std::int32_t> ids;
  for (std::int64_t id = 0; id < vocab; ++id) ids.push_back(static_cast<std::int32_t>(id));
  const std::string all = tokenizer.decode(ids);
  const auto again = tokenizer.encode(all, "fuzz");
  // Neighbours may merge into one token where there are merges; the text is the same.
  fuzz::require(tokenizer.kind() == TokenizerKind::bpe ? tokenizer.decode(again) == all
                                                       : again == ids);
  const std::int32_t outside[] = {static_cast<std::int32_t>(vocab)};
  fuzz::require(!fuzz::accepts([&] { tokenizer.decode(outside); }));
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text = fuzz::text_of(data, size);
  const auto tokenizer = fuzz::accepted([&] { return Tokenizer::from_json(text, "fuzz.json"); });
  if (tokenizer) check(*tokenizer);
  // The input as a text to learn from.
  const auto chars = fuzz::accepted([&] { return Tokenizer::chars_of(text, "fuzz.txt"); });
  if (chars) fuzz::require(chars->decode(chars->encode(text, "fuzz.txt")) == text);
  return 0;
}
