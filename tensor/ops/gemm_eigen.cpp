// Tiles through Eigen: f64 always, f32 where the build has no oneDNN.

// g++ 12 takes the _mm512_undefined_pd() of its own headers for a mistake (GCC bug 105593).
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

// One tile is one thread's work: Eigen must not open a parallel region of its own.
#define EIGEN_DONT_PARALLELIZE
#include <Eigen/Core>
#include <string>

#include "tensor/ops/gemm_backend.h"

namespace proteus::gemm_backend {
namespace {

template <class T>
using Matrix = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
template <class T>
using Map = Eigen::Map<Matrix<T>, Eigen::Unaligned, Eigen::OuterStride<>>;
template <class T>
using ConstMap = Eigen::Map<const Matrix<T>, Eigen::Unaligned, Eigen::OuterStride<>>;

template <class T>
void multiply_eigen(const Tile<T>& t) {
  const ConstMap<T> a(t.a, t.trans_a ? t.k : t.m, t.trans_a ? t.m : t.k,
                      Eigen::OuterStride<>(t.lda));
  const ConstMap<T> b(t.b, t.trans_b ? t.n : t.k, t.trans_b ? t.k : t.n,
                      Eigen::OuterStride<>(t.ldb));
  Map<T> c(t.c, t.m, t.n, Eigen::OuterStride<>(t.ldc));
  if (t.beta == T(0)) {
    c.setZero();
  } else if (t.beta != T(1)) {
    c *= t.beta;
  }
  if (t.trans_a && t.trans_b) {
    c.noalias() += t.alpha * (a.transpose() * b.transpose());
  } else if (t.trans_a) {
    c.noalias() += t.alpha * (a.transpose() * b);
  } else if (t.trans_b) {
    c.noalias() += t.alpha * (a * b.transpose());
  } else {
    c.noalias() += t.alpha * (a * b);
  }
}

}  // namespace

void multiply(const Tile<double>& tile) { multiply_eigen(tile); }

#ifndef PROTEUS_HAVE_ONEDNN
void multiply(const Tile<float>& tile) { multiply_eigen(tile); }

const char* name() {
  static const std::string text = "Eigen " + std::to_string(EIGEN_WORLD_VERSION) + "." +
                                  std::to_string(EIGEN_MAJOR_VERSION) + "." +
                                  std::to_string(EIGEN_MINOR_VERSION);
  return text.c_str();
}
#endif

}  // namespace proteus::gemm_backend
