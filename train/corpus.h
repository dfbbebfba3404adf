// The built-in text: stories in simple sentences, made by code, for machines without a data file.
// Every story introduces a few people with facts about them (home, work, animal, food, colour, an
// age), goes on with other events, sometimes changes a fact, and asks for the facts hundreds of
// characters later. Names are made of syllables and facts are drawn anew for each story, so that
// the answers have to be remembered from the story and cannot be learned by heart.
#pragma once

#include <cstdint>
#include <string>

namespace proteus {

/// What the text below is called where a file would be named.
constexpr const char* kBuiltInText = "built-in text";

constexpr std::int64_t kCorpusBytes = 1'000'000;

/// ASCII text of whole stories, `bytes` long or up to a story longer; a pure function of its
/// arguments, the same on every machine. Throws ConfigError when bytes < 1.
std::string synthetic_corpus(std::int64_t bytes = kCorpusBytes, std::uint64_t seed = 1);

}  // namespace proteus
