// Variable: a tensor that remembers how it was made, so that gradients can flow back to its leaves.
#pragma once

#include <memory>

#include "tensor/tensor.h"

namespace proteus {

class Node;
struct Recipe;

/// Where the gradients of a leaf are summed.
struct Leaf {
  Tensor grad;
};

/// A handle: copies share value, gradient and history.
class Variable {
 public:
  Variable() = default;
  /// A leaf. With `requires_grad`, backward() leaves its gradient in `grad()`.
  explicit Variable(Tensor value, bool requires_grad = false);

  bool defined() const { return state_ != nullptr; }
  const Tensor& value() const;
  const Shape& shape() const { return value().shape(); }
  std::int64_t size(int dim) const { return value().size(dim); }
  DType dtype() const { return value().dtype(); }
  Device device() const { return value().device(); }
  bool requires_grad() const;
  /// For leaves only: freezes or unfreezes a parameter. Throws AutogradError on a computed
  /// variable.
  void set_requires_grad(bool on) const;

  /// The sum of all gradients since zero_grad(); undefined if there were none. Leaves only.
  const Tensor& grad() const;
  /// Throws AutogradError unless a leaf that requires a gradient, ShapeError or DeviceError unless
  /// like its value.
  void set_grad(Tensor grad) const;
  void zero_grad() const { set_grad({}); }

  /// Puts another tensor of the same shape and dtype in place of a leaf's value.
  void set_value(Tensor value) const;
  /// The same for a tensor of another shape, where a parameter grows or shrinks; its gradient is
  /// dropped.
  void resize(Tensor value) const;
  /// The same value without history.
  Variable detach() const;
  /// The value rounded to bf16. A leaf keeps it until its value changes: what works on between two
  /// steps of the optimizer rounds its parameters once. It is renewed in place, so that recorded
  /// work finds it where it was: a recording that is to round again must begin with changed
  /// versions. Threads that share a model on a GPU share a stream too, or wait for the first pass.
  Tensor rounded() const;

  /// Adds d(this)/d(leaf) to every leaf's gradient. The scalar form needs one element.
  /// The history is consumed: a second backward through it throws AutogradError.
  void backward() const;
  void backward(const Tensor& cotangent) const;

 private:
  friend class Node;
  friend class Tape;
  struct Rounded {
    Tensor copy;
    std::uint64_t version = 0;  // of the value
  };
  struct State {
    Tensor value;
    Rounded rounded;
    std::shared_ptr<Leaf> leaf;            // set for leaves that require a gradient
    std::shared_ptr<Node> producer;        // set for computed variables with a history
    int output = 0;                        // which output of the producer
    std::shared_ptr<const Recipe> recipe;  // of what is saved in place of the value
  };
  std::shared_ptr<State> state_;
};

}  // namespace proteus
