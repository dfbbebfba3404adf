// proteus convert: a dense checkpoint as an ASPA one, to be trained on.
#include "train/convert.h"

#include <fmt/format.h>

#include <cmath>

#include "autograd/tape.h"
#include "tensor/error.h"
#include "train/checkpoint.h"
#include "train/commands.h"
#include "train/commands/model_file.h"
#include "train/draw.h"
#include "train/report.h"
#include "train/session.h"
#include "train/trainer.h"

namespace proteus {
namespace {

constexpr std::int64_t kProbeRows = 2;
constexpr std::int64_t kProbeLength = 64;

// The largest difference of two models' logits on random tokens.
double largest_difference(Transformer& a, Transformer& b, std::uint64_t seed) {
  const std::int64_t T = std::min(a.config().context, kProbeLength);
  Tensor tokens = Tensor::empty({kProbeRows, T}, DType::i32);
  Draw draw({seed, 0});
  for (std::int64_t i = 0; i < tokens.numel(); ++i) {
    tokens.data<std::int32_t>()[i] = static_cast<std::int32_t>(draw.below(a.config().vocab));
  }
  const auto x = a.logits(tokens).to_vector();
  const auto y = b.logits(tokens).to_vector();
  double largest = 0;
  for (std::size_t i = 0; i < x.size(); ++i) largest = std::max(largest, std::abs(x[i] - y[i]));
  return largest;
}

}  // namespace

int run_convert(const Options& given) {
  const std::string& from = given.checkpoint.checkpoint;
  const std::string& to = given.gates.save;
  if (to.empty()) {
    throw ConfigError("--save: expected the folder of the new checkpoint, got nothing");
  }
  const LoadedModel dense = load_model(from);
  const SavedModel saved =
      parse_model_json(load_checkpoint(from, CheckpointPart::texts).config, from);
  const Options options = converted_options(saved, given);
  const auto model = converted(*dense.model, options, saved.seed);
  model->set_training(false);
  set_alpha(*model, 0);
  const double difference = largest_difference(*dense.model, *model, saved.seed);
  set_alpha(*model, options.aspa.alpha);
  const Trainer fresh(*model, trainer_config(options, saved.seed), {});
  save_checkpoint(to, {model_json({options, "aspa", saved.vocab, saved.seed, saved.tokenizer}),
                       fresh.state_json(), module_tensors(*model), fresh.optimizer_tensors()});
  Table table(
      {"layer", "shared heads", "routed heads", "k", "params", "logits at alpha 0 differ by"});
  table.add_row({fmt::format("each of {}", model->layers()),
                 fmt::to_string(options.aspa.shared_heads),
                 fmt::to_string(options.aspa.routed_heads), fmt::to_string(options.aspa.k),
                 format_count(static_cast<double>(model->parameter_count())),
                 fmt::format("{:.1e}", difference)});
  fmt::print("{}", table.text());
  if (!given.common.quiet) {
    fmt::print("Written to {}. To train on:\n  proteus train --resume --checkpoint {} --steps N\n",
               to, to);
  }
  return 0;
}

}  // namespace proteus
