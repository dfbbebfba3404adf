// Philox makes four integers of a counter, and Box-Muller two normal numbers of two of them:
//   √(−2 ln u)·(cos 2πv, sin 2πv)
#include "train/random_rows.h"

#include <algorithm>
#include <cmath>

#include "tensor/parallel.h"
#include "tensor/vmath.h"

namespace proteus {
namespace {

constexpr std::int64_t kLanes = 32;  // counters at once: fills vectors of any width
constexpr std::int64_t kGrainRows = 64;

// sin 2πx for |x| ≤ ¼, by its Taylor series to degree 11 (truncation 6e-8).
inline float sin_turns(float x) {
  const float a = 6.28318531f * x;
  const float q = a * a;
  float p = -1.0f / 39916800;
  p = p * q + 1.0f / 362880;
  p = p * q - 1.0f / 5040;
  p = p * q + 1.0f / 120;
  p = p * q - 1.0f / 6;
  return a + a * q * p;
}

// philox() of kLanes counters that differ in the lower half of `hi`, round by round over all of
// them.
struct Lanes {
  alignas(64) std::uint32_t c0[kLanes], c1[kLanes], c2[kLanes], c3[kLanes];
};

void philox_lanes(RngKey key, std::uint64_t row, std::uint32_t first, Lanes& x) {
  for (std::int64_t j = 0; j < kLanes; ++j) {
    x.c0[j] = static_cast<std::uint32_t>(row);
    x.c1[j] = static_cast<std::uint32_t>(row >> 32);
    x.c2[j] = first + static_cast<std::uint32_t>(j);
    x.c3[j] = static_cast<std::uint32_t>(key.stream);
  }
  auto k0 = static_cast<std::uint32_t>(key.seed);
  auto k1 = static_cast<std::uint32_t>(key.seed >> 32);
  for (int round = 0; round < 10; ++round) {
#pragma omp simd
    for (std::int64_t j = 0; j < kLanes; ++j) {
      const std::uint64_t p0 = std::uint64_t{0xD2511F53u} * x.c0[j];
      const std::uint64_t p1 = std::uint64_t{0xCD9E8D57u} * x.c2[j];
      x.c0[j] = static_cast<std::uint32_t>(p1 >> 32) ^ x.c1[j] ^ k0;
      x.c2[j] = static_cast<std::uint32_t>(p0 >> 32) ^ x.c3[j] ^ k1;
      x.c1[j] = static_cast<std::uint32_t>(p1);
      x.c3[j] = static_cast<std::uint32_t>(p0);
    }
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
}

void normal_lanes(const std::uint32_t* a, const std::uint32_t* b, float* cosines, float* sines) {
#pragma omp simd
  for (std::int64_t j = 0; j < kLanes; ++j) {
    // (0, 1] and [−½, ½]; a signed conversion is one instruction, an unsigned one is not
    // everywhere.
    const float u = static_cast<float>(static_cast<std::int32_t>(a[j] >> 1)) * 0x1p-31f + 0x1p-32f;
    const float v = static_cast<float>(static_cast<std::int32_t>(b[j])) * 0x1p-32f;
    const float square =
        -2.0f * vmath::log_normal(u);  // a rounding below 0 where u rounds to 1 or more
    const float r = std::sqrt(std::max(square, 0.0f));
    const float turn = std::abs(v);
    cosines[j] = r * sin_turns(0.25f - turn);
    sines[j] = std::copysign(r * sin_turns(std::min(turn, 0.5f - turn)), v);
  }
}

void normal_row(RngKey key, std::int64_t row, std::int64_t C, float* out) {
  alignas(64) float block[4 * kLanes];
  Lanes x;
  for (std::int64_t c = 0; c < C; c += 4 * kLanes) {
    philox_lanes(key, static_cast<std::uint64_t>(row), static_cast<std::uint32_t>(c / 4), x);
    normal_lanes(x.c0, x.c1, block, block + kLanes);
    normal_lanes(x.c2, x.c3, block + 2 * kLanes, block + 3 * kLanes);
    std::copy_n(block, std::min(C - c, 4 * kLanes), out + c);
  }
}

}  // namespace

void normal_rows(RngKey key, std::int64_t first, std::int64_t n, std::int64_t C, float* out) {
  parallel_for(n, kGrainRows, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r) normal_row(key, first + r, C, out + r * C);
  });
}

}  // namespace proteus
