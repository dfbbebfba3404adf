#include "tensor/ops/gemm_weight.h"

#include <algorithm>
#include <limits>

#include "tensor/ops/gemm_tiling.h"
#include "tensor/ops/tile_gemm.h"
#include "tensor/parallel.h"
#include "tensor/storage.h"

namespace proteus {
namespace {

using gemm_tiling::ceil_div;
using gemm_tiling::round_up;

struct Cut {
  std::int64_t m = 0, n = 0;  ///< of a tile of C
  std::int64_t depth = 0;     ///< of a chunk of K
  std::int64_t chunks = 1;
};

// The cheapest cut by a small cost model, in multiply-adds: those of a task, fetching a (measured:
// about 8 an element) and copying b (15), its start, and the sum over the chunks. Waves of tasks
// are counted for 2 and for 16 threads, so that the cut suits both and depends on neither.
Cut choose(std::int64_t M, std::int64_t N, std::int64_t K) {
  constexpr double kFetch = 8;
  constexpr double kCopy = 15;
  constexpr double kStart = 1e5;
  constexpr double kSum = 8;
  constexpr std::int64_t kLeastDepth = 192;
  Cut best;
  double lowest = std::numeric_limits<double>::infinity();
  for (const std::int64_t rows : {48, 64, 96, 128, 192, 384}) {
    for (const std::int64_t columns : {64, 128, 192, 256, 384, 512}) {
      for (std::int64_t chunks = 1; chunks <= 16; chunks *= 2) {
        if (chunks > 1 && K < chunks * kLeastDepth) break;
        const Cut cut{.m = ceil_div(M, ceil_div(M, rows)),
                      .n = round_up(ceil_div(N, ceil_div(N, columns)), 64),
                      .depth = ceil_div(K, chunks),
                      .chunks = chunks};
        const auto m = static_cast<double>(cut.m);
        const auto n = static_cast<double>(cut.n);
        const std::int64_t tasks = ceil_div(M, cut.m) * ceil_div(N, cut.n) * chunks;
        const double task =
            static_cast<double>(cut.depth) * (m * n + kFetch * m + kCopy * n) + kStart;
        const double sum = chunks == 1 ? 0
                                       : kSum * static_cast<double>(M) * static_cast<double>(N) *
                                             static_cast<double>(chunks);
        const double cost = 3 * (task * 2 * static_cast<double>(ceil_div(tasks, 2)) + sum) +
                            task * 16 * static_cast<double>(ceil_div(tasks, 16)) + sum;
        if (cost < lowest) {
          lowest = cost;
          best = cut;
        }
      }
    }
  }
  return best;
}

// A matrix with contiguous rows.
struct Rows {
  const float* base = nullptr;
  std::int64_t ld = 0;
  std::int64_t columns = 0;

  void copy_to(float* to, std::int64_t ldt, std::int64_t rows) const {
    constexpr std::int64_t L = tile::kLanes<float>;
    const float* from = base;
    for (std::int64_t r = 0; r < rows; ++r, from += ld, to += ldt) {
      std::int64_t j = 0;
      for (; j + 4 * L <= columns; j += 4 * L) {
#pragma GCC unroll 4
        for (std::int64_t v = 0; v < 4 * L; v += L) {
          tile::store(to + j + v, tile::load(from + j + v));
        }
      }
      for (; j + L <= columns; j += L) tile::store(to + j, tile::load(from + j));
      if (j < columns) {
        tile::store_part(to + j, tile::load_part(from + j, columns - j), columns - j);
      }
    }
  }

