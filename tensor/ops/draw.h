// The next token of every sequence, drawn where the logits are: temperature, top-k and top-p
// (Holtzman et al., arXiv:1904.09751) in this order, as train/sampler.h draws on the host, with the
// same random numbers. Sums of probabilities are of whole numbers, so that any order of adding
// gives the same token.
//   candidates by logit, the largest first (equal ones: the lower id); weight exp((l − max)/τ)
//   the first top_k of them, of these the fewest whose weights reach top_p of the sum; of these the
//   one in whose weight u times the sum falls, u the number `position + offset` of the row's stream
#pragma once

#include <cmath>

#include "tensor/host_device.h"
#include "tensor/rng.h"
#include "tensor/slot.h"
#include "tensor/tensor.h"

namespace proteus {

/// What stands for the token of a row with a NaN or +inf, or without a finite logit.
constexpr std::int32_t kNoToken = -1;

/// exp of what is not above 0 as a whole number; sums over 2^23 of them fit into 64 bits.
PROTEUS_HOST_DEVICE inline std::uint64_t draw_weight(float exponential) {
  return static_cast<std::uint64_t>(exponential * 0x1p40f);
}

/// What differences of logits are multiplied by.
PROTEUS_HOST_DEVICE inline float draw_inverse(double temperature) {
  constexpr double kMost = 3.4e38;  // of a float, or 0·∞ would come out for the largest logit
  return static_cast<float>(1 / temperature < kMost ? 1 / temperature : kMost);
}

/// The sum of weights that top_p asks for, at least 1.
PROTEUS_HOST_DEVICE inline std::uint64_t draw_wanted(double top_p, std::uint64_t sum) {
  if (top_p >= 1) return sum;
  const double wanted = std::ceil(top_p * static_cast<double>(sum));
  return wanted < 1 ? 1 : static_cast<std::uint64_t>(wanted);
}

/// ⌊u·2^−32·sum⌋.
PROTEUS_HOST_DEVICE inline std::uint64_t draw_share(std::uint32_t u, std::uint64_t sum) {
  return u * (sum >> 32) + ((u * (sum & 0xffffffffu)) >> 32);
}

/// logits [B, V]; tokens [B]. Row b has the stream key.stream + b, and draws with its number
/// positions[b] + offset. temperature 0 takes the first candidate; top_k 0 = all.
struct DrawTokens {
  const void* logits = nullptr;
  const std::int32_t* positions = nullptr;
  std::int32_t* tokens = nullptr;
  std::int64_t B = 0, V = 0;
  std::int64_t offset = 0;
  std::int64_t top_k = 0;
  double top_p = 1;
  double temperature = 1;
  RngKey key;
  DType dtype = DType::f32;
};
extern Slot<DrawTokens> draw_tokens;

namespace ops {

struct DrawOptions {
  double temperature = 1;
  std::int64_t top_k = 0;
  double top_p = 1;
  RngKey key = {};
  std::int64_t offset = 0;  ///< positions + offset number the draws
};
/// logits [B, V], positions i32 [B] → tokens i32 [B], written in place: kNoToken where a row cannot
/// be drawn from. Logits count as f32. Throws ShapeError, DTypeError, ConfigError.
void draw_tokens(const Tensor& tokens, const Tensor& logits, const Tensor& positions,
                 const DrawOptions& options);

}  // namespace ops
}  // namespace proteus
