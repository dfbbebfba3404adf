// Copies between host memory and a device through pinned buffers: the host only waits for data that
// it is about to read, or for a buffer that is still on its way.
#pragma once

#include <cstddef>
#include <memory>

#include "cuda/stream.h"

namespace proteus::cuda {

/// Queues the copy of host memory to the selected device; `src` may change as soon as it returns.
void copy_to_device(void* dst, const void* src, std::size_t bytes);
/// Copies from the selected device and waits for the data.
void copy_to_host(void* dst, const void* src, std::size_t bytes);

/// Pinned memory and the event after which it was written; kept for the next read.
struct PinnedBuffer {
  void* data = nullptr;
  std::size_t bytes = 0;
  Event done;

  explicit PinnedBuffer(std::size_t size);
};

/// A few bytes on their way from the selected device to pinned memory.
class PinnedRead {
 public:
  PinnedRead(const void* src, std::size_t bytes);
  ~PinnedRead();
  PinnedRead(const PinnedRead&) = delete;
  PinnedRead& operator=(const PinnedRead&) = delete;

  /// Waits for them.
  void wait(void* dst, std::size_t bytes) const;

 private:
  std::unique_ptr<PinnedBuffer> buffer_;
};

}  // namespace proteus::cuda
