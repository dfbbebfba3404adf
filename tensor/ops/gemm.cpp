#include "tensor/ops/gemm.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "tensor/ops/gelu.h"
#include "tensor/ops/gemm_backend.h"
#include "tensor/ops/gemm_tiling.h"
#include "tensor/ops/gemm_weight.h"
#include "tensor/ops/tile_gemm.h"
#include "tensor/ops/transpose.h"
#include "tensor/parallel.h"
#include "tensor/storage.h"

namespace proteus {
namespace {

using gemm_tiling::ceil_div;

// A tile of C on its way: sums in the accumulation type, either in C itself or in a buffer.
template <class T>
struct Block {
  accum_t<T>* sums = nullptr;
  std::int64_t ld = 0;
  std::int64_t batch = 0, i = 0, j = 0, m = 0, n = 0;
};

// bias, GELU and the conversion to T, right after the tile was computed.
template <class T>
void finish_block(const GemmFwd& g, const Block<T>& b) {
  using A = accum_t<T>;
  constexpr bool kInPlace = std::is_same_v<T, A>;
  if (kInPlace && !g.bias && g.epilogue == GemmEpilogue::none) return;
  const T* bias = g.bias ? static_cast<const T*>(g.bias) + b.j : nullptr;
  const A beta = kInPlace ? A(0) : static_cast<A>(g.beta);  // in place, the backend has done it
  for (std::int64_t r = 0; r < b.m; ++r) {
    A* sums = b.sums + r * b.ld;
    const std::int64_t at = b.batch * g.c_stride + (b.i + r) * g.ldc + b.j;
    if (!kInPlace && g.wide_c) {
      A* c = static_cast<A*>(g.c) + at;
      for (std::int64_t j = 0; j < b.n; ++j) c[j] = sums[j] + (beta == A(0) ? A(0) : beta * c[j]);
      continue;
    }
    T* c = static_cast<T*>(g.c) + at;
    T* pre = g.pre ? static_cast<T*>(g.pre) + at : nullptr;
    T* act = g.act ? static_cast<T*>(g.act) + at : nullptr;
    if (beta != A(0)) {
      for (std::int64_t j = 0; j < b.n; ++j) sums[j] += beta * A(c[j]);
    }
    if (bias) {
#pragma omp simd
      for (std::int64_t j = 0; j < b.n; ++j) sums[j] += A(bias[j]);
    }
    if (g.epilogue == GemmEpilogue::gelu) {
      if (pre) {
        for (std::int64_t j = 0; j < b.n; ++j) pre[j] = T(sums[j]);
      }
#pragma omp simd
      for (std::int64_t j = 0; j < b.n; ++j) c[j] = T(gelu_value(sums[j]));
    } else if (g.epilogue == GemmEpilogue::gelu_grad) {
#pragma omp simd
      for (std::int64_t j = 0; j < b.n; ++j) c[j] = T(sums[j] * gelu_slope(A(pre[j])));
      if (act) {
#pragma omp simd
        for (std::int64_t j = 0; j < b.n; ++j) act[j] = T(gelu_value(A(pre[j])));
      }
    } else if (!kInPlace) {
      for (std::int64_t j = 0; j < b.n; ++j) c[j] = T(sums[j]);
    }
  }
}

// f32 and f64: the backend reads and writes the operands where they are.
template <class T>
void compute_in_place(const GemmFwd& g, Block<T> b) {
  T* c = static_cast<T*>(g.c) + b.batch * g.c_stride + b.i * g.ldc + b.j;
  if (g.K == 0) {
    for (std::int64_t r = 0; r < b.m; ++r) {
      for (std::int64_t j = 0; j < b.n; ++j) {
        T& e = c[r * g.ldc + j];
        e = g.beta == 0 ? T(0) : static_cast<T>(g.beta) * e;
      }
    }
  } else {
    gemm_backend::multiply(gemm_backend::Tile<T>{
        .a = static_cast<const T*>(g.a) + b.batch * g.a_stride + (g.trans_a ? b.i : b.i * g.lda),
        .b = static_cast<const T*>(g.b) + b.batch * g.b_stride + (g.trans_b ? b.j * g.ldb : b.j),
        .c = c,
        .m = b.m,
        .n = b.n,
        .k = g.K,
        .lda = g.lda,
        .ldb = g.ldb,
        .ldc = g.ldc,
        .trans_a = g.trans_a,
        .trans_b = g.trans_b,
        .alpha = static_cast<T>(g.alpha),
        .beta = static_cast<T>(g.beta)});
  }
  b.sums = c;
  b.ld = g.ldc;
  finish_block(g, b);
}

template <class T, class A>
void copy_rows(const T* from, std::int64_t ldf, A* to, std::int64_t ldt, std::int64_t rows,
               std::int64_t columns) {
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t j = 0; j < columns; ++j) to[r * ldt + j] = A(from[r * ldf + j]);
  }
}

