// The one private seam between the GEMM of this library and the libraries that multiply a tile:
// oneDNN where the build found it (f32), Eigen otherwise (f32) and always for f64. Included by
// the GEMM kernels and their test only.
#pragma once

#include <cstdint>

namespace proteus::gemm_backend {

/// One row-major tile: C[m×n] = alpha·op(A)·op(B) + beta·C. op(A) is m×k, stored as A[m×lda] or,
/// transposed, as A[k×lda]; op(B) is k×n alike. beta = 0 does not read C.
template <class T>
struct Tile {
  const T* a = nullptr;
  const T* b = nullptr;
  T* c = nullptr;
  std::int64_t m = 0, n = 0, k = 0;
  std::int64_t lda = 0, ldb = 0, ldc = 0;
  bool trans_a = false, trans_b = false;
  T alpha = 1;
  T beta = 0;
};

/// Computes the tile on the calling thread alone; m, n and k are positive. The bits depend on the
/// tile only, not on the thread or on the number of threads.
void multiply(const Tile<float>& tile);
void multiply(const Tile<double>& tile);

/// "oneDNN 2.6.3" or "Eigen 3.4.0": what multiplies f32 tiles.
const char* name();

}  // namespace proteus::gemm_backend
