// Trainer: one model, one optimizer, a source of batches. A step is a pure function of its number
// and of the state that a checkpoint keeps, so that a resumed run repeats the losses of one that
// never stopped, bit for bit.
#pragma once

#include <cmath>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "aspa/controllers.h"
#include "aspa/gating.h"
#include "nn/transformer.h"
#include "optim/optimizer.h"
#include "tensor/ops/loss.h"
#include "tensor/queue.h"
#include "train/batch.h"
#include "train/safetensors.h"

namespace proteus {

using BatchSource = std::function<Batch(std::int64_t)>;

struct TrainerConfig {
  std::int64_t steps = 0;
  double lr = 1e-3;
  double min_lr = 1e-4;
  std::int64_t warmup = 100;
  bool cosine = true;  ///< otherwise constant after the warm-up
  bool adamw = true;   ///< otherwise SGD with momentum beta1
  double beta1 = 0.9;
  double beta2 = 0.99;
  double weight_decay = 0.1;
  double clip = 1;              ///< largest global gradient norm; 0 = do not clip
  std::int64_t grad_accum = 1;  ///< batches whose mean gradient makes one step
  bool record = true;           ///< steps are recorded and replayed where that is possible
  /// First steps of a model with ASPA layers in which nothing but what they add to dense ones is
  /// updated (see routes), at their own alpha: a router learns where the heads are that it finds.
  std::int64_t freeze_steps = 0;
  /// alpha of ASPA layers during a step, counted from the end of these; between steps they have
  /// their own.
  AlphaSchedule alpha;
};

struct StepResult {
  std::int64_t step = 0;  ///< how many steps were done after it
  double loss = 0;        ///< nats per target, before the update
  double grad_norm = 0;   ///< before clipping
  double lr = 0;
  std::int64_t tokens = 0;
};

/// On a device, a step is queued: the host reads its numbers later. Where no layer needs the host
/// within a step and the shapes stay, the second step is recorded and replayed from then on; what
/// moves gates between steps is not part of it.
class Trainer {
 public:
  /// `batch(i)` returns the i-th batch of the run, whatever was asked before. The model must
  /// outlive the trainer.
  Trainer(Transformer& model, const TrainerConfig& config, BatchSource batch);

  /// Forward, backward, clip, update, routing update, and what came of it. Throws NumericError when
  /// the loss or the gradient is not finite; parameters and optimizer are then as they were before
  /// the step.
  StepResult step();
  /// The same in two halves: queue_step() queues a step, collect() waits for the oldest one whose
  /// result was not asked for. A step whose numbers are not finite changes nothing, and neither do
  /// those behind it; collect() forgets them and throws.
  void queue_step();
  StepResult collect();
  /// Steps that were queued and not collected.
  std::int64_t pending() const { return static_cast<std::int64_t>(pending_.size()); }
  std::int64_t steps_done() const { return optimizer_->steps(); }
  bool finished() const { return steps_done() >= config_.steps; }
  /// Steps that were replayed.
  std::int64_t replays() const { return replays_; }

  /// For gate surgery between two steps.
  Optimizer& optimizer() { return *optimizer_; }

  /// What a checkpoint keeps besides the model: the optimizer's tensors, and counters as JSON text.
  NamedTensors optimizer_tensors() const { return optimizer_->state(); }
  std::string state_json() const;
  /// Throws FileError naming `source` when something is missing or does not fit.
  void restore(const NamedTensors& optimizer, const std::string& state, const std::string& source);

 private:
  /// Tokens and targets where the model is.
  struct Input {
    Tensor tokens;
    ops::Targets targets;
  };
  struct Pending {
    StepResult result;
    Readback report;  // loss and norm
    bool read = false;

    bool finite() const { return std::isfinite(result.loss) && std::isfinite(result.grad_norm); }
    void wait();
  };
  /// A recorded step, and what it was recorded for.
  struct Recorded {
    std::vector<Input> inputs;    // overwritten before every replay
    std::vector<Tensor> tensors;  // of the model and the optimizer
    std::vector<double> routing;  // the host_numbers_ of then
    std::vector<Gating::Collected> collected;
    std::uint64_t stream = 0;   // of dropout, at the first draw
    std::uint64_t streams = 0;  // drawn in a step
    std::unique_ptr<Recording> work;
  };

  double learning_rate() const;
  Input ready(const Batch& batch) const;
  void run(const std::vector<Input>& inputs);
  bool recordable(const std::vector<Input>& inputs) const;
  bool fits_recorded(const std::vector<Input>& inputs) const;
  bool record(const std::vector<Input>& inputs);
  std::vector<Tensor> tensors() const;
  std::optional<std::vector<double>> host_numbers(bool frozen) const;
  void replay(const std::vector<Input>& inputs);
  void bump_parameters() const;  // what was made of their values is made again

  Transformer& model_;
  TrainerConfig config_;
  BatchSource batch_;
  std::unique_ptr<Optimizer> optimizer_;
  std::int64_t batches_ = 0;  ///< taken so far
  Tensor losses_;             // f64 [grad_accum]
  Tensor squared_norm_;       // f64 [1]
  Tensor report_;             // f64 [2]
  std::deque<Pending> pending_;
  std::unique_ptr<Recorded> recorded_;
  /// Numbers of the host that the last step depended on; undefined where the host took part in it.
  std::optional<std::vector<double>> host_numbers_;
  std::int64_t eager_steps_ = 0;
  int failed_recordings_ = 0;
  std::int64_t replays_ = 0;
};

/// The counters of a run, which state.json keeps.
struct TrainerState {
  std::int64_t step = 0;
  std::int64_t batches = 0;  ///< the data position: the next batch's number
  std::uint64_t dropout_seed = 0, dropout_stream = 0;
};
/// Throws FileError naming `source` when the text is not what Trainer::state_json() writes.
TrainerState parse_trainer_state(const std::string& text, const std::string& source);

struct EvalResult {
  double loss = 0;  ///< mean over targets, nats
  std::int64_t targets = 0;
};
/// Mean loss over batches 0 … count − 1 in evaluation mode, weighted by their targets. The model's
/// mode is as before afterwards. Nothing of the model changes.
EvalResult evaluate(Transformer& model, const BatchSource& batch, std::int64_t count);

}  // namespace proteus
