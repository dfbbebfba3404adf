#include "autograd/take.h"

#include "autograd/tape.h"

namespace proteus {

// The index is made once and never changed: the lambda may hold it.
Variable take_rows(const Variable& x, const RowIndex& index) {
  return record(
      "take_rows", {x}, ops::take_rows(x.value(), index), {},
      [index](const Backward& ctx) -> Gradients { return {ops::sum_rows(ctx.dy(), index)}; });
}

}  // namespace proteus
