// From "--device cpu|cuda[:N]" to a device that works. The only place of this program that knows
// the CUDA room.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "tensor/device.h"

namespace proteus {

/// Reads "cpu", "cuda" (= "cuda:0") or "cuda:N"; throws ConfigError for anything else.
Device parse_device(std::string_view text);

/// parse_device, and makes the device usable. Throws DeviceError saying what is missing when it
/// cannot be.
Device open_device(std::string_view text);

/// Whether this program was built with CUDA kernels.
bool built_with_cuda();

/// Names of the machine's NVIDIA GPUs as its driver gives them; empty when there is no driver.
std::vector<std::string> gpu_names();

}  // namespace proteus
