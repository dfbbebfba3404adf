// Drawing the next tokens on a GPU (tensor/ops/draw.h): a block to a row. Nothing is sorted. A
// candidate is found by the sum of the weights before it, digit by digit: candidates are counted
// into bins by how far they lie below the largest, the bin that holds the sum is found, and its
// candidates are binned anew until they are all equal; of these the id decides. Weights are whole
// numbers, so that the order in which they are added does not matter.
#include "cuda/kernels.h"
#include "cuda/rows.cuh"
#include "tensor/ops/draw.h"

namespace proteus::cuda {
namespace {

constexpr int kThreads = 1024;
constexpr int kBins = kThreads;  // one a thread when they are summed
constexpr int kWarps = kThreads / kWarp;
// Weights are 0 beyond e^−28 < 2^−40.
constexpr float kWidest = 28;

using Sum = unsigned long long;

struct Smaller {
  template <class A>
  __device__ A operator()(A a, A b) const {
    return b < a ? b : a;
  }
};

/// Numbers in the order of the floats.
__device__ std::uint32_t key_of(float x) {
  const std::uint32_t bits = __float_as_uint(x == 0 ? 0.0f : x);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
__device__ float value_of(std::uint32_t key) {
  return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

struct Shared {
  Sum bins[kBins];
  std::uint32_t least[kBins], most[kBins];  // keys of a bin's candidates
  Sum warps[kWarps];
  int bin;
  Sum before, total;
};

/// Sum of `value` over the threads before this one; `total` is over all.
__device__ Sum sum_before(Shared& s, Sum value, Sum& total) {
  const Sum sum = sum_up_to_lane(value);
  if (lane() == kWarp - 1) s.warps[warp_of_block()] = sum;
  __syncthreads();
  if (warp_of_block() == 0) s.warps[lane()] = sum_up_to_lane(s.warps[lane()]);
  __syncthreads();
  total = s.warps[kWarps - 1];
  const Sum out = sum - value + (warp_of_block() > 0 ? s.warps[warp_of_block() - 1] : 0);
  __syncthreads();
  return out;
}

template <class T>
struct Row {
  const T* logits;
  std::int64_t V;
  float inverse;  // of the temperature
  std::uint32_t least = 0, most = 0;

  __device__ std::uint64_t weight(std::uint32_t key) const {
    return draw_weight(expf((value_of(key) - value_of(most)) * inverse));
  }
  /// fn(key) for this thread's share of the finite candidates.
  template <class F>
  __device__ void each(F&& fn) const {
    for (std::int64_t i = threadIdx.x; i < V; i += kThreads) {
      const float l = static_cast<float>(logits[i]);
      if (l != -std::numeric_limits<float>::infinity()) fn(key_of(l));
    }
  }
  /// Whether it can be drawn from: it looks at all candidates.
  __device__ bool look() {
    std::uint32_t low = 0xffffffffu;
    std::uint32_t high = 0;
    bool bad = false;
    each([&](std::uint32_t key) {
      const float l = value_of(key);
      bad = bad || isnan(l) || isinf(l);
      low = min(low, key);
      high = max(high, key);
    });
    least = group_reduce<kThreads>(low, Smaller{}, 0xffffffffu);
    most = group_reduce<kThreads>(high, Larger{}, 0u);
    return !__syncthreads_or(bad) && least <= most;
  }
  /// The first candidate.
  __device__ std::int32_t first() const {
    std::int64_t id = V;
    for (std::int64_t i = threadIdx.x; i < V; i += kThreads) {
      if (key_of(static_cast<float>(logits[i])) == most) id = min(id, i);
    }
    return static_cast<std::int32_t>(group_reduce<kThreads>(id, Smaller{}, V));
  }
};

/// Candidates [lo, hi] by key, and the weight of those before them.
struct Range {
  std::uint32_t lo, hi;
  Sum before;
};

/// The bin of `range` in which the sum of weights passes target(all weights); `range` becomes its
/// candidates.
template <class T, class W, class B, class F>
__device__ void narrow(Shared& s, const Row<T>& row, Range& range, W&& weight, B&& bin_of,
                       F&& target) {
  const auto t = static_cast<int>(threadIdx.x);
  s.bins[t] = 0;
  s.least[t] = 0xffffffffu;
  s.most[t] = 0;
  __syncthreads();
  row.each([&](std::uint32_t key) {
    if (key < range.lo || key > range.hi) return;
    const int bin = bin_of(key);
    atomicAdd(&s.bins[bin], static_cast<Sum>(weight(key)));
    atomicMin(&s.least[bin], key);
    atomicMax(&s.most[bin], key);
  });
  __syncthreads();
  Sum total;
  const Sum before = range.before + sum_before(s, s.bins[t], total);
  const Sum wanted = target(total);
  if (before <= wanted && wanted < before + s.bins[t]) {
    s.bin = t;
    s.before = before;
  }
  __syncthreads();
  range = {s.least[s.bin], s.most[s.bin], s.before};
  __syncthreads();
}

/// A candidate, and the weight of all up to it.
struct Found {
  std::uint32_t key;
  std::int32_t id;
  Sum sum;
};

/// The `rank`-th of the candidates with this key by id, from 0.
template <class T>
__device__ std::int32_t id_of(Shared& s, const Row<T>& row, std::uint32_t key, Sum rank) {
  const std::int64_t share = ceil_div(row.V, kThreads);
  const std::int64_t begin = threadIdx.x * share;
  const std::int64_t end = min(begin + share, row.V);
  Sum own = 0;
  for (std::int64_t i = begin; i < end; ++i) {
    own += key_of(static_cast<float>(row.logits[i])) == key ? 1 : 0;
  }
  Sum total;
  Sum at = sum_before(s, own, total);
  if (at <= rank && rank < at + own) {
    for (std::int64_t i = begin; i < end; ++i) {
      if (key_of(static_cast<float>(row.logits[i])) != key) continue;
      if (at++ == rank) s.bin = static_cast<int>(i);
    }
  }
  __syncthreads();
  const int id = s.bin;
  __syncthreads();
  return id;
}

/// The first candidate, in order, at which the sum of weights is above target(all of them).
template <class T, class W, class F>
__device__ Found find(Shared& s, const Row<T>& row, float widest, W&& weight, F&& target) {
  Range range{row.least, row.most, 0};
  const float top = value_of(row.most);
  // Halves, so that no difference overflows.
  const float reach = fminf(top / 2 - value_of(row.least) / 2, widest / 2);
  const float factor = kBins / reach;
  Sum wanted = 0;
  narrow(
      s, row, range, weight,
      [&](std::uint32_t key) {
        const float at = (top / 2 - value_of(key) / 2) * factor;
        return at < kBins - 1 ? static_cast<int>(at) : isnan(at) ? 0 : kBins - 1;
      },
      [&](Sum total) { return wanted = target(total); });
  while (range.lo < range.hi) {
    const std::uint32_t hi = range.hi;
    const std::uint64_t width = std::uint64_t{hi} - range.lo + 1;
    narrow(
        s, row, range, weight,
        [&](std::uint32_t key) {
          return static_cast<int>((hi - key) * std::uint64_t{kBins} / width);
        },
        [&](Sum) { return wanted; });
  }
  const Sum each = weight(range.hi);
  const Sum rank = (wanted - range.before) / each;
  return {range.hi, id_of(s, row, range.hi, rank), range.before + (rank + 1) * each};
}

template <class T>
__device__ std::int32_t draw(Shared& s, const DrawTokens& a, std::int64_t b) {
  Row<T> row{static_cast<const T*>(a.logits) + b * a.V, a.V, 1.0f};
  if (!row.look()) return kNoToken;
  const auto one = [](std::uint32_t) { return std::uint64_t{1}; };
  const float all = std::numeric_limits<float>::max();
  if (a.temperature == 0) return row.first();
  row.inverse = draw_inverse(a.temperature);
  const float widest = kWidest / row.inverse;
  const auto weight = [&](std::uint32_t key) { return row.weight(key); };
  Sum limit = 0;  // of the first top_k; 0: all count
  if (a.top_k > 0 && a.top_k < a.V) {
    const Found last = find(s, row, all, one,
                            [&](Sum total) { return min(static_cast<Sum>(a.top_k), total) - 1; });
    Sum own = 0;
    for (std::int64_t i = threadIdx.x; i < a.V; i += kThreads) {
      const float l = static_cast<float>(row.logits[i]);
      if (l == -std::numeric_limits<float>::infinity()) continue;
      const std::uint32_t key = key_of(l);
      if (key > last.key || (key == last.key && i <= last.id)) own += row.weight(key);
    }
    sum_before(s, own, limit);
  }
  if (a.top_p < 1) {
    limit = find(s, row, widest, weight, [&](Sum total) {
              return static_cast<Sum>(draw_wanted(a.top_p, limit ? limit : total) - 1);
            }).sum;
  }
  const std::uint32_t u = random_u32({a.key.seed, a.key.stream + static_cast<std::uint64_t>(b)},
                                     static_cast<std::uint64_t>(a.positions[b] + a.offset));
  return find(s, row, widest, weight,
              [&](Sum total) { return static_cast<Sum>(draw_share(u, limit ? limit : total)); })
      .id;
}

template <class T>
__global__ void __launch_bounds__(kThreads) draw_kernel(const __grid_constant__ DrawTokens a) {
  __shared__ Shared s;
  const std::int32_t token = draw<T>(s, a, blockIdx.x);
  if (threadIdx.x == 0) a.tokens[blockIdx.x] = token;
}

}  // namespace

void install_draw_kernels() {
  draw_tokens.install(DeviceType::cuda, [](const DrawTokens& a) {
    dispatch_float(a.dtype, "draw_tokens", [&](auto tag) {
      launch("draw_tokens", draw_kernel<typename decltype(tag)::type>, static_cast<unsigned>(a.B),
             kThreads, 0, a);
    });
  });
}

}  // namespace proteus::cuda
