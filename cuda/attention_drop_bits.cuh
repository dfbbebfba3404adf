// Dropout of attention as bits, drawn once for a call where a kernel would draw every weight's
// number again beside its products: Philox costs more than the rest of a short sequence's
// attention. A bit is 1 where the weight is kept (tensor/ops/attention.h says which).
#pragma once

#include "cuda/attention_common.cuh"

namespace proteus::cuda {

/// Bits of weights, 32 neighbours to a word. Those of weights that no query sees may be anything.
struct DropBits {
  std::uint32_t* rows;  // [slot, words]: bit j % 32 of word j / 32 is key j's
  std::uint32_t*
      columns;  // [segment, 32·words, words]: the same of queries, for every key; or null
  int words;    // a multiple of 4
  float keep;   // AttentionDropout::factor

  __device__ const std::uint32_t* row(std::int64_t slot) const { return rows + slot * words; }
  __device__ const std::uint32_t* column(std::int64_t segment, std::int64_t key) const {
    return columns + (segment * 32 * words + key) * words;
  }
};

/// Of a lane's two rows, lane/4 and eight below, of C blocks of 8·kColumns columns.
template <int kColumns>
struct LaneBits {
  std::uint32_t words[2][kColumns / 4];

  __device__ void read(const std::uint32_t* upper, const std::uint32_t* lower) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const std::uint32_t* from = h == 0 ? upper : lower;
      if constexpr (kColumns == 16) {
        const uint4 four = *reinterpret_cast<const uint4*>(from);
        words[h][0] = four.x;
        words[h][1] = four.y;
        words[h][2] = four.z;
        words[h][3] = four.w;
      } else {
#pragma unroll
        for (int i = 0; i < kColumns / 4; ++i) words[h][i] = from[i];
      }
    }
  }
};

/// Multiplies C blocks by 0 or `keep`.
template <int kColumns>
__device__ inline void drop(Accumulator<1, kColumns>& x, const LaneBits<kColumns>& bits,
                            float keep) {
#pragma unroll
  for (int h = 0; h < 2; ++h) {
#pragma unroll
    for (int word = 0; word < kColumns / 4; ++word) {
      const std::uint32_t mine = bits.words[h][word] >> (lane_id() % 4 * 2);
#pragma unroll
      for (int n = 0; n < 4; ++n) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float& value = x[0][4 * word + n][2 * h + e];
          value = mine & 1u << (8 * n + e) ? value * keep : 0.0f;
        }
      }
    }
  }
}

/// Whether bits of a problem can be drawn: how long its segments are is known, and they are short
/// enough for the memory that `columns` (backward) and rows take.
bool drop_bits_fit(const AttentionProblem& p, bool columns);

/// Draws the bits of a problem; none without dropout.
class DrawnBits {
 public:
  DrawnBits(const AttentionProblem& p, bool columns);
  DropBits bits() const { return bits_; }

 private:
  DropBits bits_{};
  Storage memory_;
};

}  // namespace proteus::cuda
