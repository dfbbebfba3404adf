// CUDA devices: memory, copies, synchronisation and kernels behind the seams of tensor/device.h and
// tensor/slot.h. Memory comes from the driver's stream-ordered pool, which keeps what is freed. No
// CUDA header is needed to use this one.
#pragma once

#include <string>

#include "tensor/device.h"

namespace proteus::cuda {

/// GPUs that the driver offers; 0 without a driver or a GPU.
int device_count();
/// Why there is none, in the driver's words.
std::string why_no_device();

/// Makes GPU `index` usable and returns it: installs the hooks of DeviceType::cuda and the kernels
/// of every family in cuda/kernels.h. Throws
/// DeviceError saying what is missing when there is no driver or no such GPU.
Device device(int index);

}  // namespace proteus::cuda
