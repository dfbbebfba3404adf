// Selection on a GPU (tensor/ops/select.h), a warp to a row. Values become unsigned keys of the
// same order; the k-th largest key is found, and what lies above it is taken in the order of the
// columns. For a small k the largest keys are taken off one after another, otherwise it is found
// bit by bit, by counting.
#include <limits>

#include "cuda/kernels.h"
#include "cuda/rows.cuh"
#include "tensor/ops/select.h"
#include "tensor/vmath.h"

namespace proteus::cuda {
namespace {

template <class T>
struct KeyOf;
template <>
struct KeyOf<float> {
  using Key = std::uint32_t;
  __device__ static Key bits(float v) { return __float_as_uint(v); }
};
template <>
struct KeyOf<double> {
  using Key = unsigned long long;
  __device__ static Key bits(double v) { return static_cast<Key>(__double_as_longlong(v)); }
};
template <class T>
using Key = typename KeyOf<T>::Key;

/// a < b exactly if key(a) < key(b); −0 counts as 0. No number has the key 0.
template <class T>
__device__ Key<T> key_of(T value) {
  constexpr Key<T> kSign = Key<T>{1} << (sizeof(T) * 8 - 1);
  const Key<T> bits = KeyOf<T>::bits(value + T(0));
  return bits & kSign ? ~bits : bits | kSign;
}

/// A row of scores − theta: column c·32 + lane is the lane's item c. Up to kItems items of a lane
/// stay in registers; kItems = 0 reads them again each time.
template <class T, int kItems>
class Row {
 public:
  __device__ Row(const void* scores, const void* theta, std::int64_t n, std::int64_t H)
      : scores_(static_cast<const T*>(scores) + n * H),
        theta_(static_cast<const T*>(theta)),
        H_(H) {
#pragma unroll
    for (int c = 0; c < kItems; ++c) {
      const std::int64_t h = c * kWarp + lane();
      held_[c] = h < H ? read(h) : T(0);
    }
  }

  /// fn(column, value, whether the column is one), the same number of times in every lane.
  template <class F>
  __device__ void each(F&& fn) const {
    if constexpr (kItems > 0) {
#pragma unroll
      for (int c = 0; c < kItems; ++c) {
        const std::int64_t h = c * kWarp + lane();
        fn(h, held_[c], h < H_);
      }
    } else {
      for (std::int64_t first = 0; first < H_; first += kWarp) {
        const std::int64_t h = first + lane();
        fn(h, h < H_ ? read(h) : T(0), h < H_);
      }
    }
  }

 private:
  __device__ T read(std::int64_t h) const { return theta_ ? scores_[h] - theta_[h] : scores_[h]; }

  const T* scores_;
  const T* theta_;
  std::int64_t H_;
  T held_[kItems > 0 ? kItems : 1];
};

constexpr std::int64_t kFewKeys = 16;  // taken off one after another

/// The k-th largest key (k >= 1) of the columns that compete; 0, below all, if there are fewer.
template <class T, class Keys>
__device__ Key<T> kth_key(const Keys& each_key, std::int64_t k) {
  Key<T> bound = 0;
  if constexpr (sizeof(Key<T>) == 4) {
    if (k <= kFewKeys) {
      Key<T> below = ~Key<T>{0};  // what is left to look at
      bool first = true;
      for (std::int64_t taken = 0; taken < k; first = false) {
        Key<T> top = 0;
        each_key([&](Key<T> key) { top = first || key < below ? max(top, key) : top; });
        bound = __reduce_max_sync(kAllLanes, top);
        if (bound == 0) return bound;
        each_key([&](Key<T> key) { taken += __popc(__ballot_sync(kAllLanes, key == bound)); });
        below = bound;
      }
      return bound;
    }
  }
  for (int bit = sizeof(T) * 8 - 1; bit >= 0; --bit) {
    const Key<T> tried = bound | Key<T>{1} << bit;
    std::int64_t above = 0;
    each_key([&](Key<T> key) { above += __popc(__ballot_sync(kAllLanes, key >= tried)); });
    if (above >= k) bound = tried;
  }
  return bound;
}

template <class T, int kItems>
__global__ void topk_kernel(TopkFwd a) {
  const std::int64_t n = warp_unit();
  if (n >= a.N) return;
  const Row<T, kItems> row(a.scores, a.theta, n, a.H);
  bool nan = false;
  row.each([&](std::int64_t, T value, bool) { nan = nan || value != value; });
  if (__any_sync(kAllLanes, nan)) {
    // As unsigned numbers −1, "none", is the largest.
    if (lane() == 0 && a.invalid_row) {
      atomicMin(reinterpret_cast<unsigned*>(a.invalid_row), static_cast<unsigned>(n));
    }
    for (std::int64_t j = lane(); j < a.k + a.extras; j += kWarp) {
      a.heads[n * (a.k + a.extras) + j] =
          a.nan_takes_first ? static_cast<std::int32_t>(j) : kNanHead;
    }
    return;
  }
  const std::int64_t most = a.count ? a.count[n] : a.k;
  const std::int64_t k = most < 0 ? 0 : min(most, a.k);
  const auto competes = [&](std::int64_t h, bool real) { return real && !(a.extra && a.extra[h]); };
  const auto each_key = [&](auto&& fn) {
    row.each([&](std::int64_t h, T value, bool real) {
      fn(competes(h, real) ? key_of(value) : Key<T>{0});
    });
  };
  const Key<T> bound = k > 0 ? kth_key<T>(each_key, k) : Key<T>{0};
  std::int64_t above = 0;
  row.each([&](std::int64_t h, T value, bool real) {
    above += __popc(__ballot_sync(kAllLanes, competes(h, real) && key_of(value) > bound));
  });
  std::int64_t equal = k - above;  // how many of the columns at the bound still have a place
  std::int32_t* heads = a.heads + n * (a.k + a.extras);
  std::int64_t size = 0;
  const unsigned before = (1u << lane()) - 1;
  row.each([&](std::int64_t h, T value, bool real) {
    const Key<T> key = key_of(value);
    const unsigned ties = __ballot_sync(kAllLanes, competes(h, real) && key == bound);
    // An extra column comes in where it is above the least of the k.
    const bool chosen =
        k > 0 && real &&
        (key > bound || (competes(h, real) && key == bound && __popc(ties & before) < equal));
    equal = max(std::int64_t{0}, equal - __popc(ties));
    const unsigned all = __ballot_sync(kAllLanes, chosen);
    if (chosen) heads[size + __popc(all & before)] = static_cast<std::int32_t>(h);
    size += __popc(all);
  });
  for (std::int64_t j = size + lane(); j < a.k + a.extras; j += kWarp) heads[j] = -1;
}

/// The best of a warp by (value, then lower column).
template <class T>
__device__ void best_of_warp(T& value, std::int64_t& column) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) {
    const T other = __shfl_xor_sync(kAllLanes, value, step);
    const std::int64_t at = __shfl_xor_sync(kAllLanes, column, step);
    if (other > value || (other == value && at < column)) {
      value = other;
      column = at;
    }
  }
}

