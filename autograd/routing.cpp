#include "autograd/routing.h"

#include "autograd/tape.h"

namespace proteus {

RowLogitsVar gate_row_logits(const Variable& x, const GateVariables& gates,
                             const PackedRows& rows) {
  ops::GateTensors table = gates.state;
  table.w = gates.w.value();
  table.lambda = table.p.defined() ? gates.lambda.value() : Tensor();
  const ops::RowLogits fwd = ops::gate_row_logits(x.value(), table, rows);
  // The table is changed in place by training: it is saved, so that the tape finds a change between
  // forward and backward. The rows are integers that nobody changes: the lambda may hold them.
  Variable z = record(
      "gate_row_logits", {x, gates.w, table.p.defined() ? gates.lambda : Variable()}, fwd.z,
      {x.value(), table.w, table.p, table.lambda, table.mass, table.order, table.head_begin,
       fwd.share},
      [rows, width = table.width](const Backward& ctx) -> Gradients {
        const ops::GateTensors saved{ctx.saved(1), ctx.saved(2), ctx.saved(3), ctx.saved(4),
                                     ctx.saved(5), ctx.saved(6), width};
        auto g = ops::gate_row_logits_backward(ctx.saved(0), saved, rows, ctx.saved(7), ctx.dy(),
                                               ctx.needs(0) || ctx.needs(2), ctx.needs(1));
        return {g.dx, g.dw, g.dlambda};
      });
  return {z, fwd.share};
}

}  // namespace proteus
