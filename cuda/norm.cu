// LayerNorm and RMSNorm of tensor/ops/norm.h on a GPU: a row belongs to a warp, which holds it in
// registers; or to a block where it is long, and is then read again from the caches for every pass
// over it. Gradients of usual rows sum those of gamma and beta on the way.
#include <cmath>

#include "cuda/column_sums.cuh"
#include "cuda/kernels.h"
#include "tensor/ops/norm.h"

namespace proteus::cuda {
namespace {

template <class T>
struct NormArgs {
  using A = accum_t<T>;
  const T* x;
  const T* gamma;
  const T* beta;
  T* y;
  A* mean;
  A* rstd;
  std::int64_t rows, C;
  A eps;
};

template <class T, int V, int kThreads, bool kCentre>
__global__ void norm_fwd_kernel(const NormArgs<T> a) {
  using A = accum_t<T>;
  using Groups = RowGroups<kThreads>;
  constexpr int kStep = kThreads * V;
  for (std::int64_t row = Groups::first(); row < a.rows; row += Groups::step()) {
    const T* x = a.x + row * a.C;
    A mean = 0;
    if constexpr (kCentre) {
      for (std::int64_t c = Groups::lane() * V; c < a.C; c += kStep) {
        const auto p = load_pack<V>(x + c);
#pragma unroll
        for (int j = 0; j < V; ++j) mean += A(p[j]);
      }
      mean = group_sum<kThreads>(mean) / static_cast<A>(a.C);
    }
    A var = 0;
    for (std::int64_t c = Groups::lane() * V; c < a.C; c += kStep) {
      const auto p = load_pack<V>(x + c);
#pragma unroll
      for (int j = 0; j < V; ++j) var += (A(p[j]) - mean) * (A(p[j]) - mean);
    }
    var = group_sum<kThreads>(var) / static_cast<A>(a.C);
    const A rstd = A(1) / std::sqrt(var + a.eps);
    if (Groups::lane() == 0) {
      if constexpr (kCentre) a.mean[row] = mean;
      a.rstd[row] = rstd;
    }
    for (std::int64_t c = Groups::lane() * V; c < a.C; c += kStep) {
      const auto p = load_pack<V>(x + c);
      Pack<T, V> gamma;
      Pack<T, V> beta;
      if (a.gamma) gamma = load_pack<V>(a.gamma + c);
      if (a.beta) beta = load_pack<V>(a.beta + c);
      Pack<T, V> y;
#pragma unroll
      for (int j = 0; j < V; ++j) {
        const A scale = a.gamma ? A(gamma[j]) : A(1);
        const A shift = a.beta ? A(beta[j]) : A(0);
        y[j] = T((A(p[j]) - mean) * rstd * scale + shift);
      }
      store_pack(a.y + row * a.C + c, y);
    }
  }
}

// The longest row that a warp holds: 32 elements a lane.
constexpr std::int64_t kHeldRow = 1024;

/// The first column of a lane's i-th pack.
template <int V>
__device__ int held_column(int i) {
  return (i * kWarp + static_cast<int>(threadIdx.x) % kWarp) * V;
}

/// Calls fn(packs of a lane) as an integral constant, for rows of C <= kHeldRow.
template <class T, class F>
void dispatch_held(std::int64_t C, F&& fn) {
  constexpr int kStep = 8 / kPackOf<T>;  // packs in 8 elements of a lane
  if (C <= 256) {
    fn(std::integral_constant<int, kStep>{});
  } else if (C <= 512) {
    fn(std::integral_constant<int, 2 * kStep>{});
  } else if (C <= 768) {
    fn(std::integral_constant<int, 3 * kStep>{});
  } else {
    fn(std::integral_constant<int, 4 * kStep>{});
  }
}

template <class T>
bool row_is_held(bool packed, std::int64_t C) {
  return packed && C % kPackOf<T> == 0 && C <= kHeldRow;
}

// The same in one pass.
template <class T, int V, int kPacks, bool kCentre>
__global__ void __launch_bounds__(kBlock) norm_fwd_held_kernel(const NormArgs<T> a) {
  using A = accum_t<T>;
  using Groups = RowGroups<kWarp>;
  for (std::int64_t row = Groups::first(); row < a.rows; row += Groups::step()) {
    Pack<T, V> x[kPacks];
#pragma unroll
    for (int i = 0; i < kPacks; ++i) {
      if (held_column<V>(i) < a.C) x[i] = load_pack<V>(a.x + row * a.C + held_column<V>(i));
    }
    A mean = 0;
    A var = 0;
    const auto each = [&](auto&& fn) {
#pragma unroll
      for (int i = 0; i < kPacks; ++i) {
        if (held_column<V>(i) >= a.C) continue;
#pragma unroll
        for (int j = 0; j < V; ++j) fn(A(x[i][j]));
      }
    };
    if constexpr (kCentre) {
      each([&](A value) { mean += value; });
      mean = warp_reduce(mean, Plus{}) / static_cast<A>(a.C);
    }
    each([&](A value) { var += (value - mean) * (value - mean); });
    var = warp_reduce(var, Plus{}) / static_cast<A>(a.C);
    const A rstd = A(1) / std::sqrt(var + a.eps);
    if (Groups::lane() == 0) {
      if constexpr (kCentre) a.mean[row] = mean;
      a.rstd[row] = rstd;
    }
#pragma unroll
    for (int i = 0; i < kPacks; ++i) {
      const int column = held_column<V>(i);
      if (column >= a.C) continue;
      Pack<T, V> gamma;
      Pack<T, V> beta;
      if (a.gamma) gamma = load_pack<V>(a.gamma + column);
      if (a.beta) beta = load_pack<V>(a.beta + column);
#pragma unroll
      for (int j = 0; j < V; ++j) {
        const A scale = a.gamma ? A(gamma[j]) : A(1);
        const A shift = a.beta ? A(beta[j]) : A(0);
        x[i][j] = T((A(x[i][j]) - mean) * rstd * scale + shift);
      }
      store_pack(a.y + row * a.C + column, x[i]);
    }
  }
}

/// Of two numbers that are rounded already: not fused with the product that made one of them.
template <class T>
__device__ T rounded_sum(T a, T b) {
  if constexpr (std::is_same_v<T, double>) {
    return __dadd_rn(a, b);
  } else {
    return T(__fadd_rn(static_cast<float>(a), static_cast<float>(b)));
  }
}

template <class T>
struct NormGradArgs {
  using A = accum_t<T>;
  const T* x;
  const T* gamma;
  const A* mean;
  const A* rstd;
  const T* dy;
  T* dx;
  std::int64_t rows, C;
  bool add_dx;
};

// With x̂ = (x − mean)·rstd and g = dy·gamma: dx = rstd·(g − mean(g) − x̂·mean(g·x̂)); RMSNorm lacks
// the middle term.
template <class T, int V, int kThreads, bool kCentre>
__global__ void norm_bwd_kernel(const NormGradArgs<T> a) {
  using A = accum_t<T>;
  using Groups = RowGroups<kThreads>;
  constexpr int kStep = kThreads * V;
  for (std::int64_t row = Groups::first(); row < a.rows; row += Groups::step()) {
    const T* x = a.x + row * a.C;
    const T* dy = a.dy + row * a.C;
    const A mean = kCentre ? a.mean[row] : A(0);
    const A rstd = a.rstd[row];
    A sum = 0;
    A dot = 0;
    for (std::int64_t c = Groups::lane() * V; c < a.C; c += kStep) {
      const auto p = load_pack<V>(x + c);
      const auto d = load_pack<V>(dy + c);
      Pack<T, V> gamma;
      if (a.gamma) gamma = load_pack<V>(a.gamma + c);
#pragma unroll
      for (int j = 0; j < V; ++j) {
        const A g = A(d[j]) * (a.gamma ? A(gamma[j]) : A(1));
        sum += g;
        dot += g * (A(p[j]) - mean) * rstd;
      }
    }
    sum = kCentre ? group_sum<kThreads>(sum) / static_cast<A>(a.C) : A(0);
    dot = group_sum<kThreads>(dot) / static_cast<A>(a.C);
    for (std::int64_t c = Groups::lane() * V; c < a.C; c += kStep) {
      const auto p = load_pack<V>(x + c);
      const auto d = load_pack<V>(dy + c);
      Pack<T, V> gamma;
      if (a.gamma) gamma = load_pack<V>(a.gamma + c);
      Pack<T, V> dx;
      if (a.add_dx) dx = load_pack<V>(a.dx + row * a.C + c);
#pragma unroll
      for (int j = 0; j < V; ++j) {
        const A g = A(d[j]) * (a.gamma ? A(gamma[j]) : A(1));
        const T own = T(rstd * (g - sum - (A(p[j]) - mean) * rstd * dot));
        dx[j] = a.add_dx ? rounded_sum(dx[j], own) : own;
      }
      store_pack(a.dx + row * a.C + c, dx);
    }
  }
}

// Σ dy·x̂ and Σ dy over the rows.
template <class T>
struct GainTerm {
  using A = accum_t<T>;
  const T* x;
  const T* dy;
  const A* mean;  // null for RMSNorm
  const A* rstd;
  std::int64_t C;

