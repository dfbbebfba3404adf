#include "tensor/ops/dropout.h"

#ifdef __AVX512F__
#include <immintrin.h>
#endif

#include <algorithm>
#include <bit>
#include <cstring>

#include "tensor/ops/check.h"
#include "tensor/parallel.h"

namespace proteus {
namespace {

constexpr int kLanes = 8;                         // counters of a vector, in 64 bits each
constexpr int kVectors = 4;                       // vectors at once, to fill the pipelines
constexpr int kCounters = kLanes * kVectors;      // counters drawn at once
constexpr std::int64_t kBlock = 4 * kCounters;    // numbers they give
constexpr std::int64_t kDrawn = 32 * kBlock;      // drawn before they are used: they stay in L1
constexpr std::int64_t kElements = kBlock * 128;  // elements per chunk

static_assert(std::endian::native == std::endian::little);
typedef std::uint64_t Lanes __attribute__((vector_size(8 * kLanes)));

// product = the 64-bit products of the lanes' lower halves with k. (By reference: vectors by value
// have another ABI on every kind of CPU.)
inline void multiply_wide(const Lanes& a, std::uint32_t k, Lanes& product) {
#ifdef __AVX512F__
  product = reinterpret_cast<Lanes>(
      _mm512_maskz_mul_epu32(0xff, reinterpret_cast<__m512i>(a), _mm512_set1_epi64(k)));
#else
  product = (a & 0xffffffffu) * k;
#endif
}

// random_u32(key, i) for i in [4·counter, 4·counter + kBlock): as philox(), with a counter per
// lane. Only the lower halves of the lanes count.
void random_block(RngKey key, std::uint64_t counter, std::uint32_t* out) {
  Lanes c[kVectors][4];
  for (int v = 0; v < kVectors; ++v) {
    const Lanes at = Lanes{0, 1, 2, 3, 4, 5, 6, 7} + (counter + std::uint64_t{kLanes} * v);
    c[v][0] = at;
    c[v][1] = at >> 32;
    c[v][2] = Lanes{} + key.stream;
    c[v][3] = Lanes{} + (key.stream >> 32);
  }
  auto k0 = static_cast<std::uint32_t>(key.seed);
  auto k1 = static_cast<std::uint32_t>(key.seed >> 32);
  for (int round = 0; round < 10; ++round) {
    for (auto& x : c) {
      Lanes p0;
      Lanes p1;
      multiply_wide(x[0], 0xD2511F53u, p0);
      multiply_wide(x[2], 0xCD9E8D57u, p1);
      x[0] = (p1 >> 32) ^ x[1] ^ k0;
      x[2] = (p0 >> 32) ^ x[3] ^ k1;
      x[1] = p1;
      x[3] = p0;
    }
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  constexpr std::uint64_t kLow = 0xffffffffu;
  for (const auto& x : c) {
    const Lanes low = (x[0] & kLow) | (x[1] << 32);
    const Lanes high = (x[2] & kLow) | (x[3] << 32);
    const Lanes first = __builtin_shufflevector(low, high, 0, 8, 1, 9, 2, 10, 3, 11);
    const Lanes second = __builtin_shufflevector(low, high, 4, 12, 5, 13, 6, 14, 7, 15);
    std::memcpy(out, &first, sizeof(Lanes));
    std::memcpy(out + 2 * kLanes, &second, sizeof(Lanes));
    out += 4 * kLanes;
  }
}

template <class T, bool kResidual>
void apply(const DropoutFwd& a, std::int64_t begin, std::int64_t count,
           const std::uint32_t* random) {
  using A = accum_t<T>;
  const A scale = static_cast<A>(a.scale);
  const std::uint32_t threshold = a.threshold;
  const T* x = static_cast<const T*>(a.x) + begin;
  const T* residual = kResidual ? static_cast<const T*>(a.residual) + begin : nullptr;
  T* y = static_cast<T*>(a.y) + begin;
#pragma omp simd
  for (std::int64_t i = 0; i < count; ++i) {
    const A kept = random[i] >= threshold ? A(x[i]) * scale : A(0);
    y[i] = kResidual ? T(A(residual[i]) + kept) : T(kept);
  }
}

template <class T, bool kResidual>
void dropout_typed(const DropoutFwd& a) {
  parallel_for(a.n, kElements, [&](std::int64_t begin, std::int64_t end) {
    std::uint32_t random[kDrawn];
    for (std::int64_t i = begin; i < end; i += kDrawn) {
      const std::int64_t count = std::min(kDrawn, end - i);
      for (std::int64_t j = 0; j < count; j += kBlock) {
        random_block(a.key, static_cast<std::uint64_t>(i + j) / 4, random + j);
      }
      apply<T, kResidual>(a, i, count, random);
    }
  });
}

void dropout_cpu(const DropoutFwd& a) {
  dispatch_float(a.dtype, "dropout_fwd", [&](auto tag) {
    using T = typename decltype(tag)::type;
    if (a.residual) {
      dropout_typed<T, true>(a);
    } else {
      dropout_typed<T, false>(a);
    }
  });
}

void check_p(const std::string& call, double p) {
  if (!(p >= 0 && p < 1)) {
    throw ConfigError(call + ": p: expected 0 <= p < 1, got " + std::to_string(p));
  }
}

Tensor run(const Tensor& x_any, const Tensor& residual_any, double p, RngKey key) {
  const Tensor x = x_any.contiguous();
  const Tensor residual = residual_any.defined() ? residual_any.contiguous() : residual_any;
  Tensor y = Tensor::empty(x.shape(), x.dtype(), x.device());
  if (y.numel() == 0) return y;
  dropout_fwd(x.device(), {.x = x.raw(),
                           .residual = residual.defined() ? residual.raw() : nullptr,
                           .y = y.raw(),
                           .n = x.numel(),
                           .threshold = drop_threshold(p),
                           .scale = 1 / (1 - p),
                           .key = key,
                           .dtype = x.dtype()});
  return y;
}

}  // namespace

Slot<DropoutFwd> dropout_fwd{"dropout_fwd", dropout_cpu};

namespace ops {

Tensor dropout(const Tensor& x, double p, RngKey key) {
  const std::string call = "dropout(x, p)";
  check_floating(call, "x", x);
  check_p(call, p);
  return p == 0 ? x : run(x, {}, p, key);
}

Tensor dropout_add(const Tensor& x, const Tensor& residual, double p, RngKey key) {
  const std::string call = "dropout_add(x, residual, p)";
  check_floating(call, "x", x);
  check_like(call, "residual", residual, x);
  check_shape(call, "residual", residual, x.shape(), "(= x.shape)");
  check_p(call, p);
  return run(x, residual, p, key);
}

}  // namespace ops
}  // namespace proteus
