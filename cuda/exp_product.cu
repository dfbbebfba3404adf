// exp(h·wᵀ − shift) and its row sums (cuda/exp_product.h). A block is one producer warpgroup, which
// brings tiles of h and w by the tensor memory accelerator, and two consumer warpgroups, which take
// turns: while one multiplies its 128 × 128 tile, the other takes exponentials of its own and
// writes them. Two blocks, a cluster, have neighbouring rows of h and share the tiles of w: each
// brings half of one for both.
#include "cuda/attention_common.cuh"
#include "cuda/exp_product.h"
#include "cuda/hopper_pipeline.cuh"
#include "cuda/tma.cuh"

namespace proteus::cuda {
namespace {

constexpr int kTile = 128;  // rows of h, and rows of w
static_assert(kTile == kExpColumns);
constexpr int kDepth = kSwizzledWidth;  // columns of h and w at a time
constexpr int kStages = 5;              // of both tiles in shared memory
constexpr int kConsumers = 2;
constexpr int kThreads = (1 + kConsumers) * kGroup;
constexpr int kProducerRegisters = 24;
constexpr int kConsumerRegisters = 240;
constexpr int kCluster = 2;
constexpr int kHalf = kTile / kCluster;  // rows of w that a block brings

struct Shared {
  alignas(1024) bf16 h[kStages][kTile * kDepth];
  alignas(1024) bf16 w[kStages][kTile * kDepth];
  alignas(1024) bf16 e[kConsumers][2][kTile * kDepth];
  Barrier full[kStages], empty[kStages];
  Barrier turn[kConsumers];  // a group may multiply: all that the other waits for has come
};

struct Args {
  const float* shift;
  float* sums;
  int rows, V, C;
  bool wants_e;
  int row_pairs;  // pairs of tiles of rows
  int tiles;      // of a cluster: pairs of tiles of rows by tiles of columns
};

/// The tile of a block with this number: pairs of rows go first, so that what is read of w is read
/// once, and h stays in the cache.
struct Place {
  int row, column;
  __device__ Place(const Args& a, int tile)
      : row((tile % a.row_pairs * kCluster + static_cast<int>(block_in_cluster())) * kTile),
        column(tile / a.row_pairs * kTile) {}
};

__device__ int first_tile() { return static_cast<int>(blockIdx.x) / kCluster; }
__device__ int tile_step() { return static_cast<int>(gridDim.x) / kCluster; }
__device__ int depths(const Args& a) { return (a.C + kDepth - 1) / kDepth; }

/// One thread of the producer.
__device__ void produce(const CUtensorMap& h, const CUtensorMap& w, const Args& a, Shared& shared) {
  constexpr int kBytes = 2 * kTile * kDepth * static_cast<int>(sizeof(bf16));
  constexpr std::uint16_t kBoth = (1 << kCluster) - 1;
  const int half = static_cast<int>(block_in_cluster()) * kHalf;
  Ring<kStages> ring;
  for (int tile = first_tile(); tile < a.tiles; tile += tile_step()) {
    const Place place(a, tile);
    for (int d = 0; d < depths(a); ++d, ring.next()) {
      Barrier* full = &shared.full[ring.stage];
      wait_at(&shared.empty[ring.stage], ring.parity ^ 1);
      arrive_expecting(full, kBytes);
      load_box(shared.h[ring.stage], h, place.row, d * kDepth, full);
      load_box_for(kBoth, shared.w[ring.stage] + half * kDepth, w, place.column + half, d * kDepth,
                   full);
    }
  }
}

/// Gives a stage back to both producers that fill it.
__device__ void give_back(Barrier* empty) {
  __syncwarp();
  if (lane_id() < kCluster) arrive_at_block(empty, static_cast<unsigned>(lane_id()));
}

using Sums = Accumulator<2, kTile / 8>;  // 64 rows each

/// c = a tile of h times one of wᵀ. `next` belongs to the group whose tile is the next: barriers of
/// stages tell one phase from the one before, not from the one before that, so nobody may wait for
/// a tile while the stages of an earlier one are still to come.
__device__ void multiply(Sums& c, const Args& a, Shared& shared, Ring<kStages>& ring,
                         Barrier* next) {
  Barrier* before = nullptr;
  for (int d = 0; d < depths(a); ++d, ring.next()) {
    wait_at(&shared.full[ring.stage], ring.parity);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < kDepth / 16; ++k) {
      const Operand w(shared.w[ring.stage] + 16 * k, 16);
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        wgmma(c[m], Operand(shared.h[ring.stage] + m * kGroupRows * kDepth + 16 * k, 16), w,
              d > 0 || k > 0);
      }
    }
    wgmma_commit();
    if (before) {
      wgmma_wait<1>();
      give_back(before);
    }
    before = &shared.empty[ring.stage];
  }
  release(next);
  wgmma_wait<0>();
  give_back(before);
}

