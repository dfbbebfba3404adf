// A sequence of random integers from one Philox stream, for code that draws one after another.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "tensor/rng.h"

namespace proteus {

class Draw {
 public:
  explicit Draw(RngKey key) : key_(key) {}

  std::uint32_t bits() {
    if (used_ == 4) {
      block_ = philox(key_.seed, next_++, key_.stream);
      used_ = 0;
    }
    return block_.v[used_++];
  }
  /// Uniform in [0, n), 1 ≤ n < 2^32: 64 random bits are scaled, the bias is below n / 2^64.
  std::int64_t below(std::int64_t n) {
    const std::uint64_t hi = bits();
    const std::uint64_t lo = bits();
    const auto m = static_cast<std::uint64_t>(n);
    return static_cast<std::int64_t>((hi * m + ((lo * m) >> 32)) >> 32);
  }
  /// `count` different integers of [0, n) in random order.
  std::vector<std::int32_t> distinct(std::int64_t n, std::int64_t count) {
    std::vector<std::int32_t> pool(static_cast<std::size_t>(n));
    for (std::size_t i = 0; i < pool.size(); ++i) pool[i] = static_cast<std::int32_t>(i);
    for (std::int64_t i = 0; i < count; ++i) {
      std::swap(pool[static_cast<std::size_t>(i)],
                pool[static_cast<std::size_t>(i + below(n - i))]);
    }
    pool.resize(static_cast<std::size_t>(count));
    return pool;
  }

 private:
  RngKey key_;
  std::uint64_t next_ = 0;
  Philox4 block_{};
  int used_ = 4;
};

}  // namespace proteus
