#include "train/machine.h"

#include <fmt/chrono.h>
#include <fmt/format.h>
#include <sched.h>
#include <sys/utsname.h>

#include <algorithm>
#include <ctime>
#include <fstream>
#include <nlohmann/json.hpp>
#include <thread>

#include "tensor/parallel.h"
#include "train/memory.h"
#include "train/option_table.h"
#include "train/report.h"

namespace proteus {
namespace {

/// As a shell reads it back.
std::string quoted(const std::string& text) {
  constexpr std::string_view kPlain =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-+=.,:/@%";
  if (!text.empty() && text.find_first_not_of(kPlain) == std::string::npos) return text;
  std::string out = "'";
  for (const char c : text) out += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return out + "'";
}

std::string system_name() {
  utsname name{};
  if (::uname(&name) != 0) return "unknown";
  return fmt::format("{} {} {}", name.sysname, name.release, name.machine);
}

}  // namespace

CpuInfo read_cpu() {
  CpuInfo cpu;
  std::ifstream in("/proc/cpuinfo");
  for (std::string line; std::getline(in, line) && cpu.flags.empty();) {
    const auto colon = line.find(": ");
    if (colon == std::string::npos) continue;
    const std::string value = line.substr(colon + 2);
    if (line.starts_with("model name")) cpu.model = value;
    if (line.starts_with("flags") || line.starts_with("Features")) cpu.flags = " " + value + " ";
  }
  return cpu;
}

int usable_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
  return static_cast<int>(std::thread::hardware_concurrency());
}

std::string compiler_name() {
#if defined(__clang__)
  return fmt::format("clang {}", __clang_version__);
#else
  return fmt::format("g++ {}", __VERSION__);
#endif
}

std::string command_line(const Options& options) {
  std::string line = "proteus " + options.command;
  for (const detail::OptionSpec* spec : detail::options_of(detail::command_spec(options.command))) {
    const auto given = options.given.find(std::string(spec->name));
    if (given == options.given.end()) continue;
    line += fmt::format(" --{}", spec->name);
    if (!spec->value.empty()) line += " " + quoted(given->second);
  }
  return line;
}

std::string command_record(const Options& options) {
  return json_text(
      {{"command_line", command_line(options)},
       {"started", fmt::format("{:%Y-%m-%dT%H:%M:%SZ}", fmt::gmtime(std::time(nullptr)))},
       {"version", PROTEUS_VERSION},
       {"compiler", compiler_name()},
       {"system", system_name()},
       {"cpu", read_cpu().model},
       {"cores", usable_cores()},
       {"threads", num_threads()},
       {"memory_bytes", machine_memory().total_bytes},
       {"device", options.common.device}});
}

}  // namespace proteus
