// Loads, balance and gates (train/pages/parts.h).
#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <set>

#include "train/pages/chart.h"
#include "train/pages/markup.h"
#include "train/pages/parts.h"

namespace proteus {
namespace {

constexpr std::size_t kMostPoints = 200;

std::string part_name(std::int64_t layer, const std::string& part) {
  return part == "attention" ? fmt::format("layer {}", layer)
                             : fmt::format("layer {}, {}", layer, part);
}

HeatMap load_map(const ArmRun& arm, const LoadSeries& s) {
  HeatMap map{
      fmt::format("Load of every head against the step: {}, {}, {} role. Arrow keys go from "
                  "head to head.",
                  arm.title(), part_name(s.layer, s.part), s.role),
      "step",
      s.part == "attention" ? "head" : "expert",
      "share of the tokens",
      {},
      {}};
  for (const LoadPoint& p : s.points) {
    map.x.push_back(p.step);
    map.values.push_back(p.load);
  }
  return map;
}

// Both roles of a layer beside each other.
void write_loads(PageWriter& page, const Run& run, const std::string& id) {
  std::vector<PageWriter::Choice> choices;
  for (const ArmRun& arm : run.arms) {
    std::map<std::pair<std::int64_t, std::string>, std::vector<Figure>> figures;
    for (const LoadSeries& s : arm.loads) {
      const std::string name = fmt::format("{}, {}", arm.title(), part_name(s.layer, s.part));
      figures[{s.layer, s.part}].push_back(
          {fmt::format("{}-load-{}-{}", id, id_text(name), s.role),
           s.role == "query" ? "Load per head, queries" : "Load per head, keys",
           name + ": the share of the tokens that enter it, at every logged step.",
           heat_map_svg(load_map(arm, s))});
    }
    for (const auto& [part, both] : figures) {
      choices.push_back(
          {fmt::format("{}: {}", arm.title(), part_name(part.first, part.second)), page.row(both)});
    }
  }
  if (!choices.empty()) page.choices(choices);
}

template <class Value>
std::string balance_chart(const Run& run, const std::string& label, Axis y, Value value) {
  Chart chart{label, {"step"}, std::move(y), {}};
  std::set<std::string> seen;
  for (const ArmRun& arm : run.arms) {
    if (arm.loads.empty()) continue;
    Series s{seen.insert(arm.name).second ? arm.name : std::string(), arm_color(run, arm.name)};
    for (const StepPoint& p : arm.steps) s.marks.push_back({p.step, value(p)});
    s.marks = thinned(s.marks, kMostPoints);
    name_some(s, arm.title(), chart.y.title);
    chart.series.push_back(std::move(s));
  }
  return chart_svg(chart);
}

struct Operation {
  std::string_view name;
  Glyph glyph;
};
constexpr Operation kOperations[] = {
    {"clone", Glyph::up},      {"merge", Glyph::diamond},  {"prune", Glyph::cross},
    {"add-head", Glyph::plus}, {"re-home", Glyph::square}, {"prune-head", Glyph::cross},
};

Glyph glyph_of(const std::string& operation) {
  for (const Operation& o : kOperations) {
    if (o.name == operation) return o.glyph;
  }
  return Glyph::circle;
}

std::string gate_label(const GateMark& g) {
  std::string label =
      fmt::format("step {}, {}: {}", short_number(g.step), part_name(g.layer, g.part), g.operation);
  const auto add = [&](const char* name, double value) {
    if (value == value) label += fmt::format(", {} {}", name, short_number(value));
  };
  add("gate", g.gate);
  add("with gate", g.other);
  add("head", g.head);
  if (!g.why.empty()) label += fmt::format(" ({})", g.why);
  return label + fmt::format("; loss {} before, {} after", short_number(g.loss_before),
                             short_number(g.loss_after));
}

std::string gate_timeline(const ArmRun& arm) {
  Chart chart{
      fmt::format("Operations on gates against the step, a row per layer: {}.", arm.title()),
      {.title = "step", .whole = arm.steps.empty() ? 0 : arm.steps.back().step},
      {},
      {}};
  std::map<std::pair<std::int64_t, std::string>, double> row_of;
  for (const GateMark& g : arm.gates) row_of[{g.layer, g.part}] = 0;
  for (auto& [part, row] : row_of) {
    row = static_cast<double>(chart.y.names.size());
    chart.y.names.push_back(part_name(part.first, part.second));
  }
  std::map<std::string, Series> by_operation;
  for (const GateMark& g : arm.gates) {
    Series& s = by_operation[g.operation];
    s.marks.push_back({g.step, row_of[{g.layer, g.part}], gate_label(g)});
  }
  int color = 0;
  for (auto& [operation, series] : by_operation) {
    series.name = operation;
    series.color = color++;
    series.line = Line::none;
    series.glyph = glyph_of(operation);
    series.radius = 5;
    chart.series.push_back(std::move(series));
  }
  return chart_svg(chart);
}

}  // namespace

bool write_routing(PageWriter& page, const Run& run, const std::string& id) {
  const bool any = std::any_of(run.arms.begin(), run.arms.end(), [](const ArmRun& a) {
    return !a.loads.empty() || !a.gates.empty();
  });
  if (!any) return false;
  page.heading(3, "Routing");
  write_loads(page, run, id);
  std::vector<Figure> figures = {
      {id + "-maxvio", "MaxVio",
       "Largest load of a head over the mean, less 1; the worst of layers and roles, per step.",
       balance_chart(run, "MaxVio against the step.", {.title = "MaxVio", .from_zero = true},
                     [](const StepPoint& p) { return p.max_vio; })},
      {id + "-entropy", "Entropy of the load", "1 is even; the lowest of layers and roles.",
       balance_chart(run, "Entropy of the load against the step.", {.title = "share of log heads"},
                     [](const StepPoint& p) { return p.entropy; })},
      {id + "-dead", "Dead gates", "Starving for as long as makes a gate dead, over all layers.",
       balance_chart(run, "Dead gates against the step.", {.title = "gates", .from_zero = true},
                     [](const StepPoint& p) { return p.dead_gates; })}};
  for (const ArmRun& arm : run.arms) {
    if (arm.gates.empty()) continue;
    figures.push_back({id + "-gates-" + id_text(arm.title()), "Gates, " + arm.title(),
                       "What was done to them, in the layer that it was done in.",
                       gate_timeline(arm)});
  }
  page.figures(figures);
  return true;
}

}  // namespace proteus
