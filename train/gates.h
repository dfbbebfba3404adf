// Gate surgery on a model that is being trained, or on a checkpoint: the layers, the optimizer and
// the timeline of what was done.
#pragma once

#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "aspa/policy.h"
#include "nn/transformer.h"
#include "optim/optimizer.h"
#include "train/batch.h"
#include "train/models.h"
#include "train/options.h"
#include "train/safetensors.h"

namespace proteus {

/// Tells the optimizer of edits to a part of the model.
EditHook optimizer_hook(Optimizer& optimizer, const GatedPart& part);

/// restore_module() for models whose gated parts may have other numbers of gates and heads than
/// `model` was made with: takes the checkpoint's. Throws FileError naming `source`.
void restore_model(Transformer& model, const NamedTensors& tensors, const std::string& source);

/// Throws FileError naming `source` for a model much larger than the `held` numbers that a file has
/// for it: before memory is taken.
void check_size(const SavedModel& saved, double held, const std::string& source);

/// The model of a checkpoint: made as `saved` says, with the values of `tensors`. Throws FileError
/// naming `source` when they do not fit, before memory is taken for a model much larger than they.
std::unique_ptr<Transformer> saved_model(const SavedModel& saved, const NamedTensors& tensors,
                                         const std::string& source);

/// One line of the timeline.
struct GateEvent {
  std::int64_t step = 0;
  std::int64_t layer = 0;
  std::string part;
  GateEdit edit;
  std::string why;
  double loss_before = 0;  ///< on a fixed batch, in evaluation mode
  double loss_after = 0;
};
nlohmann::ordered_json edit_json(const GateEdit& edit);
nlohmann::ordered_json event_json(const GateEvent& event);

/// What --gate-every and --add-heads ask for at this step; the losses are those of `probe`.
std::vector<GateEvent> operate(const AspaOptions& options, std::int64_t step, std::uint64_t seed,
                               Transformer& model, Optimizer& optimizer, const Batch& probe);

}  // namespace proteus
