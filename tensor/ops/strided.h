// Walking strided layouts: dimensions are merged where strides allow. On the CPU the outer ones are
// then cut into chunks and the inner one is handed to a loop that can be vectorised.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

#include "tensor/host_device.h"
#include "tensor/parallel.h"
#include "tensor/shape.h"

namespace proteus {

/// The common iteration space of N operands: sizes outermost first, strides per operand.
template <int N>
struct Walk {
  int rank = 0;
  std::array<std::int64_t, kMaxRank> size{};
  std::array<std::array<std::int64_t, kMaxRank>, N> stride{};

  PROTEUS_HOST_DEVICE std::int64_t inner() const {
    return rank ? size[static_cast<std::size_t>(rank - 1)] : 1;
  }
  PROTEUS_HOST_DEVICE std::int64_t outer() const {
    std::int64_t n = 1;
    for (int d = 0; d + 1 < rank; ++d) n *= size[static_cast<std::size_t>(d)];
    return n;
  }
  PROTEUS_HOST_DEVICE std::int64_t inner_stride(int operand) const {
    return rank ? stride[static_cast<std::size_t>(operand)][static_cast<std::size_t>(rank - 1)] : 0;
  }
  /// Offset of `operand` for outer index `row`.
  std::int64_t offset(int operand, std::int64_t row) const {
    std::int64_t at = 0;
    for (int d = rank - 2; d >= 0; --d) {
      const auto e = static_cast<std::size_t>(d);
      at += row % size[e] * stride[static_cast<std::size_t>(operand)][e];
      row /= size[e];
    }
    return at;
  }
};

/// Layouts must have the same shape. Size-1 dimensions vanish, neighbours that are one run merge.
template <int N>
Walk<N> make_walk(const std::array<Layout, N>& layouts) {
  Walk<N> walk;
  const Shape& shape = layouts[0].shape;
  for (int d = 0; d < shape.rank(); ++d) {
    if (shape[d] == 1) continue;
    bool merge = walk.rank > 0;
    const auto last = static_cast<std::size_t>(walk.rank - 1);
    for (std::size_t n = 0; merge && n < N; ++n) {
      merge = walk.stride[n][last] == layouts[n].strides[d] * shape[d];
    }
    const auto at = merge ? last : static_cast<std::size_t>(walk.rank++);
    walk.size[at] = (merge ? walk.size[at] : 1) * shape[d];
    for (std::size_t n = 0; n < N; ++n) walk.stride[n][at] = layouts[n].strides[d];
  }
  return walk;
}

/// Calls `fn(offsets, count)` for runs of at most `grain` elements along the inner dimension;
/// offsets (without the layouts' own) are where each operand's run begins, the step along it is
/// `walk.inner_stride(operand)`.
template <int N, class F>
void walk_runs(const Walk<N>& walk, F&& fn, std::int64_t grain = 16384) {
  const std::int64_t inner = walk.inner();
  const std::int64_t outer = walk.outer();
  if (inner == 0 || outer == 0) return;
  if (outer == 1 && inner > grain) {
    parallel_for(inner, grain, [&](std::int64_t begin, std::int64_t end) {
      std::array<std::int64_t, N> at{};
      for (int n = 0; n < N; ++n) {
        at[static_cast<std::size_t>(n)] = begin * walk.inner_stride(n);
      }
      fn(at, end - begin);
    });
    return;
  }
  const std::int64_t rows = std::max<std::int64_t>(1, grain / inner);
  parallel_for(outer, rows, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row) {
      std::array<std::int64_t, N> at{};
      for (int n = 0; n < N; ++n) at[static_cast<std::size_t>(n)] = walk.offset(n, row);
      fn(at, inner);
    }
  });
}

}  // namespace proteus
