#include "tensor/ops/gemm_weight.h"

#include <algorithm>
#include <limits>

#include "tensor/ops/gemm_backend.h"
#include "tensor/ops/gemm_tiling.h"
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

// The cheapest cut by a small cost model, in multiply-adds: those of a task, the packing of its
// operands (measured: about 6 an element), its start, and the sum over the chunks. Waves of tasks
// are counted for 2 and for 16 threads, so that the cut suits both and depends on neither.
Cut choose(std::int64_t M, std::int64_t N, std::int64_t K) {
  constexpr double kPack = 6;
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
        const double task = static_cast<double>(cut.depth) * (m * n + kPack * (m + n)) + kStart;
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
      gemm_backend::multiply({.a = a + k * g.lda + i,
                              .b = b + k * g.ldb + j,
                              .c = sums + chunk * size + i * ld + j,
                              .m = std::min(cut.m, g.M - i),
                              .n = std::min(cut.n, g.N - j),
                              .k = std::min(cut.depth, g.K - k),
                              .lda = g.lda,
                              .ldb = g.ldb,
                              .ldc = ld,
                              .trans_a = true});
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
