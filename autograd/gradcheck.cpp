#include "autograd/gradcheck.h"

#include <cmath>

#include "autograd/tape.h"
#include "tensor/error.h"

namespace proteus {
namespace {

// Address of the i-th element in row-major order of a possibly strided tensor.
double& element(const Tensor& t, std::int64_t i) {
  std::int64_t at = 0;
  for (int d = t.rank() - 1; d >= 0; --d) {
    at += i % t.size(d) * t.stride(d);
    i /= t.size(d);
  }
  return t.data<double>()[at];
}

double dot(const Tensor& a, const Tensor& b) {
  const auto x = a.to_vector();
  const auto y = b.to_vector();
  double sum = 0;
  for (std::size_t i = 0; i < x.size(); ++i) sum += x[i] * y[i];
  return sum;
}

}  // namespace

GradcheckResult gradcheck(const std::function<Variable(const std::vector<Variable>&)>& fn,
                          const std::vector<Tensor>& inputs, const std::vector<bool>& wanted,
                          const GradcheckOptions& options) {
  std::vector<Variable> variables;
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    const bool floating = is_floating(inputs[i].dtype());
    if (floating && inputs[i].dtype() != DType::f64) {
      throw_dtype("gradcheck(fn, inputs): inputs", inputs[i].dtype(), "f64");
    }
    variables.emplace_back(inputs[i], floating && (wanted.empty() || wanted[i]));
  }
  const Variable y = fn(variables);
  const Tensor cotangent = Tensor::randn(y.shape(), {options.seed, 0x6c}, DType::f64);
  if (y.requires_grad()) y.backward(cotangent);

  const NoGradGuard no_grad;
  GradcheckResult result;
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    if (!variables[i].requires_grad()) continue;
    const Tensor& grad = variables[i].grad();
    const auto analytic = grad.defined()
                              ? grad.to_vector()
                              : std::vector<double>(static_cast<std::size_t>(inputs[i].numel()));
    for (std::int64_t e = 0; e < inputs[i].numel(); ++e) {
      double& x = element(inputs[i], e);
      const double before = x;
      x = before + options.step;
      const double up = dot(fn(variables).value(), cotangent);
      x = before - options.step;
      const double down = dot(fn(variables).value(), cotangent);
      x = before;
      const double numeric = (up - down) / (2 * options.step);
      const double a = analytic[static_cast<std::size_t>(e)];
      const double error = std::abs(a - numeric) / (1 + std::abs(numeric));
      if (!(error <= result.worst)) result.worst = error;
      if (!(error <= options.tolerance) && result.ok) {
        result.ok = false;
        result.message = "input " + std::to_string(i) + " " + to_string(inputs[i].shape()) +
                         ", element " + std::to_string(e) + ": analytic " + std::to_string(a) +
                         ", numeric " + std::to_string(numeric);
      }
    }
  }
  return result;
}

}  // namespace proteus
