// The program `proteus`: finds the command, reads its options, runs it, and turns what went wrong
// into one line on stderr and an exit code:
//   0 done · 1 an error of the program itself · 2 wrong use · 3 bad file · 4 out of memory or disk
//   · 5 numbers went bad · 130 interrupted, state saved
#include <fmt/format.h>

#include <exception>
#include <new>
#include <string>
#include <vector>

#include "tensor/error.h"
#include "tensor/parallel.h"
#include "train/commands.h"
#include "train/options.h"
#include "train/signals.h"

namespace proteus {
namespace {

struct Command {
  std::string_view name;
  int (*run)(const Options&);
};

constexpr Command kCommands[] = {
    {"duel", run_duel},     {"train", run_train},     {"eval", run_eval},
    {"sample", run_sample}, {"recall", run_recall},   {"sweep", run_sweep},
    {"stream", run_stream}, {"gates", run_gates},     {"convert", run_convert},
    {"data", run_data},     {"inspect", run_inspect}, {"report", run_report},
    {"doctor", run_doctor},
};

std::string_view summary_of(std::string_view name) {
  for (const CommandInfo& info : command_infos()) {
    if (info.name == name) return info.summary;
  }
  return {};
}

void print_help() {
  fmt::print("Proteus {}: transformers with adaptive sparse attention.\n\nCommands:\n",
             PROTEUS_VERSION);
  for (const Command& command : kCommands) {
    fmt::print("  proteus {:<8} {}\n", command.name, summary_of(command.name));
  }
  fmt::print("\nproteus COMMAND --help lists the options of a command.\n");
}

std::string command_list() {
  std::string list;
  for (const Command& command : kCommands) {
    list += fmt::format("{}{}", list.empty() ? "" : ", ", command.name);
  }
  return list;
}

int run(const std::vector<std::string>& args) {
  if (args.empty()) {
    throw ConfigError(
        fmt::format("expected a command: {}; proteus --help tells more", command_list()));
  }
  if (args[0] == "--help" || args[0] == "-h" || args[0] == "help") {
    print_help();
    return 0;
  }
  if (args[0] == "--version") {
    fmt::print("proteus {}\n", PROTEUS_VERSION);
    return 0;
  }
  for (const Command& command : kCommands) {
    if (command.name != args[0]) continue;
    const ParsedOptions parsed = parse_options(args[0], {args.begin() + 1, args.end()});
    if (!parsed.help.empty()) {
      fmt::print("{}", parsed.help);
      return 0;
    }
    set_num_threads(static_cast<int>(parsed.options.common.threads));
    install_interrupt_handler();
    return command.run(parsed.options);
  }
  throw ConfigError(
      fmt::format("unknown command '{}'; expected one of {}", args[0], command_list()));
}

/// The exit code of the exception that is being handled; `what` becomes its text.
int exit_code(std::string& what) {
  try {
    throw;
  } catch (const std::bad_alloc&) {
    what = "out of memory; use a smaller --batch or --context";
    return 4;
  } catch (const std::exception& error) {
    what = error.what();
    if (dynamic_cast<const ConfigError*>(&error)) return 2;
    if (dynamic_cast<const DeviceError*>(&error)) return 2;
    if (dynamic_cast<const FileError*>(&error)) return 3;
    if (dynamic_cast<const OutOfMemory*>(&error)) return 4;
    if (dynamic_cast<const NumericError*>(&error)) return 5;
    return 1;
  }
}

std::string one_line(std::string text) {
  for (char& c : text) {
    if (c == '\n' || c == '\r') c = ' ';
  }
  return text;
}

}  // namespace
}  // namespace proteus

int main(int argc, char** argv) {
  try {
    return proteus::run({argv + 1, argv + argc});
  } catch (...) {
    std::string what;
    const int code = proteus::exit_code(what);
    std::fflush(stdout);
    fmt::print(stderr, "proteus: {}\n", proteus::one_line(what));
    return code;
  }
}
