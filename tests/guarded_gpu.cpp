#include "tests/guarded_gpu.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <mutex>
#include <thread>

#include "cuda/check.h"
#include "cuda/stream.h"

namespace proteus::testing {
namespace {

constexpr std::size_t kGuardBytes = 256;  // keeps the alignment of the allocator
constexpr unsigned char kGuard = 0xA5;
constexpr unsigned char kPoison = 0xFF;

struct Watch {
  std::mutex mutex;
  DeviceHooks before;
  std::int64_t broken = 0;
  std::int64_t live = 0;
  Poisoning poisoning = Poisoning::at_once;
};

Watch& watch() {
  static Watch w;
  return w;
}

void pause_stream(cudaStream_t stream) {
  const auto sleep = [](void*) { std::this_thread::sleep_for(std::chrono::microseconds(100)); };
  cuda::check(cudaLaunchHostFunc(stream, sleep, nullptr), "cudaLaunchHostFunc");
}

void* guarded_allocate(std::size_t bytes, int index) {
  auto* block = static_cast<char*>(watch().before.allocate(bytes + 2 * kGuardBytes, index));
  const cudaStream_t stream = cuda::current_stream();
  if (watch().poisoning == Poisoning::late) pause_stream(stream);
  cuda::check(cudaMemsetAsync(block, kGuard, bytes + 2 * kGuardBytes, stream), "cudaMemsetAsync");
  cuda::check(cudaMemsetAsync(block + kGuardBytes, kPoison, bytes, stream), "cudaMemsetAsync");
  const std::lock_guard lock(watch().mutex);
  ++watch().live;
  return block + kGuardBytes;
}

bool holds(const char* guard, int index) {
  std::array<unsigned char, kGuardBytes> bytes{};
  watch().before.copy(bytes.data(), kCpu, guard, {DeviceType::cuda, index}, kGuardBytes);
  return std::all_of(bytes.begin(), bytes.end(), [](unsigned char b) { return b == kGuard; });
}

void guarded_deallocate(void* p, std::size_t bytes, int index) {
  char* inside = static_cast<char*>(p);
  const bool whole = holds(inside - kGuardBytes, index) && holds(inside + bytes, index);
  watch().before.deallocate(inside - kGuardBytes, bytes + 2 * kGuardBytes, index);
  const std::lock_guard lock(watch().mutex);
  --watch().live;
  if (!whole) ++watch().broken;
}

}  // namespace

GuardedGpu::GuardedGpu(Poisoning when) {
  watch().poisoning = when;
  watch().before = device_hooks(DeviceType::cuda);
  watch().broken = 0;
  DeviceHooks hooks = watch().before;
  hooks.allocate = guarded_allocate;
  hooks.deallocate = guarded_deallocate;
  install_device(DeviceType::cuda, hooks);
}

GuardedGpu::~GuardedGpu() { install_device(DeviceType::cuda, watch().before); }

std::int64_t GuardedGpu::broken_guards() {
  const std::lock_guard lock(watch().mutex);
  return watch().broken;
}

std::int64_t GuardedGpu::live_blocks() {
  const std::lock_guard lock(watch().mutex);
  return watch().live;
}

}  // namespace proteus::testing
