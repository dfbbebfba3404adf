#include "train/options.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <cmath>
#include <type_traits>

#include "tensor/error.h"
#include "train/mapped_file.h"
#include "train/option_table.h"

namespace proteus {
namespace detail {
namespace {

/// A whole text as a number.
template <class T>
bool parse_number(const std::string& text, T& value) {
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  return error == std::errc() && stop == end;
}

std::string text_of(const Field& field) {
  return std::visit(
      [](auto* value) {
        using T = std::remove_pointer_t<decltype(value)>;
        if constexpr (std::is_same_v<T, std::vector<std::string>>) {
          return joined(*value, ",");
        } else {
          return fmt::format("{}", *value);
        }
      },
      field);
}

}  // namespace

std::vector<std::string> split_list(std::string_view text) {
  std::vector<std::string> parts(1);
  for (const char c : text) {
    if (c == ',') {
      parts.emplace_back();
    } else if (c != ' ') {
      parts.back() += c;
    }
  }
  return parts;
}

void set_from_text(Options& options, const OptionSpec& spec, const std::string& text) {
  const auto fail = [&](std::string_view expected) {
    throw ConfigError(fmt::format("--{}: expected {}, got '{}'", spec.name, expected, text));
  };
  std::visit(
      [&](auto* target) {
        using T = std::remove_pointer_t<decltype(target)>;
        if constexpr (std::is_same_v<T, bool>) {
          if (text != "true" && text != "false") fail("true or false");
          *target = text == "true";
        } else if constexpr (std::is_same_v<T, std::int64_t>) {
          if (!parse_number(text, *target)) fail("an integer");
        } else if constexpr (std::is_same_v<T, double>) {
          if (!parse_number(text, *target)) fail("a number");
        } else if constexpr (std::is_same_v<T, std::string>) {
          *target = text;
        } else {
          *target = split_list(text);
        }
      },
      spec.field(options));
}

}  // namespace detail

namespace {

using namespace detail;

/// What the command line says: the text of every option that was given.
struct CommandLine {
  std::map<std::string_view, std::string> values;
  std::vector<std::string> arguments;  ///< without --, where the command takes a list
  std::string help;

