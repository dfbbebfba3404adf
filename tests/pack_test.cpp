// Packing and selection against plain loops, and the layouts they promise.
#include "tensor/ops/pack.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>
#include <tuple>
#include <vector>

#include "tensor/error.h"
#include "tensor/ops/routing.h"
#include "tensor/ops/select.h"
#include "tensor/parallel.h"

namespace proteus {
namespace {

using Ints = std::vector<std::int32_t>;

Ints ints(const Tensor& t) {
  const Tensor c = t.contiguous();
  return Ints(c.data<std::int32_t>(), c.data<std::int32_t>() + c.numel());
}

/// Random heads, a random number of them per token.
Tensor random_heads(std::int64_t N, std::int64_t Hr, std::int64_t k, std::uint64_t seed) {
  const Tensor scores = Tensor::randn({N, Hr}, {seed, 1});
  const Tensor count = Tensor::rand({N}, {seed, 2}, DType::f32, 0, static_cast<double>(k) + 1);
  return ops::topk_heads(scores, k, {}, count.to(DType::i32));
}

class Pack : public ::testing::TestWithParam<std::array<std::int64_t, 4>> {
 protected:
  ~Pack() override { set_num_threads(0); }
};

TEST_P(Pack, SortsByHeadSequenceAndTime) {
  const auto [B, T, Hr, k] = GetParam();
  const Tensor heads = random_heads(B * T, Hr, k, 5);
  const PackedRows rows = ops::pack_rows(heads, Hr, B);

  std::vector<std::array<std::int64_t, 4>> expected;  // head, sequence, time, slot
  const Ints h = ints(heads);
  for (std::int64_t i = 0; i < B * T * k; ++i) {
    const std::int32_t head = h[static_cast<std::size_t>(i)];
    if (head >= 0) expected.push_back({head, i / k / T, i / k % T, i % k});
  }
  std::sort(expected.begin(), expected.end());

  ASSERT_EQ(rows.rows(), static_cast<std::int64_t>(expected.size()));
  EXPECT_EQ(rows.tokens(), B * T);
  EXPECT_EQ(rows.slots(), k);
  EXPECT_EQ(rows.groups(), Hr);
  EXPECT_EQ(rows.sequences(), B);
  const Ints token = ints(rows.token);
  const Ints time = ints(rows.time);
  Ints row_of(static_cast<std::size_t>(B * T * k), -1);
  Ints offsets(static_cast<std::size_t>(Hr * B + 1));
  for (std::size_t r = 0; r < expected.size(); ++r) {
    const auto [head, b, t, slot] = expected[r];
    EXPECT_EQ(token[r], b * T + t);
    EXPECT_EQ(time[r], t);
    row_of[static_cast<std::size_t>((b * T + t) * k + slot)] = static_cast<std::int32_t>(r);
    for (auto s = static_cast<std::size_t>(head * B + b + 1); s < offsets.size(); ++s) ++offsets[s];
  }
  EXPECT_EQ(ints(rows.row_of), row_of);
  EXPECT_EQ(ints(rows.offsets), offsets);
}

TEST_P(Pack, AnyNumberOfThreadsPacksTheSame) {
  const auto [B, T, Hr, k] = GetParam();
  const Tensor heads = random_heads(B * T, Hr, k, 6);
  set_num_threads(1);
  const PackedRows one = ops::pack_rows(heads, Hr, B);
  for (const int threads : {2, 5}) {
    set_num_threads(threads);
    const PackedRows many = ops::pack_rows(heads, Hr, B);
    EXPECT_EQ(ints(many.token), ints(one.token));
    EXPECT_EQ(ints(many.row_of), ints(one.row_of));
    EXPECT_EQ(ints(many.offsets), ints(one.offsets));
  }
}

// A prefix of the tokens keeps its order within every stream, whatever follows.
TEST_P(Pack, LaterTokensMoveNothing) {
  const auto [B, T, Hr, k] = GetParam();
  if (T < 2) GTEST_SKIP() << "nothing later";
  const Tensor heads = random_heads(B * T, Hr, k, 7);
  Tensor changed = heads.clone().reshape({B, T, k});
  const std::int64_t kept = T / 2;
  changed.slice(1, kept, T)
      .copy_(random_heads(B * T, Hr, k, 8).reshape({B, T, k}).slice(1, kept, T));
  const PackedRows a = ops::pack_rows(heads, Hr, B);
  const PackedRows b = ops::pack_rows(changed.reshape({B * T, k}), Hr, B);
  const Ints at = ints(a.token), bt = ints(b.token), ao = ints(a.offsets), bo = ints(b.offsets);
  for (std::size_t s = 0; s + 1 < ao.size(); ++s) {
    const auto prefix = [&, T_ = T](const Ints& token, std::int32_t begin, std::int32_t end) {
      Ints out;
      for (std::int32_t r = begin; r < end; ++r) {
        const std::int32_t n = token[static_cast<std::size_t>(r)];
        if (n % T_ < kept) out.push_back(n);
      }
      return out;
    };
    EXPECT_EQ(prefix(at, ao[s], ao[s + 1]), prefix(bt, bo[s], bo[s + 1])) << "stream " << s;
  }
}

// {B, T, Hr, k}; sequences longer than a chunk of the sort, and more heads than tokens.
INSTANTIATE_TEST_SUITE_P(Sizes, Pack,
                         ::testing::Values(std::array<std::int64_t, 4>{1, 1, 1, 1},
                                           std::array<std::int64_t, 4>{3, 7, 5, 2},
                                           std::array<std::int64_t, 4>{2, 33, 4, 4},
                                           std::array<std::int64_t, 4>{2, 2100, 3, 2},
                                           std::array<std::int64_t, 4>{1, 5000, 16, 3},
                                           std::array<std::int64_t, 4>{2, 40, 2000, 4}));

TEST(PackRows, NoTokensAndNoSlots) {
  const PackedRows none = ops::pack_rows(Tensor::empty({0, 2}, DType::i32), 3, 2);
  EXPECT_EQ(none.rows(), 0);
  EXPECT_EQ(none.tokens(), 0);
  EXPECT_EQ(ints(none.offsets), Ints(7, 0));
  const PackedRows empty = ops::pack_rows(Tensor::full({4, 2}, -1, DType::i32), 3, 2);
  EXPECT_EQ(empty.rows(), 0);
  EXPECT_EQ(ints(empty.offsets), Ints(7, 0));
  EXPECT_EQ(ints(empty.row_of), Ints(8, -1));
  EXPECT_EQ(ops::combine_rows(Tensor::zeros({0, 3}), empty).to_vector(),
            std::vector<double>(12, 0.0));
}

// Every query against every key of its stream: what is visible is what is not later, the newest
// visible[n] of n.
// Where nobody waits to know about a NaN, its row is like any other.
TEST(Pack, ARowWithANanCanTakeTheFirstHeads) {
  Tensor scores = Tensor::randn({5, 6}, {3, 1});
  scores.data<float>()[2 * 6 + 4] = std::numeric_limits<float>::quiet_NaN();
  const Tensor heads = ops::topk_heads(scores, 3, {}, {}, {}, ops::NanRows::take_first);
  EXPECT_EQ(ints(heads.select(0, 2)), (Ints{0, 1, 2}));
  const PackedRows rows = ops::pack_rows(heads, 6, 1, ops::Slots::filled);
  EXPECT_EQ(rows.rows(), 15);
  EXPECT_EQ(rows.kept, 5);
}

TEST(KeyRanges, StreamsAreSegmentsOfAttention) {
  const PackedRows queries = ops::pack_rows(random_heads(12, 3, 2, 9), 3, 2);
  const PackedRows keys = ops::pack_rows(random_heads(12, 3, 2, 10), 3, 2);
  const ops::KeyRanges ranges = ops::key_ranges(queries, keys, Tensor::zeros({7}, DType::i32));
  ASSERT_EQ(ranges.streams.shape(), (Shape{6, 8}));
  const auto* streams = reinterpret_cast<const AttentionSegment*>(ranges.streams.raw());
  const Ints q = ints(queries.offsets), k = ints(keys.offsets);
  for (std::size_t s = 0; s < 6; ++s) {
    EXPECT_EQ(streams[s].q_row, q[s]);
    EXPECT_EQ(streams[s].slot, q[s]);
    EXPECT_EQ(streams[s].range, q[s]);
    EXPECT_EQ(streams[s].q_count, q[s + 1] - q[s]);
    EXPECT_EQ(streams[s].k_row, k[s]);
    EXPECT_EQ(streams[s].k_count, k[s + 1] - k[s]);
    EXPECT_EQ(streams[s].head, static_cast<std::int64_t>(s / 2));
  }
}

TEST(KeyRanges, EqualComparingEveryTime) {
  const std::int64_t B = 2, T = 60, Hr = 4;
  const PackedRows queries = ops::pack_rows(random_heads(B * T, Hr, 2, 11), Hr, B);
  const PackedRows keys = ops::pack_rows(random_heads(B * T, Hr, 3, 12), Hr, B);
  for (const std::int32_t window : {1, 5, 1000}) {
    const Tensor visible = Tensor::empty({T + 1}, DType::i32);
    for (std::int32_t n = 0; n <= T; ++n) visible.data<std::int32_t>()[n] = std::min(n, window);
    const ops::KeyRanges ranges = ops::key_ranges(queries, keys, visible);
    const Ints lo = ints(ranges.lo), hi = ints(ranges.hi);
    const Ints qt = ints(queries.time), kt = ints(keys.time);
    const Ints qo = ints(queries.offsets), ko = ints(keys.offsets);
    for (std::size_t s = 0; s + 1 < qo.size(); ++s) {
      for (auto q = static_cast<std::size_t>(qo[s]); q < static_cast<std::size_t>(qo[s + 1]); ++q) {
        const auto entries = static_cast<std::int32_t>(
            std::count_if(kt.begin() + ko[s], kt.begin() + ko[s + 1],
                          [&](std::int32_t time) { return time <= qt[q]; }));
        EXPECT_EQ(hi[q], entries);
        EXPECT_EQ(lo[q], std::max(0, entries - window));
      }
    }
  }
}

Ints best_of(const std::vector<double>& values, std::int64_t k) {
  Ints order(values.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) {
    return values[static_cast<std::size_t>(a)] > values[static_cast<std::size_t>(b)];
  });
  order.resize(static_cast<std::size_t>(k));
  std::sort(order.begin(), order.end());
  return order;
}

TEST(Topk, EqualsASortForEveryWidth) {
  for (const DType dtype : {DType::f32, DType::f64}) {
    for (const std::int64_t H : {1, 2, 16, 63, 64, 65, 300, 2000}) {
      for (const std::int64_t k : {1, 2, 5, 32, 33, 64, 2000}) {
        if (k > H) continue;
        // Few different values in most rows: ties everywhere.
        const Tensor scores =
            Tensor::rand({9, H}, {3, 4}, DType::f32, 0, 40).to(DType::i32).to(dtype);
        scores.slice(0, 6, 9).copy_(Tensor::randn({3, H}, {3, 6}));
        const Tensor theta = Tensor::rand({H}, {3, 5}, DType::f32, 0, 4).to(DType::i32).to(dtype);
        const Ints got = ints(ops::topk_heads(scores, k, theta));
        for (std::int64_t n = 0; n < 9; ++n) {
          auto values = scores.select(0, n).to_vector();
          const auto shift = theta.to_vector();
          for (std::size_t h = 0; h < values.size(); ++h) values[h] -= shift[h];
          const Ints row(got.begin() + n * k, got.begin() + (n + 1) * k);
          ASSERT_EQ(row, best_of(values, k)) << "H " << H << " k " << k << " row " << n;
        }
      }
    }
  }
}

TEST(Topk, ResultDoesNotDependOnOtherRows) {
  const Tensor scores = Tensor::randn({200, 50}, {1, 2});
  const Ints all = ints(ops::topk_heads(scores, 3));
  for (const std::int64_t n : {0, 63, 64, 199}) {
    const Ints alone = ints(ops::topk_heads(scores.slice(0, n, n + 1), 3));
    EXPECT_EQ(alone, Ints(all.begin() + n * 3, all.begin() + (n + 1) * 3));
  }
}

TEST(Topk, CountsLeaveSlotsEmpty) {
  const Tensor scores = Tensor::from({1, 3, 2, 1, 3, 2, 1, 3, 2, 1, 3, 2}, {4, 3});
  const Tensor count = Tensor::from({0, 1, 2, 9}, {4}, DType::i32);
  EXPECT_EQ(ints(ops::topk_heads(scores, 2, {}, count)), (Ints{-1, -1, 1, -1, 1, 2, 1, 2}));
}

TEST(Topk, ExtraColumnsAreListedOnceWhereScoresAreMinusInfinity) {
  const double inf = std::numeric_limits<double>::infinity();
  const Tensor extra = Tensor::from({1, 0, 0, 1}, {4}, DType::i32);
  const auto heads = [&](std::initializer_list<double> scores) {
    return ints(ops::topk_heads(Tensor::from(scores, {1, 4}), 2, {}, {}, extra));
  };
  EXPECT_EQ(heads({0, -inf, -inf, 1}), (Ints{0, 1, 2, 3}));
  EXPECT_EQ(heads({-inf, -inf, -inf, 1}), (Ints{1, 2, 3, -1}));
  EXPECT_EQ(heads({-inf, -inf, -inf, -inf}), (Ints{1, 2, -1, -1}));
  EXPECT_EQ(heads({2, 1, -inf, -inf}), (Ints{0, 1, 2, -1}));
}

TEST(Topk, InfinitiesAreOrderedLikeNumbers) {
  constexpr double kInf = std::numeric_limits<double>::infinity();
  const Tensor scores = Tensor::from({-kInf, 1, kInf, -kInf, -kInf, -kInf}, {2, 3});
  EXPECT_EQ(ints(ops::topk_heads(scores, 2)), (Ints{1, 2, 0, 1}));
  // In rows that are long enough for a floor, too.
  const Tensor wide = Tensor::full({3, 1000}, -kInf);
  wide.select(0, 1).slice(0, 500, 501).fill_(1);
  wide.select(0, 2).copy_(Tensor::randn({1000}, {2, 2}));
  wide.select(0, 2).slice(0, 700, 702).fill_(kInf);
  EXPECT_EQ(ints(ops::topk_heads(wide, 2)), (Ints{0, 1, 0, 500, 700, 701}));
}

// Wherever it stands, also where nothing else of the row is looked at closely.
TEST(Topk, ANanInALongRowIsFound) {
  for (const std::int64_t at : {0, 77, 640, 999}) {
    const Tensor scores = Tensor::randn({3, 1000}, {2, 3});
    scores.select(0, 1).slice(0, at, at + 1).fill_(std::nan(""));
    EXPECT_THROW(ops::topk_heads(scores, 4), NumericError) << at;
  }
}

TEST(OrderStatistics, NansComeLastWhateverTheirSignAndZerosAreAlike) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const double inf = std::numeric_limits<double>::infinity();
  const Tensor x = Tensor::from({-nan, 1, -0.0, inf, nan, -inf}, {6});
  const auto got =
      ops::order_statistics(x, std::vector<std::int64_t>{0, 1, 2, 3, 4, 5}).to_vector();
  EXPECT_EQ((std::vector<double>{got.begin(), got.begin() + 4}),
            (std::vector<double>{-inf, 0, 1, inf}));
  EXPECT_FALSE(std::signbit(got[1]));
  for (const int i : {4, 5}) EXPECT_TRUE(std::isnan(got[i]) && !std::signbit(got[i])) << i;
}

}  // namespace
}  // namespace proteus
