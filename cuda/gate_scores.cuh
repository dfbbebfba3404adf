// Scores of a tile of tokens against a tile of gates (tensor/ops/routing.h has the formulas), as
// gate_logits_fwd needs them, in shared memory. In f64 they are plain sums. In f32 they are
// products on the tensor cores: a number of f32 is the sum of three of bf16, and of the nine
// products of two such sums six are left above what f32 holds.
#pragma once

#include <limits>

#include "cuda/rows.cuh"
#include "cuda/tile.cuh"
#include "tensor/ops/routing.h"
#include "tensor/vmath.h"

namespace proteus::cuda {

constexpr int kLogitThreads = 256;
/// Tokens of a tile; a warp of f32 has 16.
template <class T>
constexpr int kLogitTile = sizeof(T) == 8 ? 64 : kLogitThreads / kWarp * 16;
constexpr int kTileGates = 32;

constexpr int kDoubleDepth = 16;  // of R at a time
struct DoubleChunk {
  double x[kDoubleDepth][kLogitTile<double> + 4];
  double w[kDoubleDepth][kTileGates + 4];
  double p[kDoubleDepth][kTileGates + 4];
};

constexpr int kScoreParts = 3;
constexpr int kFloatDepth = 64;  // of R at a time
using GateParts = bf16[kScoreParts][kTileGates * kFloatDepth];
struct FloatChunk {
  alignas(128) GateParts w;
  alignas(128) GateParts p;
};

template <class T>
struct LogitShared {
  union {
    std::conditional_t<sizeof(T) == 8, DoubleChunk, FloatChunk> chunk;
    T scores[kLogitTile<T>][kTileGates + 1];  // [token][gate]
  };
  T inverse[kLogitTile<T>];
  T log_mass[kTileGates];
  std::int32_t gate[kTileGates];
};

/// The gate with the largest p·x of kMine tokens; kSharers neighbours in a warp have the same ones.
template <class T, int kMine, int kSharers>
struct Nearest {
  T best[kMine];
  std::int32_t gate[kMine];

  __device__ Nearest() {
    for (int i = 0; i < kMine; ++i) {
      best[i] = -std::numeric_limits<T>::infinity();
      gate[i] = 0;
    }
  }
  __device__ void offer(int i, T value, std::int32_t g) {
    if (value > best[i] || (value == best[i] && g < gate[i])) {
      best[i] = value;
      gate[i] = g;
    }
  }
  /// Token i is number first + i·step of N.
  __device__ void write(std::int64_t first, int step, std::int64_t N, std::int32_t* to) {
    for (int i = 0; i < kMine; ++i) {
      for (int other = kSharers / 2; other > 0; other /= 2) {
        const T value = __shfl_xor_sync(kAllLanes, best[i], other);
        const std::int32_t g = __shfl_xor_sync(kAllLanes, gate[i], other);
        offer(i, value, g);
      }
      if (threadIdx.x % kSharers == 0 && first + i * step < N) to[first + i * step] = gate[i];
    }
  }
};

/// What a block's threads do with a tile of scores, by type: `kPrototypes` adds λ·cos.
template <class T>
class TileScores;

template <>
class TileScores<double> {
 public:
  explicit __device__ TileScores(std::int64_t n0) : n0_(n0) {}
  template <bool kPrototypes>
  __device__ void score(const GateLogitsFwd& a, int count, LogitShared<double>& shared) {
    double sum[kTokens][kEach] = {};
    double cosine[kTokens][kEach] = {};
    const std::int64_t R = a.gates.R;
    for (std::int64_t r0 = 0; r0 < R; r0 += kDoubleDepth) {
      __syncthreads();
      load(a, r0, shared, kPrototypes);
      __syncthreads();
      for (int k = 0; k < kDoubleDepth; ++k) {
        for (int i = 0; i < kTokens; ++i) {
          const double x = shared.chunk.x[k][token() + i];
          for (int j = 0; j < kEach; ++j) {
            sum[i][j] += x * shared.chunk.w[k][gate() + j];
            if (kPrototypes) cosine[i][j] += x * shared.chunk.p[k][gate() + j];
          }
        }
      }
    }
    __syncthreads();  // the scores lie where the chunk was
    const double lambda = kPrototypes ? *static_cast<const double*>(a.gates.lambda) : 0;
    for (int i = 0; i < kTokens; ++i) {
      for (int j = 0; j < kEach; ++j) {
        const int g = gate() + j;
        shared.scores[token() + i][g] =
            sum[i][j] + lambda * shared.inverse[token() + i] * cosine[i][j] + shared.log_mass[g];
        if (a.nearest && g < count) nearest_.offer(i, cosine[i][j], shared.gate[g]);
      }
    }
  }
  __device__ void write_nearest(const GateLogitsFwd& a) {
    nearest_.write(n0_ + token(), 1, a.N, a.nearest);
  }

