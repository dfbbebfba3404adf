// Attention over a cache in pieces: it is bound by memory, and one warp to a query reads far too
// little at a time. A query's entries are cut into at most kMostSplits stretches, a block to each;
// how long they are depends on the number of entries, which is on the device, so that the grid is
// the same for every length. In a block a few lanes share an entry's row, 16 bytes each, and each
// such group keeps a maximum, a sum and an output of its own (online softmax; Milakov & Gimelshein,
// arXiv:1805.02867). Groups, then stretches, are merged in order: the same bits on every run.
#include "cuda/cache.cuh"
#include "cuda/cache.h"

namespace proteus::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kUnroll = 4;       // entries whose rows a group has on their way at once
constexpr int kLeastSplit = 64;  // entries of a stretch: fewer do not pay for the merge
constexpr int kMostSplits = 64;
constexpr float kNothing = -std::numeric_limits<float>::infinity();

int splits_for(const CacheRows& c) {
  return static_cast<int>(
      std::clamp<std::int64_t>(ceil_div(c.capacity, kLeastSplit), 1, kMostSplits));
}

/// Entries of a stretch when there are `count`.
__device__ int stretch_of(int count, int splits) {
  const int even = (count + splits - 1) / splits;
  return (even + kLeastSplit - 1) / kLeastSplit * kLeastSplit;
}

/// Codes or numbers of 16 bytes of a row.
template <class T, bool kCodes>
using Element = std::conditional_t<kCodes, std::int8_t, T>;

/// A group's part of the query: `kPack` elements a lane.
template <class T, bool kCodes, int kPack, int kLanes>
struct GroupQuery {
  float x[kCodes ? 1 : kPack];
  int codes[kCodes ? kPack / 4 : 1];
  float scale;

  __device__ GroupQuery(const T* q, float factor) : scale(factor) {
    if constexpr (!kCodes) {
#pragma unroll
      for (int i = 0; i < kPack; ++i) x[i] = float(q[i]);
    } else {
      float largest = 0;
#pragma unroll
      for (int i = 0; i < kPack; ++i) largest = fmaxf(largest, fabsf(float(q[i])));
#pragma unroll
      for (int step = kLanes / 2; step > 0; step /= 2) {
        largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, step));
      }
      const float by = code_factor(largest);
      scale *= code_scale(largest);
#pragma unroll
      for (int w = 0; w < kPack / 4; ++w) {
        unsigned word = 0;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          word |= static_cast<unsigned>(code_of(float(q[4 * w + i]), by) & 0xff) << (8 * i);
        }
        codes[w] = static_cast<int>(word);
      }
    }
  }
  /// q·k/√D, in every lane of the group.
  __device__ float dot(const Pack<Element<T, kCodes>, kPack>& k, const float* scales,
                       std::int64_t place) const {
    if constexpr (!kCodes) {
      float sum = 0;
#pragma unroll
      for (int i = 0; i < kPack; ++i) sum += x[i] * float(k[i]);
#pragma unroll
      for (int step = kLanes / 2; step > 0; step /= 2) {
        sum += __shfl_xor_sync(kAllLanes, sum, step);
      }
      return sum * scale;
    } else {
      int sum = 0;
#pragma unroll
      for (int w = 0; w < kPack / 4; ++w) {
        int word;
        memcpy(&word, k.v + 4 * w, sizeof word);
        sum = __dp4a(codes[w], word, sum);
      }
#pragma unroll
      for (int step = kLanes / 2; step > 0; step /= 2) {
        sum += __shfl_xor_sync(kAllLanes, sum, step);
      }
      return static_cast<float>(sum) * (scale * scales[place]);
    }
  }
};

/// Softmax so far: `sum` and out are of exp(score − top).
template <int kPack>
struct Running {
  float top = kNothing;
  float sum = 0;
  float out[kPack] = {};

  /// What is there counts so much less from now on.
  __device__ float raise(float score) {
    const float before = top;
    top = fmaxf(top, score);
    const float shrink = top == kNothing ? 1.0f : expf(before - top);
    sum *= shrink;
#pragma unroll
    for (int i = 0; i < kPack; ++i) out[i] *= shrink;
    return top == kNothing ? 0.0f : top;
  }
};

