// What the tests of the gated MLP share.
#pragma once

#include <memory>

#include "aspa/experts.h"
#include "tests/aspa_layers.h"

namespace proteus::testing {

inline GatedMlpConfig expert_config(DType dtype = DType::f64) {
  GatedMlpConfig c;
  c.width = 12;
  c.routed_heads = 6;
  c.k = 2;
  c.gates_per_head = 3;
  c.routing_width = 5;
  c.expert_width = 7;
  c.shared_width = 10;
  c.dtype = dtype;
  return c;
}

/// An MLP with experts, its parameters and thresholds far from zero.
struct TestExperts {
  Generator init{11};
  std::unique_ptr<GatedMlp> layer;

  explicit TestExperts(const GatedMlpConfig& config, std::uint64_t seed = 5) {
    layer = std::make_unique<GatedMlp>(config, 0.02, init);
    randomize_parameters(*layer, config.width, seed);
  }
  GatedMlp& operator*() const { return *layer; }
  GatedMlp* operator->() const { return layer.get(); }
};

}  // namespace proteus::testing
