// The processor of this machine, and what of a run depends on the machine and the call.
#pragma once

#include <string>

#include "train/options.h"

namespace proteus {

struct CpuInfo {
  std::string model = "unknown";
  std::string flags;  ///< " a b c ", blanks around each

  bool has(const std::string& flag) const {
    return flags.find(" " + flag + " ") != std::string::npos;
  }
};
CpuInfo read_cpu();
/// Cores that this process may run on.
int usable_cores();
/// "g++ 12.2.0".
std::string compiler_name();

/// The call as one types it into a shell: "proteus train --steps 200 --data 'my text.txt'".
std::string command_line(const Options& options);
/// A line of JSON for commands.jsonl: command_line, when it began (UTC), the program's version and
/// compiler, and the machine.
std::string command_record(const Options& options);

}  // namespace proteus
