// Linear: y = x · Wᵀ + b.
#pragma once

#include "nn/module.h"
#include "tensor/rng.h"

namespace proteus {

class Linear : public Module {
 public:
  /// weight [out, in] with normal entries of `std`; bias [out] of zeros if wanted.
  Linear(std::int64_t in, std::int64_t out, bool bias, double std, Generator& init);

  /// x [..., in] → [..., out].
  Variable forward(const Variable& x) const;
  const Variable& weight() const { return weight_; }
  const Variable& bias() const { return bias_; }

 private:
  Variable weight_;
  Variable bias_;
};

}  // namespace proteus
