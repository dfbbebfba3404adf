#include "nn/module.h"

namespace proteus {

void Module::collect(const std::string& prefix, std::vector<Parameter>* parameters,
                     std::vector<Buffer>* buffers) const {
  if (parameters) {
    for (const Parameter& p : own_parameters_) {
      parameters->push_back({prefix + p.name, p.variable, p.decay});
    }
  }
  if (buffers) {
    for (const Buffer& b : own_buffers_) buffers->push_back({prefix + b.name, b.tensor});
  }
  for (const auto& [name, child] : children_) {
    child->collect(prefix + name + ".", parameters, buffers);
  }
}

std::vector<Parameter> Module::parameters() const {
  std::vector<Parameter> all;
  collect("", &all, nullptr);
  return all;
}

std::vector<Buffer> Module::buffers() const {
  std::vector<Buffer> all;
  collect("", nullptr, &all);
  return all;
}

std::int64_t Module::parameter_count() const {
  std::int64_t n = 0;
  for (const Parameter& p : parameters()) n += p.variable.value().numel();
  return n;
}

void Module::set_training(bool on) {
  training_ = on;
  for (const auto& [name, child] : children_) child->set_training(on);
}

void Module::to(Device device) const {
  for (const Parameter& p : own_parameters_) {
    p.variable.zero_grad();
    p.variable.value().storage()->move_to(device);
  }
  for (std::size_t i = 0; i < own_buffers_.size(); ++i) {
    if (homes_[i] == Home::device) own_buffers_[i].tensor.storage()->move_to(device);
  }
  for (const auto& [name, child] : children_) child->to(device);
}

void Module::zero_grad() const {
  for (const Parameter& p : parameters()) p.variable.zero_grad();
}

Variable Module::add_parameter(const std::string& name, Tensor value, Decay decay) {
  Variable v(std::move(value), true);
  own_parameters_.push_back({name, v, decay == Decay::yes});
  return v;
}

void Module::replace_buffer(const std::string& name, Tensor value) {
  for (Buffer& b : own_buffers_) {
    if (b.name == name) b.tensor = std::move(value);
  }
}

Tensor Module::add_buffer(const std::string& name, Tensor value, Home home) {
  own_buffers_.push_back({name, value});
  homes_.push_back(home);
  return value;
}

}  // namespace proteus