  void prefetch(std::int64_t begin, std::int64_t end) const {
    for (std::int64_t r = begin; r < end; ++r) {
      for (std::int64_t j = 0; j < columns; j += 16) __builtin_prefetch(base + r * ld + j, 0, 2);
    }
  }
};

// c [m, n] = a [K, m]ᵀ · b [K, n], on the calling thread. a is read where it lies: a strip of it is
// a few columns of kDepth rows, which stay in the second-level cache for all panels of b.
void multiply(std::int64_t K, const Rows& a, const Rows& b, float* c, std::int64_t ldc) {
  constexpr std::int64_t kDepth = 96;  // a panel of b takes half of the first-level cache
  constexpr std::int64_t kWidth = 64;
  constexpr std::int64_t kStrip = 6;  // rows of the microkernel
  const std::int64_t m = a.columns;
  const std::int64_t n = b.columns;
  // The rows of the next block are fetched a few at a time while this one is multiplied: hardware
  // loses the stream meanwhile. What fits the second-level cache needs none of it.
  const bool far = K * (m + n) > (std::int64_t{1} << 17);
  const std::int64_t few = ceil_div(kDepth, ceil_div(m, kStrip) * ceil_div(n, kWidth));
  alignas(64) float panel[kDepth * kWidth];
  for (std::int64_t k = 0; k < K; k += kDepth) {
    const std::int64_t depth = std::min(kDepth, K - k);
    const std::int64_t ahead = std::min(kDepth, K - k - depth);
    const Rows next_a{a.base + (k + depth) * a.ld, a.ld, m};
    const Rows next_b{b.base + (k + depth) * b.ld, b.ld, n};
    std::int64_t fetched = 0;
    const float* strip = a.base + k * a.ld;
    for (std::int64_t j = 0; j < n; j += kWidth) {
      const std::int64_t width = std::min(kWidth, n - j);
      Rows{b.base + k * b.ld + j, b.ld, width}.copy_to(panel, kWidth, depth);
      for (std::int64_t i = 0; i < m; i += kStrip) {
        if (far && fetched < ahead) {
          const std::int64_t end = std::min(ahead, fetched + few);
          next_a.prefetch(fetched, end);
          next_b.prefetch(fetched, end);
          fetched = end;
        }
        tile::gemm<float>(std::min(kStrip, m - i), width, depth, {strip + i, 1, a.ld, nullptr},
                          panel, kWidth, {c + i * ldc + j, ldc, nullptr}, k > 0);
      }
    }
  }
}

}  // namespace

bool is_weight_product(const GemmFwd& g) {
  constexpr std::int64_t kLeast = 64;
  return g.dtype == DType::f32 && g.batch == 1 && g.trans_a && !g.trans_b && g.alpha == 1 &&
         !g.bias && g.epilogue == GemmEpilogue::none && g.M >= kLeast && g.N >= kLeast &&
         g.K >= kLeast;
}

void gemm_weight(const GemmFwd& g) {
  const Cut cut = choose(g.M, g.N, g.K);
  const std::int64_t columns = ceil_div(g.N, cut.n);
  const std::int64_t tiles = ceil_div(g.M, cut.m) * columns;
  const std::int64_t size = g.M * g.N;
  const bool direct = cut.chunks == 1 && g.beta == 0;
  const Storage scratch(static_cast<std::size_t>(direct ? 0 : cut.chunks * size) * sizeof(float),
                        kCpu);
  const auto* a = static_cast<const float*>(g.a);
  const auto* b = static_cast<const float*>(g.b);
  auto* c = static_cast<float*>(g.c);
  float* sums = direct ? c : static_cast<float*>(scratch.data());
  const std::int64_t ld = direct ? g.ldc : g.N;
  parallel_for(tiles * cut.chunks, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) {
      const std::int64_t chunk = t / tiles;
      const std::int64_t k = chunk * cut.depth;
      const std::int64_t i = t % tiles / columns * cut.m;
      const std::int64_t j = t % columns * cut.n;
      multiply(std::min(cut.depth, g.K - k), {a + k * g.lda + i, g.lda, std::min(cut.m, g.M - i)},
               {b + k * g.ldb + j, g.ldb, std::min(cut.n, g.N - j)},
               sums + chunk * size + i * ld + j, ld);
    }
  });
  if (direct) return;
  parallel_for(g.M, 1 + (std::int64_t{1} << 15) / (g.N * cut.chunks),
               [&](std::int64_t begin, std::int64_t end) {
                 for (std::int64_t i = begin; i < end; ++i) {
                   float* row = c + i * g.ldc;
                   float* first = sums + i * g.N;
                   for (std::int64_t chunk = 1; chunk < cut.chunks; ++chunk) {
                     const float* more = first + chunk * size;
                     for (std::int64_t j = 0; j < g.N; ++j) first[j] += more[j];
                   }
                   for (std::int64_t j = 0; j < g.N; ++j) {
                     row[j] =
                         g.beta == 0 ? first[j] : static_cast<float>(g.beta) * row[j] + first[j];
                   }
                 }
               });
}

}  // namespace proteus
