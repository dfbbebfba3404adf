#include <cuda_runtime.h>

#include <string>

#include "cuda/device.h"
#include "tensor/error.h"

namespace proteus::cuda {
namespace {

void check(cudaError_t status, const char* call) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // an error that is not sticky must not surface in a later call
  throw DeviceError(std::string("cuda: ") + call + ": " + cudaGetErrorString(status));
}

void* allocate(std::size_t bytes, int index) {
  check(cudaSetDevice(index), "cudaSetDevice");
  void* p = nullptr;
  const cudaError_t status = cudaMallocAsync(&p, bytes, nullptr);
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    std::size_t available = 0;
    std::size_t total = 0;
    check(cudaMemGetInfo(&available, &total), "cudaMemGetInfo");
    throw OutOfMemory("allocate: cuda:" + std::to_string(index) + ": wanted " +
                      std::to_string(bytes) + " bytes, " + std::to_string(available) +
                      " are free; use a smaller batch or context");
  }
  check(status, "cudaMallocAsync");
  return p;
}

void deallocate(void* p, std::size_t, int index) {
  // Called from destructors, possibly while the process ends: nothing may be thrown.
  if (cudaSetDevice(index) == cudaSuccess) cudaFreeAsync(p, nullptr);
  cudaGetLastError();
}

void copy(void* dst, Device dst_device, const void* src, Device src_device, std::size_t bytes) {
  const Device owner = dst_device.type == DeviceType::cuda ? dst_device : src_device;
  check(cudaSetDevice(owner.index), "cudaSetDevice");
  check(cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDefault, nullptr), "cudaMemcpyAsync");
}

void synchronize(int index) {
  check(cudaSetDevice(index), "cudaSetDevice");
  check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
}

}  // namespace

int device_count() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) {
    cudaGetLastError();
    return 0;
  }
  return count;
}

Device device(int index) {
  const int count = device_count();
  if (index < 0 || index >= count) {
    throw DeviceError("cuda: device " + std::to_string(index) + ": this machine has " +
                      std::to_string(count) +
                      " usable GPUs; check nvidia-smi, or use --device cpu");
  }
  check(cudaSetDevice(index), "cudaSetDevice");
  DeviceHooks hooks;
  hooks.allocate = allocate;
  hooks.deallocate = deallocate;
  hooks.copy = copy;
  hooks.synchronize = synchronize;
  hooks.enter_kernel = [](int selected) { check(cudaSetDevice(selected), "cudaSetDevice"); };
  install_device(DeviceType::cuda, hooks);
  return {DeviceType::cuda, index};
}

}  // namespace proteus::cuda
