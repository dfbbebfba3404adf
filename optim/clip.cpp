#include "optim/clip.h"

#include <cmath>

namespace proteus {

void squared_gradients(const std::vector<ParameterRef>& parameters, const Tensor& out) {
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
  out.bump_version();
  if (tensors.empty()) return out.zero_();
  squared_norm(out.device(),
               {tensors.data(), static_cast<std::int64_t>(tensors.size()), out.data<double>()});
}

double gradient_norm(const std::vector<ParameterRef>& parameters) {
  if (parameters.empty()) return 0;
  const Tensor sum = Tensor::empty({1}, DType::f64, parameters[0].variable.device());
  squared_gradients(parameters, sum);
  return std::sqrt(sum.item());
}

}  // namespace proteus
