// How many queries of a recall task a model answers.
#pragma once

#include "nn/transformer.h"
#include "train/recall_task.h"

namespace proteus {

/// Share of the queries of the first `batches` evaluation batches of `rows` sequences whose
/// likeliest next token is the right one. Leaves the model in evaluation mode.
double recall_accuracy(Transformer& model, const RecallTask& task, std::int64_t batches,
                       std::int64_t rows);

}  // namespace proteus
