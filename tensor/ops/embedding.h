// Embedding: y[i] = weight[ids[i]], a row of a table per id. The gradient of a table row is the sum
// over the places where its id stands, in their order.
#pragma once

#include "tensor/slot.h"
#include "tensor/tensor.h"

namespace proteus {

/// ids [n] are i32 or i64 (id_dtype); weight [V, C], y [n, C]. invalid_at [1] becomes the first
/// place whose id is not in [0, V), or −1; y is then not complete.
struct EmbeddingFwd {
  const void* weight = nullptr;
  const void* ids = nullptr;
  void* y = nullptr;
  std::int64_t* invalid_at = nullptr;
  std::int64_t n = 0;
  std::int64_t V = 0;
  std::int64_t C = 0;
  DType dtype = DType::f32;
  DType id_dtype = DType::i32;
};
extern Slot<EmbeddingFwd> embedding_fwd;

/// dweight[v] = Σ_{i: ids[i] = v} dy[i], in ascending i and in the accumulation type; all of
/// dweight [V, C] is written. The ids are valid.
struct EmbeddingBwd {
  const void* ids = nullptr;
  const void* dy = nullptr;
  void* dweight = nullptr;
  std::int64_t n = 0;
  std::int64_t V = 0;
  std::int64_t C = 0;
  DType dtype = DType::f32;
  DType id_dtype = DType::i32;
};
extern Slot<EmbeddingBwd> embedding_bwd;

namespace ops {

/// weight [V, C] f64, f32 or bf16; ids i32 or i64 of any shape [...] → [..., C]. Throws ShapeError,
/// DTypeError, DeviceError, and ConfigError naming the first id that is out of range and its place.
Tensor embedding(const Tensor& weight, const Tensor& ids);
/// dy [..., C] → [V, C].
Tensor embedding_backward(const Tensor& ids, const Tensor& dy, std::int64_t V);

}  // namespace ops
}  // namespace proteus
