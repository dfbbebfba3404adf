// How many queries of a task with answers a model answers.
#pragma once

#include <functional>

#include "nn/transformer.h"
#include "train/recall_task.h"

namespace proteus {

/// Batch number `index` of so many rows; see RecallTask::batch.
using SplitBatches = std::function<Batch(RecallSplit, std::uint64_t index, std::int64_t rows)>;

/// Share of the targets of evaluation batches 0 … count − 1 of `rows` sequences that are the
/// likeliest token there. Leaves the model in evaluation mode.
double recall_accuracy(Transformer& model, const SplitBatches& batches, std::int64_t count,
                       std::int64_t rows);

}  // namespace proteus
