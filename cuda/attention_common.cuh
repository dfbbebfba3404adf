// What the attention kernels share: the list of tiles, which keys a query sees, dropout, and what
// the backward kernels prepare.
//
// The host knows how many segments there are but not how long each is. So a tiny kernel sums the
// tiles of the segments before each one (`begin`), the grid is an upper bound, and a block finds
// its tile by a search in `begin`. Nothing waits for the device.
#pragma once

#include <bit>
#include <climits>
#include <cmath>
#include <limits>

#include "cuda/attention.h"
#include "cuda/tile.cuh"

namespace proteus::cuda {

constexpr float kLog2E = 1.44269504088896340736f;
constexpr float kLn2 = 0.69314718055994530942f;

__device__ inline int lane_id() { return static_cast<int>(threadIdx.x) % kWarp; }
__device__ inline int warp_id() { return static_cast<int>(threadIdx.x) / kWarp; }

template <class A>
__device__ inline A warp_sum(A x) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) x += __shfl_xor_sync(kAllLanes, x, step);
  return x;
}
/// Sum and maximum over the four lanes that hold one row of a C block.
__device__ inline float row_sum(float x) {
  x += __shfl_xor_sync(kAllLanes, x, 1);
  return x + __shfl_xor_sync(kAllLanes, x, 2);
}
__device__ inline float row_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, 1));
  return fmaxf(x, __shfl_xor_sync(kAllLanes, x, 2));
}

/// The first i of [0, n) with holds(i), or n; once true it stays true. All lanes of a warp call it
/// together and probe 32 places at a time.
template <class F>
__device__ inline std::int64_t warp_first(std::int64_t n, F&& holds) {
  std::int64_t begin = 0;
  std::int64_t end = n;  // the answer lies in [begin, end]
  while (begin < end) {
    const std::int64_t step = (end - begin + kWarp - 1) / kWarp;
    const std::int64_t at = begin + lane_id() * step;
    const unsigned hits = __ballot_sync(kAllLanes, at >= end || holds(at));
    const int first = hits ? __ffs(static_cast<int>(hits)) - 1 : kWarp;
    if (first == 0) return begin;
    end = min(end, begin + first * step);
    begin += (first - 1) * step + 1;
  }
  return begin;
}

enum class TileOf { queries, keys };

/// One tile of a segment: items [first, first + count) of its queries or its keys.
struct Tile {
  AttentionSegment s;
  std::int64_t segment;
  std::int64_t first;
  int count;
};

/// begin[n] = tiles of the segments before n; begin[segments] = all.
struct TileList {
  int* begin;
  std::int64_t segments;
  int together;  // segments whose tiles are handed out together, at most a warp's lanes

  __device__ int total() const { return begin[segments]; }
  /// A counter that begins at 0, for blocks that take tiles one after the other.
  __device__ int* ticket() const { return begin + segments + 1; }
  /// All lanes of a warp call it together. Of segments that are handed out together, first the last
  /// tile of each longest one, then the one before: in causal attention it sees most, and the light
  /// ones even out the end. (Of keys the first tile, which most queries see.)
  template <TileOf kOf>
  __device__ Tile find(const AttentionProblem& p, int work, int size) const {
    const std::int64_t n_groups = (segments + together - 1) / together;
    const std::int64_t group = warp_first(
        n_groups, [&](std::int64_t i) { return begin[min(segments, (i + 1) * together)] > work; });
    const std::int64_t first_segment = group * together;
    const std::int64_t mine = first_segment + lane_id();
    const bool inside = lane_id() < together && mine < segments;
    const int tiles = inside ? begin[mine + 1] - begin[mine] : 0;
    const int place = work - begin[first_segment];
    // A tile's level is the number of tiles behind it that see less. How many have one from `level`
    // on:
    const auto from = [&](int level) {
      return __reduce_add_sync(kAllLanes, max(0, tiles - level));
    };
    int level = 0;  // from(level) > place >= from(end)
    for (int end = __reduce_max_sync(kAllLanes, tiles); end - level > 1;) {
      const int middle = (level + end) / 2;
      (from(middle) > place ? level : end) = middle;
    }
    const int in_level = place - from(level + 1);  // how many of this level come before
    const bool has = tiles > level;
    const unsigned before = __ballot_sync(kAllLanes, has) & ((1u << lane_id()) - 1);
    const bool chosen = has && __popc(before) == in_level;
    const int lane = __ffs(static_cast<int>(__ballot_sync(kAllLanes, chosen))) - 1;
    const std::int64_t n = first_segment + lane;
    const AttentionSegment s = p.segments[n];
    const std::int64_t count = kOf == TileOf::queries ? s.q_count : s.k_count;
    const int tile =
        kOf == TileOf::queries ? level : __shfl_sync(kAllLanes, tiles, lane) - 1 - level;
    const std::int64_t first = static_cast<std::int64_t>(tile) * size;
    return {s, n, first, static_cast<int>(min(static_cast<std::int64_t>(size), count - first))};
  }
};

