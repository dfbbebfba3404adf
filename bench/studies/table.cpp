// Run folders as one table: means and standard deviations over seeds.
//
// usage: study_table LABEL=FOLDER...
// FOLDER holds the summary.json of duel, train, recall or eval with one arm; folders with the same
// label are one row, in the order in which labels come first. Columns that no run has are left out.
// Where rows of dense attention have a validation loss, every loss is also given as its difference
// to the lowest of them, and attention FLOPs as a share of theirs.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tensor/error.h"
#include "train/report.h"

namespace proteus {
namespace {

using nlohmann::json;

constexpr double kUnknown = std::numeric_limits<double>::quiet_NaN();

struct Row {
  std::string label;
  std::vector<json> arms;

  std::vector<double> values(const std::string& pointer) const {
    std::vector<double> out;
    for (const json& arm : arms) {
      const json::json_pointer at(pointer);
      if (arm.contains(at) && arm.at(at).is_number()) out.push_back(arm.at(at));
    }
    return out;
  }
  bool dense() const { return label.starts_with("dense") && !values("/best_val_loss").empty(); }
};

double mean(const std::vector<double>& v) {
  double sum = 0;
  for (const double x : v) sum += x;
  return v.empty() ? kUnknown : sum / static_cast<double>(v.size());
}

double deviation(const std::vector<double>& v) {
  const double m = mean(v);
  double square = 0;
  for (const double x : v) square += (x - m) * (x - m);
  return v.size() < 2 ? kUnknown : std::sqrt(square / static_cast<double>(v.size() - 1));
}

json read_arm(const std::string& folder) {
  const std::string path = folder + "/summary.json";
  std::ifstream in(path);
  const json summary = json::parse(in, nullptr, false);
  if (!summary.is_object()) throw FileError(path + ": expected the summary of a run");
  if (!summary.contains("arms")) return summary;
  if (summary["arms"].size() != 1) {
    throw FileError(fmt::format("{}: expected one arm, got {}", path, summary["arms"].size()));
  }
  return summary["arms"][0];
}

std::vector<Row> read_rows(int argc, char** argv) {
  std::vector<Row> rows;
  for (int i = 1; i < argc; ++i) {
    const std::string text = argv[i];
    const auto equals = text.find('=');
    if (equals == std::string::npos) {
      throw ConfigError("expected LABEL=FOLDER, got '" + text + "'");
    }
    const std::string label = text.substr(0, equals);
    auto row =
        std::find_if(rows.begin(), rows.end(), [&](const Row& r) { return r.label == label; });
    if (row == rows.end()) row = rows.insert(rows.end(), {label, {}});
    row->arms.push_back(read_arm(text.substr(equals + 1)));
  }
  return rows;
}

struct Column {
  std::string title;
  std::vector<std::string> cells;
};

std::string with_deviation(const std::vector<double>& v, int digits) {
  const double spread = deviation(v);
  return format_number(mean(v), digits) +
         (std::isnan(spread) ? "" : " ± " + format_number(spread, digits));
}

// One column, unless no row has the value.
void add(std::vector<Column>& columns, const std::vector<Row>& rows, const std::string& title,
         const std::string& pointer, auto&& text) {
  Column column{title, {}};
  bool any = false;
  for (const Row& row : rows) {
    const auto v = row.values(pointer);
    any = any || !v.empty();
    column.cells.push_back(v.empty() ? "–" : text(v));
  }
  if (any) columns.push_back(std::move(column));
}

void add_losses(std::vector<Column>& columns, const std::vector<Row>& rows) {
  double best = kUnknown;
  double flops = kUnknown;
  for (const Row& row : rows) {
    if (!row.dense()) continue;
    best = std::fmin(best, mean(row.values("/best_val_loss")));
    flops = mean(row.values("/attention_flops_per_token"));
  }
  const auto number = [](const auto& v) { return with_deviation(v, 4); };
  add(columns, rows, "best val loss", "/best_val_loss", number);
  add(columns, rows, "last val loss", "/val_loss", number);
  if (!std::isnan(best)) {
    add(columns, rows, "to best dense", "/best_val_loss",
        [&](const auto& v) { return fmt::format("{:+.4f}", mean(v) - best); });
    add(columns, rows, "attention FLOPs", "/attention_flops_per_token",
        [&](const auto& v) { return fmt::format("{:.0f}%", 100 * mean(v) / flops); });
  } else {
    add(columns, rows, "attention FLOP/token", "/attention_flops_per_token",
        [](const auto& v) { return format_count(mean(v)); });
  }
}

std::string table(const std::vector<Row>& rows) {
  std::vector<Column> columns{{"arm", {}}, {"runs", {}}};
  for (const Row& row : rows) {
    const bool causal = row.arms[0].value("causal", true);
    columns[0].cells.push_back(row.label + (causal ? "" : " (NOT causal)"));
    columns[1].cells.push_back(fmt::to_string(row.arms.size()));
  }
  add(columns, rows, "accuracy", "/accuracy", [](const auto& v) { return with_deviation(v, 4); });
  add(columns, rows, "steps", "/steps", [](const auto& v) { return with_deviation(v, 0); });
  add_losses(columns, rows);
  const auto count = [](const auto& v) { return format_count(mean(v)); };
  add(columns, rows, "FLOP/token", "/total_flops_per_token", count);
  add(columns, rows, "parameters", "/params", count);
  const bool idle = std::any_of(rows.begin(), rows.end(), [](const Row& row) {
    return row.values("/active_params") != row.values("/params");
  });
  if (idle) add(columns, rows, "of a token", "/active_params", count);
  const auto share = [](const auto& v) { return with_deviation(v, 2); };
  add(columns, rows, "MaxVio", "/routing/maxvio_eval", share);
  add(columns, rows, "of both roles", "/routing/maxvio_eval_both", share);
  std::string out = "|";
  for (const Column& c : columns) out += fmt::format(" {} |", c.title);
  out += "\n|";
  for (std::size_t c = 0; c < columns.size(); ++c) out += "---|";
  for (std::size_t r = 0; r < rows.size(); ++r) {
    out += "\n|";
    for (const Column& c : columns) out += fmt::format(" {} |", c.cells[r]);
  }
  return out + "\n";
}

}  // namespace
}  // namespace proteus

int main(int argc, char** argv) {
  if (argc < 2) {
    fmt::print(stderr, "usage: study_table LABEL=FOLDER...\n");
    return 2;
  }
  try {
    fmt::print("{}", proteus::table(proteus::read_rows(argc, argv)));
    return 0;
  } catch (const std::exception& error) {
    fmt::print(stderr, "study_table: {}\n", error.what());
    return 2;
  }
}
