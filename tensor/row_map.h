// RowMap: how the rows of a tensor change when a thing that owns rows (a gate, a head) is split,
// merged, added or removed: row i of the new tensor is Σ weight·(old row), 0 for a new thing.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tensor/tensor.h"

namespace proteus {

struct RowTerm {
  std::int64_t row = 0;  ///< of the old tensor
  double weight = 1;
};

using RowMap = std::vector<std::vector<RowTerm>>;

/// Every row as it is.
RowMap identity_rows(std::int64_t rows);
/// `x` [n, …] on the CPU → [map.size(), …]. Throws ShapeError for a row that is not there.
Tensor map_rows(const Tensor& x, const RowMap& map);

/// A parameter whose rows change: its name and how its gradient follows. Where a gate's gradient is
/// split or summed, so are an optimizer's moments.
struct RowEdit {
  std::string parameter;
  RowMap map;
};

}  // namespace proteus
