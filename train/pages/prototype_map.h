// Where a layer's prototypes and the tokens of a text lie: x̃ and p as unit vectors, which is how
// the router compares them, projected on the two directions in which they differ most (principal
// components).
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "nn/transformer.h"
#include "train/pages/projection.h"
#include "train/tokenizer.h"

namespace proteus {

struct MappedToken {
  Point2 at;
  std::string text;
  std::int64_t gate = 0;                 ///< whose prototype is nearest
  std::vector<std::int32_t> query, key;  ///< routed heads that it enters
};
struct MappedGate {
  Point2 at;
  std::int64_t head = 0;
  double mass = 0;  ///< its share of its head
};
struct PrototypeMap {
  std::string arm;  ///< "aspa, seed 1337"
  std::int64_t layer = 0;
  double explained[2] = {0, 0};
  std::vector<MappedGate> gates;
  std::vector<MappedToken> tokens;
};

/// Of every layer with prototypes, for the first `most` tokens of the text, cut into sequences of
/// the model's context. The model is in evaluation mode on the CPU.
std::vector<PrototypeMap> prototype_maps(Transformer& model, const Tokenizer& tokenizer,
                                         std::span<const std::int32_t> ids, std::size_t most);

}  // namespace proteus
