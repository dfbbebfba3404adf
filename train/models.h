// From options to models: one place decides what an arm is made of.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "aspa/attention.h"
#include "aspa/experts.h"
#include "nn/transformer.h"
#include "train/options.h"

namespace proteus {

/// The transformer of an arm for `vocab` ids. Throws ConfigError.
std::unique_ptr<Transformer> make_model(const Options& options, const Arm& arm, std::int64_t vocab,
                                        std::uint64_t seed);

/// One attention layer of an arm, as make_model puts it at `site`. Throws ConfigError.
std::unique_ptr<Attention> make_attention(const Options& options, const Arm& arm,
                                          const AttentionSite& site, std::uint64_t seed);

/// What the attention layers of an arm run on a whole context: "dense", "dense (alpha 0)",
/// "dense (selects everything)", "packed rows (alpha 0.5)" or, without routed heads, "windows of
/// shared heads".
std::string attention_path(const Options& options, const Arm& arm);

/// About how many parameters and numbers of state make_model would allocate: the large matrices and
/// tables. In floating point, so that no sizes overflow it.
double parameters_about(const Options& options, const Arm& arm, std::int64_t vocab);

/// Whether a parameter of this name is of what ASPA adds to dense layers: router, token salience,
/// output gates, sinks, key shift.
bool routes(std::string_view parameter);

/// The layer's ASPA attention, or null if it is another.
AspaAttention* aspa_layer(const Transformer& model, std::int64_t layer);

/// A half of a block that may have gates.
struct GatedPart {
  std::int64_t layer = 0;
  std::string name;  ///< "attention" or "mlp"
  Gated* gated = nullptr;

  /// Whether it has gates of its own: routed heads or experts, and not another part's gates.
  bool own_gates() const { return gated->gates() && !gated->gates()->follows(); }
  /// Of its parameters' and buffers' names: "blocks.0.attn.".
  std::string prefix() const;
};
/// All of a model, in order of the layers, attention first.
std::vector<GatedPart> gated_parts(const Transformer& model);

/// Routing of all gated parts together, for reports.
struct RoutingSummary {
  bool present = false;  ///< false for dense models: the numbers mean nothing
  double max_vio = 0;    ///< the worst of layers, parts and roles
  /// The same over the last whole evaluation, and of both roles' rows together; −1 if there was
  /// none. max_vio is of the last training step.
  double eval_max_vio = -1;
  double eval_max_vio_both = -1;
  double entropy = 1;  ///< the lowest of layers, parts and roles
  std::int64_t dead_gates = 0;
  double alpha = 0;    ///< of attention
  double density = 0;  ///< of attention, mean over layers
  double churn = -1;   ///< mean over layers, parts and roles since the last probe; −1 if unknown
};
RoutingSummary routing_summary(const Transformer& model);

/// Runs the model on a fixed batch in evaluation mode and compares the selections with those of the
/// last such probe (see AspaAttention::begin_probe).
void probe_routing(Transformer& model, const Tensor& tokens);

/// Moves all gated parts to this alpha. Throws ConfigError when there are none.
void set_alpha(const Transformer& model, double alpha);

/// Between the two calls the loads of the heads are summed in all gated parts, for
/// RoutingSummary::eval_max_vio.
void begin_tally(const Transformer& model);
void end_tally(const Transformer& model);

/// The model part of a checkpoint's config.json: everything make_model needs, as JSON text, and
/// back. `tokenizer` is Tokenizer::to_json(). Throws FileError naming `source` when the text is not
/// what model_json writes.
struct SavedModel {
  Options options;
  std::string arm;
  std::int64_t vocab = 0;
  std::uint64_t seed = 0;
  std::string tokenizer;
};
std::string model_json(const SavedModel& saved);
SavedModel parse_model_json(const std::string& text, const std::string& source);

}  // namespace proteus
