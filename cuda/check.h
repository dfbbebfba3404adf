// Every call of the CUDA runtime goes through check(): an error becomes a DeviceError that names
// the call.
#pragma once

#include <cuda_runtime.h>

#include <string>

#include "tensor/error.h"

namespace proteus::cuda {

inline void check(cudaError_t status, const char* call) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // an error that is not sticky must not surface in a later call
  throw DeviceError(std::string("cuda: ") + call + ": " + cudaGetErrorString(status));
}

}  // namespace proteus::cuda
