// out[t] = base[t] + Σ_{r: token[r] = t} y[r]·op(W[g(r)]) in bf16 on Hopper. A block owns a stretch
// of tokens × 64 columns: their sums lie in shared memory in f32, are begun with the base and
// written once. It goes through the groups in order. Without that, every group of a token would
// read and write its sums in device memory: 32 times the bytes of one row.
//
// Two consumers take the tiles of up to 64 rows of a group in turns: one multiplies while the other
// adds to the sums, which is what takes most of the time. They add in the order of the tiles. The
// base comes the same way as the tiles, so that nobody waits for it.
#include <algorithm>

#include "cuda/grouped_hopper.cuh"
#include "cuda/grouped_hopper.h"
#include "cuda/grouped_plan.h"

namespace proteus::cuda {
namespace {

constexpr int kStretch = 448;  // tokens: with 4 of 32 groups each, a tile of a group is nearly full
constexpr int kTileRows = 64;
constexpr int kColumns = 64;
constexpr int kStages = 6;
constexpr int kConsumers = 2;
constexpr int kThreads = (1 + kConsumers) * kGroup;
constexpr int kSumsBarrier = 1;  // 0 is __syncthreads
constexpr int kNoTile = 0;

struct Shared {
  alignas(1024) bf16 rows[kStages][kTileRows * kPiece];
  alignas(1024) bf16 weight[kStages][kPiece * kColumns];
  alignas(16) float sums[kStretch][kColumns];
  std::int32_t token[kStages][kTileRows];
  int count[kStages];  // rows of the tile; or kNoTile, and `rows` are those of a base
  StageBarriers<kStages> stages;
  Barrier added[kConsumers];
};

/// A stretch of tokens × 64 columns: 64 columns after the other, so that blocks which run together
/// read the same rows.
struct Part {
  std::int64_t sequence, stretch, first, n0;
  int tokens;

  __device__ Part(const GroupedScatter& a, const Stretches& cut, std::int64_t part) {
    const std::int64_t columns = ceil_div(a.N, std::int64_t{kColumns});
    sequence = part / columns / cut.count;
    stretch = part / columns % cut.count;
    n0 = part % columns * kColumns;
    first = sequence * cut.length + stretch * cut.size;
    tokens = static_cast<int>(min(cut.size, cut.length - stretch * cut.size));
  }
};

__device__ inline std::int64_t parts_of(const GroupedScatter& a, const Stretches& cut) {
  return a.sequences * cut.count * ceil_div(a.N, std::int64_t{kColumns});
}

/// The rows of up to 32 groups in a part, a lane each.
struct Bounds {
  std::int32_t begin = 0, end = 0;

  __device__ Bounds(const GroupedScatter& a, const Stretches& cut, const std::int32_t* begins,
                    std::int64_t part, std::int64_t first_group) {
    const std::int64_t g = first_group + lane_id();
    if (part >= parts_of(a, cut) || g >= a.groups) return;
    const Part p(a, cut, part);
    const std::int32_t* of = begins + (p.sequence * (cut.count + 1) + p.stretch) * a.groups + g;
    begin = of[0];
    end = of[a.groups];
  }
};

template <bool kTrans>
struct Producer {
  const GroupedScatter& a;
  Shared& shared;
  Ring<kStages> ring;

  __device__ void tile(std::int64_t g, std::int64_t n0, std::int64_t row, int count) {
    const bf16* y = static_cast<const bf16*>(a.y) + row * a.K;
    for (std::int64_t k = 0; k < a.K; k += kPiece) {
      begin_stage(count);
      copy_rows<kTileRows>(shared.rows[ring.stage], y + k, a.K, count, a.K - k);
      copy_weight<kTrans>(shared.weight[ring.stage], a, g, k, n0);
      const int thread = static_cast<int>(threadIdx.x);
      if (thread < kTileRows) {
        copy_async_4(&shared.token[ring.stage][thread],
                     a.token + row + (thread < count ? thread : 0), thread < count);
      }
      shared.stages.end(ring);
    }
  }
  /// What the sums of a part begin with: rows of the base, or zeros; nothing after the last part.
  __device__ void base(const Stretches& cut, const Part& part, bool there) {
    for (int token = 0; token < cut.size; token += kTileRows) {
      begin_stage(kNoTile);
      if (there) {
        const bf16* from = static_cast<const bf16*>(a.base ? a.base : a.y);
        copy_rows<kTileRows>(shared.rows[ring.stage], from + (part.first + token) * a.N + part.n0,
                             a.N, a.base ? part.tokens - token : 0, a.N - part.n0);
      }
      shared.stages.end(ring);
    }
  }