/// Sums → exponentials; writes the sums of rows of these, and them into the group's tiles.
__device__ void exponentials(Sums& c, const Args& a, const Place& place,
                             bf16 (&e)[2][kTile * kDepth]) {
  const int lane = lane_id();
  const int warp_row = warp_id() % 4 * 16;
  const bool whole = place.column + kTile <= a.V;
#pragma unroll
  for (int m = 0; m < 2; ++m) {
    float sum[2] = {};
    float shift[2];
    int row[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      row[half] = place.row + m * kGroupRows + warp_row + 8 * half + lane / 4;
      shift[half] = row[half] < a.rows ? a.shift[row[half]] * kLog2E : 0.0f;
    }
#pragma unroll
    for (int n = 0; n < kTile / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float& x = c[m][n][i];
        x = exp2_fast(x * kLog2E - shift[i / 2]);
        const bool inside = whole || place.column + 8 * n + lane % 4 * 2 + i % 2 < a.V;
        if (inside) sum[i / 2] += x;
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      sum[half] = row_sum(sum[half]);
      if (lane % 4 == 0 && row[half] < a.rows) {
        a.sums[static_cast<std::int64_t>(place.column / kTile) * a.rows + row[half]] = sum[half];
      }
    }
    if (!a.wants_e) continue;
#pragma unroll
    for (int n = 0; n < kTile / 8; n += 2) {
      const std::uint32_t packed[4] = {
          pack_bf16(c[m][n][0], c[m][n][1]), pack_bf16(c[m][n][2], c[m][n][3]),
          pack_bf16(c[m][n + 1][0], c[m][n + 1][1]), pack_bf16(c[m][n + 1][2], c[m][n + 1][3])};
      const int tile_row = m * kGroupRows + warp_row + lane % 16;
      const int chunk = n + lane / 16;
      store_blocks(e[chunk / 8] + swizzled<kDepth>(tile_row, chunk % 8), packed);
    }
  }
}

__device__ void consume(const CUtensorMap& e, const Args& a, Shared& shared) {
  const int group = warp_id() / 4 - 1;
  const bool writes = threadIdx.x % kGroup == 0;
  bf16(&own)[2][kTile * kDepth] = shared.e[group];
  Ring<kStages> ring;
  int parity = group == 0 ? 1 : 0;  // the first turn is free
  int turn = 0;
  for (int tile = first_tile(); tile < a.tiles; tile += tile_step(), ++turn) {
    if (turn % kConsumers != group) {
      for (int d = 0; d < depths(a); ++d) ring.next();
      continue;
    }
    const Place place(a, tile);
    Sums c;
    wait_at(&shared.turn[group], parity);
    parity ^= 1;
    multiply(c, a, shared, ring, &shared.turn[(group + 1) % kConsumers]);
    if (writes) wait_stores_read();
    meet_group(1 + group);
    exponentials(c, a, place, own);
    if (!a.wants_e) continue;
    fence_for_wgmma();
    meet_group(1 + group);
    if (writes) {
      store_box(e, place.row, place.column, own[0]);
      store_box(e, place.row, place.column + kDepth, own[1]);
      commit_stores();
    }
  }
  if (writes && a.wants_e) wait_stores_read();  // the next block's shared memory may be this one
}

