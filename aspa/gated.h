// A part of a block that may have gates: attention with routed heads, an MLP with experts. What
// surgery, policies and reports ask of it.
#pragma once

#include "aspa/gating.h"
#include "nn/module.h"
#include "tensor/error.h"

namespace proteus {

class Gated {
 public:
  virtual ~Gated() = default;
  /// nullptr where nothing is routed.
  virtual Gating* gates() = 0;
  virtual const Gating* gates() const = 0;
  virtual double alpha() const = 0;
  /// At any time between two forward passes; throws ConfigError outside [0, 1].
  virtual void set_alpha(double alpha) = 0;
  virtual Variable forward(const Variable& x) = 0;
  virtual Module& module() = 0;

  /// Throw ConfigError where nothing is routed.
  Gating& gating() { return checked(gates()); }
  const Gating& gating() const { return checked(gates()); }

 private:
  template <class G>
  static G& checked(G* gates) {
    if (!gates) throw ConfigError("aspa: router: this layer has no routed heads");
    return *gates;
  }
};

}  // namespace proteus