 private:
  __device__ void begin_stage(int count) {
    shared.stages.begin(ring);
    if (threadIdx.x == 0) shared.count[ring.stage] = count;
  }
};

template <bool kTrans>
__device__ void produce(const GroupedScatter& a, const Stretches& cut, const std::int32_t* begins,
                        Shared& shared) {
  Producer<kTrans> producer{a, shared, {}};
  const std::int64_t parts = parts_of(a, cut);
  Bounds next(a, cut, begins, blockIdx.x, 0);
  for (std::int64_t part = blockIdx.x;; part += gridDim.x) {
    const Part here(a, cut, part);
    producer.base(cut, here, part < parts);
    if (part >= parts) break;
    for (std::int64_t first = 0; first < a.groups; first += kWarp) {
      const Bounds now = next;
      const bool last = first + kWarp >= a.groups;
      next = Bounds(a, cut, begins, last ? part + gridDim.x : part, last ? 0 : first + kWarp);
      unsigned left = __ballot_sync(kAllLanes, now.begin < now.end);
      for (; left != 0; left &= left - 1) {
        const int of = __ffs(static_cast<int>(left)) - 1;
        const std::int32_t end = __shfl_sync(kAllLanes, now.end, of);
        for (std::int32_t row = __shfl_sync(kAllLanes, now.begin, of); row < end;
             row += kTileRows) {
          producer.tile(first + of, here.n0, row, min(kTileRows, end - row));
        }
      }
    }
  }
  shared.stages.finish();
}

/// A warp's 16 rows of a product, as they are added: the four lanes of a row swap halves of two
/// neighbouring blocks, so that each has four columns in a row. Of the eight lanes whose 16 bytes
/// are accessed together, which have two rows, the lanes of one row take other blocks than those of
/// the other: so they touch all banks, whatever the tokens.
struct WarpRows {
  static constexpr int kFours = kColumns / 16;
  float4 v[2][kFours];

  __device__ static bool odd_row() { return lane_id() / 4 % 2 != 0; }
  /// Where four numbers of a row go.
  __device__ static int column(int turn) {
    return 16 * (odd_row() ? turn ^ 1 : turn) + (lane_id() % 2 != 0 ? 8 : 0) +
           lane_id() % 4 / 2 * 4;
  }
  __device__ explicit WarpRows(const float (&c)[kColumns / 8][4]) {
    const bool odd = lane_id() % 2 != 0;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int turn = 0; turn < kFours; ++turn) {
        float own[2];
        float others[2];
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int at = 2 * half + e;
          const float low = odd_row() ? c[2 * (turn ^ 1)][at] : c[2 * turn][at];
          const float high = odd_row() ? c[2 * (turn ^ 1) + 1][at] : c[2 * turn + 1][at];
          own[e] = odd ? high : low;
          others[e] = __shfl_xor_sync(kAllLanes, odd ? low : high, 1);
        }
        v[half][turn] = odd ? float4{others[0], others[1], own[0], own[1]}
                            : float4{own[0], own[1], others[0], others[1]};
      }
    }
  }
  /// A row of a group is one token's, and no other row of the tile is: nobody else adds there.
  /// token < 0 is no row.
  __device__ void add_to(Shared& shared, const int (&token)[2]) const {
    float4 sum[2][kFours];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float* sums = shared.sums[max(token[half], 0)];
#pragma unroll
      for (int turn = 0; turn < kFours; ++turn) {
        sum[half][turn] = *reinterpret_cast<const float4*>(sums + column(turn));
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (token[half] < 0) continue;
      float* sums = shared.sums[token[half]];
#pragma unroll
      for (int turn = 0; turn < kFours; ++turn) {
        const float4& one = sum[half][turn];
        const float4& more = v[half][turn];
        *reinterpret_cast<float4*>(sums + column(turn)) =
            float4{one.x + more.x, one.y + more.y, one.z + more.z, one.w + more.w};
      }
    }
  }
};

