// Selection: the k largest values of every row, for routing. A row is looked at on its own: nothing
// of other rows enters.
#pragma once

#include <span>

#include "tensor/slot.h"
#include "tensor/tensor.h"

namespace proteus {

/// What stands for every head of a row with a NaN.
constexpr std::int32_t kNanHead = -2;

/// heads [N, k]: of every row of scores − theta [N, H], the indices of its min(k, count[n]) largest
/// values (equal values: the lower index), ascending, then −1. theta [H] and count [N] may be null
/// (0 and k). Where extra [H] is not null, marked columns do not compete: each is added to a row's
/// list, if that is not empty, where its value is above the least on it; heads is then [N, k +
/// extras]. invalid_row [1], where it is not null, becomes the first row with a NaN, or −1; such a
/// row's heads are kNanHead, or 0 to k − 1 with nan_takes_first.
struct TopkFwd {
  const void* scores = nullptr;
  const void* theta = nullptr;
  const std::int32_t* count = nullptr;
  const std::int32_t* extra = nullptr;
  std::int32_t* heads = nullptr;
  std::int32_t* invalid_row = nullptr;
  std::int64_t N = 0;
  std::int64_t H = 0;
  std::int64_t k = 0;
  std::int64_t extras = 0;  ///< how many columns are marked
  bool nan_takes_first = false;
  DType dtype = DType::f32;
};
extern Slot<TopkFwd> topk_fwd;

/// count [N]: of every row of scores − theta [N, H], the fewest of its largest values whose softmax
/// mass reaches p, clamped to [k_min, k_max]. theta [H] may be null. A row with a NaN gets k_max.
struct NucleusFwd {
  const void* scores = nullptr;
  const void* theta = nullptr;
  std::int32_t* count = nullptr;
  std::int64_t N = 0;
  std::int64_t H = 0;
  std::int64_t k_min = 0;
  std::int64_t k_max = 0;
  double p = 1;
  DType dtype = DType::f32;
};
extern Slot<NucleusFwd> nucleus_fwd;

/// out [N]: count[n] (k where null), or 0 where scores[n] is not above tau and the token's position
/// is not among the first `guard`. Positions are time [N], or n mod period where that is null.
struct KeepCounts {
  const void* scores = nullptr;
  const std::int32_t* time = nullptr;
  const std::int32_t* count = nullptr;
  std::int32_t* out = nullptr;
  std::int64_t N = 0;
  std::int64_t period = 1;
  std::int64_t guard = 0;
  std::int64_t k = 0;
  double tau = 0;
  DType dtype = DType::f32;
};
extern Slot<KeepCounts> keep_counts;

/// The most ranks of one call.
constexpr int kMostRanks = 8;

/// out [ranks], f64: the rank[i]-th smallest of the values x [N], from 0; NaN, of either sign,
/// counts as the largest.
struct OrderStatistics {
  const void* x = nullptr;
  double* out = nullptr;
  std::int64_t N = 0;
  std::int64_t rank[kMostRanks] = {};
  int ranks = 0;
  DType dtype = DType::f32;
};
extern Slot<OrderStatistics> order_statistics;

namespace ops {

/// scores [N, H] f32 or f64, any strides; theta [H] of the same dtype, or undefined; 1 ≤ k ≤ H.
/// count i32 [N]: heads of each row, clamped to [0, k]; undefined = k for all. Returns i32 [N, k]:
/// ascending heads, then −1. Infinite scores are ordered like numbers. extra i32 [H] marks (by 1)
/// columns that do not compete for the k places but come in beside them where they would have won
/// one: the result is then [N, k + extras], and k is at most the number of the other columns.
/// Throws ShapeError, DTypeError, ConfigError for k, and NumericError naming the first row that has
/// a NaN; on a device the host waits to know. With NanRows::mark it does not: pack_rows throws when
/// it meets the marks. With NanRows::take_first (no count, no extra) such a row takes the first k
/// columns like any other: nobody ever waits, and its gates, which are NaN, say so in the output.
enum class NanRows : std::uint8_t { refuse, mark, take_first };
Tensor topk_heads(const Tensor& scores, std::int64_t k, const Tensor& theta = {},
                  const Tensor& count = {}, const Tensor& extra = {},
                  NanRows nan_rows = NanRows::refuse);

/// i32 [N]: how many heads each row of scores [N, H] needs for a softmax(scores − theta) mass of p
/// (Holtzman et al., arXiv:1904.09751, for heads), within [k_min, k_max]: for topk_heads(). f32 or
/// f64; 0 < p ≤ 1, 0 ≤ k_min ≤ k_max ≤ H. Throws ShapeError, DTypeError, ConfigError.
Tensor nucleus_counts(const Tensor& scores, double p, std::int64_t k_min, std::int64_t k_max,
                      const Tensor& theta = {});

/// What decides which tokens enter at all: those of the first `guard` positions, and those whose
/// score is above tau.
struct Keep {
  double tau = 0;
  std::int64_t guard = 0;
  std::int64_t period = 1;  ///< tokens of a sequence, where no positions are given
};
/// scores [N] f32 or f64 → i32 [N]: count[n] (i32 [N]; k where undefined) of those that enter, 0 of
/// the others. time: i32 [N] positions, or undefined. Throws ShapeError, DTypeError.
Tensor keep_counts(const Tensor& scores, const Keep& keep, std::int64_t k, const Tensor& count = {},
                   const Tensor& time = {});

/// f64 [ranks]: the values of x (f32 or f64) that have these ranks, 0 the smallest. Throws
/// DTypeError, ShapeError for more than kMostRanks and for ranks outside [0, x.numel()).
Tensor order_statistics(const Tensor& x, std::span<const std::int64_t> ranks);

}  // namespace ops
}  // namespace proteus
