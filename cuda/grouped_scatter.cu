// out[t] = base[t] + Σ_{r: token[r] = t} y[r]·op(W[g(r)]) in bf16 (tensor/ops/grouped_gemm.h). A
// block owns a stretch of tokens × 64 columns: their sums lie in shared memory in f32 and are
// written once. It goes through the groups in order; tiles of up to 64 rows of a group, in pieces
// of 64 of their width, pass through kStages buffers that are filled while earlier ones are
// multiplied. Without that, every group of a token would read and write its sums in device memory:
// 32 times the bytes of one row.
#include <algorithm>

#include "cuda/grouped_scatter.h"
#include "cuda/grouped_tiles.cuh"

namespace proteus::cuda {
namespace {

constexpr int kStretch = 448;  // tokens: with 4 of 32 groups each, a tile of a group is nearly full
constexpr int kTileRows = 64;
constexpr int kColumns = 64;
constexpr int kDepth = 64;
constexpr int kStages = 4;
constexpr int kThreads = 256;
constexpr int kPad = 8;  // rows of a block lie in different banks
constexpr std::int64_t kMostGroups = 1024;

struct Buffers {
  bf16 rows[kStages][kTileRows][kDepth + kPad];
  bf16 weight[kStages][kDepth][kColumns + kPad];  // or [column][depth]: both are 64
  float sums[kStretch][kColumns];
  std::int32_t token[kStages][kTileRows];
  std::int32_t begin[kMostGroups], end[kMostGroups];
};

// One piece after the other: of the depth, then of the rows of a group, then of the groups.
struct Walk {
  std::int64_t group = -1, depth = 0;
  std::int32_t row = 0, end = 0;

  __device__ bool done(const GroupedScatter& a) const { return group >= a.groups; }
  __device__ void next_group(const GroupedScatter& a, const Buffers& b) {
    while (row >= end && ++group < a.groups) {
      row = b.begin[group];
      end = b.end[group];
    }
  }
  __device__ void advance(const GroupedScatter& a, const Buffers& b) {
    depth += kDepth;
    if (depth < a.K) return;
    depth = 0;
    row += kTileRows;
    next_group(a, b);
  }
};

template <bool kTrans>
__device__ void load_piece(const GroupedScatter& a, const Walk& w, std::int64_t n0, int stage,
                           Buffers& b) {
  constexpr int kChunks = kDepth / 8;  // of 16 bytes in a row
  const auto* y = static_cast<const bfloat16*>(a.y);
  const auto* weight = static_cast<const bfloat16*>(a.w) + w.group * a.K * a.N;
#pragma unroll
  for (int i = 0; i < kTileRows * kChunks / kThreads; ++i) {
    const int at = i * kThreads + static_cast<int>(threadIdx.x);
    const int line = at / kChunks;
    const int part = at % kChunks * 8;
    const bool real = w.row + line < w.end && w.depth + part < a.K;
    copy_async_16(&b.rows[stage][line][part], real ? y + (w.row + line) * a.K + w.depth + part : y,
                  real);
    const std::int64_t k = w.depth + (kTrans ? part : line);
    const std::int64_t n = n0 + (kTrans ? line : part);
    const bool inside = k < a.K && n < a.N;
    copy_async_16(&b.weight[stage][line][part],
                  inside ? weight + (kTrans ? n * a.K + k : k * a.N + n) : weight, inside);
  }
  if (threadIdx.x < kTileRows) {
    const bool real = w.row + static_cast<int>(threadIdx.x) < w.end;
    copy_async_4(&b.token[stage][threadIdx.x], real ? a.token + w.row + threadIdx.x : a.token,
                 real);
  }
}

constexpr int kWarpRows = 16;
constexpr int kWarpColumns = 32;

// A warp's part of the tile.
struct WarpSums {
  float v[kWarpColumns / 8][4];

