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
  /// What this thread queues from here to leave_branch() may run beside what it queues from there
  /// to join_branch(). kNoBranch: it records nothing, and everything stays in its order.
  static constexpr int kNoBranch = -1;
  int (*open_branch)() = nullptr;
  void (*leave_branch)(int branch) = nullptr;
  void (*join_branch)(int branch) = nullptr;
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

/// Work that has nothing to do with what the same thread queues after it, until join(): replays run
/// both at the same time. Where nothing is recorded they run in the order of the calls; numbers are
/// the same either way.
class Branch {
 public:
  /// Calls work(); in order like anything else unless `worthwhile`.
  Branch(Device device, bool worthwhile, const std::function<void()>& work);
  ~Branch() { join(); }
  Branch(const Branch&) = delete;
  Branch& operator=(const Branch&) = delete;

  /// Whatever reads what work() wrote comes after this.
  void join();

 private:
  DeviceType type_;
  int branch_ = QueueHooks::kNoBranch;
};

/// While this thread records, the recording holds `t`: for memory that was there before and that
/// its owner may drop.
void keep_for_replays(const Tensor& t);

}  // namespace proteus
