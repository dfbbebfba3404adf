// Causal attention, the one kernel under dense, shared-window and routed heads.
//
//   o_i = Σ_j p_ij v_j,   p_ij = exp(scale·q_i·k_j + bias_j) / (Σ_j' exp(…) + sink_scale·exp(sink))
//
// over the keys j that query i sees. Tiled with an online softmax: no T×T buffer, memory linear in
// T (Dao et al., FlashAttention, arXiv:2205.14135; Milakov & Gimelshein, arXiv:1805.02867).
//
// The work is a list of independent segments, one per (sequence, head). Query i of a segment sees
// the keys [lo_i, hi_i) and, as anchors, [0, min(anchors, lo_i)). Causal attention has hi_i = i +
// 1; a window moves lo_i; packed streams have whatever their times say.
#pragma once

#include <functional>

#include "tensor/host_device.h"
#include "tensor/rng.h"
#include "tensor/slot.h"
#include "tensor/tensor.h"

namespace proteus {

/// Rows of width D: row i of head h begins at data + i·row_stride + h·head_stride (elements).
struct HeadRows {
  void* data = nullptr;
  std::int64_t row_stride = 0;
  std::int64_t head_stride = 0;
};

/// The queries and keys of one (sequence, head). Eight numbers of 64 bits, so that a tensor i64
/// [S, 8] holds S of them on any device.
struct AttentionSegment {
  std::int64_t q_row = 0;  ///< first query row (of q, out, dout, dq)
  std::int64_t k_row = 0;  ///< first key row (of k, v, dk, dv, key_bias, dkey_bias)
  std::int64_t slot = 0;   ///< index of the first query in lse, and in the dropout counters
  std::int64_t range = 0;  ///< index of the first query in lo and hi
  std::int64_t q_count = 0;
  std::int64_t k_count = 0;
  std::int64_t head = 0;  ///< for the head strides and into sink
  std::int64_t unused = 0;
};

/// What forward and backward share. lo and hi count from the segment's first key, do not decrease
/// within a segment, and satisfy 0 ≤ lo_i ≤ hi_i ≤ k_count. key_bias, sink and lse are in the
/// accumulation type. AttentionDropout says which weights dropout keeps.
struct AttentionProblem {
  HeadRows q, k, v;
  const void* key_bias = nullptr;  ///< one per key row, or null
  const void* sink = nullptr;      ///< one per head, or null
  double sink_scale = 0;
  const std::int32_t* lo = nullptr;
  const std::int32_t* hi = nullptr;
  const AttentionSegment* segments = nullptr;
  std::int64_t segment_count = 0;
  /// At least the queries and keys of all segments together, for grids of devices whose segments
  /// the host cannot read.
  std::int64_t queries = 0, keys = 0;
  /// At least the keys, and the queries, of every segment; 0 = not known.
  std::int64_t longest = 0;
  std::int64_t D = 0;
  std::int64_t anchors = 0;
  double scale = 1;
  double dropout = 0;
  RngKey key;
  DType dtype = DType::f32;
};

/// Which weights dropout keeps. A weight has 16 bits, and eight neighbouring keys of a query share
/// a counter of seven rounds, because attention draws for every pair: weight (i, j) is kept when
/// half j % 8 of Philox ((slot + i) << 32 | j / 8, key.stream) reaches the threshold,
/// ⌊65536·dropout⌋, and is divided by the share that is kept.
struct AttentionDropout {
  static constexpr int kKeys = 8;
  static constexpr int kRounds = 7;
  static constexpr std::uint32_t kNumbers = 1 << 16;
  std::uint64_t seed, stream;
  std::uint32_t threshold;
  double factor;  ///< of what is kept

