#include "train/memory.h"

#include <fmt/format.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <fstream>
#include <limits>
#include <string>

namespace proteus {
namespace {

/// The number in a file of one number; `fallback` when there is none.
std::int64_t number_in(const char* path, std::int64_t fallback) {
  std::ifstream in(path);
  std::int64_t value = 0;
  return in >> value ? value : fallback;
}

}  // namespace

std::int64_t peak_rss_bytes() {
  struct rusage usage {};
  ::getrusage(RUSAGE_SELF, &usage);
  return std::int64_t{usage.ru_maxrss} * 1024;
}

std::int64_t rss_bytes() {
  std::ifstream in("/proc/self/statm");
  std::int64_t size = 0;
  std::int64_t resident = 0;
  return in >> size >> resident ? resident * ::sysconf(_SC_PAGESIZE) : 0;
}

MachineMemory machine_memory() {
  MachineMemory memory;
  std::ifstream in("/proc/meminfo");
  std::string name;
  std::int64_t kib = 0;
  std::string unit;
  while (in >> name >> kib) {
    std::getline(in, unit);
    if (name == "MemTotal:") memory.total_bytes = kib * 1024;
    if (name == "MemAvailable:") memory.available_bytes = kib * 1024;
  }
  const std::int64_t limit = number_in("/sys/fs/cgroup/memory.max", memory.total_bytes);
  if (limit < memory.total_bytes) {
    const std::int64_t used = number_in("/sys/fs/cgroup/memory.current", 0);
    memory.total_bytes = limit;
    memory.available_bytes = std::clamp<std::int64_t>(limit - used, 0, memory.available_bytes);
  }
  return memory;
}

std::string format_bytes(std::int64_t bytes) {
  const auto value = static_cast<double>(bytes);
  if (bytes < 1000) return fmt::format("{} B", bytes);
  if (value < 999.5e3) return fmt::format("{:.0f} kB", value / 1e3);
  if (value < 999.5e6) return fmt::format("{:.0f} MB", value / 1e6);
  if (value < 99.95e9) return fmt::format("{:.1f} GB", value / 1e9);
  return fmt::format("{:.0f} GB", value / 1e9);
}

std::int64_t parse_bytes(std::string_view text) {
  constexpr std::string_view kUnits = "KMGT";
  int shift = 0;
  if (!text.empty()) {
    const auto unit = kUnits.find(text.back());
    if (unit != std::string_view::npos) {
      shift = 10 * (static_cast<int>(unit) + 1);
      text.remove_suffix(1);
    }
  }
  std::int64_t value = 0;
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  const std::int64_t most = std::numeric_limits<std::int64_t>::max() >> shift;
  if (text.empty() || error != std::errc() || stop != end || value < 0 || value > most) return -1;
  return value << shift;
}

}  // namespace proteus
