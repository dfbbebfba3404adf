#include "tensor/device.h"

#include <array>
#include <cstdlib>
#include <cstring>
#include <optional>

#include "tensor/error.h"

namespace proteus {
namespace {

void* cpu_allocate(std::size_t bytes, int) {
  // aligned_alloc wants a multiple of the alignment.
  constexpr std::size_t kAlign = 64;
  void* p = std::aligned_alloc(kAlign, (bytes + kAlign - 1) / kAlign * kAlign);
  if (!p) {
    throw OutOfMemory("allocate: cpu: wanted " + std::to_string(bytes) +
                      " bytes, the system has no more; use a smaller batch or context");
  }
  return p;
}

void cpu_deallocate(void* p, std::size_t, int) { std::free(p); }

void cpu_copy(void* dst, Device, const void* src, Device, std::size_t bytes) {
  std::memcpy(dst, src, bytes);
}

std::array<std::optional<DeviceHooks>, kDeviceTypes>& installed() {
  static std::array<std::optional<DeviceHooks>, kDeviceTypes> hooks{
      DeviceHooks{cpu_allocate, cpu_deallocate, cpu_copy, [](int) {}, nullptr, nullptr},
      std::nullopt};
  return hooks;
}

}  // namespace

std::string to_string(Device device) {
  if (device.type == DeviceType::cpu) return "cpu";
  return "cuda:" + std::to_string(device.index);
}

void install_device(DeviceType type, const DeviceHooks& hooks) {
  installed()[static_cast<std::size_t>(type)] = hooks;
}

void uninstall_device(DeviceType type) { installed()[static_cast<std::size_t>(type)].reset(); }

bool device_installed(DeviceType type) {
  return installed()[static_cast<std::size_t>(type)].has_value();
}

const DeviceHooks& device_hooks(DeviceType type) {
  const auto& hooks = installed()[static_cast<std::size_t>(type)];
  if (!hooks) {
    throw DeviceError(
        "device: cuda is not available in this process; build with PROTEUS_CUDA and ask for "
        "cuda::device(i) first, or use the cpu");
  }
  return *hooks;
}

void copy_bytes(void* dst, Device dst_device, const void* src, Device src_device,
                std::size_t bytes) {
  if (bytes == 0) return;
  const Device owner = dst_device.type == DeviceType::cpu ? src_device : dst_device;
  device_hooks(owner.type).copy(dst, dst_device, src, src_device, bytes);
  if (dst_device.type == DeviceType::cpu) synchronize(src_device);
}

void synchronize(Device device) { device_hooks(device.type).synchronize(device.index); }

KernelScope::KernelScope(Device device) : device_(device) {
  const auto enter = device_hooks(device.type).enter_kernel;
  if (enter) enter(device.index);
}

KernelScope::~KernelScope() {
  const auto& hooks = installed()[static_cast<std::size_t>(device_.type)];
  if (hooks && hooks->leave_kernel) hooks->leave_kernel(device_.index);
}

}  // namespace proteus
