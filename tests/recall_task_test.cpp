// train/recall_task.h.
#include "train/recall_task.h"

#include <gtest/gtest.h>

#include <map>
#include <set>

#include "tensor/error.h"
#include "tensor/parallel.h"
#include "tests/error_text.h"

namespace proteus {
namespace {

using testing::message_of;

std::vector<std::int32_t> values(const Tensor& t) {
  const auto* p = t.data<std::int32_t>();
  return {p, p + t.numel()};
}

TEST(RecallTask, AsksForEveryKeyOnceWithItsValue) {
  const RecallTask task({.length = 64, .pairs = 12, .vocab = 128, .seed = 3});
  const Batch batch = task.batch(RecallSplit::train, 5, 40);
  ASSERT_EQ(batch.inputs.shape(), (Shape{40, 64}));
  ASSERT_EQ(batch.inputs.dtype(), DType::i32);
  const auto x = values(batch.inputs);
  const auto y = values(batch.targets);
  for (std::size_t row = 0; row < 40; ++row) {
    const std::int32_t* r = x.data() + row * 64;
    const std::int32_t* target = y.data() + row * 64;
    std::map<std::int32_t, std::int32_t> pairs;
    for (std::size_t i = 0; i < 12; ++i) {
      EXPECT_GE(r[2 * i], 0);
      EXPECT_LT(r[2 * i], 64);
      EXPECT_GE(r[2 * i + 1], 64);
      EXPECT_LT(r[2 * i + 1], 128);
      pairs[r[2 * i]] = r[2 * i + 1];
    }
    ASSERT_EQ(pairs.size(), 12u) << "keys are different";
    std::set<std::int32_t> asked;
    for (std::size_t t = 0; t < 64; ++t) {
      if (t < 24) {
        EXPECT_EQ(target[t], kIgnoredTarget);
      } else if (r[t] < 64) {
        EXPECT_TRUE(asked.insert(r[t]).second);
        EXPECT_EQ(target[t], pairs.at(r[t]));
      } else {
        EXPECT_LT(r[t], 128);
        EXPECT_EQ(target[t], kIgnoredTarget);
      }
    }
    EXPECT_EQ(asked.size(), 12u);
  }
}

// What followed every key when it came last, and how often a key that was known came again.
struct Follower {
  std::map<std::int32_t, std::int32_t> value;
  std::int64_t rebound = 0;
};

// Reads a row as a model would, and expects the target at every query to be what it knows by then.
Follower read_row(const std::int32_t* x, const std::int32_t* y, std::int64_t T, std::int32_t half) {
  Follower known;
  std::set<std::int32_t> asked;
  for (std::int64_t t = 0; t < T; ++t) {
    const bool is_key = x[t] < half;
    if (y[t] != kIgnoredTarget) {
      EXPECT_TRUE(is_key) << t;
      EXPECT_TRUE(asked.insert(x[t]).second) << t;
      EXPECT_EQ(y[t], known.value.at(x[t])) << t;
    } else if (is_key) {
      known.rebound += known.value.contains(x[t]) ? 1 : 0;
      EXPECT_FALSE(asked.contains(x[t])) << "nothing changes after it was asked for";
      EXPECT_LT(t + 1, T);
      EXPECT_GE(x[t + 1], half) << "a value follows";
      known.value[x[t]] = x[t + 1];
    }
  }
  EXPECT_EQ(asked.size(), known.value.size());
  return known;
}

TEST(RecallTask, HalfOfTheKeysAreReboundBeforeTheyAreAskedFor) {
  for (const auto& [T, pairs] :
       std::vector<std::pair<std::int64_t, std::int64_t>>{{40, 8}, {65, 13}, {5, 1}, {128, 16}}) {
    const RecallTask task(
        {.kind = RecallKind::rebind, .length = T, .pairs = pairs, .vocab = 64, .seed = 5});
    const Batch batch = task.batch(RecallSplit::eval, 1, 30);
    std::int64_t changed = 0;
    for (std::int64_t row = 0; row < 30; ++row) {
      const auto* x = batch.inputs.data<std::int32_t>() + row * T;
      const auto* y = batch.targets.data<std::int32_t>() + row * T;
      const Follower known = read_row(x, y, T, 32);
      EXPECT_EQ(known.value.size(), static_cast<std::size_t>(pairs));
      EXPECT_EQ(known.rebound, pairs / 2);
      for (std::int64_t i = 0; i < pairs; ++i) changed += known.value.at(x[2 * i]) != x[2 * i + 1];
    }
    EXPECT_GE(changed, 30 * (pairs / 2) * 8 / 10) << "new values are other values, mostly";
    EXPECT_LE(changed, 30 * (pairs / 2));
  }
}

TEST(RecallTask, AStreamAsksInItsLastQuarter) {
  const RecallTask task(
      {.kind = RecallKind::stream, .length = 400, .pairs = 20, .vocab = 64, .seed = 5});
  const Batch batch = task.batch(RecallSplit::train, 2, 20);
  for (std::int64_t row = 0; row < 20; ++row) {
    const auto* x = batch.inputs.data<std::int32_t>() + row * 400;
    const auto* y = batch.targets.data<std::int32_t>() + row * 400;
    EXPECT_EQ(read_row(x, y, 400, 32).rebound, 0);
    for (std::int64_t t = 0; t < 300; ++t) {
      EXPECT_EQ(y[t], kIgnoredTarget);
      EXPECT_EQ(x[t] < 32, t < 40 && t % 2 == 0) << t;
    }
  }
}

class EveryKind : public ::testing::TestWithParam<RecallKind> {};
INSTANTIATE_TEST_SUITE_P(Kinds, EveryKind,
                         ::testing::Values(RecallKind::mqar, RecallKind::rebind,
                                           RecallKind::stream));

TEST_P(EveryKind, DependsOnSeedSplitAndIndexAlone) {
  const RecallTaskConfig config{
      .kind = GetParam(), .length = 48, .pairs = 8, .vocab = 256, .seed = 7};
  const RecallTask task(config);
  const auto first = values(task.batch(RecallSplit::train, 3, 33).inputs);
  task.batch(RecallSplit::train, 4, 5);
  EXPECT_EQ(values(task.batch(RecallSplit::train, 3, 33).inputs), first);
  EXPECT_NE(values(task.batch(RecallSplit::train, 4, 33).inputs), first);
  EXPECT_NE(values(task.batch(RecallSplit::eval, 3, 33).inputs), first);
  RecallTaskConfig other = config;
  other.seed = 8;
  EXPECT_NE(values(RecallTask(other).batch(RecallSplit::train, 3, 33).inputs), first);
  set_num_threads(1);
  EXPECT_EQ(values(task.batch(RecallSplit::train, 3, 33).inputs), first);
  set_num_threads(0);
}

TEST(RecallTask, RowsAndPlacesDiffer) {
  const RecallTask task({.length = 128, .pairs = 16, .vocab = 1024, .seed = 1});
  const auto x = values(task.batch(RecallSplit::train, 0, 64).inputs);
  const auto y = values(task.batch(RecallSplit::train, 0, 64).targets);
  std::set<std::vector<std::int32_t>> rows;
  std::vector<int> asked(128);
  for (std::size_t row = 0; row < 64; ++row) {
    rows.emplace(x.begin() + static_cast<std::ptrdiff_t>(row * 128),
                 x.begin() + static_cast<std::ptrdiff_t>(row * 128 + 128));
    for (std::size_t t = 0; t < 128; ++t) asked[t] += y[row * 128 + t] != kIgnoredTarget;
  }
  EXPECT_EQ(rows.size(), 64u);
  for (std::size_t t = 32; t < 128; ++t) EXPECT_GT(asked[t], 0) << t;
}

TEST(RecallTask, FillsTheTightestSequence) {
  const RecallTask task({.length = 12, .pairs = 4, .vocab = 8, .seed = 1});
  for (const std::int32_t y : values(task.batch(RecallSplit::eval, 0, 1).targets)) {
    EXPECT_TRUE(y == kIgnoredTarget || (y >= 4 && y < 8));
  }
}

TEST(RecallTask, ShorterBatchesHaveAsManyTokensAndPairs) {
  const RecallTask task({.kind = RecallKind::stream,
                         .length = 256,
                         .pairs = 20,
                         .vocab = 64,
                         .seed = 5,
                         .shortest = 32});
  std::map<std::int64_t, std::int64_t> drawn;
  for (std::uint64_t index = 0; index < 60; ++index) {
    const Batch batch = task.batch(RecallSplit::train, index, 3);
    const std::int64_t T = batch.inputs.size(1);
    EXPECT_EQ(batch.inputs.numel(), 3 * 256);
    const Follower known =
        read_row(batch.inputs.data<std::int32_t>(), batch.targets.data<std::int32_t>(), T, 32);
    EXPECT_EQ(known.value.size(), static_cast<std::size_t>(20 * T / 256)) << T;
    ++drawn[T];
    EXPECT_EQ(values(task.batch(RecallSplit::train, index, 3).inputs), values(batch.inputs));
  }
  ASSERT_EQ(drawn.size(), 4u);
  for (const std::int64_t T : {32, 64, 128, 256}) EXPECT_GE(drawn[T], 5) << T;
  EXPECT_EQ(task.batch(RecallSplit::eval, 0, 3).inputs.shape(), (Shape{3, 256}));
}

TEST(RecallTask, RefusesWhatDoesNotFit) {
  const auto make = [](RecallTaskConfig config) { return [=] { RecallTask{config}; }; };
  EXPECT_EQ(message_of<ConfigError>(make({.length = 47, .pairs = 16})),
            "--pairs: expected at most 15 (= --length 47 / 3: key, value and query), got 16");
  EXPECT_EQ(message_of<ConfigError>(make({.kind = RecallKind::rebind, .length = 79, .pairs = 16})),
            "--pairs: expected at most 15 (= --length 79 / 5: key, value, query with a free place, "
            "half a rebinding), got 16");
  EXPECT_EQ(message_of<ConfigError>(make({.kind = RecallKind::stream, .length = 63, .pairs = 16})),
            "--pairs: expected at most 15 (= --length 63 / 4: all queries in the last quarter), "
            "got 16");
  EXPECT_EQ(message_of<ConfigError>(make({.pairs = 0})), "--pairs: expected at least 1, got 0");
  EXPECT_EQ(message_of<ConfigError>(make({.pairs = 16, .vocab = 30})),
            "--vocab: expected an even number of at least 32 (= 2 · --pairs), got 30");
  EXPECT_THROW(make({.pairs = 16, .vocab = 33})(), ConfigError);
  for (const std::int64_t shortest : {-1, 2, 48, 256}) {
    EXPECT_EQ(message_of<ConfigError>(make({.length = 128, .pairs = 16, .shortest = shortest})),
              "--shortest: expected 0 or --length 128 halved some times, at least 3, got " +
                  std::to_string(shortest));
  }
}

}  // namespace
}  // namespace proteus
