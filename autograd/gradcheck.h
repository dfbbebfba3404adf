// Gradients against central differences, in f64, with a random cotangent (an all-ones cotangent
// lets a softmax backward that returns zeros pass).
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "autograd/variable.h"

namespace proteus {

struct GradcheckOptions {
  double step = 1e-6;       ///< half the difference's width
  double tolerance = 1e-6;  ///< largest |analytic − numeric| / (1 + |numeric|) that passes
  std::uint64_t seed = 1;   ///< of the cotangent
};

struct GradcheckResult {
  bool ok = true;
  std::string message;  ///< which input and element failed, and by how much
  double worst = 0;     ///< the largest relative error seen
};

/// Checks d<fn(inputs), cotangent>/d(inputs) for every element of every floating input marked in
/// `wanted` (empty = all floating). Inputs are f64; views are allowed, except with stride 0. `fn`
/// must be a fixed function: selections and dropout masks do not change from call to call.
GradcheckResult gradcheck(const std::function<Variable(const std::vector<Variable>&)>& fn,
                          const std::vector<Tensor>& inputs, const std::vector<bool>& wanted = {},
                          const GradcheckOptions& options = {});

}  // namespace proteus
