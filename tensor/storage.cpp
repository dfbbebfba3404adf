#include "tensor/storage.h"

#include <algorithm>
#include <array>
#include <bit>
#include <mutex>
#include <unordered_map>
#include <utility>
#include <vector>

#include "tensor/error.h"

namespace proteus {
namespace {

struct Pool {
  std::mutex mutex;
  std::unordered_map<std::size_t, std::vector<void*>> free;  // CPU blocks by capacity
  std::array<MemoryStats, kDeviceTypes> stats{};
};

Pool& pool() {
  static Pool* p = new Pool;  // outlives every storage in static objects
  return *p;
}

// Size classes of at most 1/4 waste: four steps between powers of two.
std::size_t size_class(std::size_t bytes) {
  constexpr std::size_t kSmallest = 64;
  if (bytes <= kSmallest) return kSmallest;
  const std::size_t step = std::bit_floor(bytes - 1) / 4;
  const std::size_t unit = std::max(step, kSmallest);
  return (bytes + unit - 1) / unit * unit;
}

// AddressSanitizer can only see a use after free if blocks really are freed.
#if defined(__SANITIZE_ADDRESS__)
constexpr bool kCache = false;
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
constexpr bool kCache = false;
#else
constexpr bool kCache = true;
#endif
#else
constexpr bool kCache = true;
#endif

}  // namespace

MemoryStats memory_stats(DeviceType type) {
  std::lock_guard lock(pool().mutex);
  return pool().stats[static_cast<std::size_t>(type)];
}

void reset_peak_memory(DeviceType type) {
  std::lock_guard lock(pool().mutex);
  auto& stats = pool().stats[static_cast<std::size_t>(type)];
  stats.peak_bytes = stats.live_bytes;
}

void release_cached_memory() {
  std::lock_guard lock(pool().mutex);
  for (auto& [capacity, blocks] : pool().free) {
    for (void* p : blocks) device_hooks(DeviceType::cpu).deallocate(p, capacity, 0);
  }
  pool().free.clear();
  pool().stats[static_cast<std::size_t>(DeviceType::cpu)].cached_bytes = 0;
}

Storage::Storage(std::size_t bytes, Device device)
    : bytes_(bytes),
      capacity_(device.type == DeviceType::cpu ? size_class(bytes)
                                               : std::max<std::size_t>(bytes, 1)),
      device_(device) {
  auto& stats = pool().stats[static_cast<std::size_t>(device.type)];
  const bool cached = kCache && device.type == DeviceType::cpu;
  {
    std::lock_guard lock(pool().mutex);
    if (cached) {
      auto it = pool().free.find(capacity_);
      if (it != pool().free.end() && !it->second.empty()) {
        data_ = it->second.back();
        it->second.pop_back();
        stats.cached_bytes -= static_cast<std::int64_t>(capacity_);
      }
    }
  }
  if (!data_) {
    try {
      data_ = device_hooks(device.type).allocate(capacity_, device.index);
    } catch (const OutOfMemory&) {
      release_cached_memory();  // cached blocks of other sizes may be what is missing
      data_ = device_hooks(device.type).allocate(capacity_, device.index);
    }
  }
  std::lock_guard lock(pool().mutex);
  stats.live_bytes += static_cast<std::int64_t>(bytes_);
  stats.peak_bytes = std::max(stats.peak_bytes, stats.live_bytes);
}

Storage::Storage(void* data, std::size_t bytes, Device device, std::function<void()> release)
    : data_(data), bytes_(bytes), device_(device), release_(std::move(release)) {}

void Storage::move_to(Device device) {
  if (device == device_) return;
  Storage there(bytes_, device);
  copy_bytes(there.data_, device, data_, device_, bytes_);
  std::swap(data_, there.data_);
  std::swap(capacity_, there.capacity_);
  std::swap(device_, there.device_);
  std::swap(release_, there.release_);
  bump_version();
}

Storage::~Storage() {
  if (release_) {
    release_();
    return;
  }
  std::unique_lock lock(pool().mutex);
  auto& stats = pool().stats[static_cast<std::size_t>(device_.type)];
  stats.live_bytes -= static_cast<std::int64_t>(bytes_);
  if (kCache && device_.type == DeviceType::cpu) {
    pool().free[capacity_].push_back(data_);
    stats.cached_bytes += static_cast<std::int64_t>(capacity_);
    return;
  }
  lock.unlock();
  if (device_installed(device_.type)) {
    device_hooks(device_.type).deallocate(data_, capacity_, device_.index);
  }
}

}  // namespace proteus