  __device__ void operator()(std::int64_t, std::int64_t r, std::int64_t c, A (&add)[2]) const {
    const A d = A(dy[r * C + c]);
    add[0] = d * (A(x[r * C + c]) - (mean ? mean[r] : A(0))) * rstd[r];
    add[1] = d;
  }
};

template <class T>
struct StoreGains {
  using A = accum_t<T>;
  T* dgamma;
  T* dbeta;

  __device__ void operator()(std::int64_t, std::int64_t, std::int64_t c, const A (&sum)[2]) const {
    if (dgamma) dgamma[c] = T(sum[0]);
    if (dbeta) dbeta[c] = T(sum[1]);
  }
};

// out[c] = Σ over the warps of a block, in order, of what their lanes hold of column c.
template <int V, int kElements, class A>
__device__ void store_block_sums(const A (&held)[kElements], std::int64_t C, A* out) {
  constexpr int kWarps = kBlock / kWarp;
  __shared__ A sums[kWarps][kHeldRow];
  __syncthreads();  // those of the call before have been read
#pragma unroll
  for (int i = 0; i < kElements / V; ++i) {
    const int column = held_column<V>(i);
    if (column >= C) continue;
#pragma unroll
    for (int j = 0; j < V; ++j) sums[threadIdx.x / kWarp][column + j] = held[i * V + j];
  }
  __syncthreads();
  for (std::int64_t c = threadIdx.x; c < C; c += kBlock) {
    A sum = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) sum += sums[w][c];
    out[c] = sum;
  }
}

/// Blocks of a multiprocessor for rows of so many elements a lane, as registers allow: unasked, the
/// compiler keeps every bf16 as an f32 too, and then one block alone does not keep memory busy.
template <class T>
constexpr int blocks_of_held(int elements) {
  return std::is_same_v<T, bfloat16> && elements <= 24 ? 2 : 1;
}

// dx, and the block's part of Σ dy·x̂ and Σ dy in the same pass: a warp holds a row, and its lanes
// the sums of their columns over the rows [blockIdx.x·rows_each, …) of the block. The warps' sums
// are added in order. partial [blocks, 2, C].
template <class T, int V, int kPacks, bool kCentre>
__global__ void __launch_bounds__(kBlock, blocks_of_held<T>(V* kPacks))
    norm_bwd_held_kernel(const NormGradArgs<T> a, std::int64_t rows_each, accum_t<T>* partial) {
  using A = accum_t<T>;
  constexpr int kWarps = kBlock / kWarp;
  const auto column = [](int i) { return held_column<V>(i); };
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  Pack<T, V> gamma[kPacks];
#pragma unroll
  for (int i = 0; i < kPacks; ++i) {
#pragma unroll
    for (int j = 0; j < V; ++j) gamma[i][j] = T(1.0f);
    if (a.gamma && column(i) < a.C) gamma[i] = load_pack<V>(a.gamma + column(i));
  }
  A gain[kPacks * V] = {};
  A shift[kPacks * V] = {};
  const std::int64_t end = min(a.rows, (blockIdx.x + 1) * rows_each);
  for (std::int64_t row = blockIdx.x * rows_each + warp; row < end; row += kWarps) {
    Pack<T, V> x[kPacks];
    Pack<T, V> dy[kPacks];
    Pack<T, V> dx[kPacks];
#pragma unroll
    for (int i = 0; i < kPacks; ++i) {
      if (column(i) >= a.C) continue;
      if (a.add_dx) dx[i] = load_pack<V>(a.dx + row * a.C + column(i));
      x[i] = load_pack<V>(a.x + row * a.C + column(i));
      dy[i] = load_pack<V>(a.dy + row * a.C + column(i));
    }
    const A mean = kCentre ? a.mean[row] : A(0);
    const A rstd = a.rstd[row];
    A sum = 0;
    A dot = 0;
#pragma unroll
    for (int i = 0; i < kPacks; ++i) {
      if (column(i) >= a.C) continue;
#pragma unroll
      for (int j = 0; j < V; ++j) {
        const A d = A(dy[i][j]);
        const A normed = (A(x[i][j]) - mean) * rstd;
        gain[i * V + j] += d * normed;
        shift[i * V + j] += d;
        sum += d * A(gamma[i][j]);
        dot += d * A(gamma[i][j]) * normed;
      }
    }
    sum = kCentre ? warp_reduce(sum, Plus{}) / static_cast<A>(a.C) : A(0);
    dot = warp_reduce(dot, Plus{}) / static_cast<A>(a.C);
#pragma unroll
    for (int i = 0; i < kPacks; ++i) {
      if (column(i) >= a.C) continue;
#pragma unroll
      for (int j = 0; j < V; ++j) {
        const A g = A(dy[i][j]) * A(gamma[i][j]);
        const T own = T(rstd * (g - sum - (A(x[i][j]) - mean) * rstd * dot));
        dx[i][j] = a.add_dx ? rounded_sum(dx[i][j], own) : own;
      }
      store_pack(a.dx + row * a.C + column(i), dx[i]);
    }
  }
  store_block_sums<V>(gain, a.C, partial + 2 * blockIdx.x * a.C);
  store_block_sums<V>(shift, a.C, partial + (2 * blockIdx.x + 1) * a.C);
}

template <class T, bool kCentre>
void norm_bwd_held(const NormGradArgs<T>& a, const StoreGains<T>& store) {
  using A = accum_t<T>;
  constexpr int V = kPackOf<T>;
  constexpr std::int64_t kMostBlocks = 1024;  // fixed, so that the sums do not depend on the GPU
  constexpr std::int64_t kLeastRows = 16;
  const std::int64_t rows_each = std::max(kLeastRows, ceil_div(a.rows, kMostBlocks));
  const std::int64_t blocks = ceil_div(a.rows, rows_each);
  const Storage memory = scratch(static_cast<std::size_t>(blocks * 2 * a.C) * sizeof(A));
  A* partial = static_cast<A*>(memory.data());
  dispatch_held<T>(a.C, [&](auto packs) {
    launch("norm_bwd", norm_bwd_held_kernel<T, V, decltype(packs)::value, kCentre>,
           static_cast<unsigned>(blocks), kBlock, 0, a, rows_each, partial);
  });
  sum_chunks<A, 2>("norm_bwd", 1, blocks, a.C, partial, store);
}

template <class T, bool kCentre>
void norm_fwd_held(const NormArgs<T>& a) {
  dispatch_held<T>(a.C, [&](auto packs) {
    launch("norm_fwd", norm_fwd_held_kernel<T, kPackOf<T>, decltype(packs)::value, kCentre>,
           RowGroups<kWarp>::blocks(a.rows), kBlock, 0, a);
  });
}

// Calls fn(elements per access, threads per row, centre) as integral constants.
template <class T, class F>
void dispatch_norm(bool packed, std::int64_t C, bool centre, F&& fn) {
  const auto with_width = [&](auto V) {
    dispatch_row_threads(C, [&](auto threads) {
      if (centre) {
        fn(V, threads, std::true_type{});
      } else {
        fn(V, threads, std::false_type{});
      }
    });
  };
  if (packed && C % kPackOf<T> == 0) {
    with_width(std::integral_constant<int, kPackOf<T>>{});
  } else {
    with_width(std::integral_constant<int, 1>{});
  }
}

void norm_fwd_cuda(const NormFwd& n) {
  if (n.rows * n.C == 0) return;
  dispatch_float(n.dtype, "norm_fwd", [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = accum_t<T>;
    const NormArgs<T> a{static_cast<const T*>(n.x),
                        static_cast<const T*>(n.gamma),
                        static_cast<const T*>(n.beta),
                        static_cast<T*>(n.y),
                        static_cast<A*>(n.mean),
                        static_cast<A*>(n.rstd),
                        n.rows,
                        n.C,
                        static_cast<A>(n.eps)};
    const bool packed = can_pack<T, kPackOf<T>>(a.x, a.gamma, a.beta, a.y);
    if constexpr (!std::is_same_v<T, double>) {
      if (row_is_held<T>(packed, n.C)) {
        return n.centre ? norm_fwd_held<T, true>(a) : norm_fwd_held<T, false>(a);
      }
    }
    dispatch_norm<T>(packed, n.C, n.centre, [&](auto V, auto threads, auto centre) {
      using Groups = RowGroups<decltype(threads)::value>;
      launch(
          "norm_fwd",
          norm_fwd_kernel<T, decltype(V)::value, decltype(threads)::value, decltype(centre)::value>,
          Groups::blocks(n.rows), Groups::kBlockThreads, 0, a);
    });
  });
}

void norm_bwd_cuda(const NormBwd& n) {
  if (n.rows * n.C == 0) return;
  dispatch_float(n.dtype, "norm_bwd", [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = accum_t<T>;
    const NormGradArgs<T> a{static_cast<const T*>(n.x),
                            static_cast<const T*>(n.gamma),
                            static_cast<const A*>(n.mean),
                            static_cast<const A*>(n.rstd),
                            static_cast<const T*>(n.dy),
                            static_cast<T*>(n.dx),
                            n.rows,
                            n.C,
                            n.add_dx};
    const bool packed = can_pack<T, kPackOf<T>>(a.x, a.gamma, a.dy, a.dx);
    const StoreGains<T> store{static_cast<T*>(n.dgamma), static_cast<T*>(n.dbeta)};
    if constexpr (!std::is_same_v<T, double>) {
      if (row_is_held<T>(packed, n.C) && (n.dgamma || n.dbeta)) {
        return n.centre ? norm_bwd_held<T, true>(a, store) : norm_bwd_held<T, false>(a, store);
      }
    }
    dispatch_norm<T>(packed, n.C, n.centre, [&](auto V, auto threads, auto centre) {
      using Groups = RowGroups<decltype(threads)::value>;
      launch(
          "norm_bwd",
          norm_bwd_kernel<T, decltype(V)::value, decltype(threads)::value, decltype(centre)::value>,
          Groups::blocks(n.rows), Groups::kBlockThreads, 0, a);
    });
    if (!n.dgamma && !n.dbeta) return;
    column_sums<A, 2>("norm_bwd", 1, n.rows, n.C,
                      GainTerm<T>{a.x, a.dy, n.centre ? a.mean : nullptr, a.rstd, n.C}, store);
  });
}

}  // namespace

void install_norm_kernels() {
  norm_fwd.install(DeviceType::cuda, norm_fwd_cuda);
  norm_bwd.install(DeviceType::cuda, norm_bwd_cuda);
}

}  // namespace proteus::cuda
