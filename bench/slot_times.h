// Where the time of a piece of work on a GPU goes, by slot: while it lives, a SlotTimes waits for
// the device around every kernel call and every copy, so that each can be timed on its own. What is
// left of the clock is the host's. A kernel that calls another one's slot is timed as a whole.
// Where the work of a slot is known, its rates and its floor stand beside: the larger of its
// operations over what tensor cores reach and its bytes over what memory reaches.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "tensor/device.h"
#include "tensor/slot.h"

namespace proteus::bench {

/// What calls of a slot have to do, at least: every input read once, every output written once.
struct SlotWork {
  double flops = 0;
  double bytes = 0;
};
using SlotWorks = std::map<std::string, SlotWork>;

/// A second's work of an H100, measured: a large product in bf16, a large copy.
constexpr double kReachedFlops = 790e12;
constexpr double kReachedBytes = 3.0e12;

class SlotTimes {
 public:
  SlotTimes() : hooks_(device_hooks(DeviceType::cuda)) {
    current() = this;
    for (const SlotBase* slot : slot_registry()) calls_.push_back(slot->device_calls());
    DeviceHooks watched = hooks_;
    watched.enter_kernel = [](int index) {
      current()->hooks_.enter_kernel(index);
      current()->start(index);
    };
    watched.leave_kernel = [](int index) { current()->stop(index, current()->called_slot()); };
    watched.copy = [](void* dst, Device to, const void* src, Device from, std::size_t bytes) {
      const int index = to.type == DeviceType::cuda ? to.index : from.index;
      current()->start(index);
      current()->hooks_.copy(dst, to, src, from, bytes);
      current()->stop(index, to.type == DeviceType::cpu     ? "copy to the host"
                             : from.type == DeviceType::cpu ? "copy from the host"
                                                            : "copy on the device");
    };
    install_device(DeviceType::cuda, watched);
    begin_ = Clock::now();
  }
  ~SlotTimes() { install_device(DeviceType::cuda, hooks_); }
  SlotTimes(const SlotTimes&) = delete;
  SlotTimes& operator=(const SlotTimes&) = delete;

  /// Milliseconds, calls and rates, the longest first.
  void print(const SlotWorks& works = {}) const {
    const double all = since(begin_);
    std::vector<std::pair<std::string, Entry>> entries(entries_.begin(), entries_.end());
    std::sort(entries.begin(), entries.end(),
              [](const auto& a, const auto& b) { return a.second.ms > b.second.ms; });
    double left = all;
    for (const auto& [name, entry] : entries) {
      std::printf("  %-22s %10.3f ms %5d calls", name.c_str(), entry.ms, entry.calls);
      if (const auto work = works.find(name); work != works.end()) {
        const SlotWork& w = work->second;
        std::printf(" %7.1f TFLOP/s %7.0f GB/s, floor %8.3f ms", w.flops / entry.ms / 1e9,
                    w.bytes / entry.ms / 1e6,
                    1e3 * std::max(w.flops / kReachedFlops, w.bytes / kReachedBytes));
      }
      std::printf("\n");
      left -= entry.ms;
    }
    std::printf("  %-22s %10.3f ms\n", "outside of kernels", left);
  }

 private:
  using Clock = std::chrono::steady_clock;
  struct Entry {
    double ms = 0;
    int calls = 0;
  };

  static SlotTimes*& current() {
    static SlotTimes* times = nullptr;
    return times;
  }
  static double since(Clock::time_point t) {
    return std::chrono::duration<double, std::milli>(Clock::now() - t).count();
  }
  void start(int index) {
    if (depth_++ > 0) return;
    hooks_.synchronize(index);
    started_ = Clock::now();
  }
  void stop(int index, const std::string& name) {
    if (--depth_ > 0) return;
    hooks_.synchronize(index);
    Entry& entry = entries_[name];
    entry.ms += since(started_);
    ++entry.calls;
  }
  // A slot counts a call before its kernel begins; of several the first in the list that is not the
  // product which others call.
  std::string called_slot() {
    std::string name = "?";
    if (depth_ > 1) return name;
    for (std::size_t i = 0; i < calls_.size(); ++i) {
      const SlotBase& slot = *slot_registry()[i];
      if (slot.device_calls() == calls_[i]) continue;
      calls_[i] = slot.device_calls();
      if (name == "?" || name == "gemm_fwd") name = slot.name();
    }
    return name;
  }

  DeviceHooks hooks_;
  std::vector<std::uint64_t> calls_;
  std::map<std::string, Entry> entries_;
  Clock::time_point begin_, started_;
  int depth_ = 0;  // of calls within calls
};

}  // namespace proteus::bench
