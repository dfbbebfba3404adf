// The ladder of CUDA attention kernels, from plain to fast: each rung computes what
// tensor/ops/attention.h says, and is kept because the next one is checked against it. The slots
// take the highest rung that fits the problem. No CUDA header is needed to use this one.
#pragma once

#include <span>

#include "tensor/ops/attention.h"

namespace proteus::cuda {

struct AttentionFwdRung {
  const char* name;
  bool (*fits)(const AttentionFwd&);  ///< dtype, width, alignment, this GPU
  void (*run)(const AttentionFwd&);
  bool records_dropout = false;  ///< a replay draws anew
};

struct AttentionBwdRung {
  const char* name;
  bool (*fits)(const AttentionBwd&);
  void (*run)(const AttentionBwd&);
  bool records_dropout = false;
};

std::span<const AttentionFwdRung> attention_fwd_rungs();
std::span<const AttentionBwdRung> attention_bwd_rungs();

}  // namespace proteus::cuda
