// The table behind train/options.h: every option once, with the member it fills, and which of them
// each command has. The command line, the config file, --help and config.toml are all made from it.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "train/options.h"

namespace proteus::detail {

enum class Group : std::uint8_t {
  common,
  data,
  shards,
  model,
  aspa,
  training,
  sampling,
  duel,
  recall,
  sweep,
  stream,
  checkpoint,
  convert,
  gates,
  inspect,
  report,
  output
};
std::string_view title_of(Group group);

/// Where an option's value goes; the alternative is its type.
using Field = std::variant<bool*, std::int64_t*, double*, std::string*, std::vector<std::string>*>;

struct OptionSpec {
  std::string_view name;   ///< without dashes
  std::string_view value;  ///< N, X, FILE… for --help; empty for flags
  std::string_view help;
  Group group;
  Field (*field)(Options&);
};
const std::vector<OptionSpec>& option_specs();

struct CommandSpec {
  CommandInfo info;
  std::string_view example;
  std::vector<Group> groups;
  std::vector<std::string_view> also;     ///< single options of other groups
  std::vector<std::string_view> without;  ///< options of its groups that it does not have
  /// The option that arguments without -- fill: one of them, or any number where it is a list.
  std::string_view positional = {};
};
const std::vector<CommandSpec>& command_specs();
/// Throws ConfigError listing the commands when there is no such one.
const CommandSpec& command_spec(std::string_view command);
/// The options of a command, in the order of the table.
std::vector<const OptionSpec*> options_of(const CommandSpec& command);

/// The known name nearest to a misspelt one, or an empty string when none is near.
std::string nearest_name(std::string_view name, const std::vector<const OptionSpec*>& specs);

/// Which source set an option last: absent = nobody, 0 preset, 1 config, 2 command line.
using Levels = std::map<std::string_view, int>;
constexpr int kPresetLevel = 0;
constexpr int kConfigLevel = 1;
constexpr int kCommandLineLevel = 2;

/// Converts and stores text. Throws ConfigError "--steps: expected an integer, got '2k'".
void set_from_text(Options& options, const OptionSpec& spec, const std::string& text);
/// Applies TOML text to `options` and notes what it set; `source` is its name in messages. Throws
/// like parse_options.
void apply_config(Options& options, std::string_view text, const std::string& source,
                  const CommandSpec& command, Levels& levels);
/// The value of `preset` in TOML text, or an empty string. Throws like parse_options.
std::string preset_in_config(std::string_view text, const std::string& source);
/// The preset that a command begins with when none is named.
std::string_view first_preset(std::string_view command);
/// Throws ConfigError listing the presets when there is no such one.
void apply_preset(Options& options, std::string_view preset, Levels& levels);
/// Texts in one, with `separator` between them.
template <class Texts>
std::string joined(const Texts& texts, std::string_view separator) {
  std::string out;
  bool first = true;
  for (const auto& text : texts) {
    if (!first) out += separator;
    out += text;
    first = false;
  }
  return out;
}
/// "a, b" parts of a comma-separated list, blanks trimmed, empty parts kept.
std::vector<std::string> split_list(std::string_view text);

}  // namespace proteus::detail
