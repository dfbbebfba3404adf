// Options and TOML: reading --config, writing config.toml.
#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "tensor/error.h"
#include "train/option_table.h"

// Parsing without exceptions would lose the position of a value.
#include <toml++/toml.h>

namespace proteus::detail {
namespace {

toml::table parse_text(std::string_view text, const std::string& source) {
  try {
    return toml::parse(text, source);
  } catch (const toml::parse_error& error) {
    throw ConfigError(
        fmt::format("{}: line {}: {}", source, error.source().begin.line, error.description()));
  }
}

std::string_view name_of_type(const toml::node& node) {
  if (node.is_string()) return "a string";
  if (node.is_integer()) return "an integer";
  if (node.is_floating_point()) return "a number";
  if (node.is_boolean()) return "a boolean";
  if (node.is_array()) return "an array";
  if (node.is_table()) return "a table";
  return "a date or time";
}

/// Stores a value of the right type; otherwise returns what was expected.
std::string_view store(const toml::node& node, const Field& field) {
  return std::visit(
      [&](auto* target) -> std::string_view {
        using T = std::remove_pointer_t<decltype(target)>;
        if constexpr (std::is_same_v<T, bool>) {
          if (!node.is_boolean()) return "true or false";
          *target = node.as_boolean()->get();
        } else if constexpr (std::is_same_v<T, std::int64_t>) {
          if (!node.is_integer()) return "an integer";
          *target = node.as_integer()->get();
        } else if constexpr (std::is_same_v<T, double>) {
          if (!node.is_number()) return "a number";
          *target = *node.value<double>();
        } else if constexpr (std::is_same_v<T, std::string>) {
          if (!node.is_string()) return "a string";
          *target = node.as_string()->get();
        } else {
          constexpr std::string_view kExpected = "a string or an array of strings";
          if (node.is_string()) {
            *target = split_list(node.as_string()->get());
            return {};
          }
          if (!node.is_array()) return kExpected;
          T list;
          for (const toml::node& item : *node.as_array()) {
            if (!item.is_string()) return kExpected;
            list.push_back(item.as_string()->get());
          }
          *target = std::move(list);
        }
        return {};
      },
      field);
}

std::string quoted(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    const auto code = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (code < 0x20 || code == 0x7F) {
      out += fmt::format("\\u{:04X}", code);
    } else {
      out += c;
    }
  }
  return out + '"';
}

std::string toml_value(const Field& field) {
  return std::visit(
      [](auto* value) -> std::string {
        using T = std::remove_pointer_t<decltype(value)>;
        if constexpr (std::is_same_v<T, std::string>) {
          return quoted(*value);
        } else if constexpr (std::is_same_v<T, std::vector<std::string>>) {
          std::vector<std::string> items;
          for (const std::string& item : *value) items.push_back(quoted(item));
          return fmt::format("[{}]", joined(items, ", "));
        } else if constexpr (std::is_same_v<T, double>) {
          std::string text = fmt::format("{}", *value);
          if (text.find_first_not_of("-0123456789") == std::string::npos) text += ".0";
          return text;
        } else {
          return fmt::format("{}", *value);
        }
      },
      field);
}

}  // namespace

void apply_config(Options& options, std::string_view text, const std::string& source,
                  const CommandSpec& command, Levels& levels) {
  const toml::table table = parse_text(text, source);
  const auto specs = options_of(command);
  for (const auto& [key, node] : table) {
    const std::string_view name = key.str();
    const auto line = node.source().begin.line;
    const auto found = std::find_if(specs.begin(), specs.end(),
                                    [&](const OptionSpec* spec) { return spec->name == name; });
    if (found == specs.end() || name == "config") {
      const std::string near = nearest_name(name, specs);
      throw ConfigError(fmt::format(
          "{}: line {}: unknown key '{}'{}; proteus {} --help lists them", source, line, name,
          near.empty() ? "" : fmt::format(", did you mean '{}'?", near), command.info.name));
    }
    const std::string_view expected = store(node, (*found)->field(options));
    if (!expected.empty()) {
      throw ConfigError(fmt::format("{}: line {}: {}: expected {}, got {}", source, line, name,
                                    expected, name_of_type(node)));
    }
    levels[(*found)->name] = kConfigLevel;
  }
}

std::string preset_in_config(std::string_view text, const std::string& source) {
  const toml::table table = parse_text(text, source);
  return table["preset"].value_or(std::string());
}

}  // namespace proteus::detail

namespace proteus {

std::string config_text(const Options& options) {
  using detail::Group;
  const detail::CommandSpec& command = detail::command_spec(options.command);
  std::string text = fmt::format(
      "# proteus {}: every option as it was used. To repeat the run:\n"
      "#   proteus {} --config config.toml\n",
      options.command, options.command);
  constexpr std::string_view kLeftOut[] = {"out", "config", "quiet", "resume"};
  Options copy = options;  // fields are reached through pointers to non-const
  bool first = true;
  Group group{};
  for (const detail::OptionSpec* spec : options_of(command)) {
    if (std::find(std::begin(kLeftOut), std::end(kLeftOut), spec->name) != std::end(kLeftOut)) {
      continue;
    }
    // Only one of the two may be given.
    if (spec->name == (options.training.steps > 0 ? "epochs" : "steps")) continue;
    if (first || spec->group != group) text += fmt::format("\n# {}\n", title_of(spec->group));
    first = false;
    group = spec->group;
    text += fmt::format("{} = {}\n", spec->name, detail::toml_value(spec->field(copy)));
  }
  return text;
}

}  // namespace proteus
