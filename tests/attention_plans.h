// Random plans for attention on packed rows: segments of random sizes, some of them empty; ranges
// only move forward.
#pragma once

#include <algorithm>
#include <cstdint>
#include <random>
#include <vector>

#include "tensor/ops/attention.h"

namespace proteus::testing {

struct PackedSizes {
  std::int64_t segments = 0, heads = 0;
  std::int64_t max_queries = 0, max_keys = 0;  ///< of a segment
  std::int64_t anchors = 0;
};

struct PackedPlan {
  AttentionPlan plan;
  std::int64_t q_rows = 0, k_rows = 0;
};

inline PackedPlan random_plan(const PackedSizes& sizes, std::uint64_t seed) {
  std::mt19937_64 rng(seed);
  const auto upto = [&](std::int64_t n) {
    return static_cast<std::int64_t>(rng() % static_cast<std::uint64_t>(n + 1));
  };
  PackedPlan packed;
  Tensor segments = Tensor::zeros({sizes.segments, 8}, DType::i64);
  auto* s = reinterpret_cast<AttentionSegment*>(segments.data<std::int64_t>());
  std::vector<std::int32_t> lo, hi;
  for (std::int64_t n = 0; n < sizes.segments; ++n) {
    const std::int64_t nq = n % 4 == 3 ? 0 : upto(sizes.max_queries);
    const std::int64_t nk = upto(sizes.max_keys);
    s[n] = {packed.q_rows, packed.k_rows, packed.q_rows, packed.q_rows, nq, nk, n % sizes.heads, 0};
    std::int64_t l = 0;
    std::int64_t h = 0;
    for (std::int64_t i = 0; i < nq; ++i) {
      h = std::min(nk, h + upto(2 * (nk + 1) / (nq + 1) + 1));
      l = std::min(h, std::max(l, l + upto(3) - 1));
      lo.push_back(static_cast<std::int32_t>(l));
      hi.push_back(static_cast<std::int32_t>(h));
    }
    packed.q_rows += nq;
    packed.k_rows += nk;
  }
  packed.plan.segments = segments;
  packed.plan.lo = Tensor::from_data<std::int32_t>(lo, {packed.q_rows});
  packed.plan.hi = Tensor::from_data<std::int32_t>(hi, {packed.q_rows});
  packed.plan.slots = packed.q_rows;
  packed.plan.anchors = sizes.anchors;
  packed.plan.longest = std::max(sizes.max_queries, sizes.max_keys);
  return packed;
}

}  // namespace proteus::testing