// The largest values one after another, until their exponentials reach the share p.
template <class T, int kItems>
__global__ void nucleus_kernel(NucleusFwd a) {
  const std::int64_t n = warp_unit();
  if (n >= a.N) return;
  const Row<T, kItems> row(a.scores, a.theta, n, a.H);
  bool nan = false;
  T top = -std::numeric_limits<T>::infinity();
  row.each([&](std::int64_t, T value, bool real) {
    nan = nan || value != value;
    if (real) top = max(top, value);
  });
  std::int64_t size = a.k_max;
  if (!__any_sync(kAllLanes, nan)) {
    top = warp_reduce(top, Larger{});
    T sum = 0;
    row.each([&](std::int64_t, T value, bool real) {
      if (real) sum += vmath::exp(value - top);
    });
    const T wanted = static_cast<T>(a.p) * warp_sum(sum);
    T mass = 0;
    T last = std::numeric_limits<T>::infinity();
    std::int64_t last_column = -1;
    for (std::int64_t k = 1; k <= a.k_max; ++k) {
      T best = -std::numeric_limits<T>::infinity();
      std::int64_t column = a.H;
      row.each([&](std::int64_t h, T value, bool real) {
        const bool left = value < last || (value == last && h > last_column);
        if (real && left && (value > best || (value == best && h < column))) {
          best = value;
          column = h;
        }
      });
      best_of_warp(best, column);
      mass += vmath::exp(best - top);
      if (mass >= wanted) {
        size = max(a.k_min, k);
        break;
      }
      last = best;
      last_column = column;
    }
  }
  if (lane() == 0) a.count[n] = static_cast<std::int32_t>(size);
}

/// Calls fn with the number of items of a lane, 0 for rows too long for registers.
template <class F>
void dispatch_items(std::int64_t H, F&& fn) {
  if (H <= kWarp) {
    fn(std::integral_constant<int, 1>{});
  } else if (H <= 4 * kWarp) {
    fn(std::integral_constant<int, 4>{});
  } else if (H <= 16 * kWarp) {
    fn(std::integral_constant<int, 16>{});
  } else {
    fn(std::integral_constant<int, 0>{});
  }
}

template <class T>
void topk_typed(const TopkFwd& a) {
  if (a.invalid_row) {
    check(cudaMemsetAsync(a.invalid_row, 0xFF, sizeof(std::int32_t), current_stream()),
          "cudaMemsetAsync");
  }
  dispatch_items(a.H, [&](auto items) {
    launch("topk_fwd", topk_kernel<T, items()>, warp_blocks(a.N), kBlock, 0, a);
  });
}

template <class T>
void nucleus_typed(const NucleusFwd& a) {
  dispatch_items(a.H, [&](auto items) {
    launch("nucleus_fwd", nucleus_kernel<T, items()>, warp_blocks(a.N), kBlock, 0, a);
  });
}

}  // namespace

void install_select_kernels() {
  topk_fwd.install(DeviceType::cuda, [](const TopkFwd& a) {
    a.dtype == DType::f64 ? topk_typed<double>(a) : topk_typed<float>(a);
  });
  nucleus_fwd.install(DeviceType::cuda, [](const NucleusFwd& a) {
    a.dtype == DType::f64 ? nucleus_typed<double>(a) : nucleus_typed<float>(a);
  });
}

}  // namespace proteus::cuda