template <class T, bool kCodes, int kPack, int kLanes>
__device__ Running<kPack> attend_stretch(const CacheAttend& a, const CacheItem& item,
                                         const SeenRows& seen, int first, int end) {
  constexpr int kGroups = kThreads / kLanes;
  using E = Element<T, kCodes>;
  const CacheRows& c = a.cache;
  const int group = static_cast<int>(threadIdx.x) / kLanes;
  const int part = static_cast<int>(threadIdx.x) % kLanes * kPack;
  const float scale = 1.0f / sqrtf(static_cast<float>(c.D));
  const GroupQuery<T, kCodes, kPack, kLanes> q(
      static_cast<const T*>(a.q) + item.at(a.items, a.q_stride, c.D) + part, scale);
  Running<kPack> r;
  for (int begin = first; begin < end; begin += kGroups * kUnroll) {
    Pack<E, kPack> k[kUnroll];
    Pack<E, kPack> v[kUnroll];
    std::int64_t place[kUnroll];
    float score[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int i = min(begin + u * kGroups + group, end - 1);
      place[u] = seen(i);
      k[u] = load_pack<kPack>(static_cast<const E*>(c.k) + place[u] * c.D + part);
      v[u] = load_pack<kPack>(static_cast<const E*>(c.v) + place[u] * c.D + part);
    }
    float most = kNothing;
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      score[u] = q.dot(k[u], c.k_scale, place[u]);
      if (c.bias) score[u] += static_cast<const float*>(c.bias)[place[u]];
      if (begin + u * kGroups + group >= end) score[u] = kNothing;
      most = fmaxf(most, score[u]);
    }
    const float base = r.raise(most);
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      float weight = expf(score[u] - base);
      r.sum += weight;
      if constexpr (kCodes) weight *= c.v_scale[place[u]];
#pragma unroll
      for (int i = 0; i < kPack; ++i) r.out[i] += weight * float(v[u][i]);
    }
  }
  return r;
}

/// Sums, outputs and the greatest score of several parts, one after the other.
struct Merge {
  float top;
  float sum = 0;
  float out = 0;

  __device__ explicit Merge(float greatest) : top(greatest == kNothing ? 0.0f : greatest) {}
  __device__ void add(float part_top, float part_sum, float part_out) {
    const float factor = expf(part_top - top);
    sum += factor * part_sum;
    out += factor * part_out;
  }
};

template <class T>
__device__ void store(const CacheAttend& a, const CacheItem& item, std::int64_t d, Merge m) {
  const float value = m.sum > 0 ? m.out / m.sum : 0.0f;
  static_cast<T*>(a.out)[item.row * a.cache.D + d] = T(value);
}

__device__ float sink_of(const CacheAttend& a, const CacheItem& item) {
  return a.sink && a.sink_weight > 0 ? static_cast<const float*>(a.sink)[item.head] : kNothing;
}

// partial [items, splits, D + 2]: greatest score, sum, out; unused where there is one split.
template <class T, bool kCodes, int kPack, int kLanes>
__global__ void __launch_bounds__(kThreads)
    split_kernel(const __grid_constant__ CacheAttend a, int splits, float* partial) {
  constexpr int kGroups = kThreads / kLanes;
  constexpr int kWidth = kLanes * kPack;
  __shared__ float tops[kGroups];
  __shared__ float sums[kGroups];
  __shared__ float outs[kGroups][kWidth];
  const std::int64_t i = quotient(blockIdx.x, splits);
  const int split = static_cast<int>(blockIdx.x - i * splits);
  const CacheItem item(a.items, a.cache.H, i);
  if (item.stream < 0) return;
  const SeenRows seen(a.cache, item.stream, a.windows);
  const int stretch = stretch_of(seen.count, splits);
  const int first = split * stretch;
  if (first >= seen.count && split > 0) return;
  const int end = min(first + stretch, seen.count);
  const Running<kPack> r = attend_stretch<T, kCodes, kPack, kLanes>(a, item, seen, first, end);
  const int group = static_cast<int>(threadIdx.x) / kLanes;
  const int part = static_cast<int>(threadIdx.x) % kLanes;
#pragma unroll
  for (int e = 0; e < kPack; ++e) outs[group][part * kPack + e] = r.out[e];
  if (part == 0) {
    tops[group] = r.top;
    sums[group] = r.sum;
  }
  __syncthreads();
  const float sink = splits == 1 ? sink_of(a, item) : kNothing;
  float greatest = sink;
  for (int g = 0; g < kGroups; ++g) greatest = fmaxf(greatest, tops[g]);
  float* own = partial + blockIdx.x * static_cast<std::int64_t>(kWidth + 2);
  for (int d = static_cast<int>(threadIdx.x); d < kWidth; d += kThreads) {
    Merge m(greatest);
    for (int g = 0; g < kGroups; ++g) m.add(tops[g], sums[g], outs[g][d]);
    if (splits == 1) {
      m.add(sink, static_cast<float>(a.sink_weight), 0);
      store<T>(a, item, d, m);
      continue;
    }
    own[2 + d] = m.out;
    if (d > 0) continue;
    own[0] = greatest;
    own[1] = m.sum;
  }
}

