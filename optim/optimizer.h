// What all optimizers share: a list of parameters, their state, and a step that skips parameters
// without a gradient.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "autograd/variable.h"
#include "tensor/ops/optim.h"
#include "tensor/row_map.h"

namespace proteus {

struct ParameterRef {
  std::string name;
  Variable variable;
  bool decay = true;  ///< whether weight decay applies
};

class Optimizer {
 public:
  /// Parameters are contiguous, floating, on one device, and none is listed twice. Throws
  /// ShapeError, DTypeError, DeviceError, ConfigError.
  explicit Optimizer(std::vector<ParameterRef> parameters);
  virtual ~Optimizer() = default;
  Optimizer(const Optimizer&) = delete;
  Optimizer& operator=(const Optimizer&) = delete;

  /// Updates every parameter that has a gradient, with all gradients multiplied by `grad_scale`:
  /// begin_step() and update() in one.
  void step(double lr, double grad_scale = 1);
  /// Counts a step and sets the numbers that it begins with, lr and the bias corrections.
  void begin_step(double lr);
  /// Queues the update by numbers(); nothing in it depends on what the host knows of the step.
  virtual void update() = 0;
  /// Clears StepNumbers::stopped.
  void allow_updates() const { numbers_.select(0, kStepNumbers - 1).fill_(0); }
  /// StepNumbers, f64 [kStepNumbers] where the parameters are.
  const Tensor& numbers() const { return numbers_; }
  void zero_grad() const;

  /// Everything a checkpoint must keep, by name ("m.<parameter>"); handles share the data.
  std::vector<std::pair<std::string, Tensor>> state() const;
  /// Follows parameters whose rows are about to change. A first moment is a sum of gradients: it is
  /// mapped as they are. A second moment is a square: √v is mapped. Strong guarantee: when it
  /// throws (ConfigError for a name that is not a parameter's, ShapeError), nothing has changed.
  void map_rows(const std::vector<RowEdit>& edits);

  /// Steps done so far (bias corrections count them).
  std::int64_t steps() const { return steps_; }
  void set_steps(std::int64_t steps) { steps_ = steps; }

  const std::vector<ParameterRef>& parameters() const { return parameters_; }

 protected:
  enum class Moment { first, second };
  /// One more tensor of state per parameter, zero at first.
  void add_state(const std::string& prefix, Moment moment);
  /// Throws ConfigError unless 0 <= value < 1 (or, for a weight decay, value >= 0).
  static void check_unit(const char* optimizer, const char* name, double value);
  static void check_decay(const char* optimizer, double value);
  /// Sets what the host knows of the step that is the steps()-th: all but lr is as it should be.
  virtual void set_corrections(StepNumbers& numbers) const { static_cast<void>(numbers); }
  const StepNumbers* step_numbers() const;
  /// The kernels' view of all parameters that have a gradient. Gradients are made contiguous.
  std::vector<StepTensor> step_tensors(double weight_decay);

  std::int64_t steps_ = 0;

 private:
  std::vector<ParameterRef> parameters_;
  struct State {
    std::string prefix;
    Moment moment;
    std::vector<Tensor> tensors;  // one per parameter
  };
  std::vector<State> state_;
  Tensor numbers_;
};

}  // namespace proteus
