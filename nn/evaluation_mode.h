#pragma once

#include "nn/module.h"

namespace proteus {

/// Evaluation mode until the end of the scope.
class EvaluationMode {
 public:
  explicit EvaluationMode(Module& module) : module_(module), before_(module.training()) {
    module_.set_training(false);
  }
  ~EvaluationMode() { module_.set_training(before_); }
  EvaluationMode(const EvaluationMode&) = delete;
  EvaluationMode& operator=(const EvaluationMode&) = delete;

 private:
  Module& module_;
  bool before_;
};

}  // namespace proteus
