// Pieces that the CPU attention kernels share: tiles and what is visible in them, scratch memory,
// loading and transposing rows, masks, dropout. Private to attention_fwd.cpp and attention_bwd.cpp.
//
// Scores are kept transposed, keys by queries: S^T = K·Q^T. Then K and V are read where they lie,
// only Q is transposed (once per query tile), and the softmax runs along vector lanes, one lane a
// query.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "tensor/ops/attention.h"
#include "tensor/ops/tile_gemm.h"
#include "tensor/ops/transpose.h"
#include "tensor/vmath.h"

namespace proteus::attention_tiles {

using tile::kLanes;
using tile::load;
using tile::store;
using tile::Vec;

constexpr std::int64_t kQueries = 64;  // per tile; also the row stride of transposed tiles
constexpr std::int64_t kKeys = 64;     // per tile; tile borders are multiples of it
constexpr std::int64_t kGroup = 16;    // keys that are skipped or computed together
constexpr std::int64_t kGroups = kKeys / kGroup;

template <class A>
constexpr A kNegInf = -std::numeric_limits<A>::infinity();

/// e^x per lane for x ≤ 88, as vmath::exp.
template <class A>
inline Vec<A> exp_lanes(Vec<A> x) {
  if constexpr (sizeof(A) == 8) {
    for (std::int64_t l = 0; l < kLanes<A>; ++l) x[l] = std::exp(x[l]);
    return x;
  } else {
    typedef std::uint32_t Bits __attribute__((vector_size(tile::kVectorBytes)));
    constexpr A kLow = A(-87.33654);
    const Vec<A> low = Vec<A>{} + kLow;
    const Vec<A> y = x < low ? low : x;
    const Vec<A> shifted = y * A(1.44269504) + A(12582912);  // 1.5 · 2^23: rounds to an integer
    const Vec<A> n = shifted - A(12582912);
    const Vec<A> r = (y - n * A(0.693359375)) + n * A(2.12194440e-4);
    Vec<A> p = r * A(1.0 / 5040) + A(1.0 / 720);
    p = p * r + A(1.0 / 120);
    p = p * r + A(1.0 / 24);
    p = p * r + A(1.0 / 6);
    p = p * r + A(0.5);
    p = p * r + A(1);
    p = p * r + A(1);
    const Bits scale = ((Bits)shifted + 127u) << 23;
    return x < low ? Vec<A>{} : p * (Vec<A>)scale;
  }
}

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
      A* out = buffer.data() + i * D;
      const T* in = source + i * rows.row_stride;
      for (std::int64_t d = 0; d < D; ++d) out[d] = A(in[d]);
    }
    return {buffer.data(), D};
  }
}

/// out[d·kQueries + i] = rows[i][d]; lanes from count to padded are zero.
template <class A>
void transpose_rows(const Rows<A>& rows, std::int64_t count, std::int64_t padded, std::int64_t D,
                    A* out) {
  transpose(rows.data, rows.stride, out, kQueries, count, D);
  if (count == padded) return;
  for (std::int64_t d = 0; d < D; ++d) {
    std::fill(out + d * kQueries + count, out + d * kQueries + padded, A(0));
  }
}

