// Storage: one allocation on one device, shared by the tensors that view it. A caching allocator
// keeps freed CPU blocks for reuse; byte counters tell what is live and what the peak was.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>

#include "tensor/device.h"

namespace proteus {

/// Bytes handed out to live storages of one device type, and the most there have been at once.
struct MemoryStats {
  std::int64_t live_bytes = 0;
  std::int64_t peak_bytes = 0;
  /// Bytes of freed blocks that the allocator keeps for reuse.
  std::int64_t cached_bytes = 0;
};
MemoryStats memory_stats(DeviceType type);
/// Sets the peak to what is live now.
void reset_peak_memory(DeviceType type);
/// Gives cached blocks back to the system.
void release_cached_memory();

/// Owns its bytes, or holds another's. `version` counts in-place changes: the tape compares it to
/// find out that a tensor saved for backward was overwritten.
class Storage {
 public:
  /// Uninitialised memory. Throws OutOfMemory, DeviceError.
  Storage(std::size_t bytes, Device device);
  /// Memory of another owner, who is told by `release` when the last tensor on it is gone. It is
  /// not counted in memory_stats().
  Storage(void* data, std::size_t bytes, Device device, std::function<void()> release);
  ~Storage();
  Storage(const Storage&) = delete;
  Storage& operator=(const Storage&) = delete;

  void* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }
  Device device() const { return device_; }
  /// Moves the bytes to another device, for every tensor that shares them; counts as a change.
  void move_to(Device device);

  std::uint64_t version() const { return version_; }
  void bump_version() { ++version_; }

 private:
  void* data_ = nullptr;
  std::size_t bytes_ = 0;
  std::size_t capacity_ = 0;
  Device device_;
  std::uint64_t version_ = 0;
  std::function<void()> release_;  // set for memory of another owner
};

}  // namespace proteus
