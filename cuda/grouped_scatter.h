// grouped_scatter in bf16 with its sums in shared memory (cuda/grouped_scatter.cu).
#pragma once

#include "tensor/ops/grouped_gemm.h"

namespace proteus::cuda {

/// How the tokens of a sequence are cut for scatter.
struct Stretches {
  std::int64_t length;  // tokens of a sequence
  std::int64_t size;    // of a stretch
  std::int64_t count;   // in a sequence
};

/// begins [sequences, stretches + 1, groups], on the device: the first row of a group in each
/// stretch of a sequence, and the row after its last.
class StretchBegins {
 public:
  StretchBegins(const GroupedScatter& a, const Stretches& cut);
  const std::int32_t* data() const { return static_cast<const std::int32_t*>(memory_.data()); }

 private:
  std::int64_t cells_;
  Storage memory_;
};

/// Whether groups have enough rows in a stretch whose sums fit into shared memory.
bool scatters_in_shared(const GroupedScatter& a);
void scatter_in_shared(const GroupedScatter& a);

}  // namespace proteus::cuda
