// Devices and the seam behind them. The CPU is built in; another device type (CUDA, or a fake one
// in tests) becomes available when somebody installs its hooks. Nothing else in the project
// allocates or copies device memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace proteus {

enum class DeviceType : std::uint8_t { cpu, cuda };
constexpr int kDeviceTypes = 2;

struct Device {
  DeviceType type = DeviceType::cpu;
  int index = 0;

  friend bool operator==(Device, Device) = default;
};

constexpr Device kCpu{};

/// "cpu", "cuda:0".
std::string to_string(Device device);

/// What a device type must be able to do. Functions throw OutOfMemory or DeviceError.
struct DeviceHooks {
  /// `bytes` > 0; returns memory aligned to at least 64 bytes.
  void* (*allocate)(std::size_t bytes, int index) = nullptr;
  void (*deallocate)(void* p, std::size_t bytes, int index) = nullptr;
  /// Copies between this device type and the CPU, or within this device type.
  void (*copy)(void* dst, Device dst_device, const void* src, Device src_device,
               std::size_t bytes) = nullptr;
  /// Waits until all work queued on the device is done.
  void (*synchronize)(int index) = nullptr;
  /// Called before and after every kernel on this device type (CUDA selects the device here); may
  /// be null.
  void (*enter_kernel)(int index) = nullptr;
  void (*leave_kernel)(int index) = nullptr;
};

/// Makes a device type usable; called by whoever provides it (cuda::device(i), a test's fake).
void install_device(DeviceType type, const DeviceHooks& hooks);
/// Takes it away again; no tensor may live on it.
void uninstall_device(DeviceType type);
bool device_installed(DeviceType type);
/// Throws DeviceError when nothing is installed for `type`.
const DeviceHooks& device_hooks(DeviceType type);

/// Copies bytes between any two devices; waits for the result when the destination is the CPU.
void copy_bytes(void* dst, Device dst_device, const void* src, Device src_device,
                std::size_t bytes);
void synchronize(Device device);

/// Brackets a kernel call with the device's enter and leave hooks.
class KernelScope {
 public:
  explicit KernelScope(Device device);
  ~KernelScope();
  KernelScope(const KernelScope&) = delete;
  KernelScope& operator=(const KernelScope&) = delete;

 private:
  Device device_;
};

}  // namespace proteus
