// Text from a model.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "aspa/controllers.h"
#include "nn/transformer.h"
#include "train/options.h"
#include "train/tokenizer.h"

namespace proteus {

struct Generated {
  std::string text;
  std::vector<LatencyController::Decision> decisions;  ///< what --latency-budget moved
};

/// Text that continues `prompt` (empty = a line break, or the first id where there is none), with
/// the sampling options and a sliding window of the model's context. Where a latency budget has
/// moved alpha or the window of ASPA layers, they are put back at the end.
Generated generate(Transformer& model, const Tokenizer& tokenizer, const SamplingOptions& options,
                   std::uint64_t seed);

}  // namespace proteus
