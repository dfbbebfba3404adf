// Which tokens enter at all, and the quantiles that its threshold follows (tensor/ops/select.h).
#include <algorithm>
#include <limits>
#include <string>
#include <vector>

#include "tensor/ops/check.h"
#include "tensor/ops/select.h"
#include "tensor/parallel.h"

namespace proteus {
namespace {

constexpr std::int64_t kGrain = 4096;

template <class T>
void keep_counts_typed(const KeepCounts& a) {
  const T* scores = static_cast<const T*>(a.scores);
  parallel_for(a.N, kGrain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t n = begin; n < end; ++n) {
      const std::int64_t time = a.time ? a.time[n] : n % a.period;
      const bool enters = time < a.guard || static_cast<double>(scores[n]) > a.tau;
      const auto count = a.count ? a.count[n] : static_cast<std::int32_t>(a.k);
      a.out[n] = enters ? count : 0;
    }
  });
}

template <class T>
void order_statistics_typed(const OrderStatistics& a) {
  const T* x = static_cast<const T*>(a.x);
  std::vector<T> sorted(x, x + a.N);
  std::sort(sorted.begin(), sorted.end(), [](T l, T r) { return l < r || (l == l && r != r); });
  for (int i = 0; i < a.ranks; ++i) {
    const T value = sorted[static_cast<std::size_t>(a.rank[i])];
    a.out[i] = value == value ? static_cast<double>(value + T(0))  // −0 is 0
                              : std::numeric_limits<double>::quiet_NaN();
  }
}

void keep_counts_cpu(const KeepCounts& a) {
  a.dtype == DType::f64 ? keep_counts_typed<double>(a) : keep_counts_typed<float>(a);
}

void order_statistics_cpu(const OrderStatistics& a) {
  a.dtype == DType::f64 ? order_statistics_typed<double>(a) : order_statistics_typed<float>(a);
}

void check_real(const std::string& where, const Tensor& t) {
  if (t.dtype() != DType::f32 && t.dtype() != DType::f64) {
    throw_dtype(where, t.dtype(), "f32 or f64");
  }
}

void check_integers(const std::string& call, const char* name, const Tensor& t,
                    const Tensor& scores) {
  if (!t.defined()) return;
  if (t.dtype() != DType::i32) throw_dtype(call + ": " + name, t.dtype(), "i32");
  ops::check_device(call, name, t, scores);
  ops::check_shape(call, name, t, scores.shape(), "(= scores.shape)");
}

const std::int32_t* integers(const Tensor& t) {
  return t.defined() ? t.data<std::int32_t>() : nullptr;
}

}  // namespace

Slot<KeepCounts> keep_counts{"keep_counts", keep_counts_cpu};
Slot<OrderStatistics> order_statistics{"order_statistics", order_statistics_cpu};

namespace ops {

Tensor keep_counts(const Tensor& scores_any, const Keep& keep, std::int64_t k,
                   const Tensor& count_any, const Tensor& time_any) {
  const std::string call = "keep_counts(scores, keep, k, count, time)";
  check_real(call + ": scores", scores_any);
  if (scores_any.rank() != 1) {
    throw ShapeError(call + ": scores: expected [N], got " + to_string(scores_any.shape()));
  }
  check_integers(call, "count", count_any, scores_any);
  check_integers(call, "time", time_any, scores_any);
  if (!time_any.defined() && keep.period < 1) {
    throw ShapeError(call +
                     ": keep.period: expected at least 1 where no positions are given, got " +
                     std::to_string(keep.period));
  }
  Tensor out = Tensor::empty(scores_any.shape(), DType::i32, scores_any.device());
  if (out.numel() == 0) return out;
  const Tensor scores = scores_any.contiguous();
  const Tensor count = count_any.defined() ? count_any.contiguous() : count_any;
  const Tensor time = time_any.defined() ? time_any.contiguous() : time_any;
  proteus::keep_counts(scores.device(), {.scores = scores.raw(),
                                         .time = integers(time),
                                         .count = integers(count),
                                         .out = out.data<std::int32_t>(),
                                         .N = scores.numel(),
                                         .period = keep.period,
                                         .guard = keep.guard,
                                         .k = k,
                                         .tau = keep.tau,
                                         .dtype = scores.dtype()});
  return out;
}

Tensor order_statistics(const Tensor& x_any, std::span<const std::int64_t> ranks) {
  const std::string call = "order_statistics(x, ranks)";
  check_real(call + ": x", x_any);
  if (ranks.size() > kMostRanks) {
    throw ShapeError(call + ": ranks: expected at most " + std::to_string(kMostRanks) + ", got " +
                     std::to_string(ranks.size()));
  }
  const Tensor x = x_any.contiguous();
  OrderStatistics args{
      .x = x.raw(), .N = x.numel(), .ranks = static_cast<int>(ranks.size()), .dtype = x.dtype()};
  for (std::size_t i = 0; i < ranks.size(); ++i) {
    if (ranks[i] < 0 || ranks[i] >= x.numel()) {
      throw ShapeError(call + ": ranks: expected ranks in [0, " + std::to_string(x.numel()) +
                       ") (= elements of x), got " + std::to_string(ranks[i]));
    }
    args.rank[i] = ranks[i];
  }
  Tensor out = Tensor::empty({static_cast<std::int64_t>(ranks.size())}, DType::f64, x.device());
  args.out = out.data<double>();
  if (!ranks.empty()) proteus::order_statistics(x.device(), args);
  return out;
}

}  // namespace ops
}  // namespace proteus
