// Streams and events. All work of a device goes to its current stream, in the order of the calls:
// kernels, copies, allocation and freeing. Nothing else waits for anything.
#pragma once

#include <cuda_runtime.h>

namespace proteus::cuda {

/// The device that this thread has selected, and how many multiprocessors it has.
int current_device();
int multiprocessors();

/// The stream that work of this thread goes to on the selected device. Unless a StreamScope says
/// otherwise, it is a stream of the device that all threads share.
cudaStream_t current_stream();

/// A stream of the selected device; it does not wait for the legacy default stream.
class Stream {
 public:
  Stream();
  ~Stream();
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  cudaStream_t get() const { return stream_; }
  void synchronize() const;

 private:
  cudaStream_t stream_ = nullptr;
};

/// A point in a stream.
class Event {
 public:
  explicit Event(bool timing = false);
  ~Event();
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;

  void record(cudaStream_t stream) const;
  /// Makes what is queued on `stream` from now on wait for the event; the host does not wait.
  void block(cudaStream_t stream) const;
  /// The host waits for the event.
  void synchronize() const;
  /// Milliseconds from `start` to this event; both have timing and have been reached.
  float milliseconds_since(const Event& start) const;

 private:
  cudaEvent_t event_ = nullptr;
};

/// Work on a stream beside the current one. The stream is the current one of this thread on the
/// selected device until leave(); what is queued there comes after all that was queued before, and
/// what is queued behind join() comes after it.
class StreamBranch {
 public:
  explicit StreamBranch(const Stream& stream);
  void leave() noexcept;
  void join() noexcept;

 private:
  int device_;
  cudaStream_t outer_;
  cudaStream_t inner_;
  Event handover_;
};

/// While it lives, `stream` is the current one of this thread on the selected device. What is
/// queued there comes after all that was queued before, and what is queued afterwards comes after
/// it: memory may be used and freed on either side.
class StreamScope {
 public:
  explicit StreamScope(const Stream& stream) : branch_(stream) {}
  ~StreamScope() {
    branch_.leave();
    branch_.join();
  }
  StreamScope(const StreamScope&) = delete;
  StreamScope& operator=(const StreamScope&) = delete;

 private:
  StreamBranch branch_;
};

}  // namespace proteus::cuda