 private:
  static constexpr int kTokens = 4;
  static constexpr int kSharers = 16;
  static constexpr int kEach = kTileGates / kSharers;
  __device__ static int token() { return static_cast<int>(threadIdx.x) / kSharers * kTokens; }
  __device__ static int gate() { return static_cast<int>(threadIdx.x) % kSharers * kEach; }
  __device__ void load(const GateLogitsFwd& a, std::int64_t r0, LogitShared<double>& shared,
                       bool prototypes) const {
    const std::int64_t R = a.gates.R;
    const int k = static_cast<int>(threadIdx.x) % kDoubleDepth;
    const int first = static_cast<int>(threadIdx.x) / kDoubleDepth;
    constexpr int kAtOnce = kLogitThreads / kDoubleDepth;
    const bool inside = r0 + k < R;
    const auto* x = static_cast<const double*>(a.x);
    const auto* w = static_cast<const double*>(a.gates.w);
    const auto* p = static_cast<const double*>(a.gates.p);
    for (int i = first; i < kLogitTile<double>; i += kAtOnce) {
      shared.chunk.x[k][i] = inside && n0_ + i < a.N ? x[(n0_ + i) * R + r0 + k] : 0;
    }
    for (int i = first; i < kTileGates; i += kAtOnce) {
      const std::int64_t at = shared.gate[i] * R + r0 + k;
      shared.chunk.w[k][i] = inside ? w[at] : 0;
      if (prototypes) shared.chunk.p[k][i] = inside ? p[at] : 0;
    }
  }

  std::int64_t n0_;
  Nearest<double, kTokens, kSharers> nearest_;
};

/// Two neighbours of f32 as parts of bf16, the largest first, each pair in a word.
struct SplitPair {
  std::uint32_t part[kScoreParts];
  __device__ SplitPair(float low, float high) {
#pragma unroll
    for (std::uint32_t& word : part) {
      word = pack_bf16(low, high);
      low -= __uint_as_float(word << 16);
      high -= __uint_as_float(word & 0xffff0000u);
    }
  }
};

template <>
class TileScores<float> {
 public:
  explicit __device__ TileScores(std::int64_t n0)
      : first_(n0 + warp_of_block() * 16 + lane() / 4) {}
  template <bool kPrototypes>
  __device__ void score(const GateLogitsFwd& a, int count, LogitShared<float>& shared) {
    float sum[kBlocks][4] = {};
    float cosine[kBlocks][4] = {};
    for (std::int64_t r0 = 0; r0 < a.gates.R; r0 += kFloatDepth) {
      float4 tokens[kFloatDepth / 16][2];  // on their way while the gates are cut into parts
#pragma unroll
      for (int k = 0; k < kFloatDepth / 16; ++k) load_tokens(a, r0 + 16 * k, tokens[k]);
      __syncthreads();
      load(a, a.gates.w, r0, shared.gate, shared.chunk.w);
      if constexpr (kPrototypes) load(a, a.gates.p, r0, shared.gate, shared.chunk.p);
      __syncthreads();
#pragma unroll
      for (int k = 0; k < kFloatDepth / 16; ++k) {
        if (r0 + 16 * k >= a.gates.R) break;
        std::uint32_t x[kScoreParts][4];
        split_tokens(tokens[k], x);
        multiply(x, shared.chunk.w, k, sum);
        if constexpr (kPrototypes) multiply(x, shared.chunk.p, k, cosine);
      }
    }
    __syncthreads();  // the scores lie where the chunk was
    const float lambda = kPrototypes ? *static_cast<const float*>(a.gates.lambda) : 0.0f;
    const int token = warp_of_block() * 16 + lane() / 4;
#pragma unroll
    for (int n = 0; n < kBlocks; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int g = 8 * n + lane() % 4 * 2 + e % 2;
        const int row = token + e / 2 * 8;
        shared.scores[row][g] =
            sum[n][e] + lambda * shared.inverse[row] * cosine[n][e] + shared.log_mass[g];
        if (a.nearest && g < count) nearest_.offer(e / 2, cosine[n][e], shared.gate[g]);
      }
    }
  }
  __device__ void write_nearest(const GateLogitsFwd& a) {
    nearest_.write(first_, 8, a.N, a.nearest);
  }

