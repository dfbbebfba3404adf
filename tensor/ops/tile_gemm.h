// The register-blocked microkernel under attention and the matrix products: C (+)= A · B for tiles
// that sit in cache. CPU only, private to tensor/ops.
//
// Every element of C is one chain of fused multiply-adds over k = 0, 1, …, K−1. The chain does not
// depend on M, on where the row stands in the tile or on whether its column is in a vector's tail:
// the same row gives the same bits in any company. Causality tests rely on it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace proteus::tile {

// The widest vectors of the machine, and twice the rows per block where it has 32 of them.
#if defined(__AVX512F__)
constexpr std::int64_t kVectorBytes = 64;
constexpr int kRows = 2;
#elif defined(__AVX__)
constexpr std::int64_t kVectorBytes = 32;
constexpr int kRows = 1;
#else
constexpr std::int64_t kVectorBytes = 16;
constexpr int kRows = 1;
#endif

template <class T>
struct VectorOf;
template <>
struct VectorOf<float> {
  typedef float type __attribute__((vector_size(kVectorBytes)));
};
template <>
struct VectorOf<double> {
  typedef double type __attribute__((vector_size(kVectorBytes)));
};
template <class T>
using Vec = typename VectorOf<T>::type;
template <class T>
constexpr std::int64_t kLanes = kVectorBytes / static_cast<std::int64_t>(sizeof(T));

template <class T>
inline Vec<T> load(const T* p) {
  Vec<T> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
template <class T>
inline void store(T* p, Vec<T> v) {
  std::memcpy(p, &v, sizeof v);
}
/// The first n lanes, zeros behind them; reads and writes nothing beyond.
template <class T>
inline Vec<T> load_part(const T* p, std::int64_t n) {
#if defined(__AVX512F__)
  const unsigned mask = (1u << n) - 1u;
  if constexpr (sizeof(T) == 4) {
    return (Vec<T>)_mm512_maskz_loadu_ps(static_cast<__mmask16>(mask), p);
  } else {
    return (Vec<T>)_mm512_maskz_loadu_pd(static_cast<__mmask8>(mask), p);
  }
#else
  Vec<T> v{};
  for (std::int64_t i = 0; i < n; ++i) v[i] = p[i];
  return v;
#endif
}
template <class T>
inline void store_part(T* p, Vec<T> v, std::int64_t n) {
#if defined(__AVX512F__)
  const unsigned mask = (1u << n) - 1u;
  if constexpr (sizeof(T) == 4) {
    _mm512_mask_storeu_ps(p, static_cast<__mmask16>(mask), (__m512)v);
  } else {
    _mm512_mask_storeu_pd(p, static_cast<__mmask8>(mask), (__m512d)v);
  }
#else
  for (std::int64_t i = 0; i < n; ++i) p[i] = v[i];
#endif
}

/// Element (i, k) of A stands at base + row(i)·row_stride + k·column_stride, with row(i) =
/// index[i], or i where index is null.
template <class T>
struct MatrixA {
  const T* base = nullptr;
  std::int64_t row_stride = 0;
  std::int64_t column_stride = 1;
  const std::int32_t* index = nullptr;

  const T* row(std::int64_t i) const { return base + (index ? index[i] : i) * row_stride; }
};

/// Rows of C, likewise; columns are contiguous.
template <class T>
struct MatrixC {
  T* base = nullptr;
  std::int64_t row_stride = 0;
  const std::int32_t* index = nullptr;

  T* row(std::int64_t i) const { return base + (index ? index[i] : i) * row_stride; }
};

// MR rows × NV vectors in registers; with Tail, the last vector has `tail` lanes. The loops over
// rows and vectors must unroll, or the accumulators go to memory.
template <class T, int MR, int NV, bool Tail>
inline void micro(std::int64_t K, const MatrixA<T>& a, std::int64_t i0, const T* b,
                  std::int64_t ldb, const MatrixC<T>& c, std::int64_t j0, std::int64_t tail,
                  bool accumulate) {
  const auto load_b = [tail](const T* p, int j) {
    return Tail && j == NV - 1 ? load_part(p + j * kLanes<T>, tail) : load(p + j * kLanes<T>);
  };
  const T* rows[MR];
  Vec<T> acc[MR][NV];
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i) {
    rows[i] = a.row(i0 + i);
    const T* row = c.row(i0 + i) + j0;
#pragma GCC unroll 16
    for (int j = 0; j < NV; ++j) acc[i][j] = accumulate ? load_b(row, j) : Vec<T>{};
  }
  const std::int64_t stride = a.column_stride;
  std::int64_t at = 0;
  for (std::int64_t k = 0; k < K; ++k, b += ldb, at += stride) {
    Vec<T> bk[NV];
#pragma GCC unroll 16
    for (int j = 0; j < NV; ++j) bk[j] = load_b(b, j);
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i) {
      const T value = rows[i][at];
#pragma GCC unroll 16
      for (int j = 0; j < NV; ++j) acc[i][j] += value * bk[j];
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i) {
    T* row = c.row(i0 + i) + j0;
#pragma GCC unroll 16
    for (int j = 0; j < NV; ++j) {
      if (Tail && j == NV - 1) {
        store_part(row + j * kLanes<T>, acc[i][j], tail);
      } else {
        store(row + j * kLanes<T>, acc[i][j]);
      }
    }
  }
}

