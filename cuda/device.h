// CUDA devices: memory, copies and synchronisation behind the seam of tensor/device.h. No CUDA
// header is needed to use this one.
#pragma once

#include "tensor/device.h"

namespace proteus::cuda {

/// GPUs that the driver offers; 0 without a driver or a GPU.
int device_count();

/// Makes GPU `index` usable and returns it: installs the hooks of DeviceType::cuda. Throws
/// DeviceError saying what is missing when there is no driver or no such GPU.
Device device(int index);

}  // namespace proteus::cuda
