// A device made of host memory, so that the device seam is tested where there is no GPU. Its memory
// can be touched only inside kernels and by its copy hook: host code that follows a device pointer
// faults with a message. Guard bytes around every block catch kernels that write outside.
#pragma once

#include <cstdint>

#include "tensor/device.h"

namespace proteus::testing {

constexpr Device kFakeDevice{DeviceType::cuda, 0};

struct FakeDeviceCounts {
  std::int64_t allocations = 0;
  std::int64_t live_blocks = 0;
  std::int64_t copies = 0;
  std::int64_t kernels = 0;
  std::int64_t broken_guards = 0;
};

/// While it lives, DeviceType::cuda is a fake, and every slot that has no kernel there uses its CPU
/// kernel. Tensors on the device must be gone before it is.
class FakeDevice {
 public:
  FakeDevice();
  ~FakeDevice();
  FakeDevice(const FakeDevice&) = delete;
  FakeDevice& operator=(const FakeDevice&) = delete;

  static FakeDeviceCounts counts();
  /// Looks at the guards of all live blocks too (freed ones were looked at when they were freed).
  static std::int64_t broken_guards();
};

}  // namespace proteus::testing
