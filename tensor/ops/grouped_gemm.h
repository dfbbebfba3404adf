// Products of packed rows with the matrix of their group, for routed heads. Rows are sorted by
// group (head), then by sequence, then by time; offsets [G·S + 1] bounds the rows of every (group,
// sequence), group-major; token[r] is the row of the unpacked matrix that packed row r stands for.
//   gather   y[r]   = x[token[r]]·op(W[g(r)])
//   scatter  out[t] = base[t] + Σ_{r: token[r] = t} y[r]·op(W[g(r)]), in ascending order of the
//   group weight   dW[g]  = Σ_{r of g} a[r]ᵀ·b[r], in ascending order of the row
// The bits of a product row depend on that row and its matrix only: not on the number of rows in
// the group, not on the place of the row, not on the number of threads.
#pragma once

#include "tensor/ops/pack.h"
#include "tensor/slot.h"
#include "tensor/tensor.h"

namespace proteus {

/// x [tokens, K], w [G, K, N] (or [G, N, K] with trans_w), y [M, N]. Sums in the accumulation type.
struct GroupedGather {
  const void* x = nullptr;
  const void* w = nullptr;
  void* y = nullptr;
  const std::int32_t* token = nullptr;
  const std::int32_t* offsets = nullptr;
  std::int64_t groups = 0, sequences = 0, rows = 0;
  std::int64_t K = 0, N = 0;
  bool trans_w = false;
  DType dtype = DType::f32;
};
extern Slot<GroupedGather> grouped_gather;

/// y [M, K], w as above, out [tokens, N]: all of it is written. base is like out, or out itself, or
/// null for 0. Summed in the accumulation type, rounded once. The tokens of two sequences are
/// different.
struct GroupedScatter {
  const void* y = nullptr;
  const void* w = nullptr;
  const void* base = nullptr;
  void* out = nullptr;
  const std::int32_t* token = nullptr;
  const std::int32_t* offsets = nullptr;
  std::int64_t groups = 0, sequences = 0, rows = 0, tokens = 0;
  std::int64_t K = 0, N = 0;
  bool trans_w = false;
  DType dtype = DType::f32;
};
extern Slot<GroupedScatter> grouped_scatter;

/// dw [G, P, Q]; row r of a (width P) is a[a_token[r]], or a[r] where the list is null; b (width Q)
/// alike.
struct GroupedWeight {
  const void* a = nullptr;
  const void* b = nullptr;
  void* dw = nullptr;
  const std::int32_t* a_token = nullptr;
  const std::int32_t* b_token = nullptr;
  const std::int32_t* offsets = nullptr;
  std::int64_t groups = 0, sequences = 0, rows = 0;
  std::int64_t P = 0, Q = 0;
  DType dtype = DType::f32;
};
extern Slot<GroupedWeight> grouped_weight;

namespace ops {

/// x [tokens, K], w [G, K, N] (trans_w: [G, N, K]) → [M, N]. Throws ShapeError, DTypeError.
Tensor grouped_gather(const Tensor& x, const Tensor& w, const PackedRows& rows,
                      bool trans_w = false);
/// y [M, K], w as above → [tokens, N], added to base [tokens, N] unless that is undefined; the
/// base, or zero, for tokens without rows.
Tensor grouped_scatter(const Tensor& y, const Tensor& w, const PackedRows& rows,
                       bool trans_w = false, const Tensor& base = {});
/// The same, added to `sum` in place, which is contiguous.
void grouped_scatter_add(const Tensor& sum, const Tensor& y, const Tensor& w,
                         const PackedRows& rows, bool trans_w = false);
/// a [M or tokens, P], b [M or tokens, Q] → [G, P, Q]. `gather_a` and `gather_b` say which of the
/// two is given by token.
Tensor grouped_weight(const Tensor& a, bool gather_a, const Tensor& b, bool gather_b,
                      const PackedRows& rows);

}  // namespace ops
}  // namespace proteus
