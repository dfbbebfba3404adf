// How a product is cut into tiles of C. Private to the GEMM kernels.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>

namespace proteus::gemm_tiling {

struct Tiling {
  std::int64_t m = 1;  ///< rows of a tile
  std::int64_t n = 1;  ///< columns of a tile
};

constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }
constexpr std::int64_t round_up(std::int64_t a, std::int64_t b) { return ceil_div(a, b) * b; }

/// Products below this many multiply-adds are not worth waking a second thread.
constexpr double kSerialWork = 1 << 18;

/// Picks the tile size that a small cost model finds fastest, from the shape alone. A tile costs
/// its multiply-adds, the packing of the operands that the backend has to transpose (measured:
/// about 20 multiply-adds per element; 2 where it reads rows as they are), and a fixed start. Waves
/// of tiles are counted for 2 and for 16 threads, so that the choice suits both and depends on
/// neither.
inline Tiling choose(std::int64_t M, std::int64_t N, std::int64_t K, bool trans_a, bool trans_b) {
  constexpr std::array<std::int64_t, 7> kRows{32, 64, 96, 128, 192, 256, 384};
  constexpr std::array<std::int64_t, 7> kColumns{64, 96, 128, 192, 256, 384, 768};
  constexpr double kStart = 1e5;
  const double work = static_cast<double>(M) * static_cast<double>(N) * static_cast<double>(K);
  Tiling best{M, N};
  if (work < kSerialWork) return best;
  const double pack_a = trans_a ? 20 : 2;
  const double pack_b = trans_a || trans_b ? 20 : 2;
  double lowest = std::numeric_limits<double>::infinity();
  for (const std::int64_t rows : kRows) {
    const std::int64_t m = std::min(M, round_up(ceil_div(M, ceil_div(M, rows)), 8));
    for (const std::int64_t columns : kColumns) {
      const std::int64_t n = std::min(N, round_up(ceil_div(N, ceil_div(N, columns)), 16));
      const auto md = static_cast<double>(m);
      const auto nd = static_cast<double>(n);
      const double tile = static_cast<double>(K) * (md * nd + pack_a * md + pack_b * nd) + kStart;
      const std::int64_t tiles = ceil_div(M, m) * ceil_div(N, n);
      const double waves = 3.0 * 2.0 * static_cast<double>(ceil_div(tiles, 2)) +
                           16.0 * static_cast<double>(ceil_div(tiles, 16));
      if (tile * waves < lowest) {
        lowest = tile * waves;
        best = {m, n};
      }
    }
  }
  return best;
}

}  // namespace proteus::gemm_tiling
