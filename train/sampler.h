// Choosing the next token from logits: temperature, top-k, top-p (nucleus; Holtzman et al.,
// arXiv:1904.09751) and Top-A, in this order. Top-A compares what the others have left with the
// consensus c of the model's routed heads (aspa/top_a.h), by the cosine a_v of candidate v.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "tensor/rng.h"
#include "tensor/tensor.h"

namespace proteus {

/// filter: keep the candidates with a_v >= τ. blend: add λ·a_v to their logits.
enum class TopA : std::uint8_t { off, filter, blend };

struct SamplerConfig {
  double temperature = 1;  ///< logits are divided by it; 0 takes the largest (ties: lower id)
  std::int64_t top_k = 0;  ///< keep the k largest; 0 = all
  double top_p = 1;        ///< keep the fewest whose probabilities sum to at least p
  TopA top_a = TopA::off;
  double top_a_threshold = 0;  ///< τ, in [−1, 1]
  double top_a_weight = 0;     ///< λ; like any logit it is divided by the temperature
};

struct Candidate {
  std::int32_t id = 0;
  double probability = 0;
};

/// What the filters leave, most probable first (ties: lower id), probabilities summing to 1; never
/// empty. −inf logits have probability 0 and are left out. Throws NumericError when a logit is NaN
/// or +inf or all are −inf, ConfigError when a setting makes no sense.
std::vector<Candidate> candidates(std::span<const float> logits, const SamplerConfig& config);

/// a_v of every candidate: the cosine between `consensus` [C] and its row of `embedding` [V, C]; 0
/// for a row of zeros. Empty where the consensus is zero: nobody has said anything.
std::vector<double> agreement_with(const Tensor& consensus, const Tensor& embedding,
                                   std::span<const Candidate> list);

/// Those with agreement of at least `threshold`, with probabilities summing to 1. The candidate
/// with the largest agreement always stays (ties: the more probable). An empty `agreement` changes
/// nothing, and so does a threshold that all reach.
std::vector<Candidate> filter_by_agreement(std::vector<Candidate> list,
                                           std::span<const double> agreement, double threshold);
/// Probabilities times exp(weight·agreement), summing to 1, in order again; `weight` is
/// λ / temperature. An empty `agreement` changes nothing, and so does a weight of 0: not a bit.
std::vector<Candidate> blend_agreement(std::vector<Candidate> list,
                                       std::span<const double> agreement, double weight);
/// What config.top_a asks for. A temperature of 0 has left one candidate, which stays.
std::vector<Candidate> apply_top_a(std::vector<Candidate> list, std::span<const double> agreement,
                                   const SamplerConfig& config);

/// One of the candidates, drawn with number `index` of the stream `key`.
std::int32_t draw_candidate(std::span<const Candidate> list, RngKey key, std::uint64_t index);

/// One id without Top-A, drawn with number `index` of the stream `key`: a pure function of its
/// arguments. Throws like `candidates`.
std::int32_t sample_token(std::span<const float> logits, const SamplerConfig& config, RngKey key,
                          std::uint64_t index);

}  // namespace proteus
