// Pieces that the CPU attention kernels share: tile sizes, scratch memory, loading and transposing
// rows, visibility, dropout. Private to attention_fwd.cpp and attention_bwd.cpp.
//
// Scores are kept transposed, keys by queries: S^T = K·Q^T. Then K and V are read where they lie,
// only Q is transposed (once per query tile), and the softmax runs along vector lanes, one lane a
// query.
#pragma once

#include <algorithm>
#include <limits>
#include <vector>

#include "tensor/ops/attention.h"
#include "tensor/ops/tile_gemm.h"
#include "tensor/vmath.h"

namespace proteus::attention_tiles {

constexpr std::int64_t kQueries = 64;  // per tile; also the row stride of transposed tiles
constexpr std::int64_t kKeys = 64;     // per tile; tile borders are multiples of it

template <class A>
constexpr A kNegInf = -std::numeric_limits<A>::infinity();

/// Rows of a tile as accumulation-type numbers: in place, or converted into a buffer.
template <class A>
struct Rows {
  const A* data = nullptr;
  std::int64_t stride = 0;
};

template <class T>
const T* row_pointer(const HeadRows& rows, std::int64_t head, std::int64_t row) {
  return static_cast<const T*>(rows.data) + row * rows.row_stride + head * rows.head_stride;
}
template <class T>
T* row_pointer_out(const HeadRows& rows, std::int64_t head, std::int64_t row) {
  return static_cast<T*>(rows.data) + row * rows.row_stride + head * rows.head_stride;
}

template <class T, class A>
Rows<A> load_rows(const HeadRows& rows, std::int64_t head, std::int64_t row, std::int64_t count,
                  std::int64_t D, std::vector<A>& buffer) {
  const T* source = row_pointer<T>(rows, head, row);
  if constexpr (std::is_same_v<T, A>) {
    return {source, rows.row_stride};
  } else {
    buffer.resize(static_cast<std::size_t>(count * D));
    for (std::int64_t i = 0; i < count; ++i) {
      for (std::int64_t d = 0; d < D; ++d) {
        buffer[static_cast<std::size_t>(i * D + d)] = A(source[i * rows.row_stride + d]);
      }
    }
    return {buffer.data(), D};
  }
}

/// out[d·kQueries + i] = factor · rows[i][d]; lanes from count to padded are zero.
template <class A>
void transpose_rows(const Rows<A>& rows, std::int64_t count, std::int64_t padded, std::int64_t D,
                    A factor, A* out) {
  constexpr std::int64_t kBlock = 16;
  for (std::int64_t d0 = 0; d0 < D; d0 += kBlock) {
    const std::int64_t d1 = std::min(D, d0 + kBlock);
    for (std::int64_t i = 0; i < count; ++i) {
      const A* row = rows.data + i * rows.stride;
      for (std::int64_t d = d0; d < d1; ++d) out[d * kQueries + i] = factor * row[d];
    }
    for (std::int64_t d = d0; d < d1; ++d) {
      for (std::int64_t i = count; i < padded; ++i) out[d * kQueries + i] = A(0);
    }
  }
}

/// One query tile of a segment and what it sees.
struct QueryTile {
  const AttentionProblem& p;
  const AttentionSegment& s;
  std::int64_t q0, count, padded;
  const std::int32_t* lo;
  const std::int32_t* hi;

  QueryTile(const AttentionProblem& problem, const AttentionSegment& segment, std::int64_t first,
            std::int64_t lanes)
      : p(problem),
        s(segment),
        q0(first),
        count(std::min(kQueries, segment.q_count - first)),
        padded((count + lanes - 1) / lanes * lanes),
        lo(problem.lo + segment.range + first),
        hi(problem.hi + segment.range + first) {}

  std::int64_t hi_max() const { return hi[count - 1]; }

  /// Keys [r0, r1) of the tile that begins at t0 that some query sees; empty when r0 ≥ r1. r0 stays
  /// a multiple of 4, the group of one dropout counter.
  void keys(std::int64_t t0, std::int64_t& r0, std::int64_t& r1) const {
    r0 = t0;
    r1 = std::min(t0 + kKeys, hi_max());
    const std::int64_t first = lo[0];
    if (first >= r1) {
      r1 = std::min(r1, p.anchors);
    } else if (t0 >= p.anchors) {
      r0 = std::max(t0, first / 4 * 4);
    }
  }
  /// The first key tile after t0 worth a look: those between the anchors and the window are not.
  std::int64_t next(std::int64_t t0) const {
    const std::int64_t after = t0 + kKeys;
    if (after < p.anchors) return after;
    return std::max(after, lo[0] / kKeys * kKeys);
  }
};

/// Walks the keys of a tile in order and tells for each the queries [begin, end) that see it.
class Visible {
 public:
  explicit Visible(const QueryTile& tile) : tile_(tile) {}
  void advance(std::int64_t key) {
    while (begin < tile_.count && tile_.hi[begin] <= key) ++begin;
    if (key < tile_.p.anchors) {
      end = tile_.count;
      return;
    }
    while (window_end_ < tile_.count && tile_.lo[window_end_] <= key) ++window_end_;
    end = window_end_;
  }
  std::int64_t begin = 0, end = 0;

 private:
  const QueryTile& tile_;
  std::int64_t window_end_ = 0;
};

/// Multipliers (0 or 1/(1−p)) of the keys [j, j + 4) for all lanes: out[r·kQueries + i].
template <class A>
void dropout_group(const QueryTile& tile, std::int64_t j, A* out) {
  const AttentionProblem& p = tile.p;
  const std::uint32_t threshold = drop_threshold(p.dropout);
  const A keep = static_cast<A>(1.0 / (1.0 - p.dropout));
  const auto group = static_cast<std::uint64_t>(j / 4);
  const auto slot = static_cast<std::uint64_t>(tile.s.slot + tile.q0);
  for (std::int64_t i = 0; i < tile.padded; ++i) {
    const Philox4 r =
        philox(p.key.seed, (slot + static_cast<std::uint64_t>(i)) << 32 | group, p.key.stream);
    for (int lane = 0; lane < 4; ++lane) {
      out[lane * kQueries + i] = r.v[lane] >= threshold ? keep : A(0);
    }
  }
}

/// Runs a function template for the storage and accumulation types of a dtype.
template <class F>
void dispatch_attention(DType dtype, const char* name, F&& fn) {
  dispatch_float(dtype, name, [&](auto tag) {
    using T = typename decltype(tag)::type;
    fn(TypeTag<T>{}, TypeTag<accum_t<T>>{});
  });
}

}  // namespace proteus::attention_tiles
