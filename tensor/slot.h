// Kernel slots. A slot is a named pair of function pointers, one per device type, that take one
// plain argument struct. The checked functions in ops/ fill the struct and call the slot.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "tensor/device.h"
#include "tensor/error.h"

namespace proteus {

/// What is known of a slot without its argument type: name, which devices have a kernel, how often
/// each was called.
class SlotBase {
 public:
  SlotBase(const SlotBase&) = delete;
  SlotBase& operator=(const SlotBase&) = delete;

  std::string_view name() const { return name_; }
  bool has_kernel(DeviceType type) const { return kernels_[index(type)] != nullptr; }
  /// Uses the kernel of one device type for another as well (a test's fake device), or empties it.
  void copy_kernel(DeviceType to, DeviceType from) { kernels_[index(to)] = kernels_[index(from)]; }
  void remove_kernel(DeviceType type) { kernels_[index(type)] = nullptr; }
  /// Calls so far on a device type other than the CPU.
  std::uint64_t device_calls() const { return device_calls_.load(std::memory_order_relaxed); }

 protected:
  using Erased = void (*)();

  explicit SlotBase(std::string_view name);
  ~SlotBase() = default;
  static constexpr std::size_t index(DeviceType type) { return static_cast<std::size_t>(type); }
  [[noreturn]] void throw_empty(DeviceType type) const;

  std::string_view name_;
  std::array<Erased, kDeviceTypes> kernels_{};
  mutable std::atomic<std::uint64_t> device_calls_{0};
};

/// All slots linked into this program.
std::vector<SlotBase*>& slot_registry();
/// Their names, for the test that each has an op case.
std::vector<std::string> slot_names();

template <class Args>
class Slot : public SlotBase {
 public:
  using Kernel = void (*)(const Args&);

  Slot(std::string_view name, Kernel cpu) : SlotBase(name) { install(DeviceType::cpu, cpu); }

  /// Sets the kernel of a device type; nullptr empties the slot.
  void install(DeviceType type, Kernel k) { kernels_[index(type)] = reinterpret_cast<Erased>(k); }
  Kernel kernel(DeviceType type) const { return reinterpret_cast<Kernel>(kernels_[index(type)]); }

  /// Throws DeviceError "layernorm_fwd: no cuda kernel" when the slot is empty for the device.
  void operator()(Device device, const Args& args) const {
    const Kernel k = kernel(device.type);
    if (!k) throw_empty(device.type);
    if (device.type == DeviceType::cpu) {
      k(args);
      return;
    }
    device_calls_.fetch_add(1, std::memory_order_relaxed);
    const KernelScope scope(device);
    k(args);
  }
};

}  // namespace proteus
