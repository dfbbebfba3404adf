#include "autograd/variable.h"

#include <mutex>

#include "autograd/tape.h"
#include "tensor/error.h"

namespace proteus {
namespace {

void check_replacement(const char* where, const Tensor& t, const Tensor& old) {
  if (t.shape() != old.shape() || t.dtype() != old.dtype()) {
    throw ShapeError(std::string(where) + ": expected " + describe(old) + ", got " + describe(t));
  }
  if (t.device() != old.device()) {
    throw DeviceError(std::string(where) + ": expected on " + to_string(old.device()) +
                      ", got on " + to_string(t.device()));
  }
}

}  // namespace

Variable::Variable(Tensor value, bool requires_grad) : state_(std::make_shared<State>()) {
  state_->value = std::move(value);
  if (requires_grad) state_->leaf = std::make_shared<Leaf>();
}

const Tensor& Variable::value() const {
  if (!state_) throw AutogradError("variable: value asked of an undefined variable");
  return state_->value;
}

bool Variable::requires_grad() const { return state_ && (state_->leaf || state_->producer); }

void Variable::set_requires_grad(bool on) const {
  if (!state_ || state_->producer) {
    throw AutogradError("set_requires_grad: only for leaves; use detach() on a computed variable");
  }
  if (!on) {
    state_->leaf.reset();
  } else if (!state_->leaf) {
    state_->leaf = std::make_shared<Leaf>();
  }
}

const Tensor& Variable::grad() const {
  static const Tensor kNone;
  return state_ && state_->leaf ? state_->leaf->grad : kNone;
}

void Variable::set_grad(Tensor grad) const {
  if (!state_ || !state_->leaf) {
    if (!grad.defined()) return;  // there is none to forget
    throw AutogradError("set_grad: only for leaves that require a gradient");
  }
  if (grad.defined()) check_replacement("set_grad(grad): grad", grad, state_->value);
  state_->leaf->grad = std::move(grad);
}

void Variable::set_value(Tensor value) const {
  if (!state_ || state_->producer) {
    throw AutogradError("set_value: only for leaves");
  }
  check_replacement("set_value(value): value", value, state_->value);
  state_->rounded = {};
  state_->value = std::move(value);
}

void Variable::resize(Tensor value) const {
  if (!state_ || state_->producer) throw AutogradError("resize: only for leaves");
  if (value.dtype() != state_->value.dtype() || value.device() != state_->value.device()) {
    throw DTypeError("resize(value): value: expected " + describe(state_->value) +
                     " with another shape, got " + describe(value));
  }
  if (state_->leaf) state_->leaf->grad = {};
  state_->rounded = {};
  state_->value = std::move(value);
}

Variable Variable::detach() const { return Variable(value()); }

Tensor Variable::rounded() const {
  const Tensor& x = value();
  if (state_->producer) return x.to(DType::bf16);
  static std::mutex mutex;  // threads may run one model
  const std::lock_guard lock(mutex);
  Rounded& kept = state_->rounded;
  if (!kept.copy.defined() || kept.copy.device() != x.device()) {
    kept = {x.to(DType::bf16), x.version()};
  } else if (kept.version != x.version()) {
    kept.copy.copy_(x);
    kept.version = x.version();
  }
  return kept.copy;
}

void Variable::backward() const {
  if (value().numel() != 1) {
    throw ShapeError("backward(x): x: expected one element, got " + to_string(shape()) +
                     "; pass a cotangent of that shape");
  }
  backward(Tensor::full(shape(), 1.0, dtype(), device()));
}

void Variable::backward(const Tensor& cotangent) const { run_backward({*this}, {cotangent}); }

}  // namespace proteus