// A warp to an item; its lanes have the elements l, l + 32, …
template <class T>
__global__ void merge_kernel(const __grid_constant__ CacheAttend a, int splits,
                             const float* partial) {
  const std::int64_t i = warp_unit();
  if (i >= a.items.B * a.items.n) return;
  const CacheItem item(a.items, a.cache.H, i);
  if (item.stream < 0) return;
  const SeenRows seen(a.cache, item.stream, a.windows);
  const int stretch = stretch_of(seen.count, splits);
  const int used = stretch > 0 ? (seen.count + stretch - 1) / stretch : 0;
  const std::int64_t width = a.cache.D + 2;
  const float* parts = partial + i * splits * width;
  const float sink = sink_of(a, item);
  float greatest = kNothing;
  for (int s = lane(); s < used; s += kWarp) greatest = fmaxf(greatest, parts[s * width]);
  greatest = fmaxf(warp_reduce(greatest, Larger{}), sink);
  for (std::int64_t d = lane(); d < a.cache.D; d += kWarp) {
    Merge m(greatest);
    for (int s = 0; s < used; ++s) {
      const float* p = parts + s * width;
      m.add(p[0], p[1], p[2 + d]);
    }
    m.add(sink, static_cast<float>(a.sink_weight), 0);
    store<T>(a, item, d, m);
  }
}

template <class T, bool kCodes>
constexpr int kPackElements = static_cast<int>(16 / sizeof(Element<T, kCodes>));

/// Calls fn(lanes of a group); false if there is no such group.
template <int kPack, class F>
bool with_lanes(std::int64_t D, F&& fn) {
  if (D == 1 * kPack) return fn(std::integral_constant<int, 1>{}), true;
  if (D == 2 * kPack) return fn(std::integral_constant<int, 2>{}), true;
  if (D == 4 * kPack) return fn(std::integral_constant<int, 4>{}), true;
  if (D == 8 * kPack) return fn(std::integral_constant<int, 8>{}), true;
  if (D == 16 * kPack) return fn(std::integral_constant<int, 16>{}), true;
  if (D == 32 * kPack) return fn(std::integral_constant<int, 32>{}), true;
  return false;
}

template <class T, bool kCodes>
void run(const CacheAttend& a) {
  constexpr int kPack = kPackElements<T, kCodes>;
  const std::int64_t items = a.items.B * a.items.n;
  const int splits = splits_for(a.cache);
  const Storage memory =
      scratch(splits == 1 ? 0 : static_cast<std::size_t>(items * splits * (a.cache.D + 2)) * 4);
  auto* partial = static_cast<float*>(memory.data());
  with_lanes<kPack>(a.cache.D, [&](auto lanes) {
    launch("cache_attend: split", split_kernel<T, kCodes, kPack, lanes()>,
           static_cast<unsigned>(items * splits), kThreads, 0, a, splits, partial);
  });
  if (splits > 1) {
    launch("cache_attend: merge", merge_kernel<T>, warp_blocks(items), kBlock, 0, a, splits,
           static_cast<const float*>(partial));
  }
}

template <class T>
bool fits(const CacheAttend& a) {
  constexpr int kPack = kPackElements<T, false>;
  if (a.cache.k_scale) {
    constexpr int kCodes = kPackElements<T, true>;
    return a.cache.D <= 256 && with_lanes<kCodes>(a.cache.D, [](auto) {}) &&
           can_pack<std::int8_t, kCodes>(a.cache.k, a.cache.v);
  }
  return a.cache.D <= 256 && with_lanes<kPack>(a.cache.D, [](auto) {}) &&
         can_pack<T, kPack>(a.cache.k, a.cache.v);
}

}  // namespace

bool cache_split_fits(const CacheAttend& a) {
  if (a.dtype == DType::f32) return fits<float>(a);
  return a.dtype == DType::bf16 && fits<bfloat16>(a);
}

void cache_attend_split(const CacheAttend& a) {
  const auto of = [&](auto tag) {
    using T = typename decltype(tag)::type;
    a.cache.k_scale ? run<T, true>(a) : run<T, false>(a);
  };
  a.dtype == DType::f32 ? of(TypeTag<float>{}) : of(TypeTag<bfloat16>{});
}

}  // namespace proteus::cuda
