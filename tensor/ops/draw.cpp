#include "tensor/ops/draw.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "tensor/ops/check.h"
#include "tensor/parallel.h"

namespace proteus {
namespace {

/// Candidates in their order; empty where there is none, or a NaN or +inf.
template <class T>
std::vector<std::int32_t> ordered(const T* logits, std::int64_t V) {
  std::vector<std::int32_t> ids;
  for (std::int64_t i = 0; i < V; ++i) {
    const auto l = static_cast<float>(logits[i]);
    if (std::isnan(l) || (std::isinf(l) && l > 0)) return {};
    if (!std::isinf(l)) ids.push_back(static_cast<std::int32_t>(i));
  }
  std::stable_sort(ids.begin(), ids.end(), [&](std::int32_t a, std::int32_t b) {
    return static_cast<float>(logits[a]) > static_cast<float>(logits[b]);
  });
  return ids;
}

/// The first of the weights at which their sum is above `target`; `sum` becomes that.
std::size_t first_above(const std::vector<std::uint64_t>& weights, std::uint64_t target,
                        std::uint64_t& sum) {
  std::size_t i = 0;
  for (sum = weights[0]; sum <= target && i + 1 < weights.size(); sum += weights[i]) ++i;
  return i;
}

template <class T>
std::int32_t draw(const DrawTokens& a, std::int64_t b) {
  const T* logits = static_cast<const T*>(a.logits) + b * a.V;
  std::vector<std::int32_t> ids = ordered(logits, a.V);
  if (ids.empty()) return kNoToken;
  if (a.temperature == 0) return ids[0];
  if (a.top_k > 0 && static_cast<std::size_t>(a.top_k) < ids.size()) {
    ids.resize(static_cast<std::size_t>(a.top_k));
  }
  const auto top = static_cast<float>(logits[ids[0]]);
  const float inverse = draw_inverse(a.temperature);
  std::vector<std::uint64_t> weights;
  for (const std::int32_t id : ids) {
    weights.push_back(draw_weight(std::exp((static_cast<float>(logits[id]) - top) * inverse)));
  }
  std::uint64_t sum = std::accumulate(weights.begin(), weights.end(), std::uint64_t{0});
  if (a.top_p < 1) first_above(weights, draw_wanted(a.top_p, sum) - 1, sum);
  const std::uint32_t u = random_u32({a.key.seed, a.key.stream + static_cast<std::uint64_t>(b)},
                                     static_cast<std::uint64_t>(a.positions[b] + a.offset));
  const std::uint64_t target = draw_share(u, sum);
  return ids[first_above(weights, target, sum)];
}

void draw_cpu(const DrawTokens& a) {
  dispatch_float(a.dtype, "draw_tokens", [&](auto tag) {
    parallel_for(a.B, 1, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t b = begin; b < end; ++b) {
        a.tokens[b] = draw<typename decltype(tag)::type>(a, b);
      }
    });
  });
}

void check_numbers(const std::string& call, const char* name, const Tensor& t,
                   const Tensor& logits) {
  if (t.dtype() != DType::i32) throw_dtype(call + ": " + name, t.dtype(), "i32");
  ops::check_device(call, name, t, logits);
  ops::check_shape(call, name, t, {logits.size(0)}, "(= logits.shape[0])");
  if (!t.is_contiguous()) {
    throw ShapeError(call + ": " + name + ": expected a contiguous tensor");
  }
}

}  // namespace

Slot<DrawTokens> draw_tokens{"draw_tokens", draw_cpu};

namespace ops {

void draw_tokens(const Tensor& tokens, const Tensor& logits_any, const Tensor& positions,
                 const DrawOptions& options) {
  const std::string call = "draw_tokens(tokens, logits, positions)";
  check_floating(call, "logits", logits_any);
  if (logits_any.rank() != 2) {
    throw ShapeError(call + ": logits: expected [B, V], got " + to_string(logits_any.shape()));
  }
  check_numbers(call, "tokens", tokens, logits_any);
  check_numbers(call, "positions", positions, logits_any);
  if (!(options.temperature >= 0) || options.top_k < 0 || !(options.top_p > 0)) {
    throw ConfigError(call + ": expected temperature >= 0, top_k >= 0 and top_p > 0, got " +
                      std::to_string(options.temperature) + ", " + std::to_string(options.top_k) +
                      " and " + std::to_string(options.top_p));
  }
  const Tensor logits = logits_any.contiguous();
  tokens.bump_version();
  if (logits.size(0) == 0) return;
  proteus::draw_tokens(logits.device(), {.logits = logits.raw(),
                                         .positions = positions.data<std::int32_t>(),
                                         .tokens = tokens.data<std::int32_t>(),
                                         .B = logits.size(0),
                                         .V = logits.size(1),
                                         .offset = options.offset,
                                         .top_k = options.top_k,
                                         .top_p = options.top_p,
                                         .temperature = options.temperature,
                                         .key = options.key,
                                         .dtype = logits.dtype()});
}

}  // namespace ops
}  // namespace proteus
