// Packed rows: the (token, head) pairs of a selection, sorted by (head, sequence, time), so that
// what is done per head runs over contiguous rows. A stable counting sort makes them. Values go
// from tokens to rows (gather) and back (combine, its adjoint), or from [tokens, heads] to rows.
#pragma once

#include <span>
#include <vector>

#include "tensor/slot.h"
#include "tensor/tensor.h"

namespace proteus {

/// Tokens are numbered through all sequences: token = sequence·T + time. Group = head. All tensors
/// are contiguous and never written again.
struct PackedRows {
  Tensor token;    ///< i32 [M]: row → token
  Tensor row_of;   ///< i32 [N, k]: (token, slot) → row, −1 where the slot is empty
  Tensor heads;    ///< i32 [N, k]: (token, slot) → head, ascending, −1 at the end where empty
  Tensor offsets;  ///< i32 [G·S + 1]: bounds of the rows of (head, sequence), head-major
  std::int64_t sequence_count = 1;
  Tensor time;            ///< i32 [M]: row → position within its sequence
  std::int64_t kept = 0;  ///< tokens that have a row

  std::int64_t rows() const { return token.numel(); }
  std::int64_t tokens() const { return row_of.size(0); }
  std::int64_t slots() const { return row_of.size(1); }
  std::int64_t sequences() const { return sequence_count; }
  std::int64_t groups() const { return (offsets.numel() - 1) / sequence_count; }
};

/// Everything from heads [tokens, slots]: offsets [groups·sequences + 1], row_of like heads, token
/// and time with room for tokens·slots rows. invalid_token [1] becomes the first token whose heads
/// are not ascending in [0, groups) with −1 only at the end, or −1 if all are right; otherwise
/// nothing else is defined. kept [1]: tokens whose first slot is not empty. Both are null where the
/// heads are known to be right.
struct PackSelection {
  const std::int32_t* heads = nullptr;
  std::int32_t* offsets = nullptr;
  std::int32_t* invalid_token = nullptr;
  std::int32_t* kept = nullptr;
  std::int32_t* token = nullptr;
  std::int32_t* time = nullptr;
  std::int32_t* row_of = nullptr;
  std::int64_t slots = 0;
};

constexpr int kMostSelections = 2;  // of one call: a layer has two roles

/// The first `count` selections of the same tokens, each on its own.
struct PackRows {
  PackSelection selection[kMostSelections];
  int count = 1;
  std::int64_t tokens = 0, groups = 0, sequences = 1;
};
extern Slot<PackRows> pack_rows;

/// y[r] = x[token[r]]; x [tokens, C], y [rows, C].
struct RowsGather {
  const void* x = nullptr;
  void* y = nullptr;
  const std::int32_t* token = nullptr;
  std::int64_t rows = 0, C = 0;
  DType dtype = DType::f32;
};
extern Slot<RowsGather> rows_gather;

/// out[t] = Σ_slots y[row_of[t, slot]], in order of the slots and in the accumulation type; empty
/// slots count nothing.
struct RowsCombine {
  const void* y = nullptr;
  void* out = nullptr;
  const std::int32_t* row_of = nullptr;
  std::int64_t tokens = 0, slots = 0, C = 0;
  DType dtype = DType::f32;
};
extern Slot<RowsCombine> rows_combine;

/// Between z [tokens, groups] and v [rows]: its values at the (token, head) of every row.
/// slots_gather writes v; slots_scatter writes z, 0 where no row is.
struct RowSlots {
  void* z = nullptr;
  void* v = nullptr;
  const std::int32_t* heads = nullptr;
  const std::int32_t* row_of = nullptr;
  std::int64_t tokens = 0, slots = 0, groups = 0;
  DType dtype = DType::f32;
};
extern Slot<RowSlots> slots_gather;
extern Slot<RowSlots> slots_scatter;

namespace ops {

/// heads i32 [N, k] with entries in [−1, groups), ascending within a token with −1 at the end; N a
/// multiple of `sequences`. Throws ShapeError, DTypeError, and ConfigError for heads that are out
/// of range or out of order, NumericError for those of a row with a NaN (topk_heads). On a device
/// the host waits to know that and the number of rows, unless the heads come from topk_heads and
/// fill every slot: then there are N·k rows.
enum class Slots : std::uint8_t { any, filled };
PackedRows pack_rows(const Tensor& heads, std::int64_t groups, std::int64_t sequences,
                     Slots slots = Slots::any);
/// Those of several selections of the same tokens; the host waits once for all.
std::vector<PackedRows> pack_rows(std::span<const Tensor> heads, std::int64_t groups,
                                  std::int64_t sequences, Slots slots = Slots::any);

/// x [tokens, C] → [rows, C].
Tensor gather_rows(const Tensor& x, const PackedRows& rows);
/// y [rows, C] → [tokens, C]: the adjoint of gather_rows.
Tensor combine_rows(const Tensor& y, const PackedRows& rows);
/// z [tokens, groups] → [rows].
Tensor gather_slots(const Tensor& z, const PackedRows& rows);
/// v [rows] → [tokens, groups]: the adjoint of gather_slots.
Tensor scatter_slots(const Tensor& v, const PackedRows& rows);

}  // namespace ops
}  // namespace proteus