template <bool kTrans>
struct Consumer {
  const GroupedScatter& a;
  Shared& shared;
  Ring<kStages> ring;
  unsigned tile = 0;  // of this block; the even ones are the first consumer's

  /// Writes the sums of a part that is over and begins the next, where there are such; each
  /// consumer has half of every 64 tokens.
  __device__ void renew(const Stretches& cut, const Part& over, bool any_over, bool any_next) {
    wait_for_tile_before();
    for (int token = 0; token < cut.size; token += kTileRows) {
      wait_at(&shared.stages.full[ring.stage], ring.parity);
      renew_rows(over, any_over, any_next, token + consumer_of_thread() * kTileRows / kConsumers);
      next_stage();
    }
    asm volatile("bar.sync %0, %1;" ::"n"(kSumsBarrier), "n"(kConsumers * kGroup) : "memory");
  }
  /// Adds the tiles up to the next base.
  __device__ void add_tiles(const Part& part) {
    for (;; ++tile) {
      wait_at(&shared.stages.full[ring.stage], ring.parity);
      const int count = shared.count[ring.stage];
      if (count == kNoTile) return;
      if (static_cast<int>(tile % kConsumers) == consumer_of_thread()) {
        add_tile(part, count);
      } else {
        pass_by();
      }
    }
  }

 private:
  __device__ void next_stage() {
    shared.stages.release(ring);
    ring.next();
  }
  __device__ void wait_for_tile_before() {
    if (tile == 0) return;
    const unsigned before = tile - 1;
    wait_at(&shared.added[before % kConsumers], static_cast<int>(before / kConsumers % 2));
  }
  __device__ void pass_by() {
    for (std::int64_t k = 0; k < a.K; k += kPiece) {
      wait_at(&shared.stages.full[ring.stage], ring.parity);
      next_stage();
    }
  }
  __device__ void renew_rows(const Part& over, bool any_over, bool any_next, int first) {
    const int thread = static_cast<int>(threadIdx.x) % kGroup;
    const int chunk = thread % kPieceChunks;
    // Of the eight lanes that access the sums together one half begins with the other four numbers:
    // so they touch all banks.
    const int turn = chunk / 4 * 4;
    const bool inside = over.n0 + chunk * kChunk < a.N;
#pragma unroll
    for (int row = thread / kPieceChunks; row < kTileRows / kConsumers; row += kPassRows) {
      const int token = first + row;
      float* sums = &shared.sums[token][chunk * kChunk];
      if (any_over && token < over.tokens && inside) {
        const float4 one = *reinterpret_cast<const float4*>(sums + turn);
        const float4 two = *reinterpret_cast<const float4*>(sums + (turn ^ 4));
        const float4 low = turn == 0 ? one : two;
        const float4 high = turn == 0 ? two : one;
        *reinterpret_cast<uint4*>(static_cast<bf16*>(a.out) + (over.first + token) * a.N + over.n0 +
                                  chunk * kChunk) =
            uint4{pack_bf16(low.x, low.y), pack_bf16(low.z, low.w), pack_bf16(high.x, high.y),
                  pack_bf16(high.z, high.w)};
      }
      if (!any_next) continue;
      const auto base =
          load_pack<kChunk>(shared.rows[ring.stage] + swizzled<kPiece>(token % kTileRows, chunk));
      float wide[kChunk];
#pragma unroll
      for (int i = 0; i < kChunk; ++i) wide[i] = __bfloat162float(base[i]);
      const float4 low{wide[0], wide[1], wide[2], wide[3]};
      const float4 high{wide[4], wide[5], wide[6], wide[7]};
      *reinterpret_cast<float4*>(sums + turn) = turn == 0 ? low : high;
      *reinterpret_cast<float4*>(sums + (turn ^ 4)) = turn == 0 ? high : low;
    }
  }
  __device__ void add_tile(const Part& part, int count) {
    float c[kColumns / 8][4];
    int token[2];
    for (std::int64_t k = 0; k < a.K; k += kPiece) {
      shared.stages.wait(ring);
      wgmma_fence();
      start_product<kTrans>(c, shared.rows[ring.stage], shared.weight[ring.stage], k > 0);
      wgmma_commit();
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = warp_id() % 4 * 16 + 8 * half + lane_id() / 4;
        token[half] =
            row < count ? shared.token[ring.stage][row] - static_cast<int>(part.first) : -1;
      }
      wgmma_wait<0>();
      fence_sums(c);
      next_stage();
    }
    const WarpRows rows(c);
    wait_for_tile_before();
    rows.add_to(shared, token);
    release(&shared.added[consumer_of_thread()]);
  }
};

