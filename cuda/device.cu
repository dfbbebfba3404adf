#include <cuda_runtime.h>

#include <cstdint>
#include <memory>
#include <string>

#include "cuda/check.h"
#include "cuda/device.h"
#include "cuda/graph.h"
#include "cuda/kernels.h"
#include "cuda/staging.h"
#include "cuda/stream.h"
#include "tensor/error.h"
#include "tensor/queue.h"

namespace proteus::cuda {
namespace {

cudaMemPool_t default_pool(int index) {
  cudaMemPool_t pool = nullptr;
  check(cudaDeviceGetDefaultMemPool(&pool, index), "cudaDeviceGetDefaultMemPool");
  return pool;
}

cudaError_t try_allocate(void** p, std::size_t bytes) {
  const cudaError_t status = cudaMallocAsync(p, bytes, current_stream());
  if (status == cudaErrorMemoryAllocation) cudaGetLastError();
  return status;
}

// What was freed stays in the pool in pieces; a request that none of them holds gets another chance
// once they have gone back to the driver.
void* allocate(std::size_t bytes, int index) {
  check(cudaSetDevice(index), "cudaSetDevice");
  if (Graph* graph = Graph::recording()) return graph->allocate(bytes);
  void* p = nullptr;
  cudaError_t status = try_allocate(&p, bytes);
  if (status == cudaErrorMemoryAllocation) {
    check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
    check(cudaMemPoolTrimTo(default_pool(index), 0), "cudaMemPoolTrimTo");
    status = try_allocate(&p, bytes);
  }
  if (status == cudaErrorMemoryAllocation) {
    std::size_t available = 0;
    std::size_t total = 0;
    check(cudaMemGetInfo(&available, &total), "cudaMemGetInfo");
    throw OutOfMemory("allocate: cuda:" + std::to_string(index) + ": wanted " +
                      std::to_string(bytes) + " bytes, " + std::to_string(available) + " of " +
                      std::to_string(total) + " are free; use a smaller batch or context");
  }
  check(status, "cudaMallocAsync");
  return p;
}

void deallocate(void* p, std::size_t, int index) {
  // Called from destructors, possibly while the process ends: nothing may be thrown.
  if (free_recorded(p)) return;
  if (Graph* graph = Graph::recording()) return graph->free_later(p);
  int selected = 0;
  if (cudaGetDevice(&selected) == cudaSuccess && cudaSetDevice(index) == cudaSuccess) {
    try {
      cudaFreeAsync(p, current_stream());
    } catch (const DeviceError&) {
      cudaFreeAsync(p, nullptr);
    }
    cudaSetDevice(selected);
  }
  cudaGetLastError();
}

// Between devices, the copy runs on the stream of the destination, after what is queued on that of
// the source; what the source does next waits for it.
void copy_between(void* dst, int dst_index, const void* src, int src_index, std::size_t bytes) {
  check(cudaSetDevice(src_index), "cudaSetDevice");
  const cudaStream_t source = current_stream();
  const Event written;
  written.record(source);
  check(cudaSetDevice(dst_index), "cudaSetDevice");
  const cudaStream_t stream = current_stream();
  written.block(stream);
  check(cudaMemcpyPeerAsync(dst, dst_index, src, src_index, bytes, stream), "cudaMemcpyPeerAsync");
  const Event copied;
  copied.record(stream);
  copied.block(source);
}

void copy(void* dst, Device dst_device, const void* src, Device src_device, std::size_t bytes) {
  const bool to_device = dst_device.type == DeviceType::cuda;
  const bool from_device = src_device.type == DeviceType::cuda;
  if (to_device && from_device && dst_device.index != src_device.index) {
    return copy_between(dst, dst_device.index, src, src_device.index, bytes);
  }
  check(cudaSetDevice(to_device ? dst_device.index : src_device.index), "cudaSetDevice");
  if (!from_device || !to_device) check_not_recording("a copy to or from the host");
  if (!from_device) {
    copy_to_device(dst, src, bytes);
  } else if (!to_device) {
    copy_to_host(dst, src, bytes);
  } else {
    check(cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDeviceToDevice, current_stream()),
          "cudaMemcpyAsync");
  }
}

void synchronize(int index) {
  check_not_recording("waiting for the device");
  check(cudaSetDevice(index), "cudaSetDevice");
  check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
}

// Freed memory stays with the process: giving it back and asking for it again would cost more than
// many a kernel.
void keep_freed_memory(int index) {
  std::uint64_t all = UINT64_MAX;
  check(cudaMemPoolSetAttribute(default_pool(index), cudaMemPoolAttrReleaseThreshold, &all),
        "cudaMemPoolSetAttribute");
}

QueueHooks queue_hooks() {
  QueueHooks hooks;
  hooks.start_read = [](const void* src, std::size_t bytes, int index) -> void* {
    check(cudaSetDevice(index), "cudaSetDevice");
    check_not_recording("a copy to the host");
    return new PinnedRead(src, bytes);
  };
  hooks.finish_read = [](void* read, void* dst, std::size_t bytes) {
    const std::unique_ptr<PinnedRead> own(static_cast<PinnedRead*>(read));
    if (dst) own->wait(dst, bytes);
  };
  hooks.begin_recording = [](int index) -> void* {
    check(cudaSetDevice(index), "cudaSetDevice");
    return new Graph;
  };
  hooks.end_recording = [](void* graph) { static_cast<Graph*>(graph)->finish(); };
  hooks.replay = [](void* graph, std::uint64_t streams) {
    static_cast<const Graph*>(graph)->replay(streams);
  };
  hooks.forget_recording = [](void* graph) { delete static_cast<Graph*>(graph); };
  hooks.open_branch = []() -> int {
    Graph* graph = Graph::recording();
    return graph ? graph->open_branch() : QueueHooks::kNoBranch;
  };
  hooks.leave_branch = [](int branch) { Graph::recording()->leave_branch(branch); };
  hooks.join_branch = [](int branch) { Graph::recording()->join_branch(branch); };
  return hooks;
}

void install_kernels() {
#define PROTEUS_INSTALL(family) install_##family##_kernels();
  PROTEUS_CUDA_FAMILIES(PROTEUS_INSTALL)
#undef PROTEUS_INSTALL
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

std::string why_no_device() {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  cudaGetLastError();
  return status == cudaSuccess ? "the driver offers no GPU" : cudaGetErrorString(status);
}

Device device(int index) {
  const int count = device_count();
  if (index < 0 || index >= count) {
    throw DeviceError("cuda: device " + std::to_string(index) + ": this machine has " +
                      std::to_string(count) +
                      " usable GPUs; check nvidia-smi, or use --device cpu");
  }
  check(cudaSetDevice(index), "cudaSetDevice");
  keep_freed_memory(index);
  DeviceHooks hooks;
  hooks.allocate = allocate;
  hooks.deallocate = deallocate;
  hooks.copy = copy;
  hooks.synchronize = synchronize;
  hooks.enter_kernel = [](int selected) { check(cudaSetDevice(selected), "cudaSetDevice"); };
  install_device(DeviceType::cuda, hooks);
  install_queue(DeviceType::cuda, queue_hooks());
  install_kernels();
  return {DeviceType::cuda, index};
}

}  // namespace proteus::cuda
