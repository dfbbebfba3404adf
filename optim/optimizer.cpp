#include "optim/optimizer.h"

#include <algorithm>
#include <map>

#include "tensor/error.h"
#include "tensor/ops/elementwise.h"

namespace proteus {

namespace {
void check_parameters(const std::vector<ParameterRef>& parameters) {
  std::map<const Storage*, std::string> seen;
  for (const ParameterRef& p : parameters) {
    const std::string call = "optimizer(parameters): " + p.name;
    const Tensor& x = p.variable.value();
    if (!is_floating(x.dtype())) throw_dtype(call, x.dtype(), "f64, f32 or bf16");
    if (!x.is_contiguous()) {
      throw ShapeError(call + ": expected a contiguous tensor, got " + to_string(x.shape()) +
                       " with other strides; use a clone");
    }
    if (x.device() != parameters[0].variable.device()) {
      throw DeviceError(call + ": expected on " + to_string(parameters[0].variable.device()) +
                        " (as " + parameters[0].name + "), got on " + to_string(x.device()));
    }
    const auto [first, is_new] = seen.emplace(x.storage().get(), p.name);
    if (!is_new) {
      throw ConfigError(call + ": shares its memory with " + first->second + "; list it once");
    }
  }
}

// (Σ weight·√v)²: a row that stays alone keeps its bits.
Tensor squared_rows(const Tensor& v, const RowMap& map) {
  const Tensor root = ops::unary(UnaryOp::sqrt, "sqrt(v)", v);
  const Tensor out = ops::unary(UnaryOp::square, "square(x)", map_rows(root, map));
  for (std::size_t i = 0; i < map.size(); ++i) {
    if (map[i].size() != 1 || map[i][0].weight != 1) continue;
    out.select(0, static_cast<std::int64_t>(i)).copy_(v.select(0, map[i][0].row));
  }
  return out;
}
}  // namespace

Optimizer::Optimizer(std::vector<ParameterRef> parameters) : parameters_(std::move(parameters)) {
  check_parameters(parameters_);
  const Device device = parameters_.empty() ? kCpu : parameters_[0].variable.device();
  const StepNumbers start;
  numbers_ = Tensor::from({start.lr, start.correction1, start.correction2, start.grad_scale, 0},
                          {kStepNumbers}, DType::f64, device);
}

void Optimizer::begin_step(double lr) {
  ++steps_;
  StepNumbers now;
  now.lr = lr;
  set_corrections(now);
  numbers_.slice(0, 0, kHostNumbers)
      .copy_(Tensor::from({now.lr, now.correction1, now.correction2}, {kHostNumbers}, DType::f64));
}

void Optimizer::step(double lr, double grad_scale) {
  begin_step(lr);
  numbers_.select(0, kHostNumbers).fill_(grad_scale);
  update();
}

const StepNumbers* Optimizer::step_numbers() const {
  return reinterpret_cast<const StepNumbers*>(numbers_.raw());
}

void Optimizer::check_unit(const char* optimizer, const char* name, double value) {
  if (value >= 0 && value < 1) return;
  throw ConfigError(std::string(optimizer) + ": " + name + ": expected 0 <= " + name +
                    " < 1, got " + std::to_string(value));
}

void Optimizer::check_decay(const char* optimizer, double value) {
  if (value >= 0) return;
  throw ConfigError(std::string(optimizer) + ": weight_decay: expected at least 0, got " +
                    std::to_string(value));
}

void Optimizer::zero_grad() const {
  for (const ParameterRef& p : parameters_) p.variable.zero_grad();
}

std::vector<std::pair<std::string, Tensor>> Optimizer::state() const {
  std::vector<std::pair<std::string, Tensor>> all;
  for (const State& s : state_) {
    for (std::size_t i = 0; i < s.tensors.size(); ++i) {
      all.emplace_back(s.prefix + "." + parameters_[i].name, s.tensors[i]);
    }
  }
  return all;
}

void Optimizer::add_state(const std::string& prefix, Moment moment) {
  std::vector<Tensor> tensors;
  for (const ParameterRef& p : parameters_) {
    const Tensor& x = p.variable.value();
    // Of bf16 parameters in f32: 0.999·v would be rounded back to v.
    const DType dtype = x.dtype() == DType::bf16 ? DType::f32 : x.dtype();
    tensors.push_back(Tensor::zeros(x.shape(), dtype, x.device()));
  }
  state_.push_back({prefix, moment, std::move(tensors)});
}

void Optimizer::map_rows(const std::vector<RowEdit>& edits) {
  struct Mapped {
    Tensor* place;
    Tensor value;
  };
  std::vector<Mapped> mapped;
  for (const RowEdit& edit : edits) {
    const auto at = std::find_if(parameters_.begin(), parameters_.end(),
                                 [&](const ParameterRef& p) { return p.name == edit.parameter; });
    if (at == parameters_.end()) {
      throw ConfigError("optimizer.map_rows(edits): no parameter \"" + edit.parameter + "\"");
    }
    const auto i = static_cast<std::size_t>(at - parameters_.begin());
    for (State& s : state_) {
      Tensor& old = s.tensors[i];
      const Tensor host = old.to(kCpu);
      const Tensor value = s.moment == Moment::first ? proteus::map_rows(host, edit.map)
                                                     : squared_rows(host, edit.map);
      mapped.push_back({&old, value.to(old.device())});
    }
  }
  for (Mapped& m : mapped) *m.place = std::move(m.value);
}

std::vector<StepTensor> Optimizer::step_tensors(double weight_decay) {
  std::vector<StepTensor> all;
  for (std::size_t i = 0; i < parameters_.size(); ++i) {
    const Variable& x = parameters_[i].variable;
    if (!x.grad().defined()) continue;
    if (!x.grad().is_contiguous()) x.set_grad(x.grad().contiguous());
    if (!x.value().is_contiguous()) {
      throw ShapeError("optimizer.step: " + parameters_[i].name +
                       ": expected a contiguous value; it was replaced by a view");
    }
    StepTensor t;
    t.value = x.value().raw();
    t.grad = x.grad().raw();
    if (!state_.empty()) t.m = state_[0].tensors[i].raw();
    if (state_.size() > 1) t.v = state_[1].tensors[i].raw();
    t.n = x.value().numel();
    t.decay = parameters_[i].decay ? weight_decay : 0;
    t.dtype = x.dtype();
    x.value().bump_version();
    all.push_back(t);
  }
  return all;
}

}  // namespace proteus
