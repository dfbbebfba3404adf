// Routing of tokens to heads through gates. With x̃ [N, R] the tokens in routing space, w_g and p_g
// a gate's direction and unit prototype, and m_g its mass:
//   s_{n,g} = w_g·x̃_n + λ·cos(x̃_n, p_g)          cos(0, p) = 0
//   z_{n,h} = log Σ_{g of h} m_g·exp(s_{n,g})
//   share_{n,g} = m_g·exp(s_{n,g} − z_{n,h})
// All in f32, or f64 throughout. Every z depends on its own token only and is summed in an order
// that neither the number of tokens nor the tile changes.
#pragma once

#include "tensor/host_device.h"
#include "tensor/ops/attention.h"
#include "tensor/ops/pack.h"
#include "tensor/slot.h"
#include "tensor/tensor.h"

namespace proteus {

/// The gate table: w and p [G, R], mass [G], one λ. The gates of head h are order[i] for
/// head_begin[h] <= i < head_begin[h + 1]: a gate changes its head without moving its row. G =
/// head_begin[Hr]. p is null when prototypes are off.
struct GateTable {
  const void* w = nullptr;
  const void* p = nullptr;
  const void* lambda = nullptr;
  const void* mass = nullptr;
  const std::int32_t* order = nullptr;
  const std::int32_t* head_begin = nullptr;
  std::int64_t Hr = 0;
  std::int64_t G = 0;
  std::int64_t R = 0;
};

/// z [N, Hr] of every token and head; x [N, R]. nearest [N], where it is not null and there are
/// prototypes: the gate with the largest cos(x̃, p_g), the lower index where two are equal.
struct GateLogitsFwd {
  const void* x = nullptr;
  GateTable gates;
  void* z = nullptr;
  std::int32_t* nearest = nullptr;
  std::int64_t N = 0;
  DType dtype = DType::f32;
};
extern Slot<GateLogitsFwd> gate_logits_fwd;

/// z [M] and share [M, width] of the packed rows (M = rows) only: row r is token[r], its head h the
/// one with offsets[h·stride] <= r < offsets[(h + 1)·stride]; the same seen from the N tokens:
/// row_of and heads [N, slots], −1 for none. width is the most gates of a head; shares are in the
/// order of its gates, unused ones 0.
struct GateRowsFwd {
  const void* x = nullptr;
  GateTable gates;
  const std::int32_t* token = nullptr;
  const std::int32_t* offsets = nullptr;
  std::int64_t stride = 1;
  const std::int32_t* row_of = nullptr;
  const std::int32_t* heads = nullptr;
  std::int64_t slots = 0;
  std::int64_t N = 0;
  void* z = nullptr;
  void* share = nullptr;
  std::int64_t rows = 0;
  std::int64_t width = 0;
  DType dtype = DType::f32;
};
extern Slot<GateRowsFwd> gate_rows_fwd;

/// From dz [M]: dx [N, R], dw [G, R] and dlambda [1]; dx and dw may be null, dlambda comes with dx.
/// row_of and heads [N, slots] are the packed rows of a token and their heads, −1 for none.
struct GateRowsBwd {
  const void* x = nullptr;
  GateTable gates;
  const std::int32_t* token = nullptr;
  const std::int32_t* offsets = nullptr;
  std::int64_t stride = 1;
  const std::int32_t* row_of = nullptr;
  const std::int32_t* heads = nullptr;
  std::int64_t slots = 0;
  const void* share = nullptr;
  std::int64_t rows = 0;
  std::int64_t width = 0;
  const void* dz = nullptr;
  void* dx = nullptr;
  void* dw = nullptr;
  void* dlambda = nullptr;
  std::int64_t N = 0;
  DType dtype = DType::f32;
};
extern Slot<GateRowsBwd> gate_rows_bwd;

/// What the prototypes learn from: weight_sum [G] = Σ_r share_{r,g} and weighted_sum [G, R] =
/// Σ_r share_{r,g}·x̃_{token r}, over the packed rows of g's head.
struct PrototypeStats {
  const void* x = nullptr;
  GateTable gates;
  const std::int32_t* token = nullptr;
  const std::int32_t* offsets = nullptr;
  std::int64_t stride = 1;
  const void* share = nullptr;
  std::int64_t rows = 0;
  std::int64_t width = 0;
  void* weight_sum = nullptr;
  void* weighted_sum = nullptr;
  DType dtype = DType::f32;
};
extern Slot<PrototypeStats> prototype_stats;

/// Which keys of its own packed stream each routed query sees: with n the entries of the stream at
/// or before the query's time, hi = n and lo = n − visible[n], counted from the segment's first
/// key. n − visible[n] must not decrease; lo and hi then do not within a segment. streams: the
/// segments of attention, one per (head, sequence).
struct KeyRangesFwd {
  const std::int32_t* q_token = nullptr;
  const std::int32_t* k_token = nullptr;
  const std::int32_t* q_offsets = nullptr;  ///< [segments + 1]
  const std::int32_t* k_offsets = nullptr;
  std::int32_t* lo = nullptr;  ///< [Mq]
  std::int32_t* hi = nullptr;
  const std::int32_t* visible = nullptr;  ///< [most keys of a segment + 1]
  AttentionSegment* streams = nullptr;    ///< [segments]
  std::int64_t segments = 0;
  std::int64_t sequences = 1;
  std::int64_t queries = 0;  ///< Mq
};
extern Slot<KeyRangesFwd> key_ranges_fwd;

/// The segment of stream s.
PROTEUS_HOST_DEVICE inline AttentionSegment stream_of(const KeyRangesFwd& a, std::int64_t s) {
  return {.q_row = a.q_offsets[s],
          .k_row = a.k_offsets[s],
          .slot = a.q_offsets[s],
          .range = a.q_offsets[s],
          .q_count = a.q_offsets[s + 1] - a.q_offsets[s],
          .k_count = a.k_offsets[s + 1] - a.k_offsets[s],
          .head = s / a.sequences};
}

namespace ops {

/// The gate table as tensors: w, p [G, R] (p may be undefined), lambda [] and mass [G] of the
/// routing dtype (f32 or f64); order [G] and head_begin [Hr + 1] i32; width = most gates of a head.
struct GateTensors {
  Tensor w, p, lambda, mass, order, head_begin;
  std::int64_t width = 1;
  std::int64_t heads() const { return head_begin.numel() - 1; }
};

/// z [N, Hr] of x [N, R], without gradient: for the selection. Throws ShapeError, DTypeError.
Tensor gate_logits(const Tensor& x, const GateTensors& gates);

struct NearestGates {
  Tensor z;        ///< [N, Hr]
  Tensor nearest;  ///< i32 [N]; undefined without prototypes
};
/// The same, and the gate whose prototype is nearest to each token.
NearestGates gate_logits_and_nearest(const Tensor& x, const GateTensors& gates);

struct RowLogits {
  Tensor z;      ///< [M]
  Tensor share;  ///< [M, width]
};
/// z of the packed rows.
RowLogits gate_row_logits(const Tensor& x, const GateTensors& gates, const PackedRows& rows);

struct RowLogitGrads {
  Tensor dx, dw, dlambda;  ///< undefined where not wanted
};
RowLogitGrads gate_row_logits_backward(const Tensor& x, const GateTensors& gates,
                                       const PackedRows& rows, const Tensor& share,
                                       const Tensor& dz, bool want_dx, bool want_dw);

struct GateStatistics {
  Tensor weight_sum;    ///< [G]
  Tensor weighted_sum;  ///< [G, R]
};
GateStatistics gate_statistics(const Tensor& x, const GateTensors& gates, const PackedRows& rows,
                               const Tensor& share);

struct KeyRanges {
  Tensor lo, hi;   ///< [Mq] i32
  Tensor streams;  ///< [segments, 8] i64: the AttentionSegments of the streams
};
/// Both layouts have the same heads and sequences. visible [most entries of a stream + 1] i32.
KeyRanges key_ranges(const PackedRows& queries, const PackedRows& keys, const Tensor& visible);

}  // namespace ops
}  // namespace proteus
