// Cross-entropy of a softmax, mean over the targets that are not ignored:
//   loss = 1/n · Σ_i (log Σ_v exp(z_iv − m_i) + m_i − z_{i,t_i}),  m_i = max_v z_iv
//   dz_iv = (softmax(z_i)_v − [v = t_i]) / n
// Fused with the output layer, z = h·Wᵀ is made, used and dropped one chunk of rows at a time, and
// the gradients of h and W are made in the same pass: the logits of a whole batch never exist.
#pragma once

#include "tensor/ops/gemm.h"
#include "tensor/slot.h"
#include "tensor/tensor.h"

namespace proteus {

/// logits [rows, V], contiguous; target[i] in [0, V), or negative: the row counts as 0. loss[i]
/// gets the row's own loss. dlogits (may be logits itself, or null) gets dz·scale, zeros in rows
/// that do not count; it is of the logits' dtype, or bf16 beside f32.
struct CrossEntropyFwd {
  const void* logits = nullptr;
  const std::int64_t* target = nullptr;
  double* loss = nullptr;
  void* dlogits = nullptr;
  std::int64_t rows = 0;
  std::int64_t V = 0;
  double scale = 1;
  DType dtype = DType::f32;
  DType dlogits_dtype = DType::f32;
};
extern Slot<CrossEntropyFwd> cross_entropy_fwd;

/// The same of logits h·wᵀ that nobody keeps, with its gradients: h [rows, C], w [V, C], every
/// target in [0, V). loss[i] gets the row's own loss, dh [rows, C] its gradient times scale, and dw
/// [V, C], of the accumulation type, that of w times scale, with add_dw added to what is there. dh
/// and dw may be null. All are contiguous.
struct LinearCrossEntropy {
  const void* h = nullptr;
  const void* w = nullptr;
  const std::int64_t* target = nullptr;
  double* loss = nullptr;
  void* dh = nullptr;
  void* dw = nullptr;
  bool add_dw = false;
  std::int64_t rows = 0;
  std::int64_t V = 0;
  std::int64_t C = 0;
  double scale = 1;
  DType dtype = DType::f32;
};
extern Slot<LinearCrossEntropy> linear_cross_entropy;
/// By the slots of products and of cross-entropy, with logits in the accumulation type: the kernel
/// of a device where it has none of its own for these numbers.
void linear_cross_entropy_by_logits(Device device, const LinearCrossEntropy& a);
/// Its products: dh = dz·w, and dw = or += dzᵀ·h, of gradients of logits dz [rows, V] whose rows
/// are dz_step apart.
GemmFwd hidden_gradient(const LinearCrossEntropy& a, const void* dz, std::int64_t dz_step);
GemmFwd weight_gradient(const LinearCrossEntropy& a, const void* dz, std::int64_t dz_step,
                        const void* h);

/// dst[dst_row[i]] = src[src_row[i]] for i in [0, rows); a null list means row i. Rows are
/// contiguous, `row_bytes` long and apart. No destination occurs twice.
struct RowCopy {
  const void* src = nullptr;
  void* dst = nullptr;
  const std::int64_t* src_row = nullptr;
  const std::int64_t* dst_row = nullptr;
  std::int64_t rows = 0;
  std::int64_t row_bytes = 0;
};
extern Slot<RowCopy> row_copy;

/// x[i] ← *factor · x[i] over n elements; nothing is touched where the factor is 1. The factor is
/// of `dtype`'s accumulation type, on the device of x.
struct Rescale {
  void* x = nullptr;
  const void* factor = nullptr;
  std::int64_t n = 0;
  DType dtype = DType::f32;
};
extern Slot<Rescale> rescale;

namespace ops {

constexpr std::int64_t kIgnoreIndex = -100;

/// Targets made ready for a device: which rows count, and their words.
struct Targets {
  Shape shape;
  std::int64_t count = 0;  ///< n, the targets that are not ignored
  Tensor words;            ///< i64 [n]
  Tensor rows;             ///< i64 [n], ascending; undefined where every row counts
};
/// targets [...] i32 or i64. Reads them on the CPU. Throws DTypeError; a target outside [0, V) is a
/// ShapeError that names its row and value.
Targets ready_targets(const Tensor& targets, std::int64_t V, std::int64_t ignore_index,
                      Device device);

struct CrossEntropy {
  Tensor loss;             ///< [], f64 for f64 and f32 otherwise; 0 when every target is ignored
  std::int64_t count = 0;  ///< n, the targets that are not ignored
  Tensor dhidden;          ///< [..., C], when asked for
  Tensor dweight;          ///< [V, C] of the loss's dtype, when asked for
  Tensor dlogits;          ///< [..., V], when asked for
};

/// hidden [..., C], weight [V, C], targets [...]. Rows that are ignored cost nothing. Logits and
/// sums over a row are f64 for f64 and f32 otherwise (bf16 included); for bf16 the gradient of the
/// logits is rounded to bf16. The mean is summed in f64. Waits for nothing. Throws ShapeError,
/// DTypeError.
CrossEntropy cross_entropy(const Tensor& hidden, const Tensor& weight, const Targets& targets,
                           bool want_dhidden, bool want_dweight);
/// The same after ready_targets(); targets that are on a device are copied from there.
CrossEntropy cross_entropy(const Tensor& hidden, const Tensor& weight, const Tensor& targets,
                           std::int64_t ignore_index, bool want_dhidden, bool want_dweight);
/// logits [..., V], targets [...].
CrossEntropy cross_entropy_logits(const Tensor& logits, const Tensor& targets,
                                  std::int64_t ignore_index, bool want_dlogits);

/// gradient ← factor · gradient in place; factor [] is of the accumulation dtype.
void rescale_gradient(const Tensor& gradient, const Tensor& factor);

}  // namespace ops
}  // namespace proteus
