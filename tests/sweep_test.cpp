// train/sweep.h: what is measured, what is left out and why, and what is made of it.
#include "train/sweep.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tensor/error.h"
#include "tests/error_text.h"

namespace proteus {
namespace {

using testing::message_of;

const SweepTime kForward = [](const SweepRow& row) { return row.fwd_ms; };

TEST(SweepLengths, ReadsRangesAndNumbers) {
  EXPECT_EQ(sweep_lengths("128..1024"), (std::vector<std::int64_t>{128, 256, 512, 1024}));
  EXPECT_EQ(sweep_lengths("100..399"), (std::vector<std::int64_t>{100, 200}));
  EXPECT_EQ(sweep_lengths("1,5..20,1000"), (std::vector<std::int64_t>{1, 5, 10, 20, 1000}));
}

TEST(SweepLengths, RefusesWhatIsNotRising) {
  for (const char* text :
       {"", "0", "-1", "8..4", "8,8", "8,4", "8,", "a", "8..", "..8", "8.5", "4..2000000000"}) {
    const std::string message = message_of<ConfigError>([&] { sweep_lengths(text); });
    EXPECT_NE(message.find("--lengths: expected rising lengths"), std::string::npos) << text;
  }
}

TEST(SweepAlphas, AreNumbersBetweenZeroAndOne) {
  EXPECT_EQ(sweep_alphas({"0", "0.25", "1"}), (std::vector<double>{0, 0.25, 1}));
  for (const char* text : {"-0.1", "1.1", "nan", "x", "", "0.5x"}) {
    const std::string message = message_of<ConfigError>([&] { sweep_alphas({text}); });
    EXPECT_NE(message.find("--alphas: expected numbers in [0, 1]"), std::string::npos) << text;
  }
}

SweepRow row(std::int64_t length, std::optional<double> alpha, std::optional<double> ms) {
  SweepRow r;
  r.length = length;
  r.arm = alpha ? "aspa" : "dense";
  r.alpha = alpha;
  r.fwd_ms = ms;
  return r;
}

// dense T²/1000, ASPA 3·T from 64 on: they meet at 3,000.
std::vector<SweepRow> made_up() {
  std::vector<SweepRow> rows;
  for (const std::int64_t T : {64, 1024, 2048, 4096, 8192}) {
    const auto t = static_cast<double>(T);
    rows.push_back(row(T, {}, t * t / 1000));
    rows.push_back(row(T, 1.0, 3 * t));
  }
  return rows;
}

TEST(SweepTrends, SlopeIsThatOfTheLastLengths) {
  std::vector<SweepRow> rows = made_up();
  EXPECT_NEAR(*sweep_slope(rows, "dense", kForward), 2, 1e-9);
  EXPECT_NEAR(*sweep_slope(rows, "aspa 1", kForward), 1, 1e-9);
  rows[0].fwd_ms = 1e6;  // more than sixteen times shorter than the longest: launches, not work
  EXPECT_NEAR(*sweep_slope(rows, "dense", kForward), 2, 1e-9);
  EXPECT_FALSE(sweep_slope(rows, "aspa 0.5", kForward));
  EXPECT_FALSE(sweep_slope({row(64, 1.0, 3.0)}, "aspa 1", kForward));
}

TEST(SweepTrends, CrossoverIsWhereItStaysFaster) {
  std::vector<SweepRow> rows = made_up();
  EXPECT_NEAR(*sweep_crossover(rows, "aspa 1", kForward), 3000, 1e-6);
  rows[1].fwd_ms = 0.001;  // faster at 64 by accident: that does not last
  EXPECT_NEAR(*sweep_crossover(rows, "aspa 1", kForward), 3000, 1e-6);
  rows.back().fwd_ms = 1e9;
  EXPECT_FALSE(sweep_crossover(rows, "aspa 1", kForward));
  rows.back().fwd_ms.reset();  // not measured: the lengths before it say what they say
  EXPECT_NEAR(*sweep_crossover(rows, "aspa 1", kForward), 3000, 1e-6);
}

Options small() {
  Options o = parse_options("sweep", {"--lengths",
                                      "16..64",
                                      "--alphas",
                                      "0,1",
                                      "--width",
                                      "32",
                                      "--heads",
                                      "4",
                                      "--shared-heads",
                                      "1",
                                      "--routed-heads",
                                      "4",
                                      "--k",
                                      "2",
                                      "--window",
                                      "8",
                                      "--shared-window",
                                      "8",
                                      "--repeats",
                                      "2",
                                      "--backward",
                                      "--batch",
                                      "2"})
                  .options;
  return o;
}

std::vector<SweepRow> rows_of(const Options& o) {
  std::vector<SweepRow> rows;
  sweep(o, [&](const SweepRow& r) {
    rows.push_back(r);
    return true;
  });
  return rows;
}

TEST(Sweep, MeasuresEveryArmAtEveryLength) {
  const std::vector<SweepRow> rows = rows_of(small());
  ASSERT_EQ(rows.size(), 9U);
  const char* names[] = {"dense", "aspa 0", "aspa 1"};
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const SweepRow& r = rows[i];
    EXPECT_EQ(r.name(), names[i % 3]);
    EXPECT_EQ(r.length, std::int64_t{16} << (i / 3));
    EXPECT_EQ(r.error, "");
    EXPECT_GT(*r.fwd_ms, 0);
    EXPECT_GT(*r.fwdbwd_ms, 0);
    // x and its gradient alone.
    EXPECT_GE(*r.peak_memory_bytes, 2 * r.batch * r.length * 32 * 4);
    EXPECT_EQ(r.dense, i % 3 != 2) << r.name();
    EXPECT_EQ(r.active_heads.has_value(), i % 3 != 0);
    if (i % 3 == 0) continue;
    EXPECT_EQ(*r.active_heads, i % 3 == 1 ? 5 : 3);
    EXPECT_EQ(*r.kept_tokens, r.batch * r.length);
  }
  EXPECT_GT(rows[6].attention_flops_per_token, rows[3].attention_flops_per_token);
  EXPECT_LT(rows[8].attention_flops_per_token, rows[7].attention_flops_per_token);
}

TEST(Sweep, WithoutBackwardHasNoTimeOfIt) {
  Options o = small();
  o.sweep.backward = false;
  for (const SweepRow& r : rows_of(o)) EXPECT_FALSE(r.fwdbwd_ms);
}

TEST(Sweep, KeptTokensFollowTheSalience) {
  Options o = small();
  o.sweep.alphas = {"1"};
  o.sweep.lengths = "512";
  o.aspa.token_keep = 0.5;
  o.aspa.token_guard = 0;
  const std::vector<SweepRow> rows = rows_of(o);
  const auto tokens = static_cast<double>(rows[1].length * rows[1].batch);
  EXPECT_NEAR(static_cast<double>(*rows[1].kept_tokens) / tokens, 0.5, 0.1);
}

TEST(Sweep, LeavesOutWhatWouldTakeTooLong) {
  Options o = small();
  o.sweep.point_seconds = 1e-9;
  const std::vector<SweepRow> rows = rows_of(o);
  ASSERT_EQ(rows.size(), 9U) << "every length has its row";
  for (std::size_t i = 0; i < rows.size(); ++i) {
    EXPECT_EQ(rows[i].fwd_ms.has_value(), i < 3) << "nothing is foreseen of the first length";
    if (i >= 3) {
      EXPECT_NE(rows[i].error.find("more than --point-seconds"), std::string::npos);
    }
  }
}

TEST(Sweep, EndsWhenTold) {
  int seen = 0;
  sweep(small(), [&](const SweepRow&) { return ++seen < 2; });
  EXPECT_EQ(seen, 2);
}

}  // namespace
}  // namespace proteus
