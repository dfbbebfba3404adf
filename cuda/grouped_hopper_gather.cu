// y[r] = x[token[r]]·op(W[g(r)]) in bf16 on Hopper. A block multiplies one tile after the other: up
// to 128·kBlocks rows of a group × 64 columns, 64·kBlocks rows for each of two consumers. What the
// producer needs to know of the next tile it has read before the present one is over.
#include <algorithm>

#include "cuda/grouped_hopper.cuh"
#include "cuda/grouped_hopper.h"
#include "cuda/grouped_plan.h"

namespace proteus::cuda {
namespace {

constexpr int kColumns = 64;
constexpr int kConsumers = 2;
constexpr int kThreads = (1 + kConsumers) * kGroup;
constexpr std::int64_t kManyTiles = 4;  // high ones, for every multiprocessor

template <int kBlocks>
struct Shared {
  static constexpr int kRows = kConsumers * kBlocks * kGroupRows;
  static constexpr int kStages = kBlocks == 1 ? 8 : 5;

  alignas(1024) bf16 rows[kStages][kRows * kPiece];
  alignas(1024) bf16 weight[kStages][kPiece * kColumns];
  alignas(1024) bf16 out[kConsumers][kGroupRows * kColumns];
  StageBarriers<kStages> stages;
};

/// The tiles of a block: all columns of a tile of rows after each other.
struct Walk {
  const RowTile* tiles;
  std::int64_t columns, all, at;

  __device__ Walk(const GroupedGather& a, const RowTile* list, const std::int32_t* count)
      : tiles(list),
        columns(ceil_div(a.N, std::int64_t{kColumns})),
        all(*count * columns),
        at(blockIdx.x) {}
  __device__ bool done() const { return at >= all; }
  __device__ void next() { at += gridDim.x; }
  __device__ RowTile rows() const { return tiles[quotient(at, columns)]; }
  __device__ std::int64_t first_column() const {
    return (at - quotient(at, columns) * columns) * kColumns;
  }
};

template <int kBlocks, bool kTrans>
__device__ void produce(const GroupedGather& a, Walk walk, Shared<kBlocks>& shared) {
  constexpr int kRows = Shared<kBlocks>::kRows;
  Ring<Shared<kBlocks>::kStages> ring;
  RowTile tile = walk.rows();
  RowNumbers<kRows> tokens;
  tokens.read(a.token, tile.begin, tile.count);
  while (!walk.done()) {
    const std::int64_t n0 = walk.first_column();
    walk.next();
    const RowTile next = walk.done() ? RowTile{} : walk.rows();
    RowNumbers<kRows> next_tokens;
    for (std::int64_t k = 0; k < a.K; k += kPiece) {
      shared.stages.begin(ring);
      tokens.copy(shared.rows[ring.stage], a.x, a.K, k);
      copy_weight<kTrans>(shared.weight[ring.stage], a, tile.group, k, n0);
      shared.stages.end(ring);
      if (k == 0) next_tokens.read(a.token, next.begin, next.count);
    }
    tile = next;
    tokens = next_tokens;
  }
  shared.stages.finish();
}

/// Writes a warp's 16 rows of sums by way of its rows of `tile`, 16 bytes at a time.
__device__ inline void write_rows(const float (&c)[kColumns / 8][4], bf16* tile, bf16* to,
                                  std::int64_t stride, std::int64_t count, std::int64_t width) {
  __syncwarp();
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int n = 0; n < kColumns / 8; ++n) {
      bf16* at = tile + swizzled<kPiece>(8 * half + lane_id() / 4, n) + lane_id() % 4 * 2;
      *reinterpret_cast<std::uint32_t*>(at) = pack_bf16(c[n][2 * half], c[n][2 * half + 1]);
    }
  }
  __syncwarp();
#pragma unroll
  for (int i = lane_id(); i < 16 * kPieceChunks; i += kWarp) {
    const int row = i / kPieceChunks;
    const int chunk = i % kPieceChunks;
    if (row >= count || chunk * kChunk >= width) continue;
    *reinterpret_cast<uint4*>(to + row * stride + chunk * kChunk) =
        *reinterpret_cast<const uint4*>(tile + swizzled<kPiece>(row, chunk));
  }
}

template <int kBlocks, bool kTrans>
__device__ void consume(const GroupedGather& a, Walk walk, Shared<kBlocks>& shared) {
  const int first = consumer_of_thread() * kBlocks * kGroupRows;
  const int warp_row = warp_id() % 4 * 16;
  Ring<Shared<kBlocks>::kStages> ring;
  for (; !walk.done(); walk.next()) {
    const RowTile tile = walk.rows();
    float c[kBlocks][kColumns / 8][4];
    auto before = ring;
    for (std::int64_t k = 0; k < a.K; k += kPiece, ring.next()) {
      shared.stages.wait(ring);
      wgmma_fence();
#pragma unroll
      for (int block = 0; block < kBlocks; ++block) {
        start_product<kTrans>(c[block],
                              shared.rows[ring.stage] + (first + block * kGroupRows) * kPiece,
                              shared.weight[ring.stage], k > 0);
      }
      wgmma_commit();
      if (k == 0) continue;
      wgmma_wait<1>();
      shared.stages.release(before);
      before.next();
    }
    wgmma_wait<0>();
    shared.stages.release(before);
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
      fence_sums(c[block]);
      const int row = first + block * kGroupRows + warp_row;
      bf16* to = static_cast<bf16*>(a.y) + (tile.begin + row) * a.N + walk.first_column();
      write_rows(c[block], shared.out[consumer_of_thread()] + warp_row * kPiece, to, a.N,
                 tile.count - row, a.N - walk.first_column());
    }
  }
}

template <int kBlocks, bool kTrans>
__global__ void __launch_bounds__(kThreads, 1)
    gather_kernel(const GroupedGather a, const RowTile* tiles, const std::int32_t* count) {
  auto& shared = dynamic_shared<Shared<kBlocks>>();
  const Walk walk(a, tiles, count);
  if (walk.done()) return;
  if (threadIdx.x == 0) {
    shared.stages.make(kConsumers);
    fence_barriers();
  }
  __syncthreads();
  if (consumer_of_thread() < 0) {
    produce<kBlocks, kTrans>(a, walk, shared);
  } else {
    consume<kBlocks, kTrans>(a, walk, shared);
  }
}

template <int kBlocks>
void run(const GroupedGather& a) {
  const RowTiles tiles("grouped_gather", a.offsets, a.groups, a.sequences, a.rows,
                       Shared<kBlocks>::kRows, a.K * static_cast<std::int64_t>(sizeof(bf16)));
  const std::int64_t most = tiles.most() * ceil_div(a.N, std::int64_t{kColumns});
  launch_shared<Shared<kBlocks>>(
      "grouped_gather: hopper",
      a.trans_w ? gather_kernel<kBlocks, true> : gather_kernel<kBlocks, false>,
      static_cast<unsigned>(std::min<std::int64_t>(most, multiprocessors())), kThreads, a,
      tiles.tiles(), tiles.first_tile() + a.groups);
}

}  // namespace

bool hopper_gather_fits(const GroupedGather& a) {
  return rows_of_words(a.dtype, a.K, a.N, a.x, a.w, a.y) && a.K > 0 && a.rows > 0 &&
         capability() == 90;
}

// High tiles read the matrix of their group less often.
void grouped_gather_hopper(const GroupedGather& a) {
  const bool high = a.rows / Shared<2>::kRows >= kManyTiles * multiprocessors();
  high ? run<2>(a) : run<1>(a);
}

}  // namespace proteus::cuda
