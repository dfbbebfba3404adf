// Module: a named tree of parameters (trained) and buffers (saved, not trained). Names are paths:
// "blocks.0.attn.qkv.weight".
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "autograd/variable.h"

namespace proteus {

/// A parameter as the optimizer and the checkpoint see it.
struct Parameter {
  std::string name;
  Variable variable;
  bool decay = true;  ///< whether weight decay applies (matrices: yes; gains, biases, gates: no)
};

struct Buffer {
  std::string name;
  Tensor tensor;
};

class Module {
 public:
  Module() = default;
  virtual ~Module() = default;
  Module(const Module&) = delete;
  Module& operator=(const Module&) = delete;

  /// All of this module and its children, in order of registration.
  std::vector<Parameter> parameters() const;
  std::vector<Buffer> buffers() const;
  /// Number of elements of all parameters.
  std::int64_t parameter_count() const;
  /// Training mode switches dropout and the collection of routing statistics on.
  void set_training(bool on);
  bool training() const { return training_; }
  /// Moves parameters and buffers to a device, but for the buffers that stay on the host. Handles
  /// on them move along; gradients are dropped. Optimizers are made afterwards.
  void to(Device device) const;
  void zero_grad() const;

 protected:
  enum class Decay { yes, no };
  /// Where a buffer lives when the module is on another device: there too, or still on the CPU,
  /// because host code reads it all the time.
  enum class Home { device, host };

  /// Registers a leaf that requires a gradient and returns a handle to it.
  Variable add_parameter(const std::string& name, Tensor value, Decay decay = Decay::yes);
  /// Registers state that training writes in place; the handle shares its data.
  Tensor add_buffer(const std::string& name, Tensor value, Home home = Home::device);
  /// Puts another tensor in a registered buffer's place, where its shape changes.
  void replace_buffer(const std::string& name, Tensor value);
  template <class T>
  T& add_child(const std::string& name, std::unique_ptr<T> child) {
    T& reference = *child;
    children_.emplace_back(name, std::move(child));
    return reference;
  }

 private:
  void collect(const std::string& prefix, std::vector<Parameter>* parameters,
               std::vector<Buffer>* buffers) const;

  std::vector<Parameter> own_parameters_;
  std::vector<Buffer> own_buffers_;
  std::vector<Home> homes_;  // of own_buffers_
  std::vector<std::pair<std::string, std::unique_ptr<Module>>> children_;
  bool training_ = true;
};

}  // namespace proteus
