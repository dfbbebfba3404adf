// The slider: every budget is a function of alpha and of the query's own position, never of the
// final length (docs/aspa.md, "The slider"). alpha = 0 is exact dense attention, 1 is linear time.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace proteus::slider {

/// Routed heads that a token enters: round(Hr^{1−α} · k^α), from Hr down to k.
inline std::int64_t routed_heads(double alpha, std::int64_t Hr, std::int64_t k) {
  const double mix =
      std::pow(static_cast<double>(Hr), 1 - alpha) * std::pow(static_cast<double>(k), alpha);
  return std::clamp<std::int64_t>(std::llround(mix), std::min(k, Hr), Hr);
}

/// Of the n entries (or positions) up to and including the query, how many it sees:
/// round(w · max(1, n/w)^{1−α}), at most n; all n at α = 0, min(n, w) at α = 1. n − window is
/// non-decreasing in n, so that windows only ever move forward.
inline std::int64_t window(double alpha, std::int64_t w, std::int64_t n) {
  if (alpha <= 0 || n <= w) return n;
  const double width = static_cast<double>(w);
  const double grown = width * std::pow(static_cast<double>(n) / width, 1 - alpha);
  return std::clamp<std::int64_t>(std::llround(grown), std::min(w, n), n);
}

/// Share of the tokens that enter routed heads at all: keep^α.
inline double keep(double alpha, double keep_at_one) { return std::pow(keep_at_one, alpha); }

/// Slots of a head's bank: round(α·M).
inline std::int64_t bank_slots(double alpha, std::int64_t M) {
  return std::llround(alpha * static_cast<double>(M));
}

/// Gates, key bias and sink are scaled by α; a query gate blends from 1 to g.
inline double blend(double alpha, double g) { return (1 - alpha) + alpha * g; }

/// alpha for a run of `length` tokens: 0 up to `dense_until`, then rising linearly in log2(length)
/// to 1 at `sparse_from`. Chosen once per run, before it starts: a budget inside the run does not
/// look at its length.
inline double alpha_for_length(std::int64_t length, std::int64_t dense_until,
                               std::int64_t sparse_from) {
  if (length <= dense_until) return 0;
  if (length >= sparse_from) return 1;
  const double from = std::log2(static_cast<double>(std::max<std::int64_t>(dense_until, 1)));
  const double to = std::log2(static_cast<double>(sparse_from));
  return (std::log2(static_cast<double>(length)) - from) / (to - from);
}

}  // namespace proteus::slider
