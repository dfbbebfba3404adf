// Over the last dimension, with m = max(x):
//   softmax(x)     = e^(x − m) / Σ e^(x − m)
//   logsumexp(x)   = m + log Σ e^(x − m)
//   log_softmax(x) = x − logsumexp(x)
// A row of −∞ has softmax 0, logsumexp −∞ and log_softmax −∞.
#pragma once

#include "tensor/slot.h"
#include "tensor/tensor.h"

namespace proteus {

enum class SoftmaxOp : std::uint8_t { softmax, log_softmax, logsumexp };

/// x contiguous [rows, C], C ≥ 1; y the same, or [rows] for logsumexp. lse [rows], the logsumexp in
/// the accumulation type, may be null.
struct SoftmaxFwd {
  SoftmaxOp op = SoftmaxOp::softmax;
  const void* x = nullptr;
  void* y = nullptr;
  void* lse = nullptr;
  std::int64_t rows = 0;
  std::int64_t C = 0;
  DType dtype = DType::f32;
};
extern Slot<SoftmaxFwd> softmax_fwd;

/// softmax:     dx = y·(dy − Σ dy·y), from y
/// log_softmax: dx = dy − e^(x − lse)·Σ dy, from x and lse
/// logsumexp:   dx = e^(x − lse)·dy, from x and lse
struct SoftmaxBwd {
  SoftmaxOp op = SoftmaxOp::softmax;
  const void* x = nullptr;
  const void* y = nullptr;
  const void* lse = nullptr;
  const void* dy = nullptr;
  void* dx = nullptr;
  std::int64_t rows = 0;
  std::int64_t C = 0;
  DType dtype = DType::f32;
};
extern Slot<SoftmaxBwd> softmax_bwd;

namespace ops {

struct SoftmaxResult {
  Tensor y;    ///< [..., C], or [...] for logsumexp; contiguous, the dtype of x
  Tensor lse;  ///< [...] in the accumulation dtype; undefined unless asked for
};
/// x [..., C]; any strides. Sums are f64 for f64 and f32 otherwise. The logsumexp of an empty last
/// dimension is −∞. Throws ShapeError (rank 0), DTypeError.
SoftmaxResult softmax_forward(SoftmaxOp op, const Tensor& x, bool with_lse = false);
inline Tensor softmax(const Tensor& x) { return softmax_forward(SoftmaxOp::softmax, x).y; }
inline Tensor log_softmax(const Tensor& x) { return softmax_forward(SoftmaxOp::log_softmax, x).y; }
inline Tensor logsumexp(const Tensor& x) { return softmax_forward(SoftmaxOp::logsumexp, x).y; }

/// softmax needs y; the others x and lse, and y may be undefined.
Tensor softmax_backward(SoftmaxOp op, const Tensor& x, const Tensor& y, const Tensor& lse,
                        const Tensor& dy);

}  // namespace ops
}  // namespace proteus
