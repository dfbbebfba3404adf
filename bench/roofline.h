// The roofline of this machine (Williams et al., CACM 52(4), 2009): what takes F operations and
// moves B bytes needs at least max(F / peak, B / bandwidth) seconds.
#pragma once

#include <algorithm>

#include "bench/fma_peak.h"
#include "tensor/tensor.h"

namespace proteus::bench {

struct Roofline {
  double flops_per_s = 0;  ///< f32 multiply-adds in registers, on all threads
  double bytes_per_s = 0;  ///< a copy larger than the caches: read once, written once

  double seconds(double flops, double bytes) const {
    return std::max(flops / flops_per_s, bytes / bytes_per_s);
  }
};

/// The best of several rounds of each, as neighbours only ever take time away; half a second.
inline Roofline measure_roofline() {
  constexpr int kRounds = 20;
  constexpr std::int64_t kCopied = std::int64_t{64} << 20;  // bytes
  Roofline best;
  const Tensor from = Tensor::zeros({kCopied}, DType::i8);
  const Tensor to = Tensor::zeros({kCopied}, DType::i8);
  for (int i = 0; i < kRounds; ++i) {
    Work peak;
    fma_peak(peak);
    best.flops_per_s = std::max(best.flops_per_s, peak.rate());
    const double begin = seconds();
    to.copy_(from);
    best.bytes_per_s = std::max(best.bytes_per_s, 2.0 * kCopied / (seconds() - begin));
  }
  return best;
}

}  // namespace proteus::bench