// bf16: blocks of both operands are widened to f32 (exact) and multiplied; sums stay in f32 until
// the tile is complete.
void compute_bf16(const GemmFwd& g, Block<bfloat16> b) {
  constexpr std::int64_t kDepth = 512;  // keeps a block of each operand in the second-level cache
  thread_local std::vector<float> buffer;
  const std::int64_t depth = std::min(g.K, kDepth);
  buffer.resize(static_cast<std::size_t>(b.m * b.n + depth * (b.m + b.n)));
  float* sums = buffer.data();
  float* wide_a = sums + b.m * b.n;
  float* wide_b = wide_a + b.m * depth;
  if (g.K == 0) std::fill_n(sums, b.m * b.n, 0.0f);
  const auto* a_base = static_cast<const bfloat16*>(g.a) + b.batch * g.a_stride;
  const auto* b_base = static_cast<const bfloat16*>(g.b) + b.batch * g.b_stride;
  for (std::int64_t k0 = 0; k0 < g.K; k0 += kDepth) {
    const std::int64_t k = std::min(kDepth, g.K - k0);
    const std::int64_t a_rows = g.trans_a ? k : b.m;
    const std::int64_t a_columns = g.trans_a ? b.m : k;
    const std::int64_t b_rows = g.trans_b ? b.n : k;
    const std::int64_t b_columns = g.trans_b ? k : b.n;
    copy_rows(a_base + (g.trans_a ? k0 * g.lda + b.i : b.i * g.lda + k0), g.lda, wide_a, a_columns,
              a_rows, a_columns);
    copy_rows(b_base + (g.trans_b ? b.j * g.ldb + k0 : k0 * g.ldb + b.j), g.ldb, wide_b, b_columns,
              b_rows, b_columns);
    gemm_backend::multiply(gemm_backend::Tile<float>{.a = wide_a,
                                                     .b = wide_b,
                                                     .c = sums,
                                                     .m = b.m,
                                                     .n = b.n,
                                                     .k = k,
                                                     .lda = a_columns,
                                                     .ldb = b_columns,
                                                     .ldc = b.n,
                                                     .trans_a = g.trans_a,
                                                     .trans_b = g.trans_b,
                                                     .alpha = static_cast<float>(g.alpha),
                                                     .beta = k0 == 0 ? 0.0f : 1.0f});
  }
  b.sums = sums;
  b.ld = b.n;
  finish_block(g, b);
}

template <class T>
void run_tiles(const GemmFwd& g) {
  const auto tile = gemm_tiling::choose(g.M, g.N, g.K, g.trans_a, g.trans_b);
  const std::int64_t columns = ceil_div(g.N, tile.n);
  const std::int64_t per_batch = ceil_div(g.M, tile.m) * columns;
  const double tile_work =
      static_cast<double>(tile.m) * static_cast<double>(tile.n) * static_cast<double>(g.K + 1);
  const auto grain = static_cast<std::int64_t>(gemm_tiling::kSerialWork / tile_work) + 1;
  parallel_for(per_batch * g.batch, grain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) {
      Block<T> b;
      b.batch = t / per_batch;
      b.i = t % per_batch / columns * tile.m;
      b.j = t % columns * tile.n;
      b.m = std::min(tile.m, g.M - b.i);
      b.n = std::min(tile.n, g.N - b.j);
      if constexpr (std::is_same_v<T, bfloat16>) {
        compute_bf16(g, b);
      } else {
        compute_in_place<T>(g, b);
      }
    }
  });
}

