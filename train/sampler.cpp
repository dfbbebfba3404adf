#include "train/sampler.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "aspa/top_a.h"
#include "tensor/error.h"

namespace proteus {
namespace {

void check(std::span<const float> logits, const SamplerConfig& c) {
  if (!(c.temperature >= 0) || std::isinf(c.temperature)) {
    throw ConfigError(
        fmt::format("--temperature: expected a number of at least 0, got {}", c.temperature));
  }
  if (c.top_k < 0) {
    throw ConfigError(fmt::format("--top-k: expected at least 0 (= all), got {}", c.top_k));
  }
  if (!(c.top_p > 0 && c.top_p <= 1)) {
    throw ConfigError(fmt::format("--top-p: expected a number in (0, 1], got {}", c.top_p));
  }
  if (!(c.top_a_threshold >= -1 && c.top_a_threshold <= 1)) {
    throw ConfigError(
        fmt::format("--top-a-threshold: expected a number in [-1, 1], got {}", c.top_a_threshold));
  }
  if (!(c.top_a_weight >= 0) || std::isinf(c.top_a_weight)) {
    throw ConfigError(
        fmt::format("--top-a-weight: expected a number of at least 0, got {}", c.top_a_weight));
  }
  bool any = false;
  for (std::size_t i = 0; i < logits.size(); ++i) {
    if (std::isnan(logits[i]) || logits[i] == std::numeric_limits<float>::infinity()) {
      throw NumericError(fmt::format(
          "sample_token(logits, …): logits[{}] is {}; expected finite numbers (or −inf)", i,
          logits[i]));
    }
    any = any || !std::isinf(logits[i]);
  }
  if (!any) {
    throw NumericError(fmt::format(
        "sample_token(logits, …): expected a finite logit, got none in [{}]", logits.size()));
  }
}

bool more_probable(const Candidate& a, const Candidate& b) {
  return a.probability != b.probability ? a.probability > b.probability : a.id < b.id;
}

void check_agreement(const char* call, std::span<const Candidate> list,
                     std::span<const double> agreement) {
  if (agreement.empty() || agreement.size() == list.size()) return;
  throw ShapeError(fmt::format("{}: agreement: expected [{}] (= candidates) or none, got [{}]",
                               call, list.size(), agreement.size()));
}

/// Divides by the sum of the first n and drops the rest.
void keep(std::vector<Candidate>& list, std::size_t n) {
  list.resize(n);
  double sum = 0;
  for (const Candidate& c : list) sum += c.probability;
  for (Candidate& c : list) c.probability /= sum;
}

}  // namespace

std::vector<Candidate> candidates(std::span<const float> logits, const SamplerConfig& config) {
  check(logits, config);
  std::vector<Candidate> list;
  list.reserve(logits.size());
  for (std::size_t i = 0; i < logits.size(); ++i) {
    if (!std::isinf(logits[i])) list.push_back({static_cast<std::int32_t>(i), logits[i]});
  }
  const bool greedy = config.temperature == 0;
  std::size_t n = list.size();
  if (config.top_k > 0) n = std::min(n, static_cast<std::size_t>(config.top_k));
  if (greedy) n = 1;
  std::partial_sort(list.begin(), list.begin() + static_cast<std::ptrdiff_t>(n), list.end(),
                    more_probable);

  const double largest = list[0].probability;
  const double scale = greedy ? 1 : config.temperature;
  for (std::size_t i = 0; i < n; ++i) {
    list[i].probability = std::exp((list[i].probability - largest) / scale);
  }
  keep(list, n);
  double sum = 0;
  std::size_t kept = 0;
  while (kept < list.size() && sum < config.top_p) sum += list[kept++].probability;
  if (kept < list.size()) keep(list, kept);
  return list;
}

std::vector<double> agreement_with(const Tensor& consensus, const Tensor& embedding,
                                   std::span<const Candidate> list) {
  const std::int64_t C = embedding.size(1);
  if (consensus.shape() != Shape{C}) {
    throw ShapeError(fmt::format(
        "agreement_with(consensus, embedding, list): consensus: expected [{}] (= the width of "
        "embedding), got {}",
        C, to_string(consensus.shape())));
  }
  const std::vector<double> c = consensus.to_vector();
  if (std::all_of(c.begin(), c.end(), [](double v) { return v == 0; })) return {};
  std::vector<double> agreement;
  agreement.reserve(list.size());
  for (const Candidate& candidate : list) {
    const std::vector<double> row = embedding.select(0, candidate.id).to_vector();
    bool defined = false;
    agreement.push_back(cosine(c.data(), row.data(), C, defined));
  }
  return agreement;
}

std::vector<Candidate> filter_by_agreement(std::vector<Candidate> list,
                                           std::span<const double> agreement, double threshold) {
  check_agreement("filter_by_agreement(list, agreement, threshold)", list, agreement);
  if (agreement.empty()) return list;
  const auto best = std::max_element(agreement.begin(), agreement.end()) - agreement.begin();
  std::size_t kept = 0;
  for (std::size_t i = 0; i < agreement.size(); ++i) {
    if (agreement[i] >= threshold || static_cast<std::ptrdiff_t>(i) == best) list[kept++] = list[i];
  }
  if (kept < list.size()) keep(list, kept);
  return list;
}

std::vector<Candidate> blend_agreement(std::vector<Candidate> list,
                                       std::span<const double> agreement, double weight) {
  check_agreement("blend_agreement(list, agreement, weight)", list, agreement);
  if (agreement.empty() || weight == 0) return list;
  // In logarithms: a small temperature makes the weight huge.
  const double factor = std::min(weight, std::numeric_limits<double>::max() / 4);
  std::vector<double> logits(list.size());
  for (std::size_t i = 0; i < list.size(); ++i) {
    logits[i] = std::log(list[i].probability) + factor * agreement[i];
  }
  const double largest = *std::max_element(logits.begin(), logits.end());
  for (std::size_t i = 0; i < list.size(); ++i) list[i].probability = std::exp(logits[i] - largest);
  keep(list, list.size());
  std::sort(list.begin(), list.end(), more_probable);
  return list;
}

std::vector<Candidate> apply_top_a(std::vector<Candidate> list, std::span<const double> agreement,
                                   const SamplerConfig& config) {
  if (config.top_a == TopA::off || config.temperature == 0) return list;
  if (config.top_a == TopA::filter) {
    return filter_by_agreement(std::move(list), agreement, config.top_a_threshold);
  }
  return blend_agreement(std::move(list), agreement, config.top_a_weight / config.temperature);
}

std::int32_t draw_candidate(std::span<const Candidate> list, RngKey key, std::uint64_t index) {
  const double u = random_u32(key, index) * 0x1p-32;
  double sum = 0;
  for (const Candidate& c : list) {
    sum += c.probability;
    if (u < sum) return c.id;
  }
  return list.back().id;  // rounding left the sum just below u
}

std::int32_t sample_token(std::span<const float> logits, const SamplerConfig& config, RngKey key,
                          std::uint64_t index) {
  return draw_candidate(candidates(logits, config), key, index);
}

}  // namespace proteus
