// proteus eval: the validation loss of a checkpoint, in nats per token and bits per byte.
#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "train/checkpoint.h"
#include "train/commands.h"
#include "train/commands/model_file.h"
#include "train/commands/text.h"
#include "train/device.h"

namespace proteus {

int run_eval(const Options& given) {
  const LoadedModel loaded = load_model(given.checkpoint.checkpoint);
  Options options = given;
  options.model = loaded.options.model;
  options.aspa = loaded.options.aspa;
  const Dataset dataset = open_dataset(options, loaded.tokenizer);
  loaded.model->to(open_device(options.common.device));
  RunFolder folder(options);
  Transformer& model = *loaded.model;
  if (options.given.contains("alpha")) set_alpha(model, given.aspa.alpha);
  const Task task = text_task(options, dataset, static_cast<std::uint64_t>(options.common.seed));
  begin_tally(model);
  const Evaluation e = task.evaluate(model);
  end_tally(model);
  const RoutingSummary routing = routing_summary(model);
  const double attention_flops = model.attention_flops_per_token(options.model.context);
  nlohmann::ordered_json json = summary_head(options);
  json["data"] = data_json(dataset);
  json["checkpoint"] = options.checkpoint.checkpoint;
  json["val_loss"] = e.loss;
  json["val_bpb"] = bits_per_byte(e.loss, dataset);
  json["alpha"] = routing.present ? nlohmann::ordered_json(routing.alpha) : nullptr;
  json["attention_flops_per_token"] = attention_flops;
  json["total_flops_per_token"] = model.total_flops_per_token(options.model.context);
  folder.write_summary(json);
  Table table({"model", "params", "tokens", "val loss", "bits/byte", "alpha", "attn FLOP/token",
               "MaxVio", "of both roles"});
  table.add_row({loaded.arm, format_count(static_cast<double>(model.parameter_count())),
                 fmt::to_string(dataset.tokens(Split::validation) - 1), format_number(e.loss),
                 format_number(bits_per_byte(e.loss, dataset)),
                 routing.present ? format_number(routing.alpha, 2) : "–",
                 format_count(attention_flops), format_routing(routing.eval_max_vio, 2),
                 format_routing(routing.eval_max_vio_both, 2)});
  fmt::print("{}", table.text());
  return 0;
}

}  // namespace proteus
