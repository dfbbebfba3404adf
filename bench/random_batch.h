// Batches of random ids, for benchmarks of training: what is in them does not matter.
#pragma once

#include "train/batch.h"

namespace proteus::bench {

inline Batch random_batch(std::int64_t rows, std::int64_t context, std::int64_t vocab,
                          std::int64_t index) {
  const auto draw = [&](std::int64_t stream) {
    const RngKey key{7, static_cast<std::uint64_t>(stream)};
    return Tensor::rand({rows, context}, key, DType::f64, 0, static_cast<double>(vocab))
        .to(DType::i32);
  };
  return {draw(2 * index), draw(2 * index + 1)};
}

}  // namespace proteus::bench
