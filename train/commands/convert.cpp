// proteus convert: a dense checkpoint as an ASPA one, to be trained on; GPT-2 in and out.
#include "train/convert.h"

#include <fmt/format.h>

#include <cmath>

#include "autograd/tape.h"
#include "tensor/error.h"
#include "train/checkpoint.h"
#include "train/commands.h"
#include "train/draw.h"
#include "train/gates.h"
#include "train/gpt2.h"
#include "train/report.h"
#include "train/session.h"
#include "train/tokenizer.h"
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

// A model that no step of training has seen, as a checkpoint.
void save_fresh(const std::string& to, const SavedModel& saved, Transformer& model) {
  const Trainer fresh(model, trainer_config(saved.options, saved.seed), {});
  save_checkpoint(to, {model_json(saved), fresh.state_json(), module_tensors(model),
                       fresh.optimizer_tensors()});
}

void print_shape(const SavedModel& saved, const Transformer& model) {
  const ModelOptions& m = saved.options.model;
  Table table(
      {"model", "layers", "width", "heads", "context", "vocabulary", "params", "tokenizer"});
  table.add_row(
      {saved.arm, fmt::to_string(m.layers), fmt::to_string(m.width), fmt::to_string(m.heads),
       fmt::to_string(m.context), fmt::to_string(saved.vocab),
       format_count(static_cast<double>(model.parameter_count())),
       saved.tokenizer.empty()
           ? "none"
           : std::string(name_of(Tokenizer::from_json(saved.tokenizer, "tokenizer").kind()))});
  fmt::print("{}", table.text());
}

int import_gpt2(const Options& given) {
  const std::string& to = given.gates.save;
  const bool chosen = given.given.contains("tokenizer");
  const Gpt2 gpt2 = read_gpt2(given.convert.from_gpt2, chosen ? given.data.tokenizer : "");
  save_fresh(to, gpt2.saved, *gpt2.model);
  print_shape(gpt2.saved, *gpt2.model);
  if (given.common.quiet) return 0;
  if (gpt2.saved.tokenizer.empty()) {
    fmt::print("Written to {}, without a tokenizer: text needs one, give --tokenizer PATH.\n", to);
    return 0;
  }
  fmt::print(
      "Written to {0}. To sample, and to train on:\n  proteus sample --checkpoint {0}\n"
      "  proteus train --resume --checkpoint {0} --data FILE --steps N\n",
      to);
  return 0;
}

int export_gpt2(const Options& given) {
  const std::string& from = given.checkpoint.checkpoint;
  const std::string& to = given.convert.to_gpt2;
  const Checkpoint checkpoint = load_checkpoint(from, CheckpointPart::model);
  const SavedModel saved = parse_model_json(checkpoint.config, from);
  const auto model = saved_model(saved, checkpoint.model, from);
  write_gpt2(to, saved, *model);
  print_shape(saved, *model);
  if (!given.common.quiet) {
    fmt::print("Written to {0}. In Python: GPT2LMHeadModel.from_pretrained(\"{0}\")\n", to);
  }
  return 0;
}

}  // namespace

int run_convert(const Options& given) {
  if (!given.convert.from_gpt2.empty()) return import_gpt2(given);
  if (!given.convert.to_gpt2.empty()) return export_gpt2(given);
  const std::string& from = given.checkpoint.checkpoint;
  const std::string& to = given.gates.save;
  const Checkpoint checkpoint = load_checkpoint(from, CheckpointPart::model);
  const SavedModel saved = parse_model_json(checkpoint.config, from);
  const auto dense = saved_model(saved, checkpoint.model, from);
  dense->set_training(false);
  const Options options = converted_options(saved, given);
  const auto model = converted(*dense, options, saved.seed);
  model->set_training(false);
  set_alpha(*model, 0);
  const double difference = largest_difference(*dense, *model, saved.seed);
  set_alpha(*model, options.aspa.alpha);
  save_fresh(to, {options, "aspa", saved.vocab, saved.seed, saved.tokenizer}, *model);
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