template <bool kTrans>
__device__ void consume(const GroupedScatter& a, const Stretches& cut, Shared& shared) {
  Consumer<kTrans> consumer{a, shared, {}};
  const std::int64_t parts = parts_of(a, cut);
  const std::int64_t first = blockIdx.x;
  for (std::int64_t part = first;; part += gridDim.x) {
    consumer.renew(cut, Part(a, cut, part - gridDim.x), part > first, part < parts);
    if (part >= parts) break;
    consumer.add_tiles(Part(a, cut, part));
  }
}

template <bool kTrans>
__global__ void __launch_bounds__(kThreads, 1)
    scatter_kernel(const GroupedScatter a, const Stretches cut, const std::int32_t* begins) {
  auto& shared = dynamic_shared<Shared>();
  if (threadIdx.x == 0) {
    shared.stages.make(kConsumers);
    for (Barrier& b : shared.added) make_barrier(&b, kGroup / kWarp);
    fence_barriers();
  }
  __syncthreads();
  if (consumer_of_thread() < 0) {
    produce<kTrans>(a, cut, begins, shared);
  } else {
    consume<kTrans>(a, cut, shared);
  }
}

// As few rounds of blocks as stretches of kStretch would take, and stretches that fill them.
Stretches cut_into_rounds(const GroupedScatter& a) {
  const std::int64_t length = a.tokens / a.sequences;
  const std::int64_t others = a.sequences * ceil_div(a.N, std::int64_t{kColumns});
  const std::int64_t least = ceil_div(length, std::int64_t{kStretch});
  const std::int64_t rounds = ceil_div(least * others, multiprocessors());
  const std::int64_t count = std::max(least, rounds * multiprocessors() / others);
  const std::int64_t size = std::max<std::int64_t>(ceil_div(length, count), kTileRows);
  return {length, size, ceil_div(length, size)};
}

}  // namespace

bool hopper_scatter_fits(const GroupedScatter& a) {
  constexpr std::int64_t kFewestRows = 8;  // of a group in a full stretch
  return rows_of_words(a.dtype, a.K, a.N, a.y, a.w, a.base, a.out) && a.K > 0 && a.rows > 0 &&
         a.rows * kStretch >= kFewestRows * a.groups * a.tokens && capability() == 90;
}

void grouped_scatter_hopper(const GroupedScatter& a) {
  const Stretches cut = cut_into_rounds(a);
  const StretchBegins begins(a, cut);
  const std::int64_t parts = a.sequences * cut.count * ceil_div(a.N, std::int64_t{kColumns});
  const auto blocks = static_cast<unsigned>(std::min<std::int64_t>(parts, multiprocessors()));
  launch_shared<Shared>("grouped_scatter: hopper",
                        a.trans_w ? scatter_kernel<true> : scatter_kernel<false>, blocks, kThreads,
                        a, cut, begins.data());
}

}  // namespace proteus::cuda