/// Calls fn(tile) with the block's share of a list of tiles of `size`.
template <TileOf kOf, class F>
__device__ inline void for_tiles(const AttentionProblem& p, const TileList& tiles, int size,
                                 F&& fn) {
  const int total = tiles.total();
  for (int work = static_cast<int>(blockIdx.x); work < total; work += static_cast<int>(gridDim.x)) {
    fn(tiles.find<kOf>(p, work, size));
  }
}

/// At least the tiles of a problem.
std::int64_t tile_bound(const AttentionProblem& p, TileOf of, int size);

/// The list of a problem's tiles of `size` queries or keys, and a grid that is large enough for it.
class Tiles {
 public:
  Tiles(const AttentionProblem& p, TileOf of, int size);
  TileList list() const { return {static_cast<int*>(memory_.data()), segments_, together_}; }
  unsigned grid() const { return grid_; }

 private:
  std::int64_t segments_;
  int together_;
  Storage memory_;
  unsigned grid_;
};

/// Per slot, in the accumulation type: the log-sum-exp, +inf where it was −inf, so that a query
/// that sees nothing weighs exp(−inf) = 0; and δ = Σ_d dout·out.
template <class A>
class QueryStats {
 public:
  /// Room for them.
  explicit QueryStats(const AttentionBwd& a);
  void compute(const AttentionBwd& a) const;
  /// Writes dsink, if there is one, from both.
  void sinks(const AttentionBwd& a) const;
  A* lse() const { return static_cast<A*>(memory_.data()); }
  A* delta() const { return lse() + slots_; }

 private:
  std::int64_t slots_;
  Storage memory_;
};
extern template class QueryStats<float>;
extern template class QueryStats<double>;

template <class T>
__device__ inline const T* row_of(const HeadRows& rows, std::int64_t head, std::int64_t row) {
  return static_cast<const T*>(rows.data) + row * rows.row_stride + head * rows.head_stride;
}
template <class T>
__device__ inline T* row_of_out(const HeadRows& rows, std::int64_t head, std::int64_t row) {
  return static_cast<T*>(rows.data) + row * rows.row_stride + head * rows.head_stride;
}

template <class T>
constexpr T kInfinity = std::numeric_limits<T>::infinity();

/// The log-sum-exp as the backward kernels use it, see QueryStats.
template <class A>
__device__ inline A finite_lse(A lse) {
  return lse == -kInfinity<A> ? kInfinity<A> : lse;
}

