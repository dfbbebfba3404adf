#include "autograd/pack.h"

#include "autograd/tape.h"

namespace proteus {

// The rows are integers, made once per routing and never changed: lambdas may hold them.

Variable gather_rows(const Variable& x, const PackedRows& rows) {
  return record(
      "gather_rows", {x}, ops::gather_rows(x.value(), rows), {},
      [rows](const Backward& ctx) -> Gradients { return {ops::combine_rows(ctx.dy(), rows)}; });
}

Variable combine_rows(const Variable& y, const PackedRows& rows) {
  return record(
      "combine_rows", {y}, ops::combine_rows(y.value(), rows), {},
      [rows](const Backward& ctx) -> Gradients { return {ops::gather_rows(ctx.dy(), rows)}; });
}

Variable gather_slots(const Variable& z, const PackedRows& rows) {
  return record(
      "gather_slots", {z}, ops::gather_slots(z.value(), rows), {},
      [rows](const Backward& ctx) -> Gradients { return {ops::scatter_slots(ctx.dy(), rows)}; });
}

}  // namespace proteus
