// The tokenizer of a config.json, or a tokenizer.json: what is taken writes itself back to the
// same, and gives a text back that it has turned into ids.
#include <string>

#include "tests/fuzz/fuzz.h"
#include "train/tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace proteus;
  const std::string_view text = fuzz::text_of(data, size);
  fuzz::accepts([&] {
    const Tokenizer tokenizer = Tokenizer::from_json(text, "fuzz.json");
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
  });
  // The input as a text to learn from.
  fuzz::accepts([&] {
    const Tokenizer chars = Tokenizer::chars_of(text, "fuzz.txt");
    fuzz::require(chars.decode(chars.encode(text, "fuzz.txt")) == text);
  });
  return 0;
}