/// sum + Σ x·y over a chunk of each.
__device__ inline float dot_chunk(const bf16* x, const bf16* y, float sum) {
  const auto low = [](std::uint32_t two) { return std::bit_cast<float>(two << 16); };
  const auto high = [](std::uint32_t two) { return std::bit_cast<float>(two & 0xffff0000u); };
  const auto dot2 = [&](std::uint32_t a, std::uint32_t b, float before) {
    return fmaf(low(a), low(b), fmaf(high(a), high(b), before));
  };
  const uint4 a = *reinterpret_cast<const uint4*>(x);
  const uint4 b = *reinterpret_cast<const uint4*>(y);
  return dot2(a.x, b.x, dot2(a.y, b.y, dot2(a.z, b.z, dot2(a.w, b.w, sum))));
}

/// Anchors as a key index: no segment has more keys than that.
__device__ inline int anchors_of(const AttentionProblem& p) {
  return static_cast<int>(min(p.anchors, std::int64_t{INT_MAX}));
}

__device__ inline bool sees(int key, int lo, int hi, int anchors) {
  return key < hi && (key >= lo || key < anchors);
}

/// What queries with ranges from (lo_first, hi_first) to (lo_last, hi_last) see of the keys
/// [begin, end): nothing, everything, or a part.
struct alignas(16) Sight {
  int lo_first, hi_first, lo_last, hi_last;
  __device__ bool nothing(int begin, int end, int anchors) const {
    return hi_last <= begin || (lo_first >= end && begin >= anchors);
  }
  __device__ bool everything(int begin, int end, int anchors) const {
    return hi_first >= end && (lo_last <= begin || end <= anchors);
  }
};

__device__ inline Sight tile_sight(const AttentionProblem& p, const Tile& t) {
  const std::int32_t* lo = p.lo + t.s.range + t.first;
  const std::int32_t* hi = p.hi + t.s.range + t.first;
  return {lo[0], hi[0], lo[t.count - 1], hi[t.count - 1]};
}

/// The queries of one warp: `rows` of a tile of queries, from `first` on, as far as there are.
struct WarpQueries {
  const std::int32_t* lo;
  const std::int32_t* hi;
  std::int64_t slot;
  int count;
  Sight sight;
  __device__ WarpQueries(const AttentionProblem& p, const Tile& t, int first, int rows)
      : lo(p.lo + t.s.range + t.first + first),
        hi(p.hi + t.s.range + t.first + first),
        slot(t.s.slot + t.first + first),
        count(min(rows, t.count - first)) {
    sight = count > 0 ? Sight{lo[0], hi[0], lo[count - 1], hi[count - 1]} : Sight{0, 0, 0, 0};
  }
};

/// What a lane's rows of C blocks see, where rows are queries: nothing beyond the last one.
template <int kBlocks>
struct RowRanges {
  int lo[kBlocks][2] = {};
  int hi[kBlocks][2] = {};
  __device__ RowRanges(const std::int32_t* all_lo, const std::int32_t* all_hi, int count) {
#pragma unroll
    for (int m = 0; m < kBlocks; ++m) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int i = 16 * m + 8 * h + lane_id() / 4;
        if (i >= count) continue;
        lo[m][h] = all_lo[i];
        hi[m][h] = all_hi[i];
      }
    }
  }
};

/// −inf where a query (a row) does not see a key (a column, counted from `key`).
template <int kBlocks, int kColumns>
__device__ inline void hide(Accumulator<kBlocks, kColumns>& s, const RowRanges<kBlocks>& rows,
                            int key, int anchors) {
#pragma unroll
  for (int m = 0; m < kBlocks; ++m) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
#pragma unroll
      for (int n = 0; n < kColumns; ++n) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int j = key + 8 * n + lane_id() % 4 * 2 + e;
          if (!sees(j, rows.lo[m][h], rows.hi[m][h], anchors)) {
            s[m][n][2 * h + e] = -kInfinity<float>;
          }
        }
      }
    }
  }
}
template <int kBlocks, int kColumns>
__device__ inline void hide(Accumulator<kBlocks, kColumns>& s, const WarpQueries& w, int key,
                            int anchors) {
  hide(s, RowRanges<kBlocks>(w.lo, w.hi, w.count), key, anchors);
}

