// y = x·Wᵀ, x in bf16 and W in f32 (cuda/wide_linear.cu), in one kernel on Hopper (sm_90a): a block
// has 128 rows of x and 64 of W and walks along K. It cuts W into its three bf16 parts itself, on
// the way to shared memory, and adds the products of all parts up in the same registers, so that
// neither parts nor partial sums ever lie in memory.
#include "cuda/attention_common.cuh"
#include "cuda/wgmma.cuh"
#include "cuda/wide_linear.h"

namespace proteus::cuda {
namespace {

constexpr int kParts = 3;
constexpr int kGroups = 2;  // warpgroups, of 64 rows each
constexpr int kThreads = kGroups * kGroup;
constexpr int kRows = 64 * kGroups;
constexpr int kColumns = 64;            // of y, rows of W
constexpr int kDepth = kSwizzledWidth;  // of K at a time
constexpr int kStages = 4;              // of x
constexpr int kAhead = 2;               // copies of x on their way while one is multiplied
constexpr int kWeightStages = 2;

struct Shared {
  alignas(1024) bf16 x[kStages][kRows * kDepth];
  alignas(1024) bf16 weight[kWeightStages][kParts][kColumns * kDepth];
};

/// A thread's numbers of a tile of W: 16 neighbours of one row.
class Weights {
 public:
  static constexpr int kEach = kColumns * kDepth / kThreads;
  static constexpr int kThreadsOfRow = kDepth / kEach;

  __device__ void load(const WideLinearFwd& a, std::int64_t n0, std::int64_t k0) {
    const std::int64_t n = n0 + row();
    const float* from = static_cast<const float*>(a.weight) + n * a.K + k0 + column();
#pragma unroll
    for (int i = 0; i < kEach / 4; ++i) {
      const auto four = n < a.N ? load_pack<4>(from + 4 * i) : Pack<float, 4>{};
#pragma unroll
      for (int j = 0; j < 4; ++j) rest_[4 * i + j] = four[j];
    }
  }
  /// Cuts them into parts, the largest first.
  __device__ void store(bf16 (&to)[kParts][kColumns * kDepth]) {
#pragma unroll
    for (auto& part : to) {
#pragma unroll
      for (int c = 0; c < kEach / kChunk; ++c) {
        std::uint32_t words[kChunk / 2];
#pragma unroll
        for (int w = 0; w < kChunk / 2; ++w) {
          float& low = rest_[c * kChunk + 2 * w];
          float& high = rest_[c * kChunk + 2 * w + 1];
          words[w] = pack_bf16(low, high);
          low -= __uint_as_float(words[w] << 16);
          high -= __uint_as_float(words[w] & 0xffff0000u);
        }
        bf16* at = part + swizzled<kDepth>(row(), column() / kChunk + c);
        *reinterpret_cast<uint4*>(at) = uint4{words[0], words[1], words[2], words[3]};
      }
    }
  }

 private:
  __device__ static int row() { return static_cast<int>(threadIdx.x) / kThreadsOfRow; }
  __device__ static int column() { return static_cast<int>(threadIdx.x) % kThreadsOfRow * kEach; }
  float rest_[kEach];
};

/// Starts sums += x·(W₁ + W₂ + W₃)ᵀ of a tile, and closes the group.
__device__ void start_products(float (&sums)[kColumns / 8][4], const bf16* x,
                               const bf16 (&weight)[kParts][kColumns * kDepth]) {
  wgmma_fence();
#pragma unroll
  for (int part = kParts - 1; part >= 0; --part) {
#pragma unroll
    for (int k = 0; k < kDepth; k += 16) {
      wgmma(sums, Operand(x + k, 16), Operand(weight[part] + k, 16), true);
    }
  }
  wgmma_commit();
}

__device__ void store(const WideLinearFwd& a, const float (&sums)[kColumns / 8][4],
                      std::int64_t row, std::int64_t column) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const std::int64_t m = row + 8 * half + lane_id() / 4;
    if (m >= a.M) continue;
    float* to = static_cast<float*>(a.y) + m * a.N;
#pragma unroll
    for (int n = 0; n < kColumns / 8; ++n) {
      const std::int64_t at = column + 8 * n + lane_id() % 4 * 2;
      if (at < a.N)
        *reinterpret_cast<float2*>(to + at) = {sums[n][2 * half], sums[n][2 * half + 1]};
    }
  }
}

__global__ void __launch_bounds__(kThreads, 2) forward(const WideLinearFwd a) {
  auto& shared = dynamic_shared<Shared>();
  const std::int64_t m0 = static_cast<std::int64_t>(blockIdx.x) * kRows;
  const std::int64_t n0 = static_cast<std::int64_t>(blockIdx.y) * kColumns;
  const int rows = static_cast<int>(min(std::int64_t{kRows}, a.M - m0));
  const int tiles = static_cast<int>(a.K / kDepth);
  const int group = warp_id() / 4;
  const auto copy_x = [&](int tile) {
    if (tile < tiles) {
      load_tile<kRows, kDepth, kThreads>(
          shared.x[tile % kStages],
          static_cast<const bf16*>(a.x) + m0 * a.K + static_cast<std::int64_t>(tile) * kDepth, a.K,
          rows);
    }
    commit_copies();
  };
  Weights weights;
  weights.load(a, n0, 0);
  for (int tile = 0; tile < kAhead; ++tile) copy_x(tile);
  float sums[kColumns / 8][4] = {};
  for (int tile = 0; tile < tiles; ++tile) {
    wgmma_wait<1>();
    __syncthreads();  // everybody is done with the tile before the last one
    copy_x(tile + kAhead);
    auto& parts = shared.weight[tile % kWeightStages];
    weights.store(parts);
    if (tile + 1 < tiles) weights.load(a, n0, static_cast<std::int64_t>(tile + 1) * kDepth);
    wait_copies<kAhead>();
    fence_for_wgmma();
    __syncthreads();
    start_products(sums, shared.x[tile % kStages] + group * 64 * kDepth, parts);
  }
  wgmma_wait<0>();
  store(a, sums, m0 + group * 64 + warp_id() % 4 * 16, n0);
}

}  // namespace

// Rows of x and W are read in chunks of 16 bytes, y is written two numbers at a time.
bool hopper_wide_fits(const WideLinearFwd& a) {
  return a.dtype == DType::bf16 && a.K > 0 && a.K % kDepth == 0 && a.N % 2 == 0 &&
         can_pack<bf16, kChunk>(static_cast<const bf16*>(a.x)) &&
         can_pack<float, 4>(static_cast<const float*>(a.weight), static_cast<const float*>(a.y)) &&
         capability() == 90;
}

void wide_linear_hopper(const WideLinearFwd& a) {
  const dim3 grid(static_cast<unsigned>(ceil_div(a.M, kRows)),
                  static_cast<unsigned>(ceil_div(a.N, kColumns)));
  constexpr int kBytes = static_cast<int>(sizeof(Shared));
  check(cudaFuncSetAttribute(forward, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes),
        "wide_linear_fwd");
  launch("wide_linear_fwd: hopper", forward, grid, kThreads, kBytes, a);
}

}  // namespace proteus::cuda
