#include "train/sampler.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

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
  const auto more = [](const Candidate& a, const Candidate& b) {
    return a.probability != b.probability ? a.probability > b.probability : a.id < b.id;
  };
  const bool greedy = config.temperature == 0;
  std::size_t n = list.size();
  if (config.top_k > 0) n = std::min(n, static_cast<std::size_t>(config.top_k));
  if (greedy) n = 1;
  std::partial_sort(list.begin(), list.begin() + static_cast<std::ptrdiff_t>(n), list.end(), more);

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

std::int32_t sample_token(std::span<const float> logits, const SamplerConfig& config, RngKey key,
                          std::uint64_t index) {
  const std::vector<Candidate> list = candidates(logits, config);
  const double u = random_u32(key, index) * 0x1p-32;
  double sum = 0;
  for (const Candidate& c : list) {
    sum += c.probability;
    if (u < sum) return c.id;
  }
  return list.back().id;  // rounding left the sum just below u
}

}  // namespace proteus