/// Walks the key tiles that some query of a tile sees: those of the anchors, then those of the
/// window.
struct KeyWalk {
  int anchors_end, window_begin, end;  // in tiles
  /// Tiles 0 to count − 1.
  __device__ explicit KeyWalk(int count) : anchors_end(0), window_begin(0), end(count) {}
  __device__ KeyWalk(const Sight& sight, int anchors, int size) {
    anchors_end = (min(anchors, sight.hi_last) + size - 1) / size;
    window_begin = sight.lo_first / size;
    end = (sight.hi_last + size - 1) / size;
  }
  __device__ int skip(int tile) const {
    return tile >= anchors_end && tile < window_begin ? window_begin : tile;
  }
  __device__ int first() const { return skip(0); }
  __device__ int next(int tile) const { return skip(tile + 1); }
};

/// The queries [begin, end) of a segment that see one of the keys [first, last). All lanes of a
/// warp call it together.
struct QueryRange {
  std::int64_t begin, end;
  __device__ QueryRange(const AttentionProblem& p, const AttentionSegment& s, std::int64_t first,
                        std::int64_t last) {
    const std::int32_t* lo = p.lo + s.range;
    const std::int32_t* hi = p.hi + s.range;
    begin = warp_first(s.q_count, [&](std::int64_t i) { return hi[i] > first; });
    end = first < p.anchors ? s.q_count
                            : warp_first(s.q_count, [&](std::int64_t i) { return lo[i] >= last; });
  }
};

/// The dropout of a problem, in the accumulation type.
template <class A>
struct Dropout : AttentionDropout {
  A kept;
  __device__ explicit Dropout(const AttentionProblem& p)
      : AttentionDropout(p), kept(static_cast<A>(factor)) {}
  __device__ A of_half(std::uint32_t word, int half) const {
    return keeps(word, half) ? kept : A(0);
  }
  __device__ A of(std::int64_t slot, std::int64_t key) const {
    const Philox4 r = draw(slot, key);
    const int i = static_cast<int>(key % kKeys);  // not an index: r stays in registers
    const std::uint32_t low = i < 2 ? r.v[0] : r.v[1];
    const std::uint32_t high = i < 6 ? r.v[2] : r.v[3];
    return of_half(i < 4 ? low : high, i % 2);
  }
};

/// The block's dynamic shared memory, aligned for swizzled tiles.
template <class T>
__device__ inline T& dynamic_shared() {
  extern __shared__ __align__(1024) unsigned char dynamic_shared_bytes[];
  return *reinterpret_cast<T*>(dynamic_shared_bytes);
}

/// Launches a kernel whose blocks use a Shared.
template <class Shared, class... Params, class... Args>
void launch_shared(const char* name, void (*kernel)(Params...), unsigned grid, unsigned threads,
                   const Args&... args) {
  constexpr int kBytes = static_cast<int>(sizeof(Shared));
  constexpr int kWithoutAsking = 48 * 1024;
  if (kBytes > kWithoutAsking) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes), name);
  }
  launch(name, kernel, grid, threads, kBytes, args...);
}

/// Whether 16 bytes can be copied at a time.
inline bool chunked(const HeadRows& rows, DType dtype) {
  const auto size = static_cast<std::int64_t>(size_of(dtype));
  return reinterpret_cast<std::uintptr_t>(rows.data) % 16 == 0 &&
         rows.row_stride * size % 16 == 0 && rows.head_stride * size % 16 == 0;
}

/// Compute capability of the current GPU, 80 for 8.0.
inline int capability() {
  const int device = current_device();
  int major = 0;
  int minor = 0;
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device),
        "cudaDeviceGetAttribute");
  check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device),
        "cudaDeviceGetAttribute");
  return 10 * major + minor;
}

}  // namespace proteus::cuda
