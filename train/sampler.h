// Choosing the next token from logits: temperature, top-k and top-p (nucleus; Holtzman et al.,
// arXiv:1904.09751), in this order.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "tensor/rng.h"

namespace proteus {

struct SamplerConfig {
  double temperature = 1;  ///< logits are divided by it; 0 takes the largest (ties: lower id)
  std::int64_t top_k = 0;  ///< keep the k largest; 0 = all
  double top_p = 1;        ///< keep the fewest whose probabilities sum to at least p
};

struct Candidate {
  std::int32_t id = 0;
  double probability = 0;
};

/// What the filters leave, most probable first (ties: lower id), probabilities summing to 1; never
/// empty. −inf logits have probability 0 and are left out. Throws NumericError when a logit is NaN
/// or +inf or all are −inf, ConfigError when a setting makes no sense.
std::vector<Candidate> candidates(std::span<const float> logits, const SamplerConfig& config);

/// One id, drawn with number `index` of the stream `key`: a pure function of its arguments. Throws
/// like `candidates`.
std::int32_t sample_token(std::span<const float> logits, const SamplerConfig& config, RngKey key,
                          std::uint64_t index);

}  // namespace proteus
