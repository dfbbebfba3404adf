#include "nn/key_cache.h"

#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
#include <immintrin.h>
#endif

namespace proteus::detail {

#if defined(__AVX512VNNI__) && defined(__AVX512BW__)

void dot_codes(const std::uint8_t* keys, const std::int8_t* q, std::int64_t rows, std::int64_t D,
               std::int32_t* out) {
  constexpr std::int64_t kWidth = 64;  // codes of one instruction
  constexpr std::int64_t kLanes = 16;
  const std::int64_t whole = D / kWidth * kWidth;
  const __mmask64 rest = D > whole ? ~std::uint64_t{0} >> (kWidth - (D - whole)) : 0;
  for (std::int64_t i = 0; i < rows; ++i, keys += D) {
    __m512i sum = _mm512_setzero_si512();
    for (std::int64_t d = 0; d < whole; d += kWidth) {
      sum = _mm512_dpbusd_epi32(sum, _mm512_loadu_si512(keys + d), _mm512_loadu_si512(q + d));
    }
    if (rest) {
      sum = _mm512_dpbusd_epi32(sum, _mm512_maskz_loadu_epi8(rest, keys + whole),
                                _mm512_maskz_loadu_epi8(rest, q + whole));
    }
    alignas(64) std::int32_t lanes[kLanes];
    _mm512_store_si512(lanes, sum);
    std::int32_t total = 0;
#pragma omp simd reduction(+ : total)
    for (std::int64_t l = 0; l < kLanes; ++l) total += lanes[l];
    out[i] = total;
  }
}

#else

void dot_codes(const std::uint8_t* keys, const std::int8_t* q, std::int64_t rows, std::int64_t D,
               std::int32_t* out) {
  for (std::int64_t i = 0; i < rows; ++i, keys += D) {
    std::int32_t sum = 0;
#pragma omp simd reduction(+ : sum)
    for (std::int64_t d = 0; d < D; ++d) sum += std::int32_t{keys[d]} * std::int32_t{q[d]};
    out[i] = sum;
  }
}

#endif

}  // namespace proteus::detail
