// A GPU whose memory is watched: guard bytes around every block, and poison (a NaN in every float
// type) in fresh ones, so that a kernel that writes outside or leaves elements out is found.
#pragma once

#include <cstdint>

#include "tensor/device.h"

namespace proteus::testing {

/// When fresh memory is poisoned, on the current stream: at once, or after a pause, so that what
/// was written there by work on another stream is gone.
enum class Poisoning { at_once, late };

/// While it lives, allocations of DeviceType::cuda are guarded; cuda::device() must have been
/// called. Tensors that it made must be gone before it is.
class GuardedGpu {
 public:
  explicit GuardedGpu(Poisoning when = Poisoning::at_once);
  ~GuardedGpu();
  GuardedGpu(const GuardedGpu&) = delete;
  GuardedGpu& operator=(const GuardedGpu&) = delete;

  /// Freed blocks whose guards had been written, and blocks that live.
  static std::int64_t broken_guards();
  static std::int64_t live_blocks();
};

}  // namespace proteus::testing
