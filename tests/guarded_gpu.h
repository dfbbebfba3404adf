// A GPU whose memory is watched: guard bytes around every block, and poison (a NaN in every float
// type) in fresh ones, so that a kernel that writes outside or leaves elements out is found.
#pragma once

#include <cstdint>

#include "tensor/device.h"

namespace proteus::testing {

/// While it lives, allocations of DeviceType::cuda are guarded; cuda::device() must have been
/// called. Tensors that it made must be gone before it is.
class GuardedGpu {
 public:
  GuardedGpu();
  ~GuardedGpu();
  GuardedGpu(const GuardedGpu&) = delete;
  GuardedGpu& operator=(const GuardedGpu&) = delete;

  /// Freed blocks whose guards had been written, and blocks that live.
  static std::int64_t broken_guards();
  static std::int64_t live_blocks();
};

/// Keeps the current stream waiting for a moment. What is queued there meanwhile runs later than
/// anything on other streams.
void delay_current_stream();

}  // namespace proteus::testing
