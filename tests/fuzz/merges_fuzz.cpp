// merges.txt beside a vocab.json of the bytes and a few tokens: what is taken gives a text back
// that it has turned into ids.
#include <map>
#include <nlohmann/json.hpp>
#include <string>

#include "tests/fuzz/fuzz.h"
#include "train/bpe.h"

using namespace proteus;

/// Every byte as GPT-2 writes it, and all tokens of two and three of "Ġ", "a" and "b".
std::string small_vocab() {
  const auto bytes = nlohmann::json::parse(Bpe::train("", 256).to_tokenizer_json());
  nlohmann::json vocab = bytes["model"]["vocab"];
  const std::string letters[] = {"Ġ", "a", "b"};
  for (const std::string& x : letters) {
    for (const std::string& y : letters) {
      vocab[x + y] = vocab.size();
      for (const std::string& z : letters) vocab[x + y + z] = vocab.size();
    }
  }
  return vocab.dump();
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const std::string vocab = small_vocab();
  const auto bpe = fuzz::accepted(
      [&] { return Bpe::from_vocab_and_merges(vocab, fuzz::text_of(data, size), "fuzz"); });
  if (!bpe) return 0;
  const std::string text = "a ba aab  abba baab\xff bbb a b";
  std::string back;
  for (const std::int32_t id : bpe->encode(text)) {
    fuzz::require(id >= 0 && id < bpe->vocab());
    back += bpe->bytes_of(id);
  }
  fuzz::require(back == text);
  fuzz::require(Bpe::from_tokenizer_json(bpe->to_tokenizer_json(), "again") == *bpe);
  return 0;
}