  __device__ void clear() {
    for (auto& columns : v) {
      for (float& x : columns) x = 0;
    }
  }
  template <bool kTrans>
  __device__ void add(const Buffers& b, int stage, int m0, int n0) {
    const int block = lane() / 8;
    const int line = lane() % 8;
#pragma unroll
    for (int k = 0; k < kDepth; k += 16) {
      std::uint32_t left[4];
      load_blocks(left, &b.rows[stage][m0 + block % 2 * 8 + line][k + block / 2 * 8]);
#pragma unroll
      for (int n = 0; n < kWarpColumns; n += 16) {
        std::uint32_t right[4];
        if constexpr (kTrans) {
          load_blocks(right, &b.weight[stage][n0 + n + block / 2 * 8 + line][k + block % 2 * 8]);
        } else {
          load_blocks_transposed(
              right, &b.weight[stage][k + block % 2 * 8 + line][n0 + n + block / 2 * 8]);
        }
        mma(v[n / 8], left, right[0], right[1]);
        mma(v[n / 8 + 1], left, right[2], right[3]);
      }
    }
  }
  // A row of a group is one token's, and no other row of this tile is: nobody else adds there. The
  // four lanes of a row swap halves of two neighbouring blocks, so that each has four columns in a
  // row; and of the eight lanes whose 16 bytes are accessed together, which have two rows, the
  // lanes of one row take other blocks than those of the other. So they touch all banks, whatever
  // the tokens.
  __device__ void add_to_tokens(Buffers& b, int stage, int rows, std::int64_t first, int m0,
                                int n0) const {
    const bool odd_row = lane() / 4 % 2 != 0;
    const bool odd = lane() % 2 != 0;
    const int column = n0 + (odd ? 8 : 0) + lane() % 4 / 2 * 4;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int m = m0 + 8 * half + lane() / 4;
      float* sums = b.sums[m < rows ? b.token[stage][m] - first : 0] + column;
#pragma unroll
      for (int turn = 0; turn < kWarpColumns / 16; ++turn) {
        const int pair = odd_row ? turn ^ 1 : turn;
        float own[2];
        float others[2];
        for (int e = 0; e < 2; ++e) {
          const float low = odd_row ? v[2 * (turn ^ 1)][2 * half + e] : v[2 * turn][2 * half + e];
          const float high =
              odd_row ? v[2 * (turn ^ 1) + 1][2 * half + e] : v[2 * turn + 1][2 * half + e];
          own[e] = odd ? high : low;
          others[e] = __shfl_xor_sync(kAllLanes, odd ? low : high, 1);
        }
        if (m >= rows) continue;
        float4& four = *reinterpret_cast<float4*>(sums + 16 * pair);
        float4 sum = four;
        sum.x += odd ? others[0] : own[0];
        sum.y += odd ? others[1] : own[1];
        sum.z += odd ? own[0] : others[0];
        sum.w += odd ? own[1] : others[1];
        four = sum;
      }
    }
  }
};

__device__ void begin_sums(const GroupedScatter& a, Buffers& b, std::int64_t first, int tokens,
                           std::int64_t n0) {
  constexpr int kPack = kPackOf<bfloat16>;
  constexpr int kPacks = kColumns / kPack;
  for (int at = static_cast<int>(threadIdx.x); at < tokens * kPacks; at += kThreads) {
    const int token = at / kPacks;
    const int n = at % kPacks * kPack;
    Pack<bfloat16, kPack> from{};
    if (a.base && n0 + n < a.N) {
      from =
          load_pack<kPack>(static_cast<const bfloat16*>(a.base) + (first + token) * a.N + n0 + n);
    }
    for (int i = 0; i < kPack; ++i) b.sums[token][n + i] = static_cast<float>(from[i]);
  }
}

__device__ void write_sums(const GroupedScatter& a, const Buffers& b, std::int64_t first,
                           int tokens, std::int64_t n0) {
  constexpr int kPack = kPackOf<bfloat16>;
  constexpr int kPacks = kColumns / kPack;
  for (int at = static_cast<int>(threadIdx.x); at < tokens * kPacks; at += kThreads) {
    const int token = at / kPacks;
    const int n = at % kPacks * kPack;
    if (n0 + n >= a.N) continue;
    Pack<bfloat16, kPack> out;
    for (int i = 0; i < kPack; ++i) out[i] = bfloat16(b.sums[token][n + i]);
    store_pack(static_cast<bfloat16*>(a.out) + (first + token) * a.N + n0 + n, out);
  }
}

template <bool kTrans>
__global__ void __launch_bounds__(kThreads, 1)
    scatter_in_shared_kernel(GroupedScatter a, Stretches cut, const std::int32_t* begins) {
  extern __shared__ __align__(16) unsigned char shared[];
  Buffers& b = *reinterpret_cast<Buffers*>(shared);
  const std::int64_t s = blockIdx.x / cut.count;
  const std::int64_t stretch = blockIdx.x % cut.count;
  const std::int64_t n0 = static_cast<std::int64_t>(blockIdx.y) * kColumns;
  const std::int64_t first = s * cut.length + stretch * cut.size;
  const auto tokens = static_cast<int>(min(cut.size, cut.length - stretch * cut.size));
  const std::int32_t* begin_of = begins + (s * (cut.count + 1) + stretch) * a.groups;
  for (std::int64_t g = threadIdx.x; g < a.groups; g += kThreads) {
    b.begin[g] = begin_of[g];
    b.end[g] = begin_of[a.groups + g];
  }
  begin_sums(a, b, first, tokens, n0);
  __syncthreads();
  Walk now;
  now.next_group(a, b);
  Walk ahead = now;
  const auto load_next = [&](int stage) {
    if (!ahead.done(a)) {
      load_piece<kTrans>(a, ahead, n0, stage, b);
      ahead.advance(a, b);
    }
    commit_copies();  // one group a piece, so that counting them tells which has arrived
  };
  for (int stage = 0; stage < kStages - 1; ++stage) load_next(stage);
  const int m0 = warp_of_block() % 4 * kWarpRows;
  const int column = warp_of_block() / 4 * kWarpColumns;
  WarpSums sums;
  for (int stage = 0; !now.done(a); stage = stage + 1 == kStages ? 0 : stage + 1) {
    wait_copies<kStages - 2>();
    __syncthreads();  // this piece is there, and the one before it, tokens too, is done with
    load_next(stage == 0 ? kStages - 1 : stage - 1);
    if (now.depth == 0) sums.clear();
    sums.add<kTrans>(b, stage, m0, column);
    if (now.depth + kDepth >= a.K) {
      sums.add_to_tokens(b, stage, static_cast<int>(now.end - now.row), first, m0, column);
    }
    now.advance(a, b);
  }
  wait_copies<0>();
  __syncthreads();
  write_sums(a, b, first, tokens, n0);
}

__global__ void stretch_begins_kernel(GroupedScatter a, Stretches cut, std::int32_t* begins) {
  const std::int64_t i = thread_unit();
  if (i >= a.sequences * (cut.count + 1) * a.groups) return;
  const std::int64_t g = i % a.groups;
  const std::int64_t stretch = i / a.groups % (cut.count + 1);
  const std::int64_t s = i / a.groups / (cut.count + 1);
  const std::int64_t token = s * cut.length + min(cut.length, stretch * cut.size);
  std::int32_t low = a.offsets[g * a.sequences + s];
  std::int32_t high = a.offsets[g * a.sequences + s + 1];
  while (low < high) {
    const std::int32_t middle = low + (high - low) / 2;
    if (a.token[middle] < token) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  begins[i] = low;
}

// Short enough to leave no multiprocessor without work.
Stretches cut_for_shared(const GroupedScatter& a) {
  const std::int64_t length = a.tokens / a.sequences;
  const std::int64_t others = a.sequences * ceil_div(a.N, std::int64_t{kColumns});
  const std::int64_t wanted = ceil_div(multiprocessors(), others);
  const std::int64_t size = std::clamp<std::int64_t>(ceil_div(length, wanted), kTileRows, kStretch);
  return {length, size, ceil_div(length, size)};
}

}  // namespace

StretchBegins::StretchBegins(const GroupedScatter& a, const Stretches& cut)
    : cells_(a.sequences * (cut.count + 1) * a.groups),
      memory_(scratch(static_cast<std::size_t>(cells_) * sizeof(std::int32_t))) {
  launch("grouped_scatter", stretch_begins_kernel, thread_blocks(cells_), kBlock, 0, a, cut,
         static_cast<std::int32_t*>(memory_.data()));
}

bool scatters_in_shared(const GroupedScatter& a) {
  constexpr std::int64_t kFewestRows = 8;  // of a group in a full stretch
  constexpr std::size_t kHopperBytes = 227 << 10;
  static_assert(sizeof(Buffers) <= kHopperBytes);
  int shared = 0;
  check(cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, current_device()),
        "cudaDeviceGetAttribute");
  return static_cast<std::size_t>(shared) >= sizeof(Buffers) && a.K > 0 &&
         a.groups <= kMostGroups && a.rows * kStretch >= kFewestRows * a.groups * a.tokens;
}

void scatter_in_shared(const GroupedScatter& a) {
  const Stretches cut = cut_for_shared(a);
  const StretchBegins begins(a, cut);
  const dim3 grid(static_cast<unsigned>(a.sequences * cut.count),
                  static_cast<unsigned>(ceil_div(a.N, std::int64_t{kColumns})));
  const auto run = [&](auto kernel) {
    allow_shared(kernel, sizeof(Buffers));
    launch("grouped_scatter", kernel, grid, kThreads, sizeof(Buffers), a, cut, begins.data());
  };
  a.trans_w ? run(scatter_in_shared_kernel<true>) : run(scatter_in_shared_kernel<false>);
}

}  // namespace proteus::cuda
