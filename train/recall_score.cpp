#include "train/recall_score.h"

#include <algorithm>
#include <vector>

#include "autograd/tape.h"
#include "tensor/ops/gemm.h"

namespace proteus {
namespace {

// Answers that are right at the queries of a batch: only their rows go through the head.
struct Score {
  std::int64_t right = 0;
  std::int64_t asked = 0;
};

Score score(Transformer& model, const Batch& batch) {
  const NoGradGuard no_grad;
  const Tensor hidden = model.hidden(batch.inputs).value().to(DType::f32).to(kCpu).contiguous();
  const std::int64_t C = hidden.size(2);
  const auto* targets = batch.targets.data<std::int32_t>();
  std::vector<std::int64_t> rows;
  for (std::int64_t i = 0; i < batch.targets.numel(); ++i) {
    if (targets[i] != kIgnoredTarget) rows.push_back(i);
  }
  const auto count = static_cast<std::int64_t>(rows.size());
  Tensor asked = Tensor::empty({count, C});
  for (std::int64_t r = 0; r < count; ++r) {
    const float* row = hidden.data<float>() + rows[static_cast<std::size_t>(r)] * C;
    std::copy(row, row + C, asked.data<float>() + r * C);
  }
  const Tensor logits = ops::linear(asked, model.head_weight().to(kCpu), {});
  const std::int64_t V = logits.size(1);
  Score result{0, count};
  for (std::int64_t r = 0; r < count; ++r) {
    const float* row = logits.data<float>() + r * V;
    const auto best = std::max_element(row, row + V) - row;
    result.right += best == targets[rows[static_cast<std::size_t>(r)]];
  }
  return result;
}

}  // namespace

double recall_accuracy(Transformer& model, const SplitBatches& batches, std::int64_t count,
                       std::int64_t rows) {
  model.set_training(false);
  Score total;
  for (std::int64_t i = 0; i < count; ++i) {
    const Score s = score(model, batches(RecallSplit::eval, static_cast<std::uint64_t>(i), rows));
    total.right += s.right;
    total.asked += s.asked;
  }
  return static_cast<double>(total.right) / static_cast<double>(total.asked);
}

}  // namespace proteus
