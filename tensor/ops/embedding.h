// Embedding: y[i] = weight[ids[i]], a row of a table per id. The gradient of a table row is the sum
// over the places where its id stands, in their order.
#pragma once

#include "tensor/slot.h"
#include "tensor/tensor.h"

namespace proteus {

/// ids [n] are i32 or i64 (id_dtype); weight [V, C], y [n, C]. The row of an id that is not in
/// [0, V) becomes NaN.
struct EmbeddingFwd {
  const void* weight = nullptr;
  const void* ids = nullptr;
  void* y = nullptr;
  std::int64_t n = 0;
  std::int64_t V = 0;
  std::int64_t C = 0;
  DType dtype = DType::f32;
  DType id_dtype = DType::i32;
};
extern Slot<EmbeddingFwd> embedding_fwd;

/// dweight[v] = Σ_{i: ids[i] = v} dy[i], in ascending i and in the accumulation type; all of
/// dweight [V, C] is written. Ids that are not in [0, V) count for nothing.
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
/// DTypeError, DeviceError, and what check_ids throws if the ids are on the CPU. On a device they
/// cannot be looked at without waiting for it: there, an id that is out of range gives a row of
/// NaN.
Tensor embedding(const Tensor& weight, const Tensor& ids);
/// Throws ConfigError naming the first of `ids` (on the CPU) that is not in [0, V), and its place.
void check_ids(const Tensor& ids, std::int64_t V);
/// dy [..., C] → [V, C].
Tensor embedding_backward(const Tensor& ids, const Tensor& dy, std::int64_t V);

}  // namespace ops
}  // namespace proteus
