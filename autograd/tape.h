// The tape: every differentiable function records a node with its backward lambda; backward() walks
// the nodes from the newest to the oldest. First order only.
//
// How an op uses it (forward and backward side by side):
//
//   Variable mul(const Variable& a, const Variable& b) {
//     return record("mul", {a, b}, ops::mul(a.value(), b.value()), {a.value(), b.value()},
//                   [](const Backward& ctx) -> Gradients {
//                     return {ops::mul(ctx.dy(), ctx.saved(1)), ops::mul(ctx.dy(), ctx.saved(0))};
//                   });
//   }
//
// The tape accumulates, and checks number, shape and dtype of the gradients and that no saved
// tensor was changed in place in between. Lambdas capture sizes and scalars, never tensors or
// variables: tensors go into `saved`, where they are checked and freed as soon as they were used.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "autograd/variable.h"

namespace proteus {

/// One per input, in order; an undefined tensor means "no gradient" (zero).
using Gradients = std::vector<Tensor>;

/// How a value is made again: from tensors that are kept in its place.
struct Recipe {
  std::vector<Tensor> from;
  std::vector<std::uint64_t> versions;  // of `from`, when it was written
  std::function<Tensor(const std::vector<Tensor>&)> make;
};

/// What a backward function will read: a tensor, or a variable's value, which is made again if it
/// can be (made_again).
class Saved {
 public:
  Saved(Tensor tensor) : tensor_(std::move(tensor)), version_(version_of(tensor_)) {}  // NOLINT
  Saved(const Variable& x);                                                            // NOLINT

  /// The tensor, made now where that has to be.
  const Tensor& get();
  /// Frees it; one that is made again may be asked for again.
  void release() { tensor_ = {}; }
  /// What was changed in place since it was saved; null if nothing was.
  const Tensor* changed() const;

 private:
  static std::uint64_t version_of(const Tensor& t) { return t.defined() ? t.version() : 0; }

  Tensor tensor_;
  std::uint64_t version_ = 0;
  std::shared_ptr<const Recipe> recipe_;
};

/// What a backward lambda sees.
class Backward {
 public:
  Backward(Node& node, std::vector<Tensor>& dys) : node_(node), dys_(dys) {}

  /// Gradient of an output; zeros if nothing flowed into it.
  const Tensor& dy(int output = 0) const;
  bool has_dy(int output) const { return dys_[static_cast<std::size_t>(output)].defined(); }
  const Tensor& saved(int i) const;
  /// Saved tensor i is not read any more: its memory may go before the function is over.
  void release(int i) const;
  /// Whether the gradient of an input is wanted at all; if not, return {} for it.
  bool needs(int input) const;
  /// What other functions have already sent to an input, for a kernel that can add to it in place;
  /// return {} for that input then. Null where there is nothing yet, or somebody else sees it.
  const Tensor* sum(int input) const;

 private:
  Node& node_;
  std::vector<Tensor>& dys_;
};

using BackwardFn = std::function<Gradients(const Backward&)>;

/// Wraps `output` as a variable. If gradients are on and an input requires one, the node is
/// recorded; otherwise `saved` and `backward` are dropped at once. Undefined inputs are allowed
/// (optional arguments) and get no gradient.
Variable record(const char* name, const std::vector<Variable>& inputs, Tensor output,
                std::vector<Saved> saved, BackwardFn backward);
std::vector<Variable> record(const char* name, const std::vector<Variable>& inputs,
                             std::vector<Tensor> outputs, std::vector<Saved> saved,
                             BackwardFn backward);
/// x, of which functions that save the variable (as `Saved(x)`) keep `from` instead, and make the
/// value again whenever their backward passes read it: for one that is large and cheap to make.
/// make(from) must be x's value bit for bit.
Variable made_again(const Variable& x, std::vector<Tensor> from,
                    std::function<Tensor(const std::vector<Tensor>&)> make);
/// Whether record() would keep a node for these inputs: forward functions ask it to skip what only
/// a backward pass needs.
bool will_record(const std::vector<Variable>& inputs);

/// Whether functions record (thread-local; on by default).
bool grad_enabled();

/// Turns recording off (or on) until the end of the scope.
class GradMode {
 public:
  explicit GradMode(bool enabled);
  ~GradMode();
  GradMode(const GradMode&) = delete;
  GradMode& operator=(const GradMode&) = delete;

 private:
  bool before_;
};

class NoGradGuard : public GradMode {
 public:
  NoGradGuard() : GradMode(false) {}
};

/// Backward from several variables at once, each with its cotangent.
void run_backward(const std::vector<Variable>& roots, const std::vector<Tensor>& cotangents);

}  // namespace proteus
