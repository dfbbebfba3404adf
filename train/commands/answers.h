// Tasks with answers: models are trained on the loss at the targets and scored by how many of them
// their likeliest token is.
#pragma once

#include "train/recall_score.h"
#include "train/session.h"

namespace proteus {

/// Sequences of options.model.context tokens from `vocab` ids.
Task answers_task(const Options& options, std::int64_t vocab, const SplitBatches& batches);

}  // namespace proteus
