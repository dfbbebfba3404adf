// What run folders hold, read back for a report: the files that duel, train, recall, sweep and
// stream write (train/report.h). A number that is missing or null is NaN.
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "train/sweep.h"

namespace proteus {

constexpr double kMissing = std::numeric_limits<double>::quiet_NaN();

/// A call that made the run; a resumed run has several.
struct RunCall {
  std::string command_line, started, version, compiler, system, cpu, device;
  double cores = kMissing, threads = kMissing, memory_bytes = kMissing;
};

struct StepPoint {
  double step = 0;
  double loss = kMissing, tokens_per_s = kMissing, seconds = kMissing, memory = kMissing;
  double max_vio = kMissing, entropy = kMissing, dead_gates = kMissing, density = kMissing;
};

struct EvalPoint {
  double step = 0;
  double loss = kMissing, accuracy = kMissing, churn = kMissing;
};

/// Loads of the heads of one layer, part and role at one step.
struct LoadPoint {
  double step = 0;
  std::vector<double> load;
};
struct LoadSeries {
  std::int64_t layer = 0;
  std::string part, role;
  std::vector<LoadPoint> points;
};

struct GateMark {
  double step = 0;
  std::int64_t layer = 0;
  std::string part, operation, why;
  double gate = kMissing, other = kMissing, head = kMissing;
  double loss_before = kMissing, loss_after = kMissing;
};

/// One model that was trained: of metrics.jsonl the curves, of summary.json the rest.
struct ArmRun {
  std::string name;
  double seed = 0;
  std::vector<StepPoint> steps;
  std::vector<EvalPoint> evals;
  std::vector<LoadSeries> loads;
  std::vector<GateMark> gates;
  bool finished = false;  ///< is in summary.json
  double params = kMissing, active_params = kMissing, train_loss = kMissing, val_loss = kMissing,
         best_val_loss = kMissing, val_bpb = kMissing, accuracy = kMissing, tokens_per_s = kMissing,
         attention_flops = kMissing, peak_memory = kMissing, max_vio = kMissing;
  std::string sample;

  std::string title() const;  ///< "aspa, seed 1337"
};

struct KeptToken {
  double token = 0, score = kMissing, head = kMissing;
};
struct KeptText {
  double begin = 0, end = 0;
  std::string text;  ///< of a stream of text
};
struct StreamRun {
  double tokens = 0, retained = kMissing, chunks = kMissing, stream_s = kMissing,
         tokens_per_s = kMissing, peak_rss = kMissing, spilled = kMissing;
  std::string storage, file, prompt, answer;
  std::vector<KeptToken> winners;  ///< in the order of the text
  std::vector<KeptText> spans;
};

struct NeedleRow {
  std::string arm, kept_by, kind;
  double trials = kMissing, kept_tokens = kMissing, retained = kMissing, answered = kMissing;
};

struct Run {
  std::string path, name;
  std::string command;  ///< "duel"; empty where nothing tells
  std::string config;   ///< config.toml
  std::string data;     ///< the file that was trained on, or empty
  bool finished = false;
  std::vector<RunCall> calls;
  std::vector<ArmRun> arms;
  std::vector<SweepRow> sweep;
  std::optional<StreamRun> stream;
  std::vector<NeedleRow> needles;
};

/// Throws FileError when there is no such folder, when it is not a run's (no config.toml), and for
/// a file that is damaged, naming it and the line. A last line of metrics.jsonl that a kill has
/// torn is left out, and an unfinished run has no summary.json.
Run read_run(const std::string& path);

}  // namespace proteus
