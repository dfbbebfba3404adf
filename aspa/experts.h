// The gated MLP: a small MLP for every token and many experts that a token enters only where its
// gates send it (docs/aspa.md, "Gated MLP").
//   y_t = MLP_shared(x_t) + Σ_{e ∈ sel(t)} r_{t,e}·Expert_e(x_t)
// It is gated like attention, by one role: experts are its heads, r is the query gate, and alpha
// slides it from all experts, each with weight 1 (0), to the k_e best (1). At alpha = 0 it is a
// dense MLP whose hidden width is shared_width + E·F.
// Parameters: those of "shared" (absent where its width is 0), "experts.up" [E, C, F],
// "experts.gate" [E, C, F] (swiglu only), "experts.down" [E, F, C], and the router's ("router.U",
// …) unless the gates are the attention's.
#pragma once

#include <memory>

#include "aspa/config.h"
#include "aspa/gated.h"
#include "nn/mlp.h"

namespace proteus {

/// Handles to the layer's parameters, undefined where it has none.
struct ExpertWeights {
  Variable up, gate, down;
};

class GatedMlp : public FeedForward, public Gated {
 public:
  /// `init` draws the weights; `output_std` is the std of both output projections. With `attention`
  /// the experts stand behind its gates, expert e beside head e: they share its router, k,
  /// selection thresholds and prototypes, but look at this layer's x. It must outlive the layer and
  /// have as many heads as there are experts. Throws ConfigError.
  GatedMlp(const GatedMlpConfig& config, double output_std, Generator& init,
           Gating* attention = nullptr);

  /// In training mode it also counts what after_step() needs; a recomputation by checkpoint() does
  /// not, and reuses the selection.
  Variable forward(const Variable& x) override;
  double flops_per_token() const override;
  /// The shared MLP and the router whole, of the experts k.
  std::int64_t active_parameter_count() const override;
  void after_step(double rate) override;

  Gating* gates() override { return gating_.get(); }
  const Gating* gates() const override { return gating_.get(); }
  double alpha() const override { return config_.alpha; }
  void set_alpha(double alpha) override;
  Module& module() override { return *this; }

  const GatedMlpConfig& config() const { return config_; }
  const ExpertWeights& weights() const { return weights_; }
  /// nullptr where its width is 0.
  Mlp* shared() const { return shared_; }
  /// The experts that the tokens of x enter, i32 [N, k], without running them.
  Tensor select(const Variable& x);

 private:
  RoleRouting route(const Variable& x);
  std::int64_t expert_parameters() const;

  GatedMlpConfig config_;
  ExpertWeights weights_;
  Mlp* shared_ = nullptr;
  std::unique_ptr<Gating> gating_;
};

}  // namespace proteus