__global__ void __cluster_dims__(kCluster, 1, 1) __launch_bounds__(kThreads, 1)
    exp_product_kernel(const __grid_constant__ CUtensorMap h, const __grid_constant__ CUtensorMap w,
                       const __grid_constant__ CUtensorMap e, const Args a) {
  auto& shared = dynamic_shared<Shared>();
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) {
      make_barrier(&shared.full[i], 1);
      make_barrier(&shared.empty[i], kCluster * kGroup / kWarp);
    }
    for (int i = 0; i < kConsumers; ++i) make_barrier(&shared.turn[i], kGroup / kWarp);
    fence_barriers();
  }
  __syncthreads();
  meet_cluster();
  if (warp_id() < kGroup / kWarp) {
    fewer_registers<kProducerRegisters>();
    if (threadIdx.x == 0) produce(h, w, a, shared);
  } else {
    more_registers<kConsumerRegisters>();
    consume(e, a, shared);
  }
  // Nobody leaves while another block still writes into its shared memory.
  __syncwarp();
  meet_cluster();
}

/// A matrix [rows, columns] of bf16, its rows `step` apart, in boxes of [box_rows, 64].
CUtensorMap boxes_of(const void* matrix, std::int64_t rows, std::int64_t columns, std::int64_t step,
                     int box_rows) {
  using Encode = decltype(&cuTensorMapEncodeTiled);
  static const auto encode = [] {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult result{};
    check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000,
                                           cudaEnableDefault, &result),
          "cudaGetDriverEntryPointByVersion");
    if (result != cudaDriverEntryPointSuccess || !found) {
      throw DeviceError(
          "cuda: the driver has no cuTensorMapEncodeTiled; it needs CUDA 12 or later");
    }
    return reinterpret_cast<Encode>(found);
  }();
  const cuuint64_t sizes[] = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows)};
  const cuuint64_t pitch[] = {static_cast<cuuint64_t>(step) * sizeof(bf16)};
  const cuuint32_t box[] = {kSwizzledWidth, static_cast<cuuint32_t>(box_rows)};
  const cuuint32_t steps[] = {1, 1};
  CUtensorMap map;
  const CUresult result =
      encode(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, const_cast<void*>(matrix), sizes, pitch,
             box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) {
    throw DeviceError("cuda: cuTensorMapEncodeTiled: error " + std::to_string(result));
  }
  return map;
}

}  // namespace

bool exp_product_fits(const ExpProduct& p) {
  constexpr std::int64_t kWord = 8;                      // bf16 in 16 bytes
  constexpr std::int64_t kMost = std::int64_t{1} << 30;  // 32-bit indices
  const auto aligned = [](const void* x) { return reinterpret_cast<std::uintptr_t>(x) % 16 == 0; };
  return p.rows > 0 && p.V >= kTile && p.C > 0 && p.C % kWord == 0 && p.e_step % kWord == 0 &&
         std::max({p.rows, p.V, p.C}) < kMost && aligned(p.h) && aligned(p.w) && aligned(p.e) &&
         capability() == 90;
}

void exp_product(const ExpProduct& p) {
  const auto pairs = ceil_div(p.rows, kTile * kCluster);
  const auto columns = ceil_div(p.V, kTile);
  const Args args{p.shift,
                  p.sums,
                  static_cast<int>(p.rows),
                  static_cast<int>(p.V),
                  static_cast<int>(p.C),
                  p.e != nullptr,
                  static_cast<int>(pairs),
                  static_cast<int>(pairs * columns)};
  const CUtensorMap h = boxes_of(p.h, p.rows, p.C, p.C, kTile);
  const CUtensorMap w = boxes_of(p.w, p.V, p.C, p.C, kHalf);
  const CUtensorMap e = p.e ? boxes_of(p.e, p.rows, p.V, p.e_step, kTile) : h;
  const auto clusters = std::min<std::int64_t>(pairs * columns, multiprocessors() / kCluster);
  launch_shared<Shared>("cross_entropy: hopper", exp_product_kernel,
                        static_cast<unsigned>(clusters * kCluster), kThreads, h, w, e, args);
}

}  // namespace proteus::cuda
