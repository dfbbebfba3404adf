// The microkernel under attention and grouped products: values for every tail, and that a row has
// the same bits in any company.
#include "tensor/ops/tile_gemm.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

namespace proteus {
namespace {

template <class T>
std::vector<T> numbers(std::int64_t n, unsigned seed) {
  std::mt19937 rng(seed);
  std::normal_distribution<double> normal;
  std::vector<T> out(static_cast<std::size_t>(n));
  for (T& x : out) x = static_cast<T>(normal(rng));
  return out;
}

template <class T>
T at(const std::vector<T>& x, std::int64_t i) {
  return x[static_cast<std::size_t>(i)];
}

constexpr double kGuard = 12345;

template <class T>
class TileGemm : public ::testing::Test {};
using Numbers = ::testing::Types<float, double>;
TYPED_TEST_SUITE(TileGemm, Numbers);

// Elements between the columns of C and its row stride are guards that nobody may write.
template <class T>
void check(std::int64_t M, std::int64_t N, std::int64_t K, bool transposed, bool accumulate) {
  const auto a = numbers<T>(M * K, 1);
  const auto b = numbers<T>(K * N, 2);
  const std::int64_t ldc = N + 3;
  std::vector<T> c(static_cast<std::size_t>(M * ldc), T(kGuard));
  for (std::int64_t i = 0; i < M; ++i) {
    for (std::int64_t j = 0; j < N; ++j) c[static_cast<std::size_t>(i * ldc + j)] = T(i - j);
  }
  const tile::MatrixA<T> left{a.data(), transposed ? 1 : K, transposed ? M : 1, nullptr};
  tile::gemm<T>(M, N, K, left, b.data(), N, {c.data(), ldc, nullptr}, accumulate);
  const double tolerance = sizeof(T) == 4 ? 2e-5 : 1e-13;
  for (std::int64_t i = 0; i < M; ++i) {
    for (std::int64_t j = 0; j < N; ++j) {
      double sum = accumulate ? static_cast<double>(i - j) : 0.0;
      for (std::int64_t k = 0; k < K; ++k) {
        sum += static_cast<double>(at(a, transposed ? k * M + i : i * K + k)) * at(b, k * N + j);
      }
      ASSERT_NEAR(at(c, i * ldc + j), sum, tolerance * (1 + std::abs(sum)))
          << M << "x" << N << "x" << K << " at " << i << ", " << j;
    }
    for (std::int64_t j = N; j < ldc; ++j) ASSERT_EQ(at(c, i * ldc + j), T(kGuard));
  }
}

TYPED_TEST(TileGemm, EqualsTheTripleLoop) {
  for (const std::int64_t M : {0, 1, 2, 5, 6, 7, 8, 11, 12, 13, 25}) {
    for (const std::int64_t N :
         {0, 1, 3, 8, 15, 16, 17, 31, 32, 33, 47, 48, 63, 64, 65, 100, 130}) {
      for (const std::int64_t K : {0, 1, 2, 19}) {
        check<TypeParam>(M, N, K, (M + K) % 2 == 0, N % 2 == 0);
        check<TypeParam>(M, N, K, (M + K) % 2 != 0, N % 2 != 0);
      }
    }
  }
}

// Alone, at any place of a larger tile, gathered, and with the columns cut anywhere.
TYPED_TEST(TileGemm, ARowHasTheSameBitsInAnyCompany) {
  using T = TypeParam;
  const std::int64_t M = 23;
  const std::int64_t N = 93;
  const std::int64_t K = 77;
  const auto a = numbers<T>(M * K, 3);
  const auto b = numbers<T>(K * N, 4);
  std::vector<T> whole(static_cast<std::size_t>(M * N));
  tile::gemm<T>(M, N, K, {a.data(), K, 1, nullptr}, b.data(), N, {whole.data(), N, nullptr}, false);
  std::vector<std::int32_t> rows;
  for (std::int32_t i = 0; i < M; ++i) rows.push_back((i * 7 + 3) % static_cast<std::int32_t>(M));
  for (std::int64_t m = 1; m <= M; ++m) {
    for (const std::int64_t cut : {1, 13, 16, 40, 64, 92}) {
      std::vector<T> part(static_cast<std::size_t>(m * N));
      const tile::MatrixA<T> gathered{a.data(), K, 1, rows.data()};
      tile::gemm<T>(m, cut, K, gathered, b.data(), N, {part.data(), N, nullptr}, false);
      tile::gemm<T>(m, N - cut, K, gathered, b.data() + cut, N, {part.data() + cut, N, nullptr},
                    false);
      for (std::int64_t i = 0; i < m; ++i) {
        for (std::int64_t j = 0; j < N; ++j) {
          ASSERT_EQ(at(part, i * N + j), at(whole, rows[static_cast<std::size_t>(i)] * N + j))
              << m << " rows, cut at " << cut << ": " << i << ", " << j;
        }
      }
    }
  }
}

// One chain over k: adding the second half onto the first is the whole.
TYPED_TEST(TileGemm, TheSumOverKContinues) {
  using T = TypeParam;
  const std::int64_t M = 9;
  const std::int64_t N = 37;
  const std::int64_t K = 50;
  const auto a = numbers<T>(M * K, 5);
  const auto b = numbers<T>(K * N, 6);
  std::vector<T> once(static_cast<std::size_t>(M * N));
  std::vector<T> twice = once;
  tile::gemm<T>(M, N, K, {a.data(), K, 1, nullptr}, b.data(), N, {once.data(), N, nullptr}, false);
  tile::gemm<T>(M, N, 21, {a.data(), K, 1, nullptr}, b.data(), N, {twice.data(), N, nullptr},
                false);
  tile::gemm<T>(M, N, K - 21, {a.data() + 21, K, 1, nullptr}, b.data() + 21 * N, N,
                {twice.data(), N, nullptr}, true);
  EXPECT_EQ(once, twice);
}

TYPED_TEST(TileGemm, RowsOfCMayBeScattered) {
  using T = TypeParam;
  const std::int64_t M = 14;
  const std::int64_t N = 20;
  const std::int64_t K = 6;
  const auto a = numbers<T>(M * K, 7);
  const auto b = numbers<T>(K * N, 8);
  std::vector<std::int32_t> rows;
  for (std::int32_t i = 0; i < M; ++i) rows.push_back((i * 5 + 2) % static_cast<std::int32_t>(M));
  std::vector<T> straight(static_cast<std::size_t>(M * N));
  std::vector<T> scattered = straight;
  tile::gemm<T>(M, N, K, {a.data(), K, 1, nullptr}, b.data(), N, {straight.data(), N, nullptr},
                false);
  tile::gemm<T>(M, N, K, {a.data(), K, 1, nullptr}, b.data(), N, {scattered.data(), N, rows.data()},
                false);
  for (std::int64_t i = 0; i < M; ++i) {
    for (std::int64_t j = 0; j < N; ++j) {
      EXPECT_EQ(at(scattered, rows[static_cast<std::size_t>(i)] * N + j), at(straight, i * N + j));
    }
  }
}

}  // namespace
}  // namespace proteus
