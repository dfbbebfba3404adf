// Elementwise maths. Unary functions of x, binary functions of a and b with NumPy broadcasting, and
// fused forms:
//   swiglu(gate, up) = gate·σ(gate)·up                       (Shazeer, arXiv:2002.05202)
//   scale_rows(x, r)[m, d] = x[m, d]·r[m]
//   open_rows(x, z, a, b)[m, d] = x[m, d]·(a·σ(z[m]) + b)
//   key_shift(x, mu)[b, t] = x[b, t] + mu ⊙ x[b, t−1], with x[b, −1] = 0
// Computed in f64 for f64 and in f32 otherwise, and rounded once.
#pragma once

#include "tensor/slot.h"
#include "tensor/tensor.h"

namespace proteus {

/// affine is a·x + b, power is x^a, log_sigmoid is a·log σ(x); gelu is the tanh form; log of a
/// negative number is NaN.
enum class UnaryOp : std::uint8_t {
  affine,
  exp,
  log,
  sqrt,
  square,
  power,
  sigmoid,
  log_sigmoid,
  tanh,
  gelu,
  silu,
  relu,
  softplus,
};

/// y[i] = op(x[i]), n contiguous elements; y may be x.
struct UnaryFwd {
  UnaryOp op = UnaryOp::affine;
  const void* x = nullptr;
  void* y = nullptr;
  std::int64_t n = 0;
  double a = 1;
  double b = 0;
  DType dtype = DType::f32;
};
extern Slot<UnaryFwd> unary_fwd;

/// dx[i] = dy[i]·op'(x[i]). `saved` is y where unary_saves_output(op), otherwise x.
struct UnaryBwd {
  UnaryOp op = UnaryOp::affine;
  const void* saved = nullptr;
  const void* dy = nullptr;
  void* dx = nullptr;
  std::int64_t n = 0;
  double a = 1;
  DType dtype = DType::f32;
};
extern Slot<UnaryBwd> unary_bwd;

/// Whether the derivative is computed from the result. Not for sigmoid and tanh: 1 − y of a y near
/// 1 that was rounded to bf16 is nothing but rounding.
constexpr bool unary_saves_output(UnaryOp op) {
  return op == UnaryOp::exp || op == UnaryOp::sqrt || op == UnaryOp::relu;
}

enum class BinaryOp : std::uint8_t { add, sub, mul, div };

/// y = a op b over all indices of y_layout.shape, which all three layouts have (stride 0 where an
/// operand is repeated). Pointers are the storages' first bytes.
struct BinaryFwd {
  BinaryOp op = BinaryOp::add;
  const void* a = nullptr;
  Layout a_layout;
  const void* b = nullptr;
  Layout b_layout;
  void* y = nullptr;
  Layout y_layout;
  DType dtype = DType::f32;
};
extern Slot<BinaryFwd> binary_fwd;

/// n contiguous elements each.
struct SwigluFwd {
  const void* gate = nullptr;
  const void* up = nullptr;
  void* y = nullptr;
  std::int64_t n = 0;
  DType dtype = DType::f32;
};
extern Slot<SwigluFwd> swiglu_fwd;

struct SwigluBwd {
  const void* gate = nullptr;
  const void* up = nullptr;
  const void* dy = nullptr;
  void* dgate = nullptr;
  void* dup = nullptr;
  std::int64_t n = 0;
  DType dtype = DType::f32;
};
extern Slot<SwigluBwd> swiglu_bwd;

/// What a row is multiplied by: r itself, or with `gated` a·σ(r) + b.
struct RowFactor {
  bool gated = false;
  double a = 1;
  double b = 0;
};

/// x and y [M, D] of `dtype`, r [M] of `r_dtype` (`dtype` or its accumulation type).
struct ScaleRowsFwd {
  const void* x = nullptr;
  const void* r = nullptr;
  void* y = nullptr;
  RowFactor factor;
  std::int64_t M = 0;
  std::int64_t D = 0;
  DType dtype = DType::f32;
  DType r_dtype = DType::f32;
};
extern Slot<ScaleRowsFwd> scale_rows_fwd;

/// dx = dy·factor, dr[m] = Σ_d dy·x times the factor's slope; either may be null.
struct ScaleRowsBwd {
  const void* x = nullptr;
  const void* r = nullptr;
  const void* dy = nullptr;
  void* dx = nullptr;
  void* dr = nullptr;
  RowFactor factor;
  std::int64_t M = 0;
  std::int64_t D = 0;
  DType dtype = DType::f32;
  DType r_dtype = DType::f32;
};
extern Slot<ScaleRowsBwd> scale_rows_bwd;

/// x and y [B, T, C] contiguous, mu [C].
struct KeyShiftFwd {
  const void* x = nullptr;
  const void* mu = nullptr;
  void* y = nullptr;
  std::int64_t B = 0;
  std::int64_t T = 0;
  std::int64_t C = 0;
  DType dtype = DType::f32;
};
extern Slot<KeyShiftFwd> key_shift_fwd;

/// dx_t = dy_t + mu ⊙ dy_{t+1} (added to what dx holds, with add_dx), dmu = Σ_{b, t ≥ 1} dy_t ⊙
/// x_{t−1}; either may be null.
struct KeyShiftBwd {
  const void* x = nullptr;
  const void* mu = nullptr;
  const void* dy = nullptr;
  void* dx = nullptr;
  void* dmu = nullptr;
  std::int64_t B = 0;
  std::int64_t T = 0;
  std::int64_t C = 0;
  bool add_dx = false;
  DType dtype = DType::f32;
};
extern Slot<KeyShiftBwd> key_shift_bwd;

namespace ops {

/// op(x) with the shape and dtype of x, contiguous. `name` is how errors call it: "gelu(x)".
/// Throws DTypeError.
Tensor unary(UnaryOp op, const char* name, const Tensor& x, double a = 1, double b = 0);
/// dy·op'; `saved` as in UnaryBwd.
Tensor unary_backward(UnaryOp op, const Tensor& saved, const Tensor& dy, double a = 1);

/// a·x + b.
inline Tensor affine(const Tensor& x, double a, double b) {
  return unary(UnaryOp::affine, "affine(x, a, b)", x, a, b);
}

/// a op b in the broadcast shape, contiguous. Throws ShapeError, DTypeError, DeviceError.
Tensor binary(BinaryOp op, const char* name, const Tensor& a, const Tensor& b);
inline Tensor add(const Tensor& a, const Tensor& b) {
  return binary(BinaryOp::add, "add(a, b)", a, b);
}
inline Tensor sub(const Tensor& a, const Tensor& b) {
  return binary(BinaryOp::sub, "sub(a, b)", a, b);
}
inline Tensor mul(const Tensor& a, const Tensor& b) {
  return binary(BinaryOp::mul, "mul(a, b)", a, b);
}
inline Tensor div(const Tensor& a, const Tensor& b) {
  return binary(BinaryOp::div, "div(a, b)", a, b);
}

/// gate and up of one shape. Throws ShapeError, DTypeError, DeviceError; so do those below.
Tensor swiglu(const Tensor& gate, const Tensor& up);
struct SwigluGrads {
  Tensor dgate, dup;
};
SwigluGrads swiglu_backward(const Tensor& gate, const Tensor& up, const Tensor& dy);

/// x [M, D]; r [M] with the dtype of x, or f32 beside bf16.
Tensor scale_rows(const Tensor& x, const Tensor& r, const RowFactor& factor = {});
struct ScaleRowsGrads {
  Tensor dx, dr;  ///< undefined unless asked for
};
ScaleRowsGrads scale_rows_backward(const Tensor& x, const Tensor& r, const Tensor& dy, bool with_dx,
                                   bool with_dr, const RowFactor& factor = {});

/// x [B, T, C], mu [C].
Tensor key_shift(const Tensor& x, const Tensor& mu);
struct KeyShiftGrads {
  Tensor dx, dmu;  ///< undefined unless asked for
};
/// With `sum`, contiguous, dx is added to it in place and not returned.
KeyShiftGrads key_shift_backward(const Tensor& x, const Tensor& mu, const Tensor& dy, bool with_dx,
                                 bool with_dmu, const Tensor* sum = nullptr);

}  // namespace ops
}  // namespace proteus
