// Norm layers over the last dimension: LayerNorm or RMSNorm, chosen at run time.
#pragma once

#include "nn/module.h"

namespace proteus {

enum class NormKind { layer, rms };

class Norm : public Module {
 public:
  /// Gain of ones [C]; LayerNorm has a bias [C] of zeros if wanted.
  Norm(NormKind kind, std::int64_t width, bool bias);

  Variable forward(const Variable& x) const;

 private:
  NormKind kind_;
  Variable weight_;
  Variable bias_;
};

}  // namespace proteus
