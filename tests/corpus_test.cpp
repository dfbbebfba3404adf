// train/corpus.h.
#include "train/corpus.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <string_view>

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

/// Text of `story` after `key` at `place`, up to the full stop.
std::string after(const std::string& story, std::size_t place, std::string_view key) {
  const std::size_t begin = place + key.size();
  return story.substr(begin, story.find('.', begin) - begin);
}

/// The word that ends at `place`.
std::string word_before(const std::string& story, std::size_t place) {
  const std::size_t blank = story.find_last_of(" \n", place - 1);
  return story.substr(blank + 1, place - blank - 1);
}

struct Homes {
  int asked = 0;
  double distance = 0;  ///< characters between a fact and its question, summed
};

/// Walks through one story: an answer must be the last home that was told before the question.
void check_homes(const std::string& story, Homes& result) {
  std::map<std::string, std::pair<std::string, std::size_t>> homes;
  for (std::size_t i = 0; i < story.size(); ++i) {
    for (const std::string_view key : {" lives in ", " moved to "}) {
      if (story.compare(i, key.size(), key) != 0) continue;
      const std::string name = word_before(story, i);
      const std::string home = after(story, i, key);
      const std::string question = "Where does " + name + " live? " + name;
      if (i >= question.size() &&
          story.compare(i - question.size(), question.size(), question) == 0) {
        ASSERT_TRUE(homes.count(name)) << name;
        EXPECT_EQ(homes[name].first, home) << name;
        result.distance += static_cast<double>(i - homes[name].second);
        ++result.asked;
      } else {
        homes[name] = {home, i};
      }
    }
  }
}

TEST(Corpus, AsksForFactsThatWereToldLongBefore) {
  const std::string text = synthetic_corpus(200'000, 5);
  Homes result;
  for (std::size_t story = 0; story < text.size();) {
    const std::size_t end = std::min(text.find("The story of ", story + 1), text.size());
    check_homes(text.substr(story, end - story), result);
    story = end;
  }
  EXPECT_GT(result.asked, 50);
  EXPECT_GT(result.distance / result.asked, 500);
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