// Panels of op(B), 64 columns wide and next to each other: [K, 64] each, the last one narrower in
// what is used of it.
constexpr std::int64_t kPanel = 64;

template <class T>
void pack_panels(const GemmFwd& g, std::int64_t j0, std::int64_t columns, accum_t<T>* panels) {
  parallel_for(ceil_div(columns, kPanel), 1 + (1 << 16) / (kPanel * g.K),
               [&](std::int64_t begin, std::int64_t end) {
                 for (std::int64_t p = begin; p < end; ++p) {
                   const std::int64_t j = j0 + p * kPanel;
                   const std::int64_t width = std::min(kPanel, j0 + columns - j);
                   accum_t<T>* panel = panels + p * kPanel * g.K;
                   const T* b = static_cast<const T*>(g.b);
                   if (g.trans_b) {
                     transpose(b + j * g.ldb, g.ldb, panel, kPanel, width, g.K);
                   } else {
                     copy_rows(b + j, g.ldb, panel, kPanel, g.K, width);
                   }
                 }
               });
}

// One tile of C against packed panels: up to kDepth of K at a time.
template <class T>
void compute_packed(const GemmFwd& g, Block<T> b, const accum_t<T>* panels) {
  using A = accum_t<T>;
  constexpr bool kInPlace = std::is_same_v<T, A>;
  constexpr std::int64_t kDepth = 384;
  const std::int64_t at = b.i * g.ldc + b.j;
  thread_local std::vector<A> buffer;  // of bf16: sums, and a block of A
  const std::int64_t depth = std::min(kDepth, g.K);
  if (!kInPlace) buffer.resize(static_cast<std::size_t>(b.m * (b.n + depth)));
  if constexpr (kInPlace) {
    b.sums = static_cast<T*>(g.c) + at;
    b.ld = g.ldc;
  } else {
    b.sums = buffer.data();
    b.ld = b.n;
  }
  for (std::int64_t k = 0; k < g.K; k += kDepth) {
    const std::int64_t now = std::min(kDepth, g.K - k);
    const T* rows = static_cast<const T*>(g.a) + b.i * g.lda + k;
    tile::MatrixA<A> a;
    if constexpr (kInPlace) {
      a = {rows, g.lda, 1, nullptr};
    } else {
      A* wide = buffer.data() + b.m * b.n;
      copy_rows(rows, g.lda, wide, depth, b.m, now);
      a = {wide, depth, 1, nullptr};
    }
    for (std::int64_t j = 0; j < b.n; j += kPanel) {
      tile::gemm<A>(b.m, std::min(kPanel, b.n - j), now, a, panels + j * g.K + k * kPanel, kPanel,
                    {b.sums + j, b.ld, nullptr}, k > 0 || (kInPlace && g.beta == 1));
    }
  }
  finish_block(g, b);
}

// x·W and x·Wᵀ. W is packed once for all tiles; rows of x are read where they are.
template <class T>
void gemm_packed(const GemmFwd& g) {
  constexpr std::int64_t kMostPacked = std::int64_t{1} << 23;  // elements of scratch memory
  constexpr std::int64_t kColumns = 8 * kPanel;                // of a tile
  const std::int64_t rows = g.M < 2048 ? 48 : 96;
  const std::int64_t most = std::max(kColumns, kMostPacked / g.K / kColumns * kColumns);
  const std::int64_t group = std::min(most, gemm_tiling::round_up(g.N, kPanel));
  const Storage scratch(static_cast<std::size_t>(group * g.K) * sizeof(accum_t<T>), kCpu);
  auto* panels = static_cast<accum_t<T>*>(scratch.data());
  for (std::int64_t j0 = 0; j0 < g.N; j0 += group) {
    const std::int64_t width = std::min(group, g.N - j0);
    pack_panels<T>(g, j0, width, panels);
    const std::int64_t columns = ceil_div(width, kColumns);
    parallel_for(ceil_div(g.M, rows) * columns, 1, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t t = begin; t < end; ++t) {
        const std::int64_t i = t / columns * rows;
        const std::int64_t j = t % columns * kColumns;
        Block<T> b;
        b.i = i;
        b.j = j0 + j;
        b.m = std::min(rows, g.M - i);
        b.n = std::min(kColumns, width - j);
        compute_packed<T>(g, b, panels + j * g.K);
      }
    });
  }
}

