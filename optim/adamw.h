// AdamW: Adam with decoupled weight decay (Loshchilov & Hutter, arXiv:1711.05101).
#pragma once

#include "optim/optimizer.h"

namespace proteus {

struct AdamWConfig {
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;
  double weight_decay = 0.01;
};

class AdamW : public Optimizer {
 public:
  /// Betas in [0, 1), eps > 0, weight_decay >= 0; otherwise throws ConfigError.
  AdamW(std::vector<ParameterRef> parameters, const AdamWConfig& config);
  void update() override;

 private:
  void set_corrections(StepNumbers& numbers) const override;

  AdamWConfig config_;
};

}  // namespace proteus
