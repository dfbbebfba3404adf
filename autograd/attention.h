// Causal attention with gradients; the formula, and what a plan is, stand in
// tensor/ops/attention.h.
#pragma once

#include "autograd/variable.h"
#include "tensor/ops/attention.h"

namespace proteus {

/// q, k, v [rows, heads, D] under any plan; key_bias [rows of k] and sink [H] in the accumulation
/// dtype, or undefined. Returns [rows, heads, D]. Saves its inputs, the output and one log-sum-exp
/// per query.
Variable attention(const Variable& q, const Variable& k, const Variable& v,
                   const Variable& key_bias, const Variable& sink, const AttentionPlan& plan,
                   const AttentionOptions& options);

/// q [B, Tq, H, D]; k, v [B, Tk, H, D]: the queries are the last Tq positions. Returns [B, Tq, H,
/// D].
Variable attention(const Variable& q, const Variable& k, const Variable& v,
                   const AttentionOptions& options = {});

/// The same on one tensor [B, T, 3, H, D] with q, k and v in dimension 2, and one gradient for it.
Variable attention_qkv(const Variable& qkv, const AttentionOptions& options = {});
/// With a plan of its own (a window per query, say): causal_plan(B, H, T, T, …).
Variable attention_qkv(const Variable& qkv, const AttentionPlan& plan,
                       const AttentionOptions& options);

}  // namespace proteus
