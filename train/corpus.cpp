#include "train/corpus.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <span>
#include <string_view>
#include <vector>

#include "tensor/error.h"
#include "train/draw.h"

namespace proteus {
namespace {

using Words = std::span<const std::string_view>;

constexpr std::string_view kOnsets[] = {"b", "br", "d", "dr", "f",  "g", "h",  "k", "l", "m",
                                        "n", "p",  "r", "s",  "st", "t", "tr", "v", "w", "z"};
constexpr std::string_view kVowels[] = {"a", "e", "i", "o", "u", "ai", "ea", "ou"};
constexpr std::string_view kCodas[] = {"", "", "", "l", "m", "n", "r", "s", "th", "nd"};
constexpr std::string_view kTownEndings[] = {"ton",   "ford",  "by",  "mouth",
                                             "field", "stead", "wick"};
constexpr std::string_view kJobs[] = {"baker",    "carpenter", "doctor",  "farmer", "fisher",
                                      "gardener", "miller",    "painter", "sailor", "smith",
                                      "tailor",   "teacher",   "weaver",  "writer", "clockmaker"};
constexpr std::string_view kAnimals[] = {"cat",  "dog",    "goat", "horse", "hen",  "parrot",
                                         "pony", "rabbit", "crow", "sheep", "mule", "tortoise"};
constexpr std::string_view kFoods[] = {"apples",    "bread",  "cheese", "honey",
                                       "mushrooms", "onions", "pears",  "plums",
                                       "rice",      "soup",   "trout",  "walnuts"};
constexpr std::string_view kColours[] = {"red",    "green", "blue",  "yellow", "white",
                                         "purple", "brown", "black", "golden", "grey"};
constexpr std::string_view kPlaces[] = {"the market",  "the harbour", "the old mill", "the church",
                                        "the river",   "the forest",  "the inn",      "the bridge",
                                        "the library", "the orchard"};
constexpr std::string_view kWeather[] = {"It rained all night.",    "The wind came from the sea.",
                                         "Snow lay on the roofs.",  "The sun was warm that day.",
                                         "Fog covered the valley.", "A storm broke in the evening.",
                                         "The morning was quiet.",  "The stars were bright."};
constexpr std::string_view kThings[] = {"a lamp",   "a rope",  "a basket", "a kettle", "a knife",
                                        "a mirror", "a chair", "a book",   "a bell",   "a blanket"};
constexpr std::string_view kMoods[] = {"tired", "glad", "hungry", "worried", "proud", "curious"};

struct Person {
  std::string name;
  std::string town;
  std::string pet;  ///< the animal's name
  std::string_view job;
  std::string_view animal;
  std::string_view food;
  std::string_view colour;
  std::int64_t age = 0;
};

/// Writes one story into a string.
class Story {
 public:
  Story(std::uint64_t seed, std::uint64_t number) : draw_({seed, number}) {}

  void write(std::string& out);

 private:
  std::string_view pick(Words words) {
    return words[static_cast<std::size_t>(draw_.below(static_cast<std::int64_t>(words.size())))];
  }
  const Person& someone() {
    return people_[static_cast<std::size_t>(
        draw_.below(static_cast<std::int64_t>(people_.size())))];
  }
  std::string word(int syllables);
  std::string fresh_name();
  void cast(std::int64_t count);
  std::string fact(const Person& p, std::int64_t which) const;
  std::string event();
  std::string change();
  std::string question();

