#include "train/commands/answers.h"

#include <algorithm>

namespace proteus {
namespace {

constexpr std::int64_t kEvalBatches = 8;
constexpr std::int64_t kMostEvalRows = 256;
constexpr std::int64_t kEvalTokens = 128 * 1024;  // of a batch: long sequences come fewer at a time

}  // namespace

Task answers_task(const Options& options, std::int64_t vocab, const SplitBatches& batches) {
  Task task;
  task.vocab = vocab;
  task.stop_at = options.recall.stop_at;
  task.train = [batches, rows = options.training.batch](std::int64_t i) {
    return batches(RecallSplit::train, static_cast<std::uint64_t>(i), rows);
  };
  const std::int64_t eval_rows =
      std::clamp<std::int64_t>(kEvalTokens / options.model.context, 1, kMostEvalRows);
  task.evaluate = [batches, eval_rows](Transformer& model) -> Evaluation {
    const auto batch = [&](std::int64_t i) {
      return batches(RecallSplit::eval, static_cast<std::uint64_t>(i), eval_rows);
    };
    return {evaluate(model, batch, 1).loss,
            recall_accuracy(model, batches, kEvalBatches, eval_rows)};
  };
  task.probe = batches(RecallSplit::eval, 0, 4);
  return task;
}

}  // namespace proteus