 private:
  static constexpr int kBlocks = kTileGates / 8;

  /// Columns r to r + 3 of a row of R numbers, zeros past its end.
  __device__ static float4 four_at(const float* row, std::int64_t r, std::int64_t R) {
    const bool whole = reinterpret_cast<std::uintptr_t>(row + r) % sizeof(float4) == 0;
    if (r + 3 < R && whole) return *reinterpret_cast<const float4*>(row + r);
    const auto at = [&](int i) { return r + i < R ? row[r + i] : 0.0f; };
    return {at(0), at(1), at(2), at(3)};
  }
  // A lane multiplies columns 4·(l%4) to 4·(l%4) + 3 of 16, which it reads together, in the places
  // 2·(l%4), 2·(l%4) + 1 and the same + 8 of a block; the gates' columns lie accordingly.

  /// A thread cuts eight columns of a gate's row into parts: one chunk of a tile.
  __device__ static void load(const GateLogitsFwd& a, const void* table, std::int64_t r0,
                              const std::int32_t* gate, GateParts& to) {
    static_assert(kLogitThreads == kTileGates * kFloatDepth / kChunk);
    const int i = static_cast<int>(threadIdx.x) / (kFloatDepth / kChunk);
    const int chunk = static_cast<int>(threadIdx.x) % (kFloatDepth / kChunk);
    const float* row = static_cast<const float*>(table) + gate[i] * a.gates.R;
    std::uint32_t words[kScoreParts][kChunk / 2];
#pragma unroll
    for (int j = 0; j < kChunk / 2; ++j) {
      const float4 four = four_at(row, r0 + chunk / 2 * 16 + 4 * j, a.gates.R);
      const bool second = chunk % 2 != 0;
      const SplitPair split(second ? four.z : four.x, second ? four.w : four.y);
#pragma unroll
      for (int part = 0; part < kScoreParts; ++part) words[part][j] = split.part[part];
    }
#pragma unroll
    for (int part = 0; part < kScoreParts; ++part) {
      *reinterpret_cast<uint4*>(to[part] + swizzled<kFloatDepth>(i, chunk)) =
          uint4{words[part][0], words[part][1], words[part][2], words[part][3]};
    }
  }
  /// This lane's numbers of its two tokens in columns [r, r + 16).
  __device__ void load_tokens(const GateLogitsFwd& a, std::int64_t r, float4 (&to)[2]) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const std::int64_t n = first_ + 8 * half;
      const float* row = static_cast<const float*>(a.x) + n * a.gates.R;
      to[half] = n < a.N ? four_at(row, r + lane() % 4 * 4, a.gates.R) : float4{0, 0, 0, 0};
    }
  }
  /// As A blocks, by parts.
  __device__ static void split_tokens(const float4 (&tokens)[2],
                                      std::uint32_t (&x)[kScoreParts][4]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const SplitPair low(tokens[half].x, tokens[half].y);
      const SplitPair high(tokens[half].z, tokens[half].w);
#pragma unroll
      for (int part = 0; part < kScoreParts; ++part) {
        x[part][half] = low.part[part];
        x[part][2 + half] = high.part[part];
      }
    }
  }
  /// sum += x·gatesᵀ, the small products first.
  __device__ static void multiply(const std::uint32_t (&x)[kScoreParts][4], const GateParts& gates,
                                  int k, float (&sum)[kBlocks][4]) {
#pragma unroll
    for (int n = 0; n < kBlocks; n += 2) {
      std::uint32_t right[kScoreParts][4];
#pragma unroll
      for (int part = 0; part < kScoreParts; ++part) {
        load_b_rows<kFloatDepth>(right[part], gates[part], 8 * n, k);
      }
#pragma unroll
      for (int both = kScoreParts - 1; both >= 0; --both) {
#pragma unroll
        for (int left = 0; left <= both; ++left) {
          mma(sum[n], x[left], right[both - left][0], right[both - left][1]);
          mma(sum[n + 1], x[left], right[both - left][2], right[both - left][3]);
        }
      }
    }
  }

  std::int64_t first_;  // this lane's token; its other one is 8 on
  Nearest<float, 2, 4> nearest_;
};

}  // namespace proteus::cuda
