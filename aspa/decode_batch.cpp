// Decoding of an ASPA layer for sequences side by side, on any device.
#include "aspa/attention.h"
#include "tensor/error.h"

namespace proteus {

LayerCaches AspaAttention::make_caches(const CacheShape&) const {
  throw ConfigError("aspa: decoding side by side needs dense layers; use Transformer::step");
}

Tensor AspaAttention::step(const Tensor&, const LayerCaches&, const Tensor&) {
  throw ConfigError("aspa: decoding side by side needs dense layers; use Transformer::step");
}

}  // namespace proteus
