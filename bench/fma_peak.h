// The machine's peak: a loop of fused multiply-adds that stays in registers. Run between the
// measurements of a benchmark, so that both see the same clock and the same neighbours.
#pragma once

#include <chrono>
#include <cstdint>

#include "tensor/parallel.h"

namespace proteus::bench {

inline double seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/// Floating-point operations and the time they took.
struct Work {
  double flops = 0;
  double seconds = 0;
  double rate() const { return seconds > 0 ? flops / seconds : 0; }
};

#if defined(__AVX512F__)
constexpr int kLanes = 16;
constexpr int kChains = 12;
#else
constexpr int kLanes = 8;
constexpr int kChains = 10;
#endif

/// Runs `rounds` rounds (the default takes some 3 ms: long beside the time it takes to wake a
/// thread) of independent f32 multiply-add chains on every thread.
inline void fma_peak(Work& total, std::int64_t rounds = 2000000) {
  typedef float Vector __attribute__((vector_size(kLanes * sizeof(float))));
  const int threads = num_threads();
  const double start = seconds();
  parallel_for(threads, 1, [&](std::int64_t, std::int64_t) {
    Vector x[kChains];
    Vector scale;
    Vector shift;
    for (int l = 0; l < kLanes; ++l) {
      scale[l] = 0.999f;
      shift[l] = 1e-3f;
    }
    for (auto& v : x) v = shift;
    for (std::int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 12
      for (auto& v : x) v = v * scale + shift;
      asm volatile("" : "+x"(scale));  // each round is really run
    }
    for (auto& v : x) asm volatile("" : : "x"(v));
  });
  total.seconds += seconds() - start;
  total.flops += 2.0 * kLanes * kChains * static_cast<double>(rounds) * threads;
}

}  // namespace proteus::bench
