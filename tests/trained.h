// A layer with its optimizer, a few steps old: for tests of surgery.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "aspa/surgery.h"
#include "optim/adamw.h"
#include "tests/aspa_layers.h"

namespace proteus::testing {

/// L is TestLayer or TestExperts.
template <class L>
struct Trained {
  L layer;
  std::unique_ptr<AdamW> optimizer;
  std::uint64_t step = 0;

  template <class Config>
  explicit Trained(const Config& c, int steps = 3) : layer(c) {
    std::vector<ParameterRef> refs;
    for (const Parameter& p : layer->parameters()) refs.push_back({p.name, p.variable, p.decay});
    optimizer = std::make_unique<AdamW>(refs, AdamWConfig{.weight_decay = 0.1});
    train(steps);
  }
  auto& operator*() const { return *layer; }
  auto* operator->() const { return layer.layer.get(); }
  EditHook hook() const {
    return [this](const std::vector<RowEdit>& edits) { optimizer->map_rows(edits); };
  }
  void train(int steps) {
    const auto& c = layer->config();
    for (int i = 0; i < steps; ++i) {
      layer->zero_grad();
      const Variable y =
          layer->forward(Variable(Tensor::randn({2, 24, c.width}, {100 + ++step, 2}, c.dtype)));
      y.backward(Tensor::randn(y.shape(), {8, step}, y.dtype()));
      optimizer->step(0.01);
      layer->zero_grad();
      layer->after_step(1);
    }
  }
};

/// Parameters, buffers and moments.
template <class L>
Results everything(const Trained<L>& t) {
  Results all;
  for (const Parameter& p : t->parameters()) all[p.name] = p.variable.value().clone();
  for (const Buffer& b : t->buffers()) all[b.name] = b.tensor.clone();
  for (const auto& [name, tensor] : t.optimizer->state()) all[name] = tensor.clone();
  return all;
}

/// Every table has a row per gate or per head.
inline void expect_rows(const Results& all, std::int64_t gates, std::int64_t heads) {
  for (const auto& [name, tensor] : all) {
    for (const char* per_gate : {"router.w", "router.p", "router.N", "router.P", "router.mass",
                                 "router.head_of_gate", "router.starving"}) {
      if (name.ends_with(per_gate)) {
        EXPECT_EQ(tensor.size(0), gates) << name;
      }
    }
    for (const char* per_head :
         {"routed.q", "routed.k", "routed.v", "routed.o", "sink", "experts.up", "experts.gate",
          "experts.down", "theta_q", "theta_k", "ramp"}) {
      if (name.ends_with(per_head)) {
        EXPECT_EQ(tensor.size(0), heads) << name;
      }
    }
  }
}

}  // namespace proteus::testing
