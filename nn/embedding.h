// Embedding: a row of a table per id.
#pragma once

#include "nn/module.h"
#include "tensor/rng.h"

namespace proteus {

class Embedding : public Module {
 public:
  Embedding(std::int64_t vocab, std::int64_t width, Generator& init);

  /// ids i32 or i64 of any shape [...] → [..., C]. Ids on the CPU are checked (ConfigError) and
  /// copied to the table's device; on a device, one that is out of range gives a row of NaN.
  Variable forward(const Tensor& ids) const;
  /// [V, C]; shared with the output head when the head is tied.
  const Variable& weight() const { return weight_; }

 private:
  Variable weight_;
};

}  // namespace proteus
