// A kernel and the FMA peak in turns, so that both see the same clock and the same neighbours.
#pragma once

#include <benchmark/benchmark.h>

#include "bench/fma_peak.h"

namespace proteus::bench {

/// Calls `run`, of `flops` operations, often enough to be timed, and the peak loop, in every
/// iteration. Counters: GFLOP/s, that of the peak, and the percentage.
template <class Run>
void against_peak(benchmark::State& state, double flops, Run&& run) {
  constexpr double kTimed = 1e9;  // operations
  const int repeats = 1 + static_cast<int>(kTimed / flops);
  Work work;
  Work peak;
  run();
  for (auto _ : state) {
    const double start = seconds();
    for (int r = 0; r < repeats; ++r) run();
    const double taken = seconds() - start;
    state.SetIterationTime(taken);
    work.seconds += taken;
    work.flops += flops * repeats;
    fma_peak(peak);
  }
  state.counters["GFLOP/s"] = work.rate() / 1e9;
  state.counters["peak_GFLOP/s"] = peak.rate() / 1e9;
  state.counters["percent_of_peak"] = 100 * work.rate() / peak.rate();
}

}  // namespace proteus::bench
