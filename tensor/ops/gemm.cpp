#include "tensor/ops/gemm.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "tensor/ops/gelu.h"
#include "tensor/ops/gemm_backend.h"
#include "tensor/ops/gemm_tiling.h"
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

void widen(const bfloat16* src, std::int64_t ld, float* dst, std::int64_t rows,
           std::int64_t columns) {
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t j = 0; j < columns; ++j) dst[r * columns + j] = src[r * ld + j];
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
    widen(a_base + (g.trans_a ? k0 * g.lda + b.i : b.i * g.lda + k0), g.lda, wide_a, a_rows,
          a_columns);
    widen(b_base + (g.trans_b ? b.j * g.ldb + k0 : k0 * g.ldb + b.j), g.ldb, wide_b, b_rows,
          b_columns);
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

// dst [columns, rows] = srcᵀ, all threads.
void transpose_all(const float* src, std::int64_t lds, float* dst, std::int64_t rows,
                   std::int64_t columns) {
  constexpr std::int64_t kStrip = 64;
  parallel_for(ceil_div(columns, kStrip), ceil_div(1 << 16, kStrip * rows),
               [&](std::int64_t begin, std::int64_t end) {
                 const std::int64_t first = begin * kStrip;
                 const std::int64_t last = std::min(columns, end * kStrip);
                 transpose(src + first, lds, dst + first * rows, rows, rows, last - first);
               });
}

// The backend would transpose an operand again for every tile. Done once for all tiles, it costs
// next to nothing.
constexpr std::int64_t kMostTransposed = std::int64_t{1} << 23;  // elements of scratch memory

// x·Wᵀ: W is transposed first.
void gemm_transposed_b(GemmFwd g) {
  const Storage scratch(static_cast<std::size_t>(g.K * g.N) * sizeof(float), kCpu);
  auto* b = static_cast<float*>(scratch.data());
  transpose_all(static_cast<const float*>(g.b), g.ldb, b, g.N, g.K);
  g.b = b;
  g.ldb = g.N;
  g.trans_b = false;
  run_tiles<float>(g);
}

// dyᵀ·x: a panel of K at a time is transposed, multiplied and added to C. The cut is by shape.
void gemm_transposed_a(const GemmFwd& g) {
  const std::int64_t most = std::clamp<std::int64_t>(kMostTransposed / 4 / g.M, 256, 2048);
  const std::int64_t panels = ceil_div(g.K, most);
  const std::int64_t depth = gemm_tiling::round_up(ceil_div(g.K, panels), 64);
  const Storage scratch(static_cast<std::size_t>(g.M * depth) * sizeof(float), kCpu);
  auto* a = static_cast<float*>(scratch.data());
  for (std::int64_t k0 = 0; k0 < g.K; k0 += depth) {
    GemmFwd now = g;
    now.K = std::min(depth, g.K - k0);
    transpose_all(static_cast<const float*>(g.a) + k0 * g.lda, g.lda, a, now.K, g.M);
    now.a = a;
    now.lda = now.K;
    now.trans_a = false;
    now.b = static_cast<const float*>(g.b) + k0 * g.ldb;
    if (k0 > 0) now.beta = 1;
    if (k0 + depth < g.K) {
      now.bias = nullptr;
      now.epilogue = GemmEpilogue::none;
    }
    run_tiles<float>(now);
  }
}

void gemm_f32(const GemmFwd& g) {
  constexpr std::int64_t kReuse = 64;  // tiles' worth of reuse that pays for a transposition
  const bool worth = g.batch == 1 && g.K > 0 && g.trans_a != g.trans_b && g.M >= kReuse &&
                     g.N >= kReuse && g.M * g.N >= 4 * kReuse * kReuse;
  if (worth && g.trans_a) return gemm_transposed_a(g);
  if (worth && g.K * g.N <= kMostTransposed) return gemm_transposed_b(g);
  run_tiles<float>(g);
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

void gemm_fwd_cpu(const GemmFwd& g) {
  if (g.M == 0 || g.N == 0 || g.batch == 0) return;
  if (g.dtype == DType::f32) return gemm_f32(g);
  dispatch_float(g.dtype, "gemm_fwd",
                 [&](auto tag) { run_tiles<typename decltype(tag)::type>(g); });
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
