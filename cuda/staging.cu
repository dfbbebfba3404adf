#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "cuda/check.h"
#include "cuda/staging.h"
#include "cuda/stream.h"

namespace proteus::cuda {
namespace {

constexpr std::size_t kPieceBytes = std::size_t{1} << 20;  // long enough to hide its start
constexpr std::size_t kPieces = 8;

// A pinned buffer, and the event after which it may be used again.
struct Piece {
  void* data = nullptr;
  Event done;

  Piece() { check(cudaMallocHost(&data, kPieceBytes), "cudaMallocHost"); }
};

// The pieces of a device: some are filled or emptied by the host while others are on their way. The
// few small copies that begin a step wait for none of those of the step before.
struct Pieces {
  std::mutex mutex;
  std::array<Piece, kPieces> piece;
  std::size_t next = 0;

  Piece& take() { return piece[next++ % piece.size()]; }
};

Pieces& pieces() {
  static std::mutex mutex;
  static auto* by_device = new std::map<int, std::unique_ptr<Pieces>>;  // outlives the driver
  std::lock_guard lock(mutex);
  auto& found = (*by_device)[current_device()];
  if (!found) found = std::make_unique<Pieces>();
  return *found;
}

// Pinned buffers that no read has at the moment: freeing one would wait for the device.
struct Buffers {
  std::mutex mutex;
  std::vector<std::unique_ptr<PinnedBuffer>> free;
};

Buffers& buffers() {
  static auto* b = new Buffers;  // outlives the driver
  return *b;
}

std::unique_ptr<PinnedBuffer> take_buffer(std::size_t bytes) {
  constexpr std::size_t kSmallest = 256;
  const std::lock_guard lock(buffers().mutex);
  auto& free = buffers().free;
  const auto fits =
      std::find_if(free.begin(), free.end(), [&](const auto& b) { return b->bytes >= bytes; });
  if (fits == free.end()) return std::make_unique<PinnedBuffer>(std::max(bytes, kSmallest));
  auto found = std::move(*fits);
  free.erase(fits);
  return found;
}

}  // namespace

PinnedBuffer::PinnedBuffer(std::size_t size) : bytes(size) {
  check(cudaMallocHost(&data, bytes), "cudaMallocHost");
}

void copy_to_device(void* dst, const void* src, std::size_t bytes) {
  Pieces& p = pieces();
  const std::lock_guard lock(p.mutex);
  const cudaStream_t stream = current_stream();
  for (std::size_t at = 0; at < bytes; at += kPieceBytes) {
    const std::size_t now = std::min(kPieceBytes, bytes - at);
    Piece& piece = p.take();
    piece.done.synchronize();
    std::memcpy(piece.data, static_cast<const char*>(src) + at, now);
    check(cudaMemcpyAsync(static_cast<char*>(dst) + at, piece.data, now, cudaMemcpyHostToDevice,
                          stream),
          "cudaMemcpyAsync");
    piece.done.record(stream);
  }
}

void copy_to_host(void* dst, const void* src, std::size_t bytes) {
  Pieces& p = pieces();
  const std::lock_guard lock(p.mutex);
  const cudaStream_t stream = current_stream();
  // Piece k is queued before piece k − 1 is read, so that one is on its way while the host copies.
  const std::size_t count = (bytes + kPieceBytes - 1) / kPieceBytes;
  const auto size_of_piece = [&](std::size_t k) {
    return std::min(kPieceBytes, bytes - k * kPieceBytes);
  };
  Piece* before = nullptr;
  for (std::size_t k = 0; k <= count; ++k) {
    Piece* queued = nullptr;
    if (k < count) {
      queued = &p.take();
      queued->done.synchronize();
      check(cudaMemcpyAsync(queued->data, static_cast<const char*>(src) + k * kPieceBytes,
                            size_of_piece(k), cudaMemcpyDeviceToHost, stream),
            "cudaMemcpyAsync");
      queued->done.record(stream);
    }
    if (before) {
      before->done.synchronize();
      std::memcpy(static_cast<char*>(dst) + (k - 1) * kPieceBytes, before->data,
                  size_of_piece(k - 1));
    }
    before = queued;
  }
}

PinnedRead::PinnedRead(const void* src, std::size_t bytes) : buffer_(take_buffer(bytes)) {
  const cudaStream_t stream = current_stream();
  check(cudaMemcpyAsync(buffer_->data, src, bytes, cudaMemcpyDeviceToHost, stream),
        "cudaMemcpyAsync");
  buffer_->done.record(stream);
}

PinnedRead::~PinnedRead() {
  try {
    buffer_->done.synchronize();  // a read that was dropped may still be on its way
  } catch (const DeviceError&) {
    cudaGetLastError();  // a destructor throws nothing; the next call reports the device's state
  }
  const std::lock_guard lock(buffers().mutex);
  buffers().free.push_back(std::move(buffer_));
}

void PinnedRead::wait(void* dst, std::size_t bytes) const {
  buffer_->done.synchronize();
  std::memcpy(dst, buffer_->data, bytes);
}

}  // namespace proteus::cuda