// The last `rows` < MR rows of a panel, in one block of their own size.
template <class T, int MR, int NV, bool Tail>
void last_rows(std::int64_t rows, std::int64_t K, const MatrixA<T>& a, std::int64_t i, const T* b,
               std::int64_t ldb, const MatrixC<T>& c, std::int64_t j0, std::int64_t tail,
               bool accumulate) {
  if constexpr (MR > 1) {
    if (rows == MR - 1) {
      micro<T, MR - 1, NV, Tail>(K, a, i, b, ldb, c, j0, tail, accumulate);
    } else {
      last_rows<T, MR - 1, NV, Tail>(rows, K, a, i, b, ldb, c, j0, tail, accumulate);
    }
  }
}

// All rows of one column panel of NV vectors, MR at a time.
template <class T, int MR, int NV, bool Tail>
void panel(std::int64_t M, std::int64_t K, const MatrixA<T>& a, const T* b, std::int64_t ldb,
           const MatrixC<T>& c, std::int64_t j0, std::int64_t tail, bool accumulate) {
  std::int64_t i = 0;
  for (; i + MR <= M; i += MR) micro<T, MR, NV, Tail>(K, a, i, b, ldb, c, j0, tail, accumulate);
  if (i < M) last_rows<T, MR, NV, Tail>(M - i, K, a, i, b, ldb, c, j0, tail, accumulate);
}

/// C[M×N] = A[M×K]·B[K×N], added to C if `accumulate`. B is row-major with row stride ldb. Rows of
/// C must be distinct.
template <class T>
void gemm(std::int64_t M, std::int64_t N, std::int64_t K, const MatrixA<T>& a, const T* b,
          std::int64_t ldb, const MatrixC<T>& c, bool accumulate) {
  constexpr std::int64_t L = kLanes<T>;
  std::int64_t j = 0;
  for (; j + 4 * L <= N; j += 4 * L)
    panel<T, 3 * kRows, 4, false>(M, K, a, b + j, ldb, c, j, 0, accumulate);
  // What is left is less than four vectors: one panel as wide as it.
  const std::int64_t tail = (N - j) % L;
  switch ((N - j + L - 1) / L) {
    case 1:
      return tail ? panel<T, 6 * kRows, 1, true>(M, K, a, b + j, ldb, c, j, tail, accumulate)
                  : panel<T, 6 * kRows, 1, false>(M, K, a, b + j, ldb, c, j, 0, accumulate);
    case 2:
      return tail ? panel<T, 4 * kRows, 2, true>(M, K, a, b + j, ldb, c, j, tail, accumulate)
                  : panel<T, 4 * kRows, 2, false>(M, K, a, b + j, ldb, c, j, 0, accumulate);
    case 3:
      return tail ? panel<T, 4 * kRows, 3, true>(M, K, a, b + j, ldb, c, j, tail, accumulate)
                  : panel<T, 4 * kRows, 3, false>(M, K, a, b + j, ldb, c, j, 0, accumulate);
    case 4:
      return panel<T, 3 * kRows, 4, true>(M, K, a, b + j, ldb, c, j, tail, accumulate);
    default:
      return;
  }
}

}  // namespace proteus::tile