  PROTEUS_HOST_DEVICE explicit AttentionDropout(const AttentionProblem& p)
      : seed(p.key.seed),
        stream(p.key.stream),
        threshold(static_cast<std::uint32_t>(p.dropout * kNumbers)),
        factor(static_cast<double>(kNumbers) / (kNumbers - threshold)) {}
  /// For the keys kKeys·⌊key / kKeys⌋ and the next ones.
  PROTEUS_HOST_DEVICE Philox4 draw(std::int64_t slot, std::int64_t key) const {
    return philox(seed,
                  static_cast<std::uint64_t>(slot) << 32 | static_cast<std::uint64_t>(key / kKeys),
                  stream, kRounds);
  }
  /// Whether a word's lower or upper half keeps its weight.
  PROTEUS_HOST_DEVICE bool keeps(std::uint32_t word, int half) const {
    return (half == 0 ? word & 0xffffu : word >> 16) >= threshold;
  }
};

/// lse_i = log of the denominator (sink included). A query that sees nothing, without a sink, gets
/// output 0 and lse −inf.
struct AttentionFwd {
  AttentionProblem problem;
  HeadRows out;
  void* lse = nullptr;
};
extern Slot<AttentionFwd> attention_fwd;

/// Writes every row of dq, dk, dv (and dkey_bias) that a segment covers. dsink is per segment, to
/// be summed per head by sink_gradient. Null outputs are skipped. dq may be `out`, dk may be k and
/// dv may be v: `out` is read first of all, and the rows of k and v that another row's gradient
/// depends on are read before these are written.
struct AttentionBwd {
  AttentionProblem problem;
  HeadRows out, dout;
  const void* lse = nullptr;
  HeadRows dq, dk, dv;
  void* dkey_bias = nullptr;
  void* dsink = nullptr;
};
extern Slot<AttentionBwd> attention_bwd;

/// dsink [heads] = Σ of per_segment over the segments of a head, in f64; both in the accumulation
/// type of `dtype`.
struct SinkGradient {
  const void* per_segment = nullptr;
  const AttentionSegment* segments = nullptr;
  void* dsink = nullptr;
  std::int64_t segment_count = 0, heads = 0;
  DType dtype = DType::f32;
};
extern Slot<SinkGradient> sink_gradient;

/// Which query sees which keys: everything about an attention call that is not numbers.
struct AttentionPlan {
  Tensor segments;         ///< i64 [S, 8]: AttentionSegment
  Tensor lo, hi;           ///< i32
  std::int64_t slots = 0;  ///< queries of all segments together
  std::int64_t anchors = 0;
  std::int64_t longest = 0;  ///< at least every segment's queries and keys; 0 = not known
  bool whole = false;        ///< every row of q and of k is in a segment
};

struct AttentionOptions {
  std::int64_t window = 0;   ///< newest keys a query sees, itself included; 0 = all
  std::int64_t anchors = 0;  ///< first keys that stay visible
  double scale = 0;          ///< 0 = 1/√D
  double sink_scale = 0;     ///< weight of the sink term; 0 = no sink
  double dropout = 0;
  RngKey key;  ///< of the dropout mask
};

namespace ops {

/// Causal plan for q [B, Tq, H, D] and k [B, Tk, H, D]: the queries are the last Tq of Tk
/// positions. `window(n)` is how many of the n keys up to and including itself a query sees; null =
/// all. Slots are ((b·H + h)·Tq + i). Throws ShapeError when Tq > Tk.
AttentionPlan causal_plan(std::int64_t B, std::int64_t H, std::int64_t Tq, std::int64_t Tk,
                          const std::function<std::int64_t(std::int64_t)>& window,
                          std::int64_t anchors, Device device = kCpu);
/// The same with a fixed window (0 = all).
AttentionPlan causal_plan(std::int64_t B, std::int64_t H, std::int64_t Tq, std::int64_t Tk,
                          std::int64_t window, std::int64_t anchors, Device device = kCpu);

struct AttentionResult {
  Tensor out;  ///< contiguous, shape of q
  Tensor lse;  ///< [slots], accumulation dtype
};

/// q, k, v are views [rows, heads, D] with contiguous last dimension (packed rows: heads = 1). A
/// segment's head indexes the second dimension, or is only the sink's index where that is 1. v has
/// the rows of k; key_bias [rows of k] and sink [H] are in the accumulation dtype, or undefined.
/// options.window and options.anchors are ignored: the plan has them. Throws ShapeError,
/// DTypeError.
AttentionResult attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& key_bias,
                          const Tensor& sink, const AttentionPlan& plan,
                          const AttentionOptions& options);

struct AttentionGrads {
  Tensor dkey_bias;  ///< [rows of k], undefined without a key bias
  Tensor dsink;      ///< [H], undefined without a sink
};
/// Writes dq, dk, dv: views [rows, heads, D] like q, k, v, contiguous in the last dimension; each
/// its own, or saved.out, k and v.
AttentionGrads attention_backward(const Tensor& q, const Tensor& k, const Tensor& v,
                                  const Tensor& key_bias, const Tensor& sink,
                                  const AttentionPlan& plan, const AttentionOptions& options,
                                  const AttentionResult& saved, const Tensor& dout,
                                  const Tensor& dq, const Tensor& dk, const Tensor& dv);

}  // namespace ops
}  // namespace proteus