  Draw draw_;
  std::vector<Person> people_;
  std::vector<std::string> names_;  ///< all that the story has used
};

constexpr std::int64_t kFacts = 7;

std::string Story::word(int syllables) {
  std::string text;
  for (int i = 0; i < syllables; ++i) {
    text += pick(kOnsets);
    text += pick(kVowels);
  }
  text += pick(kCodas);
  text[0] = static_cast<char>(text[0] - 'a' + 'A');
  return text;
}

std::string Story::fresh_name() {
  for (;;) {
    const std::string name = word(draw_.below(3) == 0 ? 1 : 2);
    if (name.size() < 3 || std::find(names_.begin(), names_.end(), name) != names_.end()) continue;
    names_.push_back(name);
    return name;
  }
}

void Story::cast(std::int64_t count) {
  // Different jobs, animals, foods and colours within a story: every question has one answer.
  const auto jobs = draw_.distinct(std::ssize(kJobs), count);
  const auto animals = draw_.distinct(std::ssize(kAnimals), count);
  const auto foods = draw_.distinct(std::ssize(kFoods), count);
  const auto colours = draw_.distinct(std::ssize(kColours), count);
  for (std::size_t i = 0; i < static_cast<std::size_t>(count); ++i) {
    Person p;
    p.name = fresh_name();
    p.pet = fresh_name();
    p.town = word(1) + std::string(pick(kTownEndings));
    p.job = kJobs[jobs[i]];
    p.animal = kAnimals[animals[i]];
    p.food = kFoods[foods[i]];
    p.colour = kColours[colours[i]];
    p.age = 18 + draw_.below(70);
    people_.push_back(p);
  }
}

std::string Story::fact(const Person& p, std::int64_t which) const {
  switch (which) {
    case 0:
      return fmt::format("{} lives in {}.", p.name, p.town);
    case 1:
      return fmt::format("{} is a {}.", p.name, p.job);
    case 2:
      return fmt::format("{} keeps a {}.", p.name, p.animal);
    case 3:
      return fmt::format("The {} of {} is called {}.", p.animal, p.name, p.pet);
    case 4:
      return fmt::format("{} likes {}.", p.name, p.food);
    case 5:
      return fmt::format("{} has a {} door.", p.name, p.colour);
    default:
      return fmt::format("{} is {} years old.", p.name, p.age);
  }
}

std::string Story::event() {
  const Person& p = someone();
  switch (draw_.below(7)) {
    case 0:
      return std::string(pick(kWeather));
    case 1:
      return fmt::format("{} went to {}.", p.name, pick(kPlaces));
    case 2:
      return fmt::format("At {}, {} found {} and took it home.", pick(kPlaces), p.name,
                         pick(kThings));
    case 3: {
      const std::int64_t had = 2 + draw_.below(9);
      const std::int64_t got = 2 + draw_.below(9);
      return fmt::format("{} had {} coins and earned {} more, so now there were {}.", p.name, had,
                         got, had + got);
    }
    case 4: {
      const Person& q = someone();
      if (&p == &q) return fmt::format("{} was {} and slept.", p.name, pick(kMoods));
      return fmt::format("{} met {} near {}, and they talked about {}.", p.name, q.name,
                         pick(kPlaces), pick(kThings));
    }
    case 5:
      return fmt::format("\"I am {},\" said {}.", pick(kMoods), p.name);
    default:
      return fmt::format("{} sold {} for {} coins.", p.name, pick(kThings), 2 + draw_.below(30));
  }
}

std::string Story::change() {
  Person& p =
      people_[static_cast<std::size_t>(draw_.below(static_cast<std::int64_t>(people_.size())))];
  if (draw_.below(2) == 0) {
    p.town = word(1) + std::string(pick(kTownEndings));
    return fmt::format("In the spring {} moved to {}.", p.name, p.town);
  }
  ++p.age;
  return fmt::format("{} had a birthday and is now {} years old.", p.name, p.age);
}

std::string Story::question() {
  const Person& p = someone();
  const std::int64_t which = draw_.below(kFacts);
  switch (which) {
    case 0:
      return fmt::format("Where does {} live? {}", p.name, fact(p, which));
    case 1:
      return fmt::format("What is the work of {}? {}", p.name, fact(p, which));
    case 2:
      return fmt::format("Who keeps a {}? {}", p.animal, fact(p, which));
    case 3:
      return fmt::format("What is the {} of {} called? It is called {}.", p.animal, p.name, p.pet);
    case 4:
      return fmt::format("What does {} like? {}", p.name, fact(p, which));
    case 5:
      return fmt::format("Who has the {} door? {}", p.colour, fact(p, which));
    default:
      return fmt::format("How old is {}? {}", p.name, fact(p, which));
  }
}

void Story::write(std::string& out) {
  cast(2 + draw_.below(4));
  out += fmt::format("The story of {}.\n\n", people_[0].name);
  const auto paragraph = [&](std::vector<std::string> sentences) {
    for (std::size_t i = 0; i < sentences.size(); ++i) {
      out += sentences[i];
      out += i + 1 == sentences.size() ? "\n" : " ";
    }
  };
  for (const Person& p : people_) {
    std::vector<std::string> facts;
    for (const std::int32_t which : draw_.distinct(kFacts, kFacts)) facts.push_back(fact(p, which));
    paragraph(std::move(facts));
  }
  const std::int64_t rounds = 2 + draw_.below(4);
  for (std::int64_t round = 0; round < rounds; ++round) {
    std::vector<std::string> events;
    const std::int64_t count = 3 + draw_.below(8);
    for (std::int64_t i = 0; i < count; ++i) events.push_back(event());
    if (draw_.below(3) == 0) events.push_back(change());
    paragraph(std::move(events));
    std::vector<std::string> questions;
    const std::int64_t asked = 2 + draw_.below(3);
    for (std::int64_t i = 0; i < asked; ++i) questions.push_back(question());
    paragraph(std::move(questions));
  }
  out += "\n";
}

}  // namespace

std::string synthetic_corpus(std::int64_t bytes, std::uint64_t seed) {
  if (bytes < 1) {
    throw ConfigError(
        fmt::format("synthetic_corpus(bytes, seed): bytes: expected at least 1, got {}", bytes));
  }
  constexpr std::uint64_t kSalt = 0x7374'6f72'6965'7301;
  std::string text;
  constexpr std::size_t kStory = 8192;  // longer than a story
  text.reserve(static_cast<std::size_t>(bytes) + kStory);
  for (std::uint64_t number = 0; text.size() < static_cast<std::size_t>(bytes); ++number) {
    Story(seed ^ kSalt, number).write(text);
  }
  return text;
}

}  // namespace proteus
