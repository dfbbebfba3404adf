// Transposition of a matrix in blocks that fit the registers. CPU only, private to tensor/ops.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace proteus {

#if defined(__AVX512F__)
/// 16 rows of 16 floats: four rounds of the perfect shuffle of rows i and i + 8 transpose them.
inline void transpose_16x16(const float* src, std::int64_t lds, float* dst, std::int64_t ldd) {
  typedef float Vector __attribute__((vector_size(64)));
  Vector a[16];
  Vector b[16];
  for (int i = 0; i < 16; ++i) std::memcpy(&a[i], src + i * lds, sizeof(Vector));
  const auto round = [](const Vector* from, Vector* to) {
    for (int i = 0; i < 8; ++i) {
      to[2 * i] = __builtin_shufflevector(from[i], from[i + 8], 0, 16, 1, 17, 2, 18, 3, 19, 4, 20,
                                          5, 21, 6, 22, 7, 23);
      to[2 * i + 1] = __builtin_shufflevector(from[i], from[i + 8], 8, 24, 9, 25, 10, 26, 11, 27,
                                              12, 28, 13, 29, 14, 30, 15, 31);
    }
  };
  round(a, b);
  round(b, a);
  round(a, b);
  round(b, a);
  for (int i = 0; i < 16; ++i) std::memcpy(dst + i * ldd, &a[i], sizeof(Vector));
}
#endif

/// dst[j·ldd + i] = src[i·lds + j] for i < rows, j < columns; converts.
template <class T, class A>
void transpose(const T* src, std::int64_t lds, A* dst, std::int64_t ldd, std::int64_t rows,
               std::int64_t columns) {
  constexpr std::int64_t kBlock = 16;
  for (std::int64_t i = 0; i < rows; i += kBlock) {
    const std::int64_t m = std::min(kBlock, rows - i);
    for (std::int64_t j = 0; j < columns; j += kBlock) {
      const std::int64_t n = std::min(kBlock, columns - j);
#if defined(__AVX512F__)
      if constexpr (std::is_same_v<T, float> && std::is_same_v<A, float>) {
        if (m == kBlock && n == kBlock) {
          transpose_16x16(src + i * lds + j, lds, dst + j * ldd + i, ldd);
          continue;
        }
      }
#endif
      for (std::int64_t c = 0; c < n; ++c) {
        for (std::int64_t r = 0; r < m; ++r) {
          dst[(j + c) * ldd + i + r] = A(src[(i + r) * lds + j + c]);
        }
      }
    }
  }
}

}  // namespace proteus