/// One query tile of a segment and what it sees.
struct QueryTile {
  const AttentionProblem& p;
  const AttentionSegment& s;
  std::int64_t q0, count, padded;  // padded: to whole vectors
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
  /// a multiple of 8, the keys of one dropout counter.
  void keys(std::int64_t t0, std::int64_t& r0, std::int64_t& r1) const {
    r0 = t0;
    r1 = std::min(t0 + kKeys, hi_max());
    const std::int64_t first = lo[0];
    if (first >= r1) {
      r1 = std::min(r1, p.anchors);
    } else if (t0 >= p.anchors) {
      r0 = std::max(t0, first / 8 * 8);
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

/// Half-open, in units of the tile that it belongs to.
struct Range {
  std::int64_t begin = 0, end = 0;
  friend bool operator==(const Range&, const Range&) = default;
};

/// Which blocks of a (query tile, key tile) pair are computed: for every group of kGroup keys the
/// lanes, rounded to whole vectors, that hold a query that sees one of them; and for every vector
/// of queries the hull of its groups' keys. What is left out weighs exactly zero.
template <class A>
struct Band {
  std::int64_t keys = 0, padded = 0, count = 0;
  bool full = false;        // everybody sees everything: no mask
  bool holes = false;       // a hull holds groups that its queries do not see (behind the anchors)
  Range lanes[kGroups];     // of a group of keys
  Range span[kQueries];     // of a vector of queries: keys
  std::int64_t blocks = 0;  // vectors

  Band(const QueryTile& tile, std::int64_t r0, std::int64_t r1)
      : keys(r1 - r0), padded(tile.padded), count(tile.count), blocks(tile.padded / kLanes<A>) {
    full = tile.hi[0] >= r1 && (tile.lo[count - 1] <= r0 || r1 <= tile.p.anchors);
    if (full) {
      for (Range& lane : lanes) lane = {0, padded};
      for (std::int64_t b = 0; b < blocks; ++b) span[b] = {0, keys};
      return;
    }
    constexpr std::int64_t L = kLanes<A>;
    Visible first(tile);
    Visible last(tile);
    for (std::int64_t g = 0; g * kGroup < keys; ++g) {
      const std::int64_t j0 = g * kGroup;
      const std::int64_t j1 = std::min(keys, j0 + kGroup);
      first.advance(r0 + j0);
      last.advance(r0 + j1 - 1);
      const std::int64_t end = std::max(first.end, last.end);
      if (first.begin >= end) continue;
      lanes[g] = {first.begin / L * L, (end + L - 1) / L * L};
      for (std::int64_t b = lanes[g].begin / L; b < lanes[g].end / L; ++b) {
        if (span[b].end == 0) span[b].begin = j0;
        holes = holes || (span[b].end != 0 && span[b].end != j0);
        span[b].end = j1;
      }
    }
  }

  /// fn(first key, keys, lanes) for runs of key groups that have the same lanes.
  template <class F>
  void for_keys(F&& fn) const {
    const std::int64_t groups = (keys + kGroup - 1) / kGroup;
    for (std::int64_t g = 0; g < groups;) {
      const std::int64_t first = g;
      while (g < groups && lanes[g] == lanes[first]) ++g;
      const Range lane = lanes[first];
      if (lane.begin >= lane.end) continue;
      fn(first * kGroup, std::min(keys, g * kGroup) - first * kGroup, lane);
    }
  }
  /// fn(first query, queries, keys) for runs of query vectors that have the same keys.
  template <class F>
  void for_queries(F&& fn) const {
    for (std::int64_t b = 0; b < blocks;) {
      const std::int64_t first = b;
      while (b < blocks && span[b] == span[first]) ++b;
      const std::int64_t i = first * kLanes<A>;
      if (span[first].end > 0) fn(i, std::min(count, b * kLanes<A>) - i, span[first]);
    }
  }
};

/// −inf for the scores (keys from r0 on) that a query does not see.
template <class A>
void hide_scores(const QueryTile& tile, const Band<A>& band, std::int64_t r0, A* scores) {
  if (band.full) return;
  Visible visible(tile);
  for (std::int64_t j = 0; j < band.keys; ++j) {
    A* row = scores + j * kQueries;
    visible.advance(r0 + j);
    std::fill(row, row + visible.begin, kNegInf<A>);
    if (visible.end < band.count) std::fill(row + visible.end, row + band.count, kNegInf<A>);
  }
}

/// Factors of the keys [j, j + 8) for some lanes: out[r·kQueries + i].
template <class A>
void dropout_group(const QueryTile& tile, std::int64_t j, Range lanes, A* out) {
  const AttentionDropout dropout(tile.p);
  const A kept = static_cast<A>(dropout.factor);
  for (std::int64_t i = lanes.begin; i < lanes.end; ++i) {
    const Philox4 r = dropout.draw(tile.s.slot + tile.q0 + i, j);
    for (int key = 0; key < AttentionDropout::kKeys; ++key) {
      out[key * kQueries + i] = dropout.keeps(r.v[key / 2], key % 2) ? kept : A(0);
    }
  }
}

/// How many of `tasks` to hand out at once: enough operations to be worth a thread's wake-up.
inline std::int64_t task_grain(const AttentionProblem& p, std::size_t tasks) {
  constexpr double kWorthwhile = 2e6;
  double pairs = 0;
  for (std::int64_t n = 0; n < p.segment_count; ++n) {
    pairs += static_cast<double>(p.segments[n].q_count * p.segments[n].k_count);
  }
  const double share = 4.0 * static_cast<double>(p.D) * pairs / static_cast<double>(tasks + 1);
  const double grain = std::min(kWorthwhile / (share + 1), static_cast<double>(tasks));
  return std::max<std::int64_t>(1, static_cast<std::int64_t>(grain));
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
