// Losses, speed, memory, samples and needles of trained arms (train/pages/parts.h).
#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "train/pages/chart.h"
#include "train/pages/markup.h"
#include "train/pages/parts.h"
#include "train/report.h"

namespace proteus {
namespace {

constexpr std::size_t kMostPoints = 200;  // of a line, each over a few steps

std::string count(double value) { return value == value ? format_count(value) : "–"; }
// The name of an arm for the first of its seeds, nothing for the others: a legend has it once.
class Names {
 public:
  std::string once(const std::string& name) {
    return seen_.insert(name).second ? name : std::string();
  }

 private:
  std::set<std::string> seen_;
};

template <class Value>
Series step_series(const Run& run, const ArmRun& arm, const std::string& name, Value value) {
  Series s{name, arm_color(run, arm.name), Line::thin};
  for (const StepPoint& p : arm.steps) s.marks.push_back({p.step, value(p)});
  s.marks = thinned(s.marks, kMostPoints);
  return s;
}

template <class Value>
std::string step_chart(const Run& run, const std::string& label, Axis y, Value value) {
  Chart chart{label, {"step"}, std::move(y), {}};
  Names names;
  for (const ArmRun& arm : run.arms) {
    Series s = step_series(run, arm, names.once(arm.name), value);
    s.line = Line::solid;
    name_some(s, arm.title(), chart.y.title);
    chart.series.push_back(std::move(s));
  }
  return chart_svg(chart);
}

// Behind the first evaluations of all arms: before them the loss falls so far that what matters
// later could not be told apart.
void leave_out_beginning(const Run& run, Chart& chart) {
  double from = 0;
  for (const ArmRun& arm : run.arms) {
    if (arm.evals.size() < 2) return;
    from = std::max(from, arm.evals.front().step);
  }
  for (Series& s : chart.series) {
    std::erase_if(s.marks, [&](const Mark& m) { return m.x < from; });
  }
}

template <class Value, class Where>
std::string eval_chart(const Run& run, const std::string& label, Axis x, Axis y, Value value,
                       Where where, bool with_training) {
  Chart chart{label, std::move(x), std::move(y), {}};
  Names names;
  if (with_training) {
    for (const ArmRun& arm : run.arms) {
      chart.series.push_back(step_series(run, arm, {}, [](const StepPoint& p) { return p.loss; }));
    }
  }
  for (const ArmRun& arm : run.arms) {
    Series s{names.once(arm.name), arm_color(run, arm.name)};
    for (const EvalPoint& p : arm.evals) {
      s.marks.push_back({where(arm, p), value(p),
                         fmt::format("{}, step {}: {} {}", arm.title(), short_number(p.step),
                                     chart.y.title, short_number(value(p)))});
    }
    chart.series.push_back(std::move(s));
  }
  if (with_training) leave_out_beginning(run, chart);
  return chart_svg(chart);
}

// Seconds of training at an evaluation: those of the last line before it.
double seconds_at(const ArmRun& arm, double step) {
  double seconds = kMissing;
  for (const StepPoint& p : arm.steps) {
    if (p.step <= step) seconds = p.seconds;
  }
  return seconds;
}

void write_table(PageWriter& page, const Run& run) {
  const bool recall = std::any_of(run.arms.begin(), run.arms.end(),
                                  [](const ArmRun& a) { return a.accuracy == a.accuracy; });
  std::vector<std::vector<std::string>> rows;
  for (const ArmRun& a : run.arms) {
    const double steps = a.steps.empty() ? kMissing : a.steps.back().step;
    rows.push_back({a.name, fmt::format("{}", a.seed), count(a.params), count(a.active_params),
                    short_number(steps), format_number(a.train_loss), format_number(a.val_loss),
                    format_number(a.best_val_loss),
                    recall ? format_number(a.accuracy) : format_number(a.val_bpb, 3),
                    count(a.tokens_per_s), count(a.attention_flops), bytes_text(a.peak_memory),
                    format_number(a.max_vio, 2)});
    if (!a.finished) rows.back()[0] += " (not finished)";
  }
  page.table(
      {"arm", "seed", "parameters", "active", "steps", "train loss", "val loss", "best",
       recall ? "accuracy" : "bits/byte", "tokens/s", "attn FLOP/token", "peak memory", "MaxVio"},
      rows, "Results of every arm");
}

}  // namespace

int arm_color(const Run& run, const std::string& name) {
  std::vector<std::string> names;
  for (const ArmRun& arm : run.arms) {
    if (std::find(names.begin(), names.end(), arm.name) == names.end()) names.push_back(arm.name);
  }
  return static_cast<int>(std::find(names.begin(), names.end(), name) - names.begin());
}

bool write_training(PageWriter& page, const Run& run, const std::string& id) {
  if (run.arms.empty()) return false;
  page.heading(3, "Training");
  write_table(page, run);
  const auto loss = [](const EvalPoint& p) { return p.loss; };
  const auto at_step = [](const ArmRun&, const EvalPoint& p) { return p.step; };
  const auto at_time = [](const ArmRun& a, const EvalPoint& p) { return seconds_at(a, p.step); };
  page.figures(
      {{id + "-loss", "Loss against the step",
        "Bold: validation, a point per evaluation. Thin: training, from the first evaluation on.",
        eval_chart(run, "Training and validation loss of every arm against the step.", {"step"},
                   {"nats per token"}, loss, at_step, true)},
       {id + "-loss-time", "Validation loss against the time",
        "Seconds of training, evaluations left out.",
        eval_chart(run, "Validation loss of every arm against seconds of training.", {"seconds"},
                   {"nats per token"}, loss, at_time, false)},
       {id + "-accuracy", "Accuracy", "Share of right answers, a point per evaluation.",
        eval_chart(
            run, "Accuracy of every arm against the step.", {"step"}, {"accuracy"},
            [](const EvalPoint& p) { return p.accuracy; }, at_step, false)},
       {id + "-speed", "Speed", "Since the run began or was resumed, evaluations left out.",
        step_chart(run, "Tokens per second of every arm against the step.",
                   {.title = "tokens per second", .from_zero = true},
                   [](const StepPoint& p) { return p.tokens_per_s; })},
       {id + "-memory", "Peak memory", "Most bytes of tensors that were live at once, so far.",
        step_chart(run, "Peak memory of every arm against the step.",
                   {.title = "bytes", .from_zero = true, .bytes = true},
                   [](const StepPoint& p) { return p.memory; })}});
  return true;
}

bool write_samples(PageWriter& page, const Run& run) {
  std::string cells;
  for (const ArmRun& arm : run.arms) {
    if (arm.sample.empty()) continue;
    cells += fmt::format("<div><h4>{}</h4><pre>{}</pre></div>\n", escaped(arm.title()),
                         escaped(arm.sample));
  }
  if (cells.empty()) return false;
  page.heading(3, "Samples");
  page.raw("<div class=\"figures\">\n" + cells + "</div>\n");
  return true;
}

bool write_needles(PageWriter& page, const Run& run) {
  if (run.needles.empty()) return false;
  page.heading(3, "Needles");
  std::vector<std::vector<std::string>> rows;
  for (const NeedleRow& r : run.needles) {
    rows.push_back({r.arm, r.kept_by, r.kind, short_number(r.trials), short_number(r.kept_tokens),
                    format_number(r.retained / r.trials, 3),
                    format_number(r.answered / r.trials, 3)});
  }
  page.table({"arm", "kept by", "kind", "trials", "kept tokens", "retained", "answered"}, rows,
             "Needles", {1, 2});
  return true;
}

bool write_calls(PageWriter& page, const Run& run) {
  if (run.calls.empty()) return false;
  page.heading(3, "How this was made");
  std::string lines;
  for (const RunCall& call : run.calls) lines += call.command_line + "\n";
  page.code(lines);
  for (const RunCall& c : run.calls) {
    page.paragraph(fmt::format(
        "Began {}. Proteus {}, {}. Device {}; {}, {} cores, {} threads, {} of memory; {}.",
        c.started, c.version, c.compiler, c.device, c.cpu, short_number(c.cores),
        short_number(c.threads), bytes_text(c.memory_bytes), c.system));
  }
  page.raw("<details><summary>All options (config.toml)</summary>\n");
  page.code(run.config);
  page.raw("</details>\n");
  return true;
}

}  // namespace proteus
