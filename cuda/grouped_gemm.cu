// Products of packed rows on a GPU (tensor/ops/grouped_gemm.h). Which rows a block works on is read
// from the offsets on the device: the host never waits for them. Nothing is added atomically.
//   gather   a block is up to kRows rows of one group × 64 columns
//   scatter  a block owns a stretch of tokens × 64 columns and goes through the groups in order
//   weight   a block is a tile of one group's matrix, high along the wider of its two sides, and
//            goes through that group's rows in order, or through one of several parts of them,
//            which are then added in order
// In bf16 Hopper has kernels of its own (cuda/grouped_hopper.h).
#include <algorithm>
#include <utility>

#include "cuda/grouped_hopper.h"
#include "cuda/grouped_plan.h"
#include "cuda/grouped_tiles.cuh"
#include "cuda/kernels.h"
#include "tensor/ops/grouped_gemm.h"

namespace proteus::cuda {
namespace {

constexpr std::int64_t kManyBlocks = 264;  // two for each multiprocessor of a large GPU

template <class T>
__device__ T& dynamic_shared() {
  extern __shared__ __align__(16) unsigned char dynamic_shared_bytes[];
  return *reinterpret_cast<T*>(dynamic_shared_bytes);
}

// Writes a pack of neighbouring columns as far as they are inside.
template <class T, class A, int kRun>
__device__ void write_run(T* to, const Pack<A, kRun>& run, std::int64_t inside) {
#pragma unroll
  for (int i = 0; i < kRun; ++i) {
    if (i < inside) to[i] = T(run[i]);
  }
}

/// The matrix of a group: [K, N], or [N, K] with trans.
template <class T, class Args>
__device__ RowMatrix<T> group_matrix(const Args& a, std::int64_t g) {
  const T* w = static_cast<const T*>(a.w) + g * a.K * a.N;
  if (a.trans_w) return {w, nullptr, a.K, a.N, a.K};
  return {w, nullptr, a.N, a.K, a.N};
}

template <class Tile, class Args>
__device__ void multiply_by_group(const Args& a, const RowMatrix<typename Tile::Element>& rows,
                                  std::int64_t g, std::int64_t n0, typename Tile::Shared& shared,
                                  typename Tile::Sums& sums) {
  const auto w = group_matrix<typename Tile::Element>(a, g);
  if (a.trans_w) {
    Tile::template multiply<false, false>(rows, 0, w, n0, a.K, shared, sums);
  } else {
    Tile::template multiply<false, true>(rows, 0, w, n0, a.K, shared, sums);
  }
}

template <class Tile>
__global__ void __launch_bounds__(Tile::kThreads)
    gather_kernel(GroupedGather a, const RowTile* tiles, const std::int32_t* tile_count) {
  using T = typename Tile::Element;
  auto& shared = dynamic_shared<typename Tile::Shared>();
  if (std::int64_t{blockIdx.x} >= *tile_count) return;
  const RowTile tile = tiles[blockIdx.x];
  const std::int64_t n0 = static_cast<std::int64_t>(blockIdx.y) * Tile::kColumns;
  typename Tile::Sums sums;
  multiply_by_group<Tile>(
      a, RowMatrix<T>{static_cast<const T*>(a.x), a.token + tile.begin, a.K, tile.count, a.K},
      tile.group, n0, shared, sums);
  T* y = static_cast<T*>(a.y) + tile.begin * a.N + n0;
  Tile::each(sums, [&](int m, int n, const auto& run) {
    if (m < tile.count) write_run(y + m * a.N + n, run, a.N - n0 - n);
  });
}

template <class Tile>
void gather(const GroupedGather& a) {
  using T = typename Tile::Element;
  if (a.rows == 0) return;
  const RowTiles tiles("grouped_gather", a.offsets, a.groups, a.sequences, a.rows, Tile::kRows,
                       a.K * static_cast<std::int64_t>(sizeof(T)));
  const dim3 grid(static_cast<unsigned>(tiles.most()),
                  static_cast<unsigned>(ceil_div(a.N, Tile::kColumns)));
  allow_shared(gather_kernel<Tile>, sizeof(typename Tile::Shared));
  launch("grouped_gather", gather_kernel<Tile>, grid, Tile::kThreads, sizeof(typename Tile::Shared),
         a, tiles.tiles(), tiles.first_tile() + a.groups);
}

template <class Tile>
__global__ void __launch_bounds__(Tile::kThreads)
    scatter_kernel(GroupedScatter a, Stretches cut, const std::int32_t* begins,
                   typename Tile::A* sums_of_tokens) {
  using T = typename Tile::Element;
  using A = typename Tile::A;
  __shared__ typename Tile::Shared shared;
  const std::int64_t s = blockIdx.x / cut.count;
  const std::int64_t stretch = blockIdx.x % cut.count;
  const std::int64_t n0 = static_cast<std::int64_t>(blockIdx.y) * Tile::kColumns;
  const std::int32_t* begin_of = begins + (s * (cut.count + 1) + stretch) * a.groups;
  for (std::int64_t g = 0; g < a.groups; ++g) {
    const std::int64_t end = begin_of[a.groups + g];
    for (std::int64_t begin = begin_of[g]; begin < end; begin += Tile::kRows) {
      const std::int64_t count = min(std::int64_t{Tile::kRows}, end - begin);
      typename Tile::Sums sums;
      multiply_by_group<Tile>(
          a, RowMatrix<T>{static_cast<const T*>(a.y) + begin * a.K, nullptr, a.K, count, a.K}, g,
          n0, shared, sums);
      Tile::each(sums, [&](int m, int n, const auto& run) {
        const std::int64_t inside = a.N - n0 - n;
        if (m >= count || inside <= 0) return;
        A* out = sums_of_tokens + a.token[begin + m] * a.N + n0 + n;
#pragma unroll
        for (int i = 0; i < Tile::kRun; ++i) {
          if (i < inside) out[i] += run[i];
        }
      });
      __syncthreads();  // the next group adds to the same tokens
    }
  }
}

// Stretches in which a group has about as many rows as a tile, unless that leaves multiprocessors
// without work.
template <class Tile>
Stretches cut_tokens(const GroupedScatter& a) {
  const std::int64_t length = a.tokens / a.sequences;
  const std::int64_t full = ceil_div(a.tokens * a.groups * Tile::kRows, a.rows);
  const std::int64_t columns = ceil_div(a.N, Tile::kColumns);
  const std::int64_t wanted = ceil_div(kManyBlocks, a.sequences * columns);
  const std::int64_t size =
      std::clamp<std::int64_t>(std::min(full, ceil_div(length, wanted)), Tile::kRows,
                               std::max<std::int64_t>(length, Tile::kRows));
  return {length, size, ceil_div(length, size)};
}

template <class From, class To>
__global__ void convert_kernel(const From* from, To* to, std::int64_t n) {
  for (std::int64_t i = first_unit(); i < n; i += unit_step()) to[i] = To(from[i]);
}

// Adds up in `out` itself where it is as wide as the sums.
template <class Tile>
void scatter(const GroupedScatter& a) {
  using T = typename Tile::Element;
  using A = typename Tile::A;
  constexpr bool kWide = std::is_same_v<T, A>;
  const std::int64_t size = a.tokens * a.N;
  const auto bytes = static_cast<std::size_t>(size) * sizeof(A);
  const Storage space = scratch(kWide ? 0 : bytes);
  A* sums = static_cast<A*>(kWide ? a.out : space.data());
  if (!a.base) {
    check(cudaMemsetAsync(sums, 0, bytes, current_stream()), "cudaMemsetAsync");
  } else if (a.base != sums) {
    launch("grouped_scatter", convert_kernel<T, A>, blocks_for(size), kBlock, 0,
           static_cast<const T*>(a.base), sums, size);
  }
  if (a.rows > 0) {
    const Stretches cut = cut_tokens<Tile>(a);
    const StretchBegins begins(a, cut);
    const dim3 grid(static_cast<unsigned>(a.sequences * cut.count),
                    static_cast<unsigned>(ceil_div(a.N, Tile::kColumns)));
    launch("grouped_scatter", scatter_kernel<Tile>, grid, Tile::kThreads, 0, a, cut, begins.data(),
           sums);
  }
  if constexpr (!kWide) {
    launch("grouped_scatter", convert_kernel<A, T>, blocks_for(size), kBlock, 0,
           static_cast<const A*>(sums), static_cast<T*>(a.out), size);
  }
}

// Part blockIdx.z of the rows of a group; out [parts, G, P, Q], or [parts, G, Q, P] if turned.
template <class Tile, class Out>
__global__ void __launch_bounds__(Tile::kThreads)
    weight_kernel(GroupedWeight a, Out* out, bool turned) {
  using T = typename Tile::Element;
  auto& shared = dynamic_shared<typename Tile::Shared>();
  const std::int64_t columns = ceil_div(a.Q, std::int64_t{Tile::kColumns});
  const std::int64_t g = blockIdx.x;
  const std::int64_t m0 = blockIdx.y / columns * Tile::kRows;
  const std::int64_t n0 = blockIdx.y % columns * Tile::kColumns;
  const std::int64_t begin = a.offsets[g * a.sequences];
  const std::int64_t end = a.offsets[(g + 1) * a.sequences];
  const std::int64_t each = ceil_div(end - begin, std::int64_t{gridDim.z});
  const std::int64_t from = min(end, begin + each * blockIdx.z);
  const std::int64_t count = min(end, from + each) - from;
  const auto rows = [&](const void* base, const std::int32_t* list, std::int64_t width) {
    const T* first = static_cast<const T*>(base) + (list ? 0 : from * width);
    return RowMatrix<T>{first, list ? list + from : nullptr, width, count, width};
  };
  typename Tile::Sums sums;
  Tile::template multiply<true, true>(rows(a.a, a.a_token, a.P), m0, rows(a.b, a.b_token, a.Q), n0,
                                      count, shared, sums);
  out += (blockIdx.z * a.groups + g) * a.P * a.Q;
  Tile::each(sums, [&](int m, int n, const auto& run) {
    if (m0 + m >= a.P) return;
    if (!turned) return write_run(out + (m0 + m) * a.Q + n0 + n, run, a.Q - n0 - n);
#pragma unroll
    for (int i = 0; i < Tile::kRun; ++i) {
      if (n0 + n + i < a.Q) out[(n0 + n + i) * a.P + m0 + m] = Out(run[i]);
    }
  });
}

template <class T>
__global__ void add_parts_kernel(const accum_t<T>* parts, std::int64_t count, std::int64_t size,
                                 T* dw) {
  for (std::int64_t i = first_unit(); i < size; i += unit_step()) {
    accum_t<T> sum = 0;
    for (std::int64_t p = 0; p < count; ++p) sum += parts[p * size + i];
    dw[i] = T(sum);
  }
}

template <class Tile>
void weight(GroupedWeight a) {
  using T = typename Tile::Element;
  using A = typename Tile::A;
  constexpr std::int64_t kFewestRows = 1024;  // of a part
  const bool turned = a.P < a.Q;
  if (turned) {
    std::swap(a.a, a.b);
    std::swap(a.a_token, a.b_token);
    std::swap(a.P, a.Q);
  }
  const std::int64_t tiles = a.groups * ceil_div(a.P, Tile::kRows) * ceil_div(a.Q, Tile::kColumns);
  const std::int64_t wanted = ceil_div(kManyBlocks, tiles);
  const std::int64_t parts =
      std::clamp<std::int64_t>(std::min(wanted, a.rows / (a.groups * kFewestRows)), 1, 64);
  const dim3 grid(static_cast<unsigned>(a.groups), static_cast<unsigned>(tiles / a.groups),
                  static_cast<unsigned>(parts));
  const auto run = [&](auto kernel, auto* out) {
    allow_shared(kernel, sizeof(typename Tile::Shared));
    launch("grouped_weight", kernel, grid, Tile::kThreads, sizeof(typename Tile::Shared), a, out,
           turned);
  };
  if (parts == 1) return run(weight_kernel<Tile, T>, static_cast<T*>(a.dw));
  const std::int64_t size = a.groups * a.P * a.Q;
  const Storage space = scratch(static_cast<std::size_t>(parts * size) * sizeof(A));
  auto* sums = static_cast<A*>(space.data());
  run(weight_kernel<Tile, A>, sums);
  launch("grouped_weight", add_parts_kernel<T>, blocks_for(size), kBlock, 0, sums, parts, size,
         static_cast<T*>(a.dw));
}

// Rows in words of 16 bytes are what the tensor cores' tiles are copied in.
template <class... Pointers>
bool whole_words(std::int64_t a, std::int64_t b, Pointers... pointers) {
  return a % kPackOf<bfloat16> == 0 && b % kPackOf<bfloat16> == 0 &&
         can_pack<bfloat16, kPackOf<bfloat16>>(pointers...);
}

/// Calls fn(tile) with the tile for a dtype: kRowsOf16·16 rows of it.
template <int kRowsOf16, class F>
void with_tile(const char* name, DType dtype, bool words, F&& fn) {
  if (dtype == DType::bf16 && words) return fn(TypeTag<MmaTile<kRowsOf16 / 2>>{});
  dispatch_float(dtype, name, [&](auto tag) {
    fn(TypeTag<FmaTile<typename decltype(tag)::type, kRowsOf16>>{});
  });
}

}  // namespace

void install_grouped_gemm_kernels() {
  grouped_gather.install(DeviceType::cuda, [](const GroupedGather& a) {
    if (hopper_gather_fits(a)) return grouped_gather_hopper(a);
    with_tile<8>("grouped_gather", a.dtype, whole_words(a.K, a.N, a.x, a.w),
                 [&](auto tile) { gather<typename decltype(tile)::type>(a); });
  });
  grouped_scatter.install(DeviceType::cuda, [](const GroupedScatter& a) {
    if (hopper_scatter_fits(a)) return grouped_scatter_hopper(a);
    with_tile<4>("grouped_scatter", a.dtype, whole_words(a.K, a.N, a.y, a.w, a.base, a.out),
                 [&](auto tile) { scatter<typename decltype(tile)::type>(a); });
  });
  grouped_weight.install(DeviceType::cuda, [](const GroupedWeight& a) {
    if (hopper_weight_fits(a)) return grouped_weight_hopper(a);
    with_tile<8>("grouped_weight", a.dtype, whole_words(a.P, a.Q, a.a, a.b),
                 [&](auto tile) { weight<typename decltype(tile)::type>(a); });
  });
}

}  // namespace proteus::cuda
