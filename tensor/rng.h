// Counter-based random numbers: Philox4x32 (Salmon et al., "Parallel Random Numbers: As Easy as
// 1, 2, 3", SC 2011). A number is a pure function of (seed, counter), so that the CPU, any number
// of threads and a GPU draw the same ones, and a run resumes from its counters alone.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>

#include "tensor/host_device.h"

namespace proteus {

struct Philox4 {
  std::uint32_t v[4];
};

/// Rounds of Philox4x32 on counter (lo, hi) with key `seed`. The paper recommends ten; from seven
/// on it passes all of BigCrush.
PROTEUS_HOST_DEVICE inline Philox4 philox(std::uint64_t seed, std::uint64_t lo, std::uint64_t hi,
                                          int rounds = 10) {
  std::uint32_t c0 = static_cast<std::uint32_t>(lo);
  std::uint32_t c1 = static_cast<std::uint32_t>(lo >> 32);
  std::uint32_t c2 = static_cast<std::uint32_t>(hi);
  std::uint32_t c3 = static_cast<std::uint32_t>(hi >> 32);
  std::uint32_t k0 = static_cast<std::uint32_t>(seed);
  std::uint32_t k1 = static_cast<std::uint32_t>(seed >> 32);
  for (int round = 0; round < rounds; ++round) {
    const std::uint64_t p0 = std::uint64_t{0xD2511F53u} * c0;
    const std::uint64_t p1 = std::uint64_t{0xCD9E8D57u} * c2;
    const std::uint32_t n0 = static_cast<std::uint32_t>(p1 >> 32) ^ c1 ^ k0;
    const std::uint32_t n2 = static_cast<std::uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c1 = static_cast<std::uint32_t>(p1);
    c3 = static_cast<std::uint32_t>(p0);
    c0 = n0;
    c2 = n2;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

/// A 32-bit integer as a float in [0, 1): its upper 24 bits.
PROTEUS_HOST_DEVICE inline float unit_float(std::uint32_t u) {
  return static_cast<float>(u >> 8) * 0x1p-24f;
}

/// Keep when the draw is at least this: P(keep) = 1 − p to 2^-32.
PROTEUS_HOST_DEVICE inline std::uint32_t drop_threshold(double p) {
  const double t = p * 4294967296.0;
  return t >= 4294967295.0 ? 4294967295u : static_cast<std::uint32_t>(t);
}

/// Two independent standard normal numbers from two integers (Box–Muller, in f64).
inline std::array<double, 2> normal_pair(std::uint32_t a, std::uint32_t b) {
  const double u = (static_cast<double>(a) + 1.0) * 0x1p-32;  // (0, 1]
  const double v = static_cast<double>(b) * 0x1p-32;
  const double r = std::sqrt(-2.0 * std::log(u));
  constexpr double kTwoPi = 6.283185307179586476925286766559;
  return {r * std::cos(kTwoPi * v), r * std::sin(kTwoPi * v)};
}

/// A stream identity for one random operation: counters are (element index / 4, stream).
struct RngKey {
  std::uint64_t seed = 0;
  std::uint64_t stream = 0;
};

/// Hands out one stream per random operation. Its whole state is two integers.
class Generator {
 public:
  explicit Generator(std::uint64_t seed = 0, std::uint64_t stream = 0)
      : seed_(seed), stream_(stream) {}

  RngKey next() { return {seed_, stream_++}; }
  std::uint64_t seed() const { return seed_; }
  std::uint64_t stream() const { return stream_; }
  void set_stream(std::uint64_t stream) { stream_ = stream; }

 private:
  std::uint64_t seed_;
  std::uint64_t stream_;
};

/// The i-th 32-bit number of a stream.
PROTEUS_HOST_DEVICE inline std::uint32_t random_u32(RngKey key, std::uint64_t i) {
  return philox(key.seed, i / 4, key.stream).v[i % 4];
}

}  // namespace proteus
