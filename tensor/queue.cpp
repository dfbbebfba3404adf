#include "tensor/queue.h"

#include <array>
#include <utility>

#include "tensor/error.h"

namespace proteus {
namespace {

std::array<QueueHooks, kDeviceTypes>& installed() {
  static std::array<QueueHooks, kDeviceTypes> hooks;
  return hooks;
}

thread_local Recording* recording_now = nullptr;

QueueHooks& hooks_of(DeviceType type) { return installed()[static_cast<std::size_t>(type)]; }

}  // namespace

void install_queue(DeviceType type, const QueueHooks& hooks) { hooks_of(type) = hooks; }

Readback::Readback(const Tensor& t) : type_(t.device().type) {
  const QueueHooks& hooks = hooks_of(type_);
  if (!hooks.start_read) {
    host_ = type_ == DeviceType::cpu ? t.clone() : t.to(kCpu);
    return;
  }
  if (!t.is_contiguous()) throw ShapeError("readback(t): t: expected a contiguous tensor");
  host_ = Tensor::empty(t.shape(), t.dtype());
  read_ = hooks.start_read(t.raw(), static_cast<std::size_t>(t.bytes()), t.device().index);
}

Readback::Readback(Readback&& other) noexcept
    : host_(std::move(other.host_)),
      type_(other.type_),
      read_(std::exchange(other.read_, nullptr)) {}

Readback::~Readback() {
  if (read_) hooks_of(type_).finish_read(read_, nullptr, 0);
}

Tensor Readback::wait() {
  if (void* read = std::exchange(read_, nullptr)) {
    hooks_of(type_).finish_read(read, host_.raw(), static_cast<std::size_t>(host_.bytes()));
  }
  return std::move(host_);
}

bool Recording::possible(Device device) {
  return hooks_of(device.type).begin_recording != nullptr && device_installed(device.type);
}

Recording::Recording(Device device, const std::function<void()>& work) : type_(device.type) {
  if (!possible(device)) {
    throw DeviceError("recording: not possible on " + to_string(device));
  }
  const QueueHooks& hooks = hooks_of(type_);
  recording_ = hooks.begin_recording(device.index);
  recording_now = this;
  try {
    work();
    recording_now = nullptr;
    hooks.end_recording(recording_);
  } catch (...) {
    recording_now = nullptr;
    hooks.forget_recording(recording_);
    throw;
  }
}

Branch::Branch(Device device, bool worthwhile, const std::function<void()>& work)
    : type_(device.type) {
  const QueueHooks& hooks = hooks_of(type_);
  if (worthwhile && hooks.open_branch) branch_ = hooks.open_branch();
  const auto leave = [&] {
    if (branch_ != QueueHooks::kNoBranch) hooks.leave_branch(branch_);
  };
  try {
    work();
  } catch (...) {
    leave();
    join();
    throw;
  }
  leave();
}

void Branch::join() {
  const int branch = std::exchange(branch_, QueueHooks::kNoBranch);
  if (branch != QueueHooks::kNoBranch) hooks_of(type_).join_branch(branch);
}

void keep_for_replays(const Tensor& t) {
  if (recording_now) recording_now->kept_.push_back(t);
}

Recording::~Recording() { hooks_of(type_).forget_recording(recording_); }

void Recording::replay(std::uint64_t streams) const { hooks_of(type_).replay(recording_, streams); }

}  // namespace proteus
