#include "train/report.h"

#include <fmt/chrono.h>
#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "tensor/error.h"
#include "train/file_ops.h"
#include "train/machine.h"
#include "train/utf8.h"

namespace proteus {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

std::string default_folder(const std::string& command) {
  const std::string base =
      fmt::format("runs/{}-{:%Y%m%d-%H%M%S}", command, fmt::localtime(std::time(nullptr)));
  std::string path = base;
  std::error_code error;
  for (int i = 2; fs::exists(path, error); ++i) path = fmt::format("{}-{}", base, i);
  return path;
}

/// The lines of an interrupted run that its checkpoint knows of; a torn last line is dropped.
std::string lines_up_to(const std::string& path, std::int64_t step) {
  std::ifstream in(path);
  std::string kept;
  for (std::string line; std::getline(in, line);) {
    const Json json = Json::parse(line, nullptr, false);
    if (!json.is_object()) continue;
    const auto it = json.find("step");
    if (it == json.end() || !it->is_number() || it->get<double>() <= static_cast<double>(step)) {
      kept += line + "\n";
    }
  }
  return kept;
}

/// Empty where there is no such file.
std::string whole_lines(const std::string& path) {
  std::ifstream in(path);
  std::string text;
  for (std::string line; std::getline(in, line) && !in.eof();) text += line + "\n";
  return text;
}

bool is_numeric(std::string_view cell) {
  if (cell == "–") return true;
  const bool digit =
      std::any_of(cell.begin(), cell.end(), [](char c) { return c >= '0' && c <= '9'; });
  return digit && cell.find_first_not_of("0123456789.,+-eE%kMGT") == std::string_view::npos;
}

}  // namespace

std::string json_text(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

RunFolder::RunFolder(const Options& options, std::int64_t resumed_step)
    : path_(options.common.out.empty() ? default_folder(options.command) : options.common.out) {
  std::error_code error;
  fs::create_directories(path_, error);
  if (error) {
    throw FileError(fmt::format("--out {}: cannot make the folder: {}; choose another --out", path_,
                                error.message()));
  }
  const bool resumed = resumed_step >= 0;
  const std::string metrics = file("metrics.jsonl");
  const std::string kept = resumed ? lines_up_to(metrics, resumed_step) : std::string();
  write_file_atomically(metrics, kept);
  write_file_atomically(file("config.toml"), config_text(options));
  const std::string commands = file("commands.jsonl");
  write_file_atomically(
      commands, (resumed ? whole_lines(commands) : std::string()) + command_record(options) + "\n");
  if (!resumed) fs::remove(file("summary.json"), error);
  metrics_ = std::fopen(metrics.c_str(), "ae");
  if (!metrics_) throw_file_error(metrics, "cannot write", errno);
}

RunFolder::~RunFolder() {
  if (metrics_) std::fclose(metrics_);
}

std::string RunFolder::file(std::string_view name) const {
  return (fs::path(path_) / name).string();
}

void RunFolder::log(const Json& line) {
  const std::string text = json_text(line) + "\n";
  if (std::fwrite(text.data(), 1, text.size(), metrics_) != text.size() ||
      std::fflush(metrics_) != 0) {
    throw_file_error(file("metrics.jsonl"), "cannot write", errno);
  }
}

void RunFolder::write_summary(const Json& summary) {
  const std::string text = summary.dump(2, ' ', false, Json::error_handler_t::replace);
  write_file_atomically(file("summary.json"), text + "\n");
}

void Table::add_row(std::vector<std::string> cells) {
  if (cells.size() != header_.size()) {
    throw ShapeError(fmt::format("Table::add_row(cells): expected {} cells (= columns), got {}",
                                 header_.size(), cells.size()));
  }
  rows_.push_back(std::move(cells));
}

std::string Table::text() const {
  std::vector<std::size_t> widths;
  std::vector<bool> right;
  for (std::size_t c = 0; c < header_.size(); ++c) {
    std::size_t width = utf8_length(header_[c]);
    bool numeric = !rows_.empty();
    for (const auto& row : rows_) {
      width = std::max(width, utf8_length(row[c]));
      numeric = numeric && is_numeric(row[c]);
    }
    widths.push_back(width);
    right.push_back(numeric);
  }
  std::string out;
  const auto add = [&](const std::vector<std::string>& cells) {
    std::string line;
    for (std::size_t c = 0; c < cells.size(); ++c) {
      const std::string blank(widths[c] - utf8_length(cells[c]), ' ');
      line += c > 0 ? "  " : "";
      line += right[c] ? blank + cells[c] : cells[c] + blank;
    }
    line.erase(line.find_last_not_of(' ') + 1);
    out += line + "\n";
  };
  add(header_);
  std::vector<std::string> rule;
  for (const std::size_t width : widths) rule.emplace_back(width, '-');
  add(rule);
  for (const auto& row : rows_) add(row);
  return out;
}

std::string format_number(double value, int digits) {
  return std::isfinite(value) ? fmt::format("{:.{}f}", value, digits) : "–";
}

std::string format_routing(double value, int digits) {
  return value >= 0 ? format_number(value, digits) : "–";
}

std::string format_count(double value) {
  if (!std::isfinite(value)) return "–";
  if (std::abs(value) < 999.5) return fmt::format("{:.0f}", value);
  constexpr std::string_view kUnits[] = {"k", "M", "G", "T"};
  std::size_t unit = 0;
  double scaled = value / 1000;
  while (std::abs(scaled) >= 999.5 && unit + 1 < std::size(kUnits)) {
    scaled /= 1000;
    ++unit;
  }
  const double magnitude = std::abs(scaled);
  const int digits = magnitude < 9.995 ? 2 : (magnitude < 99.95 ? 1 : 0);
  return fmt::format("{:.{}f}{}", scaled, digits, kUnits[unit]);
}

std::string format_seconds(double seconds) {
  constexpr double kMost = 1e9;
  if (!(seconds >= 0 && seconds < kMost)) return "–";
  const auto s = static_cast<std::int64_t>(std::llround(seconds));
  if (s < 60) return fmt::format("{} s", s);
  if (s < 3600) return fmt::format("{}:{:02}", s / 60, s % 60);
  return fmt::format("{}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60);
}

}  // namespace proteus
