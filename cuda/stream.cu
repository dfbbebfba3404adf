#include <array>
#include <mutex>

#include "cuda/check.h"
#include "cuda/stream.h"

namespace proteus::cuda {
namespace {

constexpr int kMaxDevices = 64;

// What a StreamScope of this thread has chosen, by device; null means the shared stream.
thread_local std::array<cudaStream_t, kMaxDevices> chosen{};

struct Shared {
  std::mutex mutex;
  std::array<cudaStream_t, kMaxDevices> streams{};
  std::array<int, kMaxDevices> multiprocessors{};
};

Shared& shared() {
  static Shared* s = new Shared;  // outlives every tensor in static objects
  return *s;
}

cudaStream_t& chosen_stream(int device) { return chosen[static_cast<std::size_t>(device)]; }

}  // namespace

int current_device() {
  int device = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  if (device >= kMaxDevices) {
    throw DeviceError("cuda: device " + std::to_string(device) + ": at most " +
                      std::to_string(kMaxDevices) + " are supported");
  }
  return device;
}

int multiprocessors() {
  const int device = current_device();
  std::lock_guard lock(shared().mutex);
  int& count = shared().multiprocessors[static_cast<std::size_t>(device)];
  if (count == 0) {
    check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device),
          "cudaDeviceGetAttribute");
  }
  return count;
}

cudaStream_t current_stream() {
  const int device = current_device();
  if (chosen_stream(device)) return chosen_stream(device);
  std::lock_guard lock(shared().mutex);
  cudaStream_t& stream = shared().streams[static_cast<std::size_t>(device)];
  if (!stream) {
    check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
  }
  return stream;
}

Stream::Stream() {
  check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
}

Stream::~Stream() { cudaStreamDestroy(stream_); }

void Stream::synchronize() const { check(cudaStreamSynchronize(stream_), "cudaStreamSynchronize"); }

Event::Event(bool timing) {
  check(cudaEventCreateWithFlags(&event_, timing ? cudaEventDefault : cudaEventDisableTiming),
        "cudaEventCreateWithFlags");
}

Event::~Event() { cudaEventDestroy(event_); }

void Event::record(cudaStream_t stream) const {
  check(cudaEventRecord(event_, stream), "cudaEventRecord");
}

void Event::block(cudaStream_t stream) const {
  check(cudaStreamWaitEvent(stream, event_, 0), "cudaStreamWaitEvent");
}

void Event::synchronize() const { check(cudaEventSynchronize(event_), "cudaEventSynchronize"); }

float Event::milliseconds_since(const Event& start) const {
  float ms = 0;
  check(cudaEventElapsedTime(&ms, start.event_, event_), "cudaEventElapsedTime");
  return ms;
}

namespace {

// Whatever device is selected. What fails is not thrown, as destructors call this; the next call
// reports the device's state.
template <class F>
void on_device(int device, F&& work) noexcept {
  int selected = 0;
  cudaGetDevice(&selected);
  cudaSetDevice(device);
  try {
    work();
  } catch (const DeviceError&) {
    cudaGetLastError();
  }
  cudaSetDevice(selected);
}

}  // namespace

StreamBranch::StreamBranch(const Stream& stream)
    : device_(current_device()), outer_(chosen_stream(device_)), inner_(stream.get()) {
  handover_.record(current_stream());
  handover_.block(inner_);
  chosen_stream(device_) = inner_;
}

void StreamBranch::leave() noexcept {
  chosen_stream(device_) = outer_;
  on_device(device_, [&] { handover_.record(inner_); });
}

void StreamBranch::join() noexcept {
  on_device(device_, [&] { handover_.block(current_stream()); });
}

}  // namespace proteus::cuda
