#include "optim/sgd.h"

namespace proteus {

Sgd::Sgd(std::vector<ParameterRef> parameters, double momentum, double weight_decay)
    : Optimizer(std::move(parameters)), momentum_(momentum), weight_decay_(weight_decay) {
  check_unit("sgd", "momentum", momentum);
  check_decay("sgd", weight_decay);
  add_state("m", Moment::first);
}

void Sgd::update() {
  const auto tensors = step_tensors(weight_decay_);
  if (tensors.empty()) return;
  sgd_step(parameters()[0].variable.device(),
           {tensors.data(), static_cast<std::int64_t>(tensors.size()), step_numbers(), momentum_});
}

}  // namespace proteus
