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

// lr 0.01, c1 0.1, c2 0.01, gradients halved.
Tensor numbers_on(Device device) {
  return Tensor::from({1e-2, 0.1, 0.01, 0.5, 0}, {kStepNumbers}, DType::f64, device);
}

const StepNumbers* numbers_of(const Tensor& numbers) {
  return reinterpret_cast<const StepNumbers*>(numbers.raw());
}

Variable run_adamw(const std::vector<Variable>& any) {
  std::vector<Variable> v;
  for (const Variable& x : any) v.emplace_back(x.value().clone());
  const Tensor& x = v[0].value();
  const StepTensor t = step_tensor(v, x, v[2].value(), v[3].value());
  const Tensor numbers = numbers_on(x.device());
  adamw_step(x.device(), {&t, 1, numbers_of(numbers), 0.9, 0.99, 1e-8});
  return Variable(x);
}

Variable run_sgd(const std::vector<Variable>& any) {
  std::vector<Variable> v;
  for (const Variable& x : any) v.emplace_back(x.value().clone());
  const Tensor& x = v[0].value();
  const StepTensor t = step_tensor(v, x, v[2].value(), v[3].value());
  const Tensor numbers = numbers_on(x.device());
  sgd_step(x.device(), {&t, 1, numbers_of(numbers), 0.9});
  return Variable(x);
}

Variable run_norm(const std::vector<Variable>& any) {
  const std::vector<Variable> v{Variable(any[0].value().clone()), Variable(any[1].value().clone())};
  const StepTensor t = step_tensor(v, v[0].value(), v[0].value(), v[0].value());
  const Tensor sum = Tensor::empty({}, DType::f64, v[0].device());
  squared_norm(sum.device(), {&t, 1, sum.data<double>()});
  return Variable(sum.to(v[0].dtype()));
}

// The inputs are losses of batches; the report and the numbers that a step would use.
Variable run_scale(const std::vector<Variable>& any) {
  const Tensor losses = any[0].value().to(DType::f64).contiguous();
  const Device device = losses.device();
  const Tensor numbers = numbers_on(device);
  const Tensor sum = Tensor::full({1}, 9, DType::f64, device);
  const Tensor report = Tensor::empty({2}, DType::f64, device);
  step_scale(device, {losses.data<double>(), losses.numel(), 0.5, sum.data<double>(), 1.0,
                      reinterpret_cast<StepNumbers*>(numbers.raw()), report.data<double>()});
  const Tensor all = Tensor::empty({2 + kStepNumbers}, DType::f64, device);
  all.slice(0, 0, 2).copy_(report);
  all.slice(0, 2, 2 + kStepNumbers).copy_(numbers);
  return Variable(all.to(any[0].dtype()));
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
  for (const std::int64_t batches : {1, 2, 17}) {
    family.cases.push_back(optim_case("step_scale", "step_scale", batches, run_scale));
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
