// How much memory this process and this machine have.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace proteus {

/// The most memory that this process has had resident, in bytes.
std::int64_t peak_rss_bytes();
/// What it has resident now; 0 where the system does not tell.
std::int64_t rss_bytes();

struct MachineMemory {
  std::int64_t total_bytes = 0;
  std::int64_t available_bytes = 0;
};
/// Of /proc/meminfo, and no more than the control group's limit; zeros where the system does not
/// tell.
MachineMemory machine_memory();

/// "812 MB", "3.4 GB" (decimal units).
std::string format_bytes(std::int64_t bytes);

/// "256M" as a number of bytes: digits and K, M, G or T (of 1,024) or nothing. −1 for any other
/// text and for what does not fit.
std::int64_t parse_bytes(std::string_view text);

}  // namespace proteus
