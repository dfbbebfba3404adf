// Stochastic gradient descent with momentum and coupled (L2) weight decay.
#pragma once

#include "optim/optimizer.h"

namespace proteus {

class Sgd : public Optimizer {
 public:
  /// Momentum in [0, 1), weight_decay >= 0; otherwise throws ConfigError.
  Sgd(std::vector<ParameterRef> parameters, double momentum, double weight_decay);
  void update() override;

 private:
  double momentum_;
  double weight_decay_;
};

}  // namespace proteus
