// The KV bank of routed heads (docs/aspa.md, "KV bank"): M entries per (head, sequence) that stay
// visible after they left the packed window. At raw times s, 2s, … what has left since the last
// refresh is offered by the rule of tensor/ops/bank.h; between refreshes a query sees everything
// from the first entry that was not yet offered. So all queries of one stride see the same prefix:
// anchors, bank, and then the stream up to themselves. bank_plan() lists these keys, stride after
// stride, for the attention kernel that serves all heads.
#pragma once

#include "aspa/config.h"
#include "aspa/selection.h"
#include "autograd/variable.h"
#include "tensor/ops/attention.h"
#include "tensor/ops/take.h"

namespace proteus {

/// The first entry of every stream that was not yet offered when each stride of raw time begins,
/// i32 [streams, strides]. `visible` as in key_ranges().
Tensor bank_first(const PackedRows& keys, const Tensor& visible, std::int64_t stride);

/// Keys to take (rows of k, v and key bias), and the attention of the packed queries to them: a
/// segment per (head, sequence, stride), neighbouring strides with the same keys in one.
struct BankPlan {
  RowIndex keys;
  AttentionPlan attention;
};

/// `slots` i32 [streams, strides, M] as from ops::bank_select. Throws ShapeError if the keys of all
/// strides together are more than an i32 can count.
BankPlan bank_plan(const RoutedRows& rows, const Tensor& first, const Tensor& slots,
                   std::int64_t stride, std::int64_t anchors);

/// attention() to the keys of a plan; q [query rows, 1, D], k and v [key rows, 1, D], key_bias
/// [key rows] or undefined. Gradients flow through the bank as through the window.
Variable bank_attention(const Variable& q, const Variable& k, const Variable& v,
                        const Variable& key_bias, const Variable& sink, const BankPlan& plan,
                        const AttentionOptions& options);

BankRule bank_rule(const AspaConfig& config);

/// Pairs (query, key) of one stream of `entries`, spread evenly over `length` tokens.
double bank_pairs(const AspaConfig& config, double entries, double length);

}  // namespace proteus
