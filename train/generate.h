// Text from a model.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "aspa/controllers.h"
#include "aspa/top_a.h"
#include "nn/transformer.h"
#include "train/options.h"
#include "train/tokenizer.h"

namespace proteus {

struct Generated {
  std::string text;
  std::vector<LatencyController::Decision> decisions;  ///< what --latency-budget moved
  AgreementSummary agreement;  ///< of the last layer's routed heads, over the tokens drawn
};

/// Text that continues `prompt` (empty = a line break, or the first id where there is none), with
/// the sampling options and a sliding window of the model's context. Where a latency budget has
/// moved alpha or the window of ASPA layers, they are put back at the end. Throws ConfigError for
/// Top-A with a model whose last layer has no routed heads.
Generated generate(Transformer& model, const Tokenizer& tokenizer, const SamplingOptions& options,
                   std::uint64_t seed);

}  // namespace proteus