  std::string value(std::string_view name) const {
    const auto it = values.find(name);
    return it == values.end() ? std::string() : it->second;
  }
};

[[noreturn]] void throw_unexpected(const std::string& argument, const CommandSpec& command,
                                   const std::vector<const OptionSpec*>& specs) {
  if (!argument.starts_with("-")) {
    throw ConfigError(fmt::format("unexpected argument '{}'; options begin with --, as in: {}",
                                  argument, command.example));
  }
  const std::string name = argument.substr(0, argument.find('='));
  const std::string near = nearest_name(
      name.substr(name.find_first_not_of('-') == std::string::npos ? name.size()
                                                                   : name.find_first_not_of('-')),
      specs);
  throw ConfigError(fmt::format("unknown option {}{}; proteus {} --help lists them", name,
                                near.empty() ? "" : fmt::format(", did you mean --{}?", near),
                                command.info.name));
}

/// The list that arguments without -- are added to; null where the command takes none.
std::vector<std::string>* list_of(const CommandSpec& command, Options& options) {
  for (const OptionSpec* spec : options_of(command)) {
    if (spec->name != command.positional) continue;
    const Field field = spec->field(options);
    const auto* list = std::get_if<std::vector<std::string>*>(&field);
    return list ? *list : nullptr;
  }
  return nullptr;
}

CommandLine read_command_line(const CommandSpec& command,
                              const std::vector<const OptionSpec*>& specs, Options defaults,
                              const std::vector<std::string>& args) {
  CLI::App app{std::string(command.info.summary)};
  app.name(fmt::format("proteus {}", command.info.name));
  app.footer(fmt::format("\nExample:\n  {}", command.example));
  app.get_formatter()->column_width(32);
  app.allow_extras();
  std::map<const OptionSpec*, CLI::Option*> given;
  for (const OptionSpec* spec : specs) {
    const std::string flag = fmt::format("--{}", spec->name);
    CLI::Option* option = spec->value.empty() ? app.add_flag(flag) : app.add_option(flag);
    option->description(std::string(spec->help))->group(std::string(title_of(spec->group)));
    if (!spec->value.empty()) {
      option->type_name(std::string(spec->value))->expected(1);
      option->default_str(text_of(spec->field(defaults)));
    }
    given[spec] = option;
  }
  CommandLine line;
  try {
    app.parse(std::vector<std::string>(args.rbegin(), args.rend()));
  } catch (const CLI::CallForHelp&) {
    line.help = app.help();
    return line;
  } catch (const CLI::ParseError& error) {
    const std::string what = error.what();
    throw ConfigError(fmt::format("{}; proteus {} --help shows how",
                                  what.substr(0, what.find('\n')), command.info.name));
  }
  for (const auto& [spec, option] : given) {
    if (option->count() > 0) line.values[spec->name] = option->results().back();
  }
  for (const std::string& extra : app.remaining()) {
    if (list_of(command, defaults) && !extra.starts_with("-")) {
      line.arguments.push_back(extra);
      continue;
    }
    const bool taken = line.values.contains(command.positional);
    if (command.positional.empty() || taken || extra.starts_with("-")) {
      throw_unexpected(extra, command, specs);
    }
    line.values[command.positional] = extra;
  }
  return line;
}

// Arguments come as they are: a comma or a blank in a path is a part of it.
void take_arguments(const CommandSpec& command, const CommandLine& line, Options& options) {
  if (line.arguments.empty()) return;
  if (line.values.contains(command.positional)) {
    throw ConfigError(fmt::format("--{}: not together with arguments that stand alone, got '{}'",
                                  command.positional, line.arguments.front()));
  }
  *list_of(command, options) = line.arguments;
}

int level_of(const Levels& levels, std::string_view name) {
  const auto it = levels.find(name);
  return it == levels.end() ? -1 : it->second;
}

void resolve_heads(ModelOptions& model, const Levels& levels) {
  const int heads = level_of(levels, "heads");
  const int head_width = level_of(levels, "head-width");
  if (heads >= 0 && heads == head_width) return;  // both given: they need not fill the width
  const bool from_heads = heads > head_width;
  const std::string_view name = from_heads ? "heads" : "head-width";
  const std::int64_t divisor = from_heads ? model.heads : model.head_width;
  if (divisor < 1 || model.width < 1) return;  // validate says so
  if (model.width % divisor != 0) {
    throw ConfigError(
        fmt::format("--{}: expected a divisor of --width {}, got {}; or give --heads "
                    "and --head-width together",
                    name, model.width, divisor));
  }
  (from_heads ? model.head_width : model.heads) = model.width / divisor;
}

void resolve_length(TrainingOptions& training, const Levels& levels) {
  const int steps = level_of(levels, "steps");
  const int epochs = level_of(levels, "epochs");
  if (epochs < 0) return;
  if (epochs == steps) {
    throw ConfigError("--epochs: not together with --steps; give one of them");
  }
  if (epochs > steps) {
    if (!(training.epochs > 0)) {
      throw ConfigError(
          fmt::format("--epochs: expected a number above 0, got {}", training.epochs));
    }
    training.steps = 0;
  } else {
    training.epochs = 0;
  }
}

/// Preset, then config text, then the command line.
Options combine(const CommandSpec& command, const CommandLine& line, std::string_view config,
                const std::string& source) {
  Options options;
  options.command = command.info.name;
  std::string preset = line.value("preset");
  if (preset.empty()) preset = preset_in_config(config, source);
  if (preset.empty()) preset = first_preset(command.info.name);
  Levels levels;
  apply_preset(options, preset, levels);
  apply_config(options, config, source, command, levels);
  for (const OptionSpec* spec : options_of(command)) {
    const auto it = line.values.find(spec->name);
    if (it == line.values.end()) continue;
    set_from_text(options, *spec, it->second);
    levels[spec->name] = kCommandLineLevel;
    options.given.emplace(it->first, it->second);
  }
  take_arguments(command, line, options);
  resolve_heads(options.model, levels);
  resolve_length(options.training, levels);
  if (level_of(levels, "min-lr") < kConfigLevel) {
    options.training.min_lr = std::min(options.training.min_lr, options.training.lr);
  }
  validate(options);
  return options;
}

}  // namespace

std::span<const CommandInfo> command_infos() {
  static const std::vector<CommandInfo> infos = [] {
    std::vector<CommandInfo> list;
    for (const CommandSpec& spec : command_specs()) list.push_back(spec.info);
    return list;
  }();
  return infos;
}

ParsedOptions parse_options(std::string_view command_name, const std::vector<std::string>& args) {
  const CommandSpec& command = command_spec(command_name);
  Options defaults;
  Levels levels;
  apply_preset(defaults, first_preset(command_name), levels);
  resolve_heads(defaults.model, levels);
  const CommandLine line = read_command_line(command, options_of(command), defaults, args);
  ParsedOptions parsed;
  parsed.help = line.help;
  if (!parsed.help.empty()) return parsed;
  const std::string config = line.value("config");
  if (config.empty()) {
    parsed.options = combine(command, line, {}, {});
  } else {
    const MappedFile file(config);
    parsed.options = combine(command, line, file.view(), config);
  }
  parsed.options.common.config = config;
  return parsed;
}

Options options_from_text(const std::string& command, const std::string& text,
                          const std::string& source) {
  return combine(command_spec(command), {}, text, source);
}

Options resumed(const Options& saved, const Options& call) {
  if (!call.common.config.empty()) {
    throw ConfigError("--config: not together with --resume, whose options are the checkpoint's");
  }
  Options options = saved;
  options.command = call.command;
  options.given = call.given;
  options.common = call.common;
  options.common.seed = saved.common.seed;
  options.common.dtype = saved.common.dtype;
  options.checkpoint = call.checkpoint;
  options.checkpoint.model = saved.checkpoint.model;
  Levels levels;
  levels[saved.training.steps > 0 ? "steps" : "epochs"] = kConfigLevel;
  for (const OptionSpec* spec : options_of(command_spec(call.command))) {
    const auto it = call.given.find(std::string(spec->name));
    if (it == call.given.end()) continue;
    const std::string before = text_of(spec->field(options));
    set_from_text(options, *spec, it->second);
    const std::string after = text_of(spec->field(options));
    const bool free =
        spec->group == Group::training || spec->name == "data" ||
        (spec->name == "context" && saved.model.positions == "rope") ||
        (spec->group == Group::common && spec->name != "seed" && spec->name != "dtype") ||
        (spec->group == Group::checkpoint && spec->name != "model");
    if (!free && before != after) {
      throw ConfigError(
          fmt::format("--{}: expected {}, as in the checkpoint that is resumed, got {}", spec->name,
                      before, after));
    }
    levels[spec->name] = kCommandLineLevel;
  }
  resolve_length(options.training, levels);
  validate(options);
  return options;
}

std::int64_t training_steps(const TrainingOptions& training, std::int64_t context,
                            std::int64_t train_tokens) {
  if (training.steps > 0) return training.steps;
  const double step_tokens = static_cast<double>(training.batch) *
                             static_cast<double>(training.grad_accum) *
                             static_cast<double>(context);
  const double steps = std::ceil(training.epochs * static_cast<double>(train_tokens) / step_tokens);
  constexpr double kMost = 1e15;
  if (!(steps <= kMost)) {
    throw ConfigError(fmt::format("--epochs: {} would take {} steps", training.epochs, steps));
  }
  return std::max<std::int64_t>(1, static_cast<std::int64_t>(steps));
}

}  // namespace proteus
