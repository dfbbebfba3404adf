// Which heads a token enters, and the packed streams that follow from it. A selection looks at one
// token only: the k heads with the largest z − θ, ties to the lower index (ops::topk_heads).
#pragma once

#include "aspa/routing.h"
#include "tensor/ops/attention.h"
#include "tensor/ops/pack.h"
#include "tensor/tensor.h"

namespace proteus {

/// Heads of every token per role, i32 [N, k] ascending; −1 for "none" (at the end).
struct Selection {
  Tensor query;
  Tensor key;
  Tensor bank{};  ///< rows in the bank at every stride (see bank_select); undefined: as they fall
};

/// The packed streams of both roles, and the keys that each packed query sees (see KeyRangesFwd).
struct RoutedRows {
  PackedRows query;
  PackedRows key;
  Tensor lo;  ///< [rows of query] i32
  Tensor hi;
  Tensor streams;  ///< the attention segments of the streams, as in KeyRanges
};

/// Checks a selection that somebody made by hand: i32 [N, k] with heads in [−1, Hr), ascending.
/// Throws ShapeError, DTypeError, ConfigError.
void check_heads(Role role, const Tensor& heads, std::int64_t tokens, std::int64_t Hr);

/// The choice of the other side: in every sequence each head takes the round(T·k/Hr), at least one,
/// tokens with its largest z [B·T, Hr] (expert choice, Zhou et al., arXiv:2202.09368). i32 [B·T,
/// most heads of a token]. NOT causal, as whether a token is taken depends on later ones: it is
/// here to measure what such a leak would give.
Tensor choose_by_head(const Tensor& z, std::int64_t B, std::int64_t k);

/// The streams of `selection` for tokens [B, T] and Hr heads. `visible` as in key_ranges(), `slots`
/// as in pack_rows().
RoutedRows pack_selection(const Selection& selection, std::int64_t B, std::int64_t Hr,
                          const Tensor& visible, ops::Slots slots = ops::Slots::any);

/// The attention plan of the packed streams: one segment per (head, sequence).
AttentionPlan stream_plan(const RoutedRows& rows, std::int64_t anchors);

}  // namespace proteus
