#pragma once

#include <cstddef>
#include <vector>

namespace proteus::bench {

/// Σ (got − expected)² / Σ expected².
inline double nmse(const std::vector<double>& got, const std::vector<double>& expected) {
  double error = 0;
  double norm = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    error += (got[i] - expected[i]) * (got[i] - expected[i]);
    norm += expected[i] * expected[i];
  }
  return error / norm;
}

}  // namespace proteus::bench
