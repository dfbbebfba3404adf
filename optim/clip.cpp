#include "optim/clip.h"

#include <cmath>

namespace proteus {

double gradient_norm(const std::vector<ParameterRef>& parameters) {
  std::vector<StepTensor> tensors;
  std::vector<Tensor> alive;
  for (const ParameterRef& p : parameters) {
    if (!p.variable.grad().defined()) continue;
    alive.push_back(p.variable.grad().contiguous());
    StepTensor t;
    t.grad = alive.back().raw();
    t.n = alive.back().numel();
    t.dtype = alive.back().dtype();
    tensors.push_back(t);
  }
  if (tensors.empty()) return 0;
  double sum = 0;
  squared_norm(alive[0].device(),
               {tensors.data(), static_cast<std::int64_t>(tensors.size()), &sum});
  return std::sqrt(sum);
}

double clip_scale(double norm, double max_norm) {
  constexpr double kTiny = 1e-6;
  return max_norm > 0 && norm > max_norm ? max_norm / (norm + kTiny) : 1.0;
}

}  // namespace proteus
