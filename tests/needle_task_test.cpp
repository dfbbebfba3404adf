// train/needle_task.h.
#include "train/needle_task.h"

#include <gtest/gtest.h>

#include <map>
#include <set>

#include "tensor/error.h"
#include "tensor/parallel.h"
#include "tests/error_text.h"

namespace proteus {
namespace {

using testing::message_of;

constexpr NeedleKind kKinds[] = {NeedleKind::single, NeedleKind::distractors, NeedleKind::two_hop};

std::vector<std::int32_t> whole(const NeedleTask& task, const NeedleTrial& trial) {
  std::vector<std::int32_t> ids(static_cast<std::size_t>(task.config().length));
  task.fill(trial, 0, ids);
  return ids;
}

TEST(NeedleTask, OnlyNeedlesHaveTheMarkBeforeAKeyOfTheChain) {
  const NeedleTask task({.length = 20'000, .vocab = 40, .seed = 3});
  for (const NeedleKind kind : kKinds) {
    for (std::uint64_t i = 0; i < 12; ++i) {
      const NeedleTrial trial = task.trial(kind, i);
      const auto ids = whole(task, trial);
      const std::set<std::int32_t> chain(trial.chain.begin(), trial.chain.end() - 1);
      std::map<std::int32_t, std::int32_t> said;
      std::int64_t plain = 0;
      for (std::size_t t = 1; t + 1 < ids.size(); ++t) {
        if (!chain.contains(ids[t])) continue;
        if (ids[t - 1] != kNeedleMark) {
          ++plain;
          continue;
        }
        EXPECT_TRUE(said.emplace(ids[t], ids[t + 1]).second) << "a second needle at " << t;
      }
      EXPECT_EQ(said.size(), chain.size());
      EXPECT_GT(plain, 100) << "keys are words of the hay, too";
      for (std::size_t hop = 1; hop < trial.chain.size(); ++hop) {
        EXPECT_EQ(said.at(trial.chain[hop - 1]), trial.chain[hop]);
      }
      EXPECT_EQ(trial.question(), (std::vector<std::int32_t>{kNeedleMark, trial.chain[0]}));
    }
  }
}

TEST(NeedleTask, HasTheNeedlesOfItsKind) {
  const NeedleTask task({.length = 4'000, .vocab = 64, .seed = 5});
  const auto asked = [](const NeedleTrial& trial) {
    std::int64_t n = 0;
    for (const Needle& needle : trial.needles) n += needle.asked;
    return n;
  };
  for (std::uint64_t i = 0; i < 40; ++i) {
    EXPECT_EQ(task.trial(NeedleKind::single, i).needles.size(), 1u);
    const NeedleTrial crowd = task.trial(NeedleKind::distractors, i);
    EXPECT_EQ(crowd.needles.size(), 1u + kDistractors);
    EXPECT_EQ(asked(crowd), 1);
    EXPECT_EQ(asked(task.trial(NeedleKind::two_hop, i)), 2);
    const auto ids = whole(task, crowd);
    std::set<std::int32_t> keys;
    std::int64_t end = 0;
    for (const Needle& needle : crowd.needles) {
      EXPECT_GE(needle.position, end) << "in time order, none over another";
      end = needle.position + kNeedleTokens;
      const auto at = static_cast<std::size_t>(needle.position);
      EXPECT_EQ(ids[at], kNeedleMark);
      EXPECT_EQ(ids[at + 1], needle.key);
      EXPECT_EQ(ids[at + 2], needle.value);
      keys.insert(needle.key);
    }
    EXPECT_EQ(keys.size(), 1u + kDistractors) << "other keys";
  }
}

TEST(NeedleTask, ReadsTheSameFromAnyPlaceOn) {
  const NeedleTask task({.length = 3'001, .vocab = 30, .seed = 8});
  for (const std::uint64_t index : {0u, 9u, 14u}) {
    const NeedleTrial trial = task.trial(NeedleKind::distractors, index);
    const auto ids = whole(task, trial);
    for (const std::int64_t step : {1, 2, 7, 64, 1000}) {
      for (std::int64_t begin = 0; begin < task.config().length; begin += step) {
        const std::int64_t n = std::min(step, task.config().length - begin);
        std::vector<std::int32_t> part(static_cast<std::size_t>(n));
        task.fill(trial, begin, part);
        for (std::int64_t j = 0; j < n; ++j) {
          ASSERT_EQ(part[static_cast<std::size_t>(j)], ids[static_cast<std::size_t>(begin + j)]);
        }
      }
    }
  }
}

TEST(NeedleTask, LiesAtEveryDepthAtBothEndsAndAcrossBorders) {
  const NeedleTask task({.length = 100'000, .vocab = 64, .border = 4'096, .seed = 2});
  std::int64_t across = 0;
  for (std::uint64_t i = 0; i < 100; ++i) {
    const NeedleTrial trial = task.trial(NeedleKind::single, i);
    const std::int64_t at = trial.needles[0].position;
    EXPECT_EQ(trial.depth, static_cast<std::int64_t>(i % 10));
    EXPECT_EQ(at * 10 / 100'000, trial.depth);
    if (i == 0) {
      EXPECT_EQ(at, 0);
    }
    if (i == 9) {
      EXPECT_EQ(at, 100'000 - kNeedleTokens);
    }
    const std::int64_t before = (at / 4'096 + 1) * 4'096 - at;
    if (i / 10 == 1 || i / 10 == 2) {
      EXPECT_EQ(before, static_cast<std::int64_t>(i / 10));
    }
    across += before < kNeedleTokens;
  }
  EXPECT_GE(across, 20);
}

TEST(NeedleTask, DependsOnSeedKindAndIndexAlone) {
  const NeedleTaskConfig config{.length = 2'000, .vocab = 64, .seed = 7};
  const NeedleTask task(config);
  const auto read = [](const NeedleTask& of, NeedleKind kind, std::uint64_t i) {
    return whole(of, of.trial(kind, i));
  };
  const auto first = read(task, NeedleKind::two_hop, 3);
  EXPECT_EQ(read(NeedleTask(config), NeedleKind::two_hop, 3), first);
  EXPECT_NE(read(task, NeedleKind::two_hop, 13), first);
  EXPECT_NE(read(task, NeedleKind::single, 3), first);
  NeedleTaskConfig other = config;
  other.seed = 8;
  EXPECT_NE(read(NeedleTask(other), NeedleKind::two_hop, 3), first);
}

TEST(NeedleLessons, AskForEveryKeyOnceWithTheWordBehindItsMark) {
  constexpr std::int64_t kT = 96;
  constexpr std::int64_t kPairs = 8;
  const NeedleLessons lessons(kT, kPairs, 40, 3);
  const Batch batch = lessons.batch(RecallSplit::train, 2, 50);
  std::int64_t decoys = 0;
  for (std::int64_t row = 0; row < 50; ++row) {
    const auto* x = batch.inputs.data<std::int32_t>() + row * kT;
    const auto* y = batch.targets.data<std::int32_t>() + row * kT;
    std::set<std::int32_t> asked;
    const std::int64_t hay = kT - 3 * kPairs;
    for (std::int64_t t = 0; t < kT; ++t) {
      if (y[t] == kIgnoredTarget) continue;
      EXPECT_GE(t, hay);
      EXPECT_EQ(x[t - 1], kNeedleMark);
      EXPECT_EQ(x[t + 1], y[t]) << "the lesson goes on with the answer";
      EXPECT_TRUE(asked.insert(x[t]).second);
      std::int64_t needles = 0;
      for (std::int64_t j = 1; j < hay; ++j) {
        if (x[j] != x[t]) continue;
        if (x[j - 1] != kNeedleMark) {
          ++decoys;
          continue;
        }
        ++needles;
        EXPECT_EQ(x[j + 1], y[t]);
      }
      EXPECT_EQ(needles, 1);
    }
    EXPECT_EQ(asked.size(), static_cast<std::size_t>(kPairs));
  }
  EXPECT_GT(decoys, 50 * kPairs) << "keys without a mark are common";
}

TEST(NeedleLessons, DependOnSeedSplitAndIndexAlone) {
  const NeedleLessons lessons(64, 4, 32, 7);
  const auto read = [](const NeedleLessons& of, RecallSplit split, std::uint64_t i) {
    return of.batch(split, i, 33).inputs.to_vector();
  };
  const auto first = read(lessons, RecallSplit::train, 3);
  set_num_threads(1);
  EXPECT_EQ(read(lessons, RecallSplit::train, 3), first);
  set_num_threads(0);
  EXPECT_NE(read(lessons, RecallSplit::train, 4), first);
  EXPECT_NE(read(lessons, RecallSplit::eval, 3), first);
  EXPECT_NE(read(NeedleLessons(64, 4, 32, 8), RecallSplit::train, 3), first);
}

TEST(NeedleTask, RefusesWhatDoesNotFit) {
  EXPECT_EQ(message_of<ConfigError>([] { NeedleTask({.length = 119}); }),
            "--length: expected at least 120 (= room for 9 needles), got 119");
  EXPECT_EQ(message_of<ConfigError>([] { NeedleTask({.vocab = 19}); }),
            "--vocab: expected at least 20 (= words for keys and values), got 19");
  EXPECT_EQ(message_of<ConfigError>([] { NeedleLessons(80, 9, 64, 1); }),
            "--pairs: expected from 1 to 8 (= --train-length 80 / 9: needle, question and as much "
            "hay), got 9");
  EXPECT_EQ(message_of<ConfigError>([] { NeedleLessons(90, 9, 19, 1); }),
            "--vocab: expected at least 20 (= the mark and 2 · --pairs words), got 19");
}

}  // namespace
}  // namespace proteus
