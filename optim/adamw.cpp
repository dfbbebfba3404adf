#include "optim/adamw.h"

#include <cmath>

#include "tensor/error.h"

namespace proteus {

AdamW::AdamW(std::vector<ParameterRef> parameters, const AdamWConfig& config)
    : Optimizer(std::move(parameters)), config_(config) {
  check_unit("adamw", "beta1", config.beta1);
  check_unit("adamw", "beta2", config.beta2);
  check_decay("adamw", config.weight_decay);
  if (!(config.eps > 0)) {
    throw ConfigError("adamw: eps: expected a positive number, got " + std::to_string(config.eps));
  }
  add_state("m", Moment::first);
  add_state("v", Moment::second);
}

void AdamW::set_corrections(StepNumbers& numbers) const {
  const double t = static_cast<double>(steps_);
  numbers.correction1 = 1 - std::pow(config_.beta1, t);
  numbers.correction2 = 1 - std::pow(config_.beta2, t);
}

void AdamW::update() {
  const auto tensors = step_tensors(config_.weight_decay);
  if (tensors.empty()) return;
  adamw_step(parameters()[0].variable.device(),
             {tensors.data(), static_cast<std::int64_t>(tensors.size()), step_numbers(),
              config_.beta1, config_.beta2, config_.eps});
}

}  // namespace proteus
