// proteus sweep: one attention layer against the length of its sequence, dense and ASPA at several
// alphas, as a table whose columns are those of other context-length sweeps.
#include "train/sweep.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <set>

#include "train/commands.h"
#include "train/commands/text.h"
#include "train/memory.h"
#include "train/report.h"
#include "train/signals.h"

namespace proteus {
namespace {

using Json = nlohmann::ordered_json;

template <class T>
Json or_null(const std::optional<T>& value) {
  return value ? Json(*value) : Json();
}

double tokens_of(const SweepRow& row) { return static_cast<double>(row.length * row.batch); }

Json row_json(const SweepRow& row) {
  const auto per_token = [&](double value) { return value / tokens_of(row); };
  Json json{{"length", row.length},
            {"arm", row.arm},
            {"alpha", or_null(row.alpha)},
            {"batch", row.batch}};
  json["fwd_ms"] = or_null(row.fwd_ms);
  json["fwdbwd_ms"] = or_null(row.fwdbwd_ms);
  json["tokens_per_s"] = row.ms() ? Json(1000 / per_token(*row.ms())) : Json();
  json["peak_memory_bytes"] = or_null(row.peak_memory_bytes);
  json["bytes_per_token"] =
      row.peak_memory_bytes ? Json(per_token(static_cast<double>(*row.peak_memory_bytes))) : Json();
  json["attention_flops_per_token"] = row.attention_flops_per_token;
  json["active_heads"] = or_null(row.active_heads);
  json["kept_tokens"] = or_null(row.kept_tokens);
  json["maxvio"] = or_null(row.max_vio);
  json["mode"] = row.dense ? "dense" : "sparse";
  json["error"] = row.error.empty() ? Json() : Json(row.error);
  return json;
}

std::string cell(const std::optional<double>& value, int digits) {
  return value ? format_number(*value, digits) : "–";
}

std::vector<std::string> cells(const SweepRow& row) {
  const double tokens = tokens_of(row);
  return {fmt::to_string(row.length),
          row.name(),
          row.dense ? "dense" : "sparse",
          fmt::to_string(row.batch),
          cell(row.fwd_ms, 3),
          cell(row.fwdbwd_ms, 3),
          row.ms() ? format_count(tokens / *row.ms() * 1000) : "–",
          row.peak_memory_bytes ? format_bytes(*row.peak_memory_bytes) : "–",
          row.peak_memory_bytes ? format_count(static_cast<double>(*row.peak_memory_bytes) / tokens)
                                : "–",
          cell(row.active_heads, 1),
          row.kept_tokens ? fmt::to_string(*row.kept_tokens) : "–",
          cell(row.max_vio, 2),
          row.error};
}

/// What a whole sweep says about an arm.
struct Trend {
  std::string name;
  std::optional<double> fwd_slope, fwdbwd_slope, fwd_crossover, fwdbwd_crossover;
};

std::vector<Trend> trends_of(const std::vector<SweepRow>& rows) {
  const SweepTime forward = [](const SweepRow& row) { return row.fwd_ms; };
  const SweepTime both = [](const SweepRow& row) { return row.fwdbwd_ms; };
  std::vector<Trend> trends;
  std::set<std::string> seen;
  for (const SweepRow& row : rows) {
    const std::string name = row.name();
    if (!seen.insert(name).second) continue;
    Trend t{name, sweep_slope(rows, name, forward), sweep_slope(rows, name, both), {}, {}};
    if (name != "dense") {
      t.fwd_crossover = sweep_crossover(rows, name, forward);
      t.fwdbwd_crossover = sweep_crossover(rows, name, both);
    }
    trends.push_back(t);
  }
  return trends;
}

Json summary(const Options& options, const std::vector<SweepRow>& rows) {
  Json json = summary_head(options);
  json["dtype"] = options.common.dtype;
  json["layer"] = {{"width", options.model.width},
                   {"head_width", options.model.head_width},
                   {"dense_heads", options.model.heads},
                   {"shared_heads", options.aspa.shared_heads},
                   {"shared_window", options.aspa.shared_window},
                   {"routed_heads", options.aspa.routed_heads},
                   {"k", options.aspa.k},
                   {"window", options.aspa.window}};
  json["rows"] = Json::array();
  for (const SweepRow& row : rows) json["rows"].push_back(row_json(row));
  json["slope"] = Json::object();
  json["crossover"] = Json::object();
  for (const Trend& t : trends_of(rows)) {
    json["slope"][t.name] = {{"fwd", or_null(t.fwd_slope)}, {"fwdbwd", or_null(t.fwdbwd_slope)}};
    if (t.name == "dense") continue;
    json["crossover"][t.name] = {{"fwd", or_null(t.fwd_crossover)},
                                 {"fwdbwd", or_null(t.fwdbwd_crossover)}};
  }
  return json;
}

void print_trends(const std::vector<SweepRow>& rows, bool backward) {
  Table table({"arm", "slope fwd", "slope fwd+bwd", "faster than dense from, fwd", "fwd+bwd"});
  const auto from = [](const Trend& t, const std::optional<double>& length, bool measured) {
    if (t.name == "dense" || !measured) return std::string("–");
    return length ? format_count(*length) : std::string("nowhere");
  };
  for (const Trend& t : trends_of(rows)) {
    table.add_row({t.name, cell(t.fwd_slope, 2), cell(t.fwdbwd_slope, 2),
                   from(t, t.fwd_crossover, true), from(t, t.fwdbwd_crossover, backward)});
  }
  fmt::print("{}", table.text());
}

}  // namespace

int run_sweep(const Options& options) {
  RunFolder folder(options);
  std::vector<SweepRow> rows;
  const bool plain = !options.common.quiet;
  sweep(options, [&](const SweepRow& row) {
    rows.push_back(row);
    folder.log(row_json(row));
    folder.write_summary(summary(options, rows));
    if (plain) {
      fmt::print(stderr, "{:>9} {:<9} {}\n", row.length, row.name(),
                 row.error.empty() ? format_number(*row.ms(), 3) + " ms" : row.error);
    }
    return !interrupted();
  });
  Table table({"T", "arm", "mode", "batch", "fwd ms", "fwd+bwd ms", "tokens/s", "peak memory",
               "bytes/token", "active heads", "kept tokens", "MaxVio", "error"});
  for (const SweepRow& row : rows) table.add_row(cells(row));
  fmt::print("{}\n", table.text());
  print_trends(rows, options.sweep.backward);
  if (interrupted()) {
    fmt::print("Interrupted; what was measured so far is in {}\n", folder.path());
    return kInterrupted;
  }
  if (plain) fmt::print("Written to {}\n", folder.path());
  return 0;
}

}  // namespace proteus
