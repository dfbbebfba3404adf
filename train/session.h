// One training run of one model: steps, evaluations, log lines, checkpoints, Ctrl-C. What it trains
// on is a task; text and recall are the two there are.
#pragma once

#include <functional>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "train/dataset.h"
#include "train/models.h"
#include "train/report.h"
#include "train/trainer.h"

namespace proteus {

struct Evaluation {
  double loss = 0;       ///< nats per target
  double accuracy = -1;  ///< share of right answers; −1 where the task has none
};

struct Task {
  BatchSource train;
  std::function<Evaluation(Transformer&)> evaluate;
  std::int64_t vocab = 0;
  std::string tokenizer;  ///< Tokenizer::to_json(), or empty
  double stop_at = 0;     ///< accuracy of two evaluations in a row that ends a run; 0 = none
  Batch probe;            ///< fixed: churn and the effect of gate surgery are measured on it
};

/// Random batches from the training part; evaluation over the whole validation part, or its first
/// training.eval_batches batches. `dataset` must outlive the task.
Task text_task(const Options& options, const Dataset& dataset, std::uint64_t seed);

struct RunPoint {
  std::int64_t step = 0;
  double loss = 0;
  double accuracy = -1;
  double max_vio = 0;
  double churn = -1;
};

struct RunResult {
  std::string name;
  std::uint64_t seed = 0;
  std::int64_t params = 0, active_params = 0;
  std::int64_t steps = 0, tokens = 0;
  double train_loss = 0;  ///< mean over the last logged interval
  double val_loss = 0, best_val_loss = 0;
  double accuracy = -1;
  double tokens_per_s = 0;
  double attention_flops_per_token = 0, total_flops_per_token = 0;
  std::int64_t peak_memory_bytes = 0;
  RoutingSummary routing;
  std::vector<RunPoint> history;  ///< one per evaluation
  bool interrupted = false;
};

struct SessionConfig {
  std::string label;       ///< of the progress line and the log lines
  std::uint64_t seed = 0;  ///< of the weights
  std::string checkpoint;  ///< folder; empty = none is written
  bool resume = false;     ///< continue from the checkpoint
};

/// Trains a new model (or the checkpoint's) on --device and leaves it in `model`, where it was
/// trained. Log lines go to `folder`, progress to `mode`.
RunResult run_session(const Options& options, const Arm& arm, const Task& task,
                      const SessionConfig& config, RunFolder& folder, ProgressMode mode,
                      std::unique_ptr<Transformer>& model);

/// The part of the options that a Trainer takes.
TrainerConfig trainer_config(const Options& options, std::uint64_t seed);

/// The step that a checkpoint stands at, for RunFolder. Throws FileError.
std::int64_t checkpoint_step(const std::string& checkpoint);

/// An arm's name in a table: one that sees the future says so.
std::string shown_name(const RunResult& result);

/// The fields of an arm in summary.json.
nlohmann::ordered_json arm_json(const RunResult& result);

}  // namespace proteus
