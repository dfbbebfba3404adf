// train/corpus.h.
#include "train/corpus.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <regex>
#include <set>
#include <sstream>
#include <string>

#include "tensor/error.h"

namespace proteus {
namespace {

TEST(Corpus, HasTheWantedSizeAndIsPlainText) {
  const std::string text = synthetic_corpus();
  EXPECT_GE(text.size(), static_cast<std::size_t>(kCorpusBytes));
  EXPECT_LT(text.size(), static_cast<std::size_t>(kCorpusBytes) + 8192);
  for (const char c : text) ASSERT_TRUE(c == '\n' || (c >= ' ' && c <= '~'));
  EXPECT_THROW(synthetic_corpus(0), ConfigError);
}

TEST(Corpus, IsAFunctionOfItsArguments) {
  const std::string text = synthetic_corpus(50'000, 3);
  EXPECT_EQ(synthetic_corpus(50'000, 3), text);
  EXPECT_EQ(synthetic_corpus(20'000, 3), text.substr(0, synthetic_corpus(20'000, 3).size()));
  EXPECT_NE(synthetic_corpus(50'000, 4).substr(0, 1000), text.substr(0, 1000));
  // The text itself is part of the contract: results on it are compared between machines.
  EXPECT_TRUE(
      synthetic_corpus(1, 1).starts_with("The story of Kiteand.\n\nThe pony of Kiteand is called "
                                         "Drainouth. Kiteand has a grey door."));
}

/// Every answer about a home must be the last home that the story told of before the question, and
/// the facts must lie well before it.
TEST(Corpus, AsksForFactsThatWereToldLongBefore) {
  const std::string text = synthetic_corpus(200'000, 5);
  const std::regex told(R"((\w+) (?:lives in|moved to) (\w+)\.)");
  const std::regex question(R"(Where does (\w+) live\? $)");
  int asked = 0;
  double distance = 0;
  std::size_t story = 0;
  while (story < text.size()) {
    std::size_t end = text.find("The story of ", story + 1);
    if (end == std::string::npos) end = text.size();
    const std::string part = text.substr(story, end - story);
    std::map<std::string, std::pair<std::string, std::ptrdiff_t>> homes;
    for (auto it = std::sregex_iterator(part.begin(), part.end(), told);
         it != std::sregex_iterator(); ++it) {
      const std::string name = (*it)[1];
      const std::string home = (*it)[2];
      const std::string before = part.substr(0, static_cast<std::size_t>(it->position()));
      const std::string tail = before.substr(before.size() < 40 ? 0 : before.size() - 40);
      if (std::regex_search(tail, question)) {
        ASSERT_TRUE(homes.count(name)) << name;
        EXPECT_EQ(homes[name].first, home) << name;
        distance += static_cast<double>(it->position() - homes[name].second);
        ++asked;
      } else {
        homes[name] = {home, it->position()};
      }
    }
    story = end;
  }
  EXPECT_GT(asked, 50);
  EXPECT_GT(distance / asked, 500) << "characters between a fact and its question, on average";
}

TEST(Corpus, IsVaried) {
  std::istringstream in(synthetic_corpus(300'000, 1));
  std::set<std::string> words;
  std::set<std::string> titles;
  std::int64_t stories = 0;
  for (std::string line; std::getline(in, line);) {
    if (line.starts_with("The story of ")) {
      ++stories;
      titles.insert(line);
    }
    std::istringstream split(line);
    for (std::string word; split >> word;) words.insert(word);
  }
  EXPECT_GT(stories, 60);
  EXPECT_GT(static_cast<double>(titles.size()), 0.9 * static_cast<double>(stories));
  EXPECT_GT(words.size(), 1500u);
}

}  // namespace
}  // namespace proteus
