#include "tensor/row_map.h"

#include "tensor/error.h"

namespace proteus {

RowMap identity_rows(std::int64_t rows) {
  RowMap map;
  for (std::int64_t r = 0; r < rows; ++r) map.push_back({{r, 1.0}});
  return map;
}

Tensor map_rows(const Tensor& x, const RowMap& map) {
  if (x.rank() < 1) throw ShapeError("map_rows(x, map): x: expected [n, …], got []");
  Shape shape = x.shape();
  shape[0] = static_cast<std::int64_t>(map.size());
  const Tensor out = Tensor::zeros(shape, x.dtype());
  for (std::size_t i = 0; i < map.size(); ++i) {
    const Tensor row = out.select(0, static_cast<std::int64_t>(i));
    for (const RowTerm& term : map[i]) {
      if (term.row < 0 || term.row >= x.size(0)) {
        throw ShapeError("map_rows(x, map): map: expected rows below " + std::to_string(x.size(0)) +
                         " (= x.shape[0]), got " + std::to_string(term.row));
      }
      if (map[i].size() == 1 && term.weight == 1) {
        row.copy_(x.select(0, term.row));  // any dtype, bit for bit
      } else {
        row.add_(x.select(0, term.row), term.weight);
      }
    }
  }
  return out;
}

}  // namespace proteus