// Whether so many rows read W that packing it pays: from 16 on it takes 0.2 to 1 times as long as
// the backend does, for 8 it takes 1.4 to 2 times as long, for one 3 to 5 times.
bool packing_pays(const GemmFwd& g) {
  constexpr std::int64_t kLeastRows = 16;
  return g.batch == 1 && !g.trans_a && g.alpha == 1 && (g.beta == 0 || g.beta == 1) && g.K > 0 &&
         g.M >= kLeastRows;
}

template <class T>
void gemm_typed(const GemmFwd& g) {
  if (is_weight_product(g)) return gemm_weight(g);
  if (packing_pays(g)) return gemm_packed<T>(g);
  run_tiles<T>(g);
}

// Rows are cut into chunks with one partial sum each, which are then added in order.
template <class T>
void bias_bwd_typed(const BiasBwd& a) {
  using A = accum_t<T>;
  const std::int64_t grain = std::clamp<std::int64_t>(32768 / a.N, 16, 1024);
  const std::int64_t chunks = ceil_div(a.M, grain);
  std::vector<A> partial(static_cast<std::size_t>(a.dbias ? chunks * a.N : 0));
  parallel_for(a.M, grain, [&](std::int64_t begin, std::int64_t end) {
    A* sum = a.dbias ? partial.data() + begin / grain * a.N : nullptr;
    for (std::int64_t r = begin; r < end; ++r) {
      const T* dy = static_cast<const T*>(a.dy) + r * a.N;
      const T* row = dy;
      if (a.pre) {
        const T* pre = static_cast<const T*>(a.pre) + r * a.N;
        T* dpre = static_cast<T*>(a.dpre) + r * a.N;
#pragma omp simd
        for (std::int64_t j = 0; j < a.N; ++j) dpre[j] = T(A(dy[j]) * gelu_slope(A(pre[j])));
        row = dpre;
      }
      if (!sum) continue;
#pragma omp simd
      for (std::int64_t j = 0; j < a.N; ++j) sum[j] += A(row[j]);
    }
  });
  if (!a.dbias) return;
  constexpr std::int64_t kColumns = 64;
  parallel_for(a.N, std::max(kColumns, 32768 / (chunks + 1)),
               [&](std::int64_t begin, std::int64_t end) {
                 T* out = static_cast<T*>(a.dbias);
                 for (std::int64_t j = begin; j < end; ++j) {
                   A sum = 0;
                   for (std::int64_t k = 0; k < chunks; ++k) {
                     sum += partial[static_cast<std::size_t>(k * a.N + j)];
                   }
                   out[j] = T(sum);
                 }
               });
}

// c = add, to which the product is then added.
GemmFwd added_first(GemmFwd g) {
  const auto size = static_cast<std::int64_t>(size_of(g.dtype));
  parallel_for(g.M, std::max<std::int64_t>(1, 65536 / g.N),
               [&](std::int64_t begin, std::int64_t end) {
                 for (std::int64_t i = begin; i < end; ++i) {
                   std::memcpy(static_cast<char*>(g.c) + i * g.ldc * size,
                               static_cast<const char*>(g.add) + i * g.ldc * size,
                               static_cast<std::size_t>(g.N * size));
                 }
               });
  g.add = nullptr;
  g.beta = 1;
  return g;
}

void gemm_fwd_cpu(const GemmFwd& g) {
  if (g.M == 0 || g.N == 0 || g.batch == 0) return;
  if (g.add) return gemm_fwd_cpu(added_first(g));
  dispatch_float(g.dtype, "gemm_fwd",
                 [&](auto tag) { gemm_typed<typename decltype(tag)::type>(g); });
}

void bias_bwd_cpu(const BiasBwd& a) {
  if (a.N == 0) return;
  dispatch_float(a.dtype, "bias_bwd",
                 [&](auto tag) { bias_bwd_typed<typename decltype(tag)::type>(a); });
}

}  // namespace

Slot<GemmFwd> gemm_fwd{"gemm_fwd", gemm_fwd_cpu};
Slot<BiasBwd> bias_bwd{"bias_bwd", bias_bwd_cpu};

}  // namespace proteus
