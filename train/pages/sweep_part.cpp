// A layer against the length (train/pages/parts.h).
#include <fmt/format.h>

#include <algorithm>

#include "train/memory.h"
#include "train/pages/chart.h"
#include "train/pages/markup.h"
#include "train/pages/parts.h"
#include "train/report.h"

namespace proteus {
namespace {

using Picked = std::optional<double> (*)(const SweepRow&);

std::optional<double> forward(const SweepRow& row) { return row.fwd_ms; }
std::optional<double> both(const SweepRow& row) { return row.fwdbwd_ms; }
std::optional<double> per_token(const SweepRow& row) {
  if (!row.peak_memory_bytes) return {};
  return static_cast<double>(*row.peak_memory_bytes) / static_cast<double>(row.length * row.batch);
}

std::vector<std::string> names_of(const std::vector<SweepRow>& rows) {
  std::vector<std::string> names;
  for (const SweepRow& row : rows) {
    if (std::find(names.begin(), names.end(), row.name()) == names.end()) {
      names.push_back(row.name());
    }
  }
  return names;
}

/// A line per arm, its slope in the legend, and where it crosses dense.
std::string sweep_chart(const std::vector<SweepRow>& rows, const std::string& label,
                        const std::string& unit, Picked pick, bool trends) {
  Axis y{.title = unit, .log_base = 10};
  y.bytes = !trends;
  Chart chart{label, {.title = "length, tokens", .log_base = 2}, std::move(y), {}};
  int color = 0;
  for (const std::string& name : names_of(rows)) {
    Series s{name, color};
    for (const SweepRow& row : rows) {
      if (row.name() != name || !pick(row)) continue;
      const double value = *pick(row);
      s.marks.push_back(
          {static_cast<double>(row.length), value,
           fmt::format("{}, {} tokens: {} {}", name, short_number(static_cast<double>(row.length)),
                       short_number(value), unit)});
    }
    const auto slope = trends ? sweep_slope(rows, name, pick) : std::nullopt;
    if (slope) s.name += fmt::format(" (slope {:.2f})", *slope);
    const auto crossing =
        trends && name != "dense" ? sweep_crossover(rows, name, pick) : std::nullopt;
    if (crossing) {
      chart.rules.push_back(
          {*crossing, color, fmt::format("{} is faster from {}", name, format_count(*crossing))});
    }
    chart.series.push_back(std::move(s));
    ++color;
  }
  return chart_svg(chart);
}

std::string ms(const std::optional<double>& value) {
  return value ? format_number(*value, 3) : "–";
}

}  // namespace

bool write_sweep(PageWriter& page, const Run& run, const std::string& id) {
  if (run.sweep.empty()) return false;
  page.heading(3, "One layer against the length");
  page.figures({{id + "-forward", "Forward",
                 "Both axes logarithmic. Slope 1 is linear, 2 quadratic, over the last lengths.",
                 sweep_chart(run.sweep, "Milliseconds of a forward pass against the length.", "ms",
                             forward, true)},
                {id + "-backward", "Forward and backward",
                 "The dotted lines: from there on an arm is faster than dense.",
                 sweep_chart(run.sweep, "Milliseconds of forward and backward against the length.",
                             "ms", both, true)},
                {id + "-memory", "Memory per token", "Peak bytes of tensors over the tokens.",
                 sweep_chart(run.sweep, "Peak bytes per token against the length.",
                             "bytes per token", per_token, false)}});
  std::vector<std::vector<std::string>> rows;
  for (const SweepRow& r : run.sweep) {
    rows.push_back({short_number(static_cast<double>(r.length)), r.name(), ms(r.fwd_ms),
                    ms(r.fwdbwd_ms), r.peak_memory_bytes ? format_bytes(*r.peak_memory_bytes) : "–",
                    per_token(r) ? format_count(*per_token(r)) : "–", r.error});
  }
  page.raw("<details><summary>All points</summary>\n");
  page.table({"tokens", "arm", "forward ms", "fwd+bwd ms", "peak memory", "bytes/token", "error"},
             rows, "All points of the sweep", {1, 6});
  page.raw("</details>\n");
  return true;
}

}  // namespace proteus
