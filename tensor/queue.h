// Work of a device that the host does not wait for: numbers that it reads later than it asks for
// them, and a stretch of work that is recorded once and queued again and again. Whoever provides a
// device may install hooks for both; where there are none, numbers come at once and nothing can be
// recorded.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "tensor/tensor.h"

namespace proteus {

struct QueueHooks {
  /// Queues a copy to host memory, behind all work so far.
  void* (*start_read)(const void* src, std::size_t bytes, int index) = nullptr;
  /// Waits for the data and forgets the read; with a null `dst` it only forgets.
  void (*finish_read)(void* read, void* dst, std::size_t bytes) = nullptr;
  /// What this thread queues until end_recording is kept, not run. Until then a copy to or from
  /// host memory is a DeviceError.
  void* (*begin_recording)(int index) = nullptr;
  void (*end_recording)(void* recording) = nullptr;
  /// Queues it. Streams of random numbers are those of the recording plus `streams`.
  void (*replay)(void* recording, std::uint64_t streams) = nullptr;
  void (*forget_recording)(void* recording) = nullptr;
};

void install_queue(DeviceType type, const QueueHooks& hooks);

/// A tensor's bytes on their way to the host.
class Readback {
 public:
  /// `t` is contiguous; it may change or go as soon as this returns.
  explicit Readback(const Tensor& t);
  ~Readback();
  Readback(Readback&& other) noexcept;
  Readback& operator=(Readback&& other) = delete;

  /// Waits. Once.
  Tensor wait();

 private:
  Tensor host_;
  DeviceType type_;
  void* read_ = nullptr;  // null: the data is there
};

/// Recorded work. What it reads and writes has to stay where it is; memory that it allocates is its
/// own. Host code inside is not run again.
class Recording {
 public:
  static bool possible(Device device);

  /// Calls work() on a device where that is possible; nothing of it runs there yet. What work()
  /// throws comes through.
  Recording(Device device, const std::function<void()>& work);
  ~Recording();
  Recording(const Recording&) = delete;
  Recording& operator=(const Recording&) = delete;

  void replay(std::uint64_t streams) const;

 private:
  friend void keep_for_replays(const Tensor& t);

  DeviceType type_;
  void* recording_ = nullptr;
  std::vector<Tensor> kept_;
};

/// While this thread records, the recording holds `t`: for memory that was there before and that
/// its owner may drop.
void keep_for_replays(const Tensor& t);

}  // namespace proteus
