// Linear layers and matrix products with gradients; see tensor/ops/gemm.h for the formulas. Weights
// and biases kept in f32 beside an x of bf16 are rounded to bf16; the gradient of a weight is then
// f32, as it was summed.
#pragma once

#include "autograd/variable.h"

namespace proteus {

/// x [..., in], weight [out, in], bias [out] or undefined → [..., out]; plus `residual`, if
/// defined, in the same pass. Saves x and weight.
Variable linear(const Variable& x, const Variable& weight, const Variable& bias = {},
                const Variable& residual = {});
/// x·weightᵀ with weight and result in the accumulation type of x (tensor/ops/wide_linear.h). Saves
/// both.
Variable wide_linear(const Variable& x, const Variable& weight);

/// gelu(linear(x, weight, bias)) in one pass. Saves x, weight and the pre-activation.
Variable linear_gelu(const Variable& x, const Variable& weight, const Variable& bias = {});

/// linear(gelu(linear(x, weight1, bias1)), weight2, bias2): the MLP of a transformer block.
/// weight1 [hidden, in], weight2 [out, hidden]; biases may be undefined, and so may the residual,
/// which is added to the result [..., out] in the same pass. Saves x, the weights and
/// the pre-activation; the activation is saved too in bf16, otherwise it is computed again on the
/// way back, together with its gradient.
Variable mlp_gelu(const Variable& x, const Variable& weight1, const Variable& bias1,
                  const Variable& weight2, const Variable& bias2, const Variable& residual = {});

/// a [..., M, K] · b [..., K, N] → [..., M, N]; batch dimensions broadcast. With trans_a the last
/// two dimensions of a are read as [K, M], with trans_b those of b as [N, K]. Saves a and b.
Variable matmul(const Variable& a, const Variable& b, bool trans_a = false, bool trans_b = false);

}  // namespace proteus
