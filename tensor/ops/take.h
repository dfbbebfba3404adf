// Rows by an index list, in which a row may come many times or never, and the adjoint: the sum of
// everything that was taken of a row. The sum reads its terms from a list per row, in the order of
// the index: no atomic additions, the same bits on every run.
#pragma once

#include "tensor/slot.h"
#include "tensor/tensor.h"

namespace proteus {

/// An index and its inverse. All tensors are contiguous i32 and never written again.
struct RowIndex {
  Tensor row;    ///< [n]: which row of x is taken
  Tensor begin;  ///< [rows + 1]: bounds of each row's part of `place`
  Tensor place;  ///< [n]: where in `row` it was taken, ascending within a row

  std::int64_t taken() const { return row.numel(); }
  std::int64_t rows() const { return begin.numel() - 1; }
};

/// out[r] = Σ_{begin[r] <= i < begin[r + 1]} y[place[i]], in this order and in the accumulation
/// type; out [rows, C].
struct RowsSum {
  const void* y = nullptr;
  void* out = nullptr;
  const std::int32_t* begin = nullptr;
  const std::int32_t* place = nullptr;
  std::int64_t rows = 0, C = 0;
  DType dtype = DType::f32;
};
extern Slot<RowsSum> rows_sum;

namespace ops {

/// `row` i32 [n] with values in [0, rows). Made on the CPU, for any device. Throws ShapeError,
/// DTypeError, ConfigError for a row out of range.
RowIndex row_index(const Tensor& row, std::int64_t rows);

/// x [rows, C] → [taken, C]. Runs the slot of gather_rows (tensor/ops/pack.h).
Tensor take_rows(const Tensor& x, const RowIndex& index);
/// y [taken, C] → [rows, C]: the adjoint of take_rows.
Tensor sum_rows(const Tensor& y, const RowIndex& index);

}  // namespace ops
}  // namespace proteus
