// One optimizer step on copies of the inputs; no gradients flow through it.
#include "tensor/ops/optim.h"

#include <cmath>

#include "optim/adamw.h"
#include "optim/sgd.h"
#include "tests/op_cases/families.h"

namespace proteus::testing {
namespace {

StepTensor step_tensor(const std::vector<Variable>& v, const Tensor& x, const Tensor& m,
                       const Tensor& second) {
  StepTensor t;
  t.value = x.raw();
  t.grad = v[1].value().raw();
  t.m = m.raw();
  t.v = second.raw();
  t.n = x.numel();
  t.decay = 0.1;
  t.dtype = x.dtype();
  return t;
}

Variable run_adamw(const std::vector<Variable>& any) {
  std::vector<Variable> v;
  for (const Variable& x : any) v.emplace_back(x.value().clone());
  const Tensor& x = v[0].value();
  const StepTensor t = step_tensor(v, x, v[2].value(), v[3].value());
  adamw_step(x.device(), {&t, 1, 1e-2, 0.9, 0.99, 1e-8, 0.1, 0.01, 0.5});
  return Variable(x);
}

Variable run_sgd(const std::vector<Variable>& any) {
  std::vector<Variable> v;
  for (const Variable& x : any) v.emplace_back(x.value().clone());
  const Tensor& x = v[0].value();
  const StepTensor t = step_tensor(v, x, v[2].value(), v[3].value());
  sgd_step(x.device(), {&t, 1, 1e-2, 0.9, 0.5});
  return Variable(x);
}

Variable run_norm(const std::vector<Variable>& any) {
  const std::vector<Variable> v{Variable(any[0].value().clone()), Variable(any[1].value().clone())};
  const StepTensor t = step_tensor(v, v[0].value(), v[0].value(), v[0].value());
  double sum = 0;
  squared_norm(v[0].device(), {&t, 1, &sum});
  return Variable(Tensor::scalar(sum, v[0].dtype(), v[0].device()));
}

OpCase optim_case(const std::string& op, const std::string& slot, std::int64_t n,
                  Variable (*run)(const std::vector<Variable>&)) {
  OpInput any{.shape = {n}, .differentiable = false};
  OpInput first{.shape = {n}, .differentiable = false, .accumulation = true};
  OpInput second{
      .shape = {n}, .fill = Fill::positive, .differentiable = false, .accumulation = true};
  return {.op = op,
          .variant = std::to_string(n),
          .slots = {slot},
          .inputs = {any, any, first, second},
          .run = run,
          .bytes = 28.0 * static_cast<double>(n)};
}

}  // namespace

OpFamily optim_family() {
  OpFamily family{"optim", {}, {}};
  for (const std::int64_t n : {1, 17, 20000, 4000000}) {
    for (OpCase c : {optim_case("adamw", "adamw_step", n, run_adamw),
                     optim_case("sgd", "sgd_step", n, run_sgd),
                     optim_case("squared_norm", "squared_norm", n, run_norm)}) {
      c.bench_only = n > 100000;
      family.cases.push_back(c);
    }
  }
  const auto make = [](const AdamWConfig& config) {
    AdamW({{"x", Variable(Tensor::zeros({2}), true), true}}, config);
  };
  const auto of = [](const std::vector<ParameterRef>& parameters) { Sgd(parameters, 0.9, 0); };
  const Variable x(Tensor::zeros({2, 3}), true);
  family.errors = {
      {"beta1 of one", [make] { make({.beta1 = 1}); }, "ConfigError",
       "adamw: beta1: expected 0 <= beta1 < 1, got 1"},
      {"beta2 that is NaN", [make] { make({.beta2 = std::nan("")}); }, "ConfigError",
       "adamw: beta2: expected 0 <= beta2 < 1, got nan"},
      {"eps of zero", [make] { make({.eps = 0}); }, "ConfigError",
       "adamw: eps: expected a positive number, got 0"},
      {"negative decay", [make] { make({.weight_decay = -1}); }, "ConfigError",
       "adamw: weight_decay: expected at least 0, got -1"},
      {"momentum of one", [] { Sgd({}, 1, 0); }, "ConfigError",
       "sgd: momentum: expected 0 <= momentum < 1, got 1"},
      {"integer parameter",
       [of] {
         of({{"ids", Variable(Tensor::arange(3)), true}});
       },
       "DTypeError", "optimizer(parameters): ids: expected dtype f64, f32 or bf16, got i64"},
      {"parameter that is a transposed view",
       [of, x] {
         of({{"x", Variable(x.value().transpose(0, 1), true), true}});
       },
       "ShapeError",
       "optimizer(parameters): x: expected a contiguous tensor, got [3, 2]",
       {x.value()}},
      {"one parameter twice",
       [of, x] {
         of({{"x", x, true}, {"y", x, true}});
       },
       "ConfigError", "optimizer(parameters): y: shares its memory with x; list it once"},
  };
  return family;
}

}  // namespace proteus::testing
