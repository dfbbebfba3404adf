// Elementwise maths with gradients; see tensor/ops/elementwise.h for the formulas.
#pragma once

#include "autograd/variable.h"

namespace proteus {

/// Any shapes that broadcast by NumPy's rule; one dtype and device. Gradients are summed over the
/// dimensions in which an input was repeated. add and sub save nothing, mul and div both inputs.
/// Throw ShapeError, DTypeError, DeviceError.
Variable add(const Variable& a, const Variable& b);
Variable sub(const Variable& a, const Variable& b);
Variable mul(const Variable& a, const Variable& b);
Variable div(const Variable& a, const Variable& b);

/// x of any shape and floating dtype; they save x or the result (unary_saves_output). Throw
/// DTypeError.
Variable neg(const Variable& x);
/// factor·x.
Variable scale(const Variable& x, double factor);
/// x + constant.
Variable shift(const Variable& x, double constant);
Variable exp(const Variable& x);
Variable log(const Variable& x);
Variable sqrt(const Variable& x);
Variable square(const Variable& x);
/// x^exponent.
Variable pow(const Variable& x, double exponent);
Variable sigmoid(const Variable& x);
/// log σ(x), or factor·log σ(x).
Variable log_sigmoid(const Variable& x);
Variable log_sigmoid(const Variable& x, double factor);
Variable tanh(const Variable& x);
/// The tanh form (Hendrycks & Gimpel, arXiv:1606.08415).
Variable gelu(const Variable& x);
/// x·σ(x).
Variable silu(const Variable& x);
/// max(x, 0), with derivative 0 at 0.
Variable relu(const Variable& x);
/// log(1 + e^x).
Variable softplus(const Variable& x);

/// silu(gate)·up, one shape. Saves both.
Variable swiglu(const Variable& gate, const Variable& up);
/// x [M, D] with row m times r[m]; r has the dtype of x, or f32 beside bf16. Saves both.
Variable scale_rows(const Variable& x, const Variable& r);
/// x [M, D] with row m times a·σ(z[m]) + b; z as r of scale_rows. Saves both.
Variable open_rows(const Variable& x, const Variable& z, double a, double b);
/// x_t + mu ⊙ x_{t−1}, zero before the start: x [B, T, C], mu [C]. Saves both.
Variable key_shift(const Variable& x, const Variable& mu);

}  // namespace proteus
