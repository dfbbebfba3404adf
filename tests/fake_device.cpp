#include "tests/fake_device.h"

#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <map>
#include <mutex>
#include <string>

#include "tensor/error.h"
#include "tensor/slot.h"

namespace proteus::testing {
namespace {

constexpr std::size_t kArenaBytes = std::size_t{1} << 30;
constexpr std::size_t kGuardBytes = 256;
constexpr std::size_t kGranule = 64;
constexpr unsigned char kGuard = 0xA5;

// One arena whose pages are closed between kernels. `open` counts nested openings.
struct Arena {
  std::recursive_mutex mutex;
  char* base = nullptr;
  std::size_t used = 0;                     // bytes ever handed out: what has to be protected
  std::map<std::size_t, std::size_t> live;  // offset of a block with its guards -> bytes inside
  std::multimap<std::size_t, std::size_t> free;  // bytes with guards -> offset
  int open = 0;
  FakeDeviceCounts counts;
  struct sigaction before {};
};

Arena& arena() {
  static auto* a = new Arena;
  return *a;
}

void protect(int mode) {
  Arena& a = arena();
  const std::size_t page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  const std::size_t bytes = (a.used + page - 1) / page * page;
  if (bytes) mprotect(a.base, bytes, mode);
}

class Opened {
 public:
  Opened() : lock_(arena().mutex) { enter(); }
  ~Opened() { leave(); }
  Opened(const Opened&) = delete;
  Opened& operator=(const Opened&) = delete;

  static void enter() {
    if (arena().open++ == 0) protect(PROT_READ | PROT_WRITE);
  }
  static void leave() {
    if (--arena().open == 0) protect(PROT_NONE);
  }

 private:
  std::lock_guard<std::recursive_mutex> lock_;
};

// Bytes of a block with its guards; the guard behind begins at the first byte after `bytes`.
std::size_t whole_block(std::size_t bytes) {
  return (bytes + 2 * kGuardBytes + kGranule - 1) / kGranule * kGranule;
}

bool guards_hold(std::size_t offset, std::size_t bytes) {
  const char* block = arena().base + offset;
  for (std::size_t i = 0; i < whole_block(bytes); ++i) {
    const bool inside = i >= kGuardBytes && i < kGuardBytes + bytes;
    if (!inside && static_cast<unsigned char>(block[i]) != kGuard) return false;
  }
  return true;
}

void* fake_allocate(std::size_t bytes, int) {
  Arena& a = arena();
  const std::size_t whole = whole_block(bytes);
  const std::lock_guard lock(a.mutex);
  std::size_t offset = 0;
  const auto it = a.free.find(whole);
  if (it != a.free.end()) {
    offset = it->second;
    a.free.erase(it);
  } else {
    if (a.used + whole > kArenaBytes) throw OutOfMemory("fake device: the arena is full");
    offset = a.used;
    a.used += whole;
  }
  a.live[offset] = bytes;
  ++a.counts.allocations;
  ++a.counts.live_blocks;
  const Opened opened;
  // All bytes are poison (a NaN in every float type): memory of a device is not zero either.
  std::memset(a.base + offset, kGuard, whole);
  std::memset(a.base + offset + kGuardBytes, 0xFF, bytes);
  return a.base + offset + kGuardBytes;
}

void fake_deallocate(void* p, std::size_t, int) {
  Arena& a = arena();
  const Opened opened;
  const auto offset = static_cast<std::size_t>(static_cast<char*>(p) - a.base) - kGuardBytes;
  const auto it = a.live.find(offset);
  if (it == a.live.end()) throw DeviceError("fake device: freed a block that is not its own");
  if (!guards_hold(offset, it->second)) ++a.counts.broken_guards;
  a.free.emplace(whole_block(it->second), offset);
  a.live.erase(it);
  --a.counts.live_blocks;
}

void fake_copy(void* dst, Device, const void* src, Device, std::size_t bytes) {
  const Opened opened;
  ++arena().counts.copies;
  std::memcpy(dst, src, bytes);
}

void on_fault(int signal, siginfo_t* info, void*) {
  Arena& a = arena();
  const char* at = static_cast<const char*>(info->si_addr);
  if (at >= a.base && at < a.base + kArenaBytes) {
    constexpr char kText[] =
        "fake device: host code read or wrote device memory outside a kernel\n";
    [[maybe_unused]] const auto n = write(STDERR_FILENO, kText, sizeof kText - 1);
  }
  // Returning repeats the access under the handler that was there before.
  sigaction(signal, &a.before, nullptr);
}

}  // namespace

FakeDevice::FakeDevice() {
  Arena& a = arena();
  const std::lock_guard lock(a.mutex);
  if (!a.base) {
    void* p =
        mmap(nullptr, kArenaBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) throw OutOfMemory("fake device: no address space for the arena");
    a.base = static_cast<char*>(p);
  }
  a.counts = {};
  struct sigaction action {};
  action.sa_sigaction = on_fault;
  action.sa_flags = SA_SIGINFO;
  sigaction(SIGSEGV, &action, &a.before);
  install_device(DeviceType::cuda, {.allocate = fake_allocate,
                                    .deallocate = fake_deallocate,
                                    .copy = fake_copy,
                                    .synchronize = [](int) {},
                                    .enter_kernel =
                                        [](int) {
                                          arena().mutex.lock();
                                          ++arena().counts.kernels;
                                          Opened::enter();
                                        },
                                    .leave_kernel =
                                        [](int) {
                                          Opened::leave();
                                          arena().mutex.unlock();
                                        }});
  for (SlotBase* slot : slot_registry()) {
    if (!slot->has_kernel(DeviceType::cuda)) slot->copy_kernel(DeviceType::cuda, DeviceType::cpu);
  }
}

FakeDevice::~FakeDevice() {
  for (SlotBase* slot : slot_registry()) slot->remove_kernel(DeviceType::cuda);
  uninstall_device(DeviceType::cuda);
  Arena& a = arena();
  const std::lock_guard lock(a.mutex);
  sigaction(SIGSEGV, &a.before, nullptr);
  if (a.live.empty()) {
    a.used = 0;
    a.free.clear();
  }
}

FakeDeviceCounts FakeDevice::counts() {
  const std::lock_guard lock(arena().mutex);
  return arena().counts;
}

std::int64_t FakeDevice::broken_guards() {
  const Opened opened;
  std::int64_t broken = arena().counts.broken_guards;
  for (const auto& [offset, bytes] : arena().live) broken += !guards_hold(offset, bytes);
  return broken;
}

}  // namespace proteus::testing
