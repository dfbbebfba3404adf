// The checks in front of the routing kernels.
#include <algorithm>
#include <string>

#include "tensor/ops/check.h"
#include "tensor/ops/routing.h"

namespace proteus::ops {
namespace {

void check_dtype(const std::string& where, const Tensor& t, DType expected) {
  if (t.dtype() != expected) throw_dtype(where, t.dtype(), name_of(expected));
}

void check_shape(const std::string& where, const Tensor& t, const Shape& expected,
                 const char* why) {
  if (t.shape() != expected) {
    throw ShapeError(where + ": expected " + to_string(expected) + " (" + why + "), got " +
                     to_string(t.shape()));
  }
}

void check_gates(const std::string& call, const GateTensors& g, DType dtype) {
  if (g.w.rank() != 2) {
    throw ShapeError(call + ": w: expected [G, R], got " + to_string(g.w.shape()));
  }
  check_dtype(call + ": w", g.w, dtype);
  if (g.p.defined()) {
    check_shape(call + ": p", g.p, g.w.shape(), "= w.shape");
    check_dtype(call + ": p", g.p, dtype);
    check_shape(call + ": lambda", g.lambda, {}, "a scalar");
    check_dtype(call + ": lambda", g.lambda, dtype);
  }
  check_shape(call + ": mass", g.mass, {g.w.size(0)}, "= gates");
  check_dtype(call + ": mass", g.mass, dtype);
  check_shape(call + ": order", g.order, {g.w.size(0)}, "= gates");
  check_dtype(call + ": order", g.order, DType::i32);
  check_dtype(call + ": head_begin", g.head_begin, DType::i32);
  if (g.head_begin.rank() != 1 || g.head_begin.numel() < 2 || g.width < 1) {
    throw ShapeError(call + ": head_begin: expected [Hr + 1] with Hr >= 1 and width >= 1, got " +
                     to_string(g.head_begin.shape()) + " and " + std::to_string(g.width));
  }
}

void check_tokens(const std::string& call, const Tensor& x, const GateTensors& gates) {
  if (x.dtype() != DType::f32 && x.dtype() != DType::f64) {
    throw_dtype(call + ": x", x.dtype(), "f32 or f64");
  }
  check_gates(call, gates, x.dtype());
  check_device(call, "w", gates.w, x);
  if (x.rank() != 2 || x.size(1) != gates.w.size(1)) {
    throw ShapeError(call + ": x: expected [N, " + std::to_string(gates.w.size(1)) +
                     "] (= w.shape[1]), got " + to_string(x.shape()));
  }
}

void check_rows(const std::string& call, const Tensor& x, const GateTensors& gates,
                const PackedRows& rows) {
  check_tokens(call, x, gates);
  if (rows.tokens() != x.size(0)) {
    throw ShapeError(call + ": x: expected [" + std::to_string(rows.tokens()) + ", " +
                     std::to_string(x.size(1)) + "] (= tokens of rows), got " +
                     to_string(x.shape()));
  }
  if (rows.groups() != gates.heads()) {
    throw ShapeError(call + ": rows: expected " + std::to_string(gates.heads()) +
                     " heads (= head_begin.shape[0] - 1), got " + std::to_string(rows.groups()));
  }
}

void check_share(const std::string& call, const Tensor& share, const PackedRows& rows,
                 const GateTensors& gates, const Tensor& x) {
  check_shape(call + ": share", share, {rows.rows(), gates.width}, "= packed rows, gates.width");
  check_dtype(call + ": share", share, x.dtype());
}

// Contiguous copies that live as long as the kernel runs.
struct HeldGates {
  Tensor w, p, lambda, mass, order, head_begin;
  explicit HeldGates(const GateTensors& g)
      : w(g.w.contiguous()),
        p(g.p.defined() ? g.p.contiguous() : g.p),
        lambda(g.lambda),
        mass(g.mass.contiguous()),
        order(g.order.contiguous()),
        head_begin(g.head_begin.contiguous()) {}
  GateTable table() const {
    return {.w = w.raw(),
            .p = p.defined() ? p.raw() : nullptr,
            .lambda = p.defined() ? lambda.raw() : nullptr,
            .mass = mass.raw(),
            .order = order.data<std::int32_t>(),
            .head_begin = head_begin.data<std::int32_t>(),
            .Hr = head_begin.numel() - 1,
            .G = w.size(0),
            .R = w.size(1)};
  }
};

}  // namespace

namespace {

NearestGates run_gate_logits(const std::string& call, const Tensor& x_any, const GateTensors& gates,
                             bool nearest) {
  check_tokens(call, x_any, gates);
  const Tensor x = x_any.contiguous();
  const HeldGates held(gates);
  NearestGates out{Tensor::empty({x.size(0), gates.heads()}, x.dtype(), x.device()), {}};
  if (nearest && gates.p.defined()) {
    out.nearest = Tensor::empty({x.size(0)}, DType::i32, x.device());
  }
  if (out.z.numel() == 0) return out;
  gate_logits_fwd(x.device(),
                  {.x = x.raw(),
                   .gates = held.table(),
                   .z = out.z.raw(),
                   .nearest = out.nearest.defined() ? out.nearest.data<std::int32_t>() : nullptr,
                   .N = x.size(0),
                   .dtype = x.dtype()});
  return out;
}

}  // namespace

Tensor gate_logits(const Tensor& x, const GateTensors& gates) {
  return run_gate_logits("gate_logits(x, gates)", x, gates, false).z;
}

NearestGates gate_logits_and_nearest(const Tensor& x, const GateTensors& gates) {
  return run_gate_logits("gate_logits_and_nearest(x, gates)", x, gates, true);
}

RowLogits gate_row_logits(const Tensor& x_any, const GateTensors& gates, const PackedRows& rows) {
  check_rows("gate_row_logits(x, gates, rows)", x_any, gates, rows);
  const Tensor x = x_any.contiguous();
  const HeldGates held(gates);
  RowLogits out{Tensor::empty({rows.rows()}, x.dtype(), x.device()),
                Tensor::empty({rows.rows(), gates.width}, x.dtype(), x.device())};
  if (rows.rows() == 0) return out;
  gate_rows_fwd(x.device(), {.x = x.raw(),
                             .gates = held.table(),
                             .token = rows.token.data<std::int32_t>(),
                             .offsets = rows.offsets.data<std::int32_t>(),
                             .stride = rows.sequences(),
                             .row_of = rows.row_of.data<std::int32_t>(),
                             .heads = rows.heads.data<std::int32_t>(),
                             .slots = rows.slots(),
                             .N = x.size(0),
                             .z = out.z.raw(),
                             .share = out.share.raw(),
                             .rows = rows.rows(),
                             .width = gates.width,
                             .dtype = x.dtype()});
  return out;
}

RowLogitGrads gate_row_logits_backward(const Tensor& x_any, const GateTensors& gates,
                                       const PackedRows& rows, const Tensor& share_any,
                                       const Tensor& dz_any, bool want_dx, bool want_dw) {
  const std::string call = "gate_row_logits_backward(x, gates, rows, share, dz)";
  check_rows(call, x_any, gates, rows);
  check_shape(call + ": dz", dz_any, {rows.rows()}, "= packed rows");
  check_share(call, share_any, rows, gates, x_any);
  check_dtype(call + ": dz", dz_any, x_any.dtype());
  const Tensor x = x_any.contiguous();
  const Tensor dz = dz_any.contiguous();
  const Tensor share = share_any.contiguous();
  const HeldGates held(gates);
  RowLogitGrads out;
  if (want_dx) {
    out.dx = Tensor::zeros(x.shape(), x.dtype(), x.device());
    if (gates.p.defined()) out.dlambda = Tensor::zeros({}, x.dtype(), x.device());
  }
  if (want_dw) out.dw = Tensor::zeros(gates.w.shape(), x.dtype(), x.device());
  if (rows.rows() == 0) return out;
  gate_rows_bwd(x.device(), {.x = x.raw(),
                             .gates = held.table(),
                             .token = rows.token.data<std::int32_t>(),
                             .offsets = rows.offsets.data<std::int32_t>(),
                             .stride = rows.sequences(),
                             .row_of = rows.row_of.data<std::int32_t>(),
                             .heads = rows.heads.data<std::int32_t>(),
                             .slots = rows.slots(),
                             .share = share.raw(),
                             .rows = rows.rows(),
                             .width = share.size(1),
                             .dz = dz.raw(),
                             .dx = want_dx ? out.dx.raw() : nullptr,
                             .dw = want_dw ? out.dw.raw() : nullptr,
                             .dlambda = out.dlambda.defined() ? out.dlambda.raw() : nullptr,
                             .N = x.size(0),
                             .dtype = x.dtype()});
  return out;
}

GateStatistics gate_statistics(const Tensor& x_any, const GateTensors& gates,
                               const PackedRows& rows, const Tensor& share_any) {
  const std::string call = "gate_statistics(x, gates, rows, share)";
  check_rows(call, x_any, gates, rows);
  check_share(call, share_any, rows, gates, x_any);
  const Tensor x = x_any.contiguous();
  const Tensor share = share_any.contiguous();
  const HeldGates held(gates);
  GateStatistics out{Tensor::zeros({gates.w.size(0)}, x.dtype(), x.device()),
                     Tensor::zeros(gates.w.shape(), x.dtype(), x.device())};
  if (rows.rows() == 0) return out;
  prototype_stats(x.device(), {.x = x.raw(),
                               .gates = held.table(),
                               .token = rows.token.data<std::int32_t>(),
                               .offsets = rows.offsets.data<std::int32_t>(),
                               .stride = rows.sequences(),
                               .share = share.raw(),
                               .rows = rows.rows(),
                               .width = share.size(1),
                               .weight_sum = out.weight_sum.raw(),
                               .weighted_sum = out.weighted_sum.raw(),
                               .dtype = x.dtype()});
  return out;
}

KeyRanges key_ranges(const PackedRows& queries, const PackedRows& keys, const Tensor& visible_any) {
  const Tensor visible = visible_any.contiguous();
  const std::string call = "key_ranges(queries, keys, visible)";
  if (queries.offsets.shape() != keys.offsets.shape()) {
    throw ShapeError(call + ": keys: expected " + to_string(queries.offsets.shape()) +
                     " offsets (= queries.offsets.shape), got " + to_string(keys.offsets.shape()));
  }
  check_dtype(call + ": visible", visible, DType::i32);
  const std::int64_t tokens = keys.tokens() / std::max<std::int64_t>(1, keys.sequences());
  if (visible.rank() != 1 || visible.numel() <= tokens) {
    throw ShapeError(call + ": visible: expected at least [" + std::to_string(tokens + 1) +
                     "] (= tokens of a sequence + 1), got " + to_string(visible.shape()));
  }
  const Device device = queries.token.device();
  const std::int64_t segments = queries.offsets.numel() - 1;
  KeyRanges out{Tensor::empty({queries.rows()}, DType::i32, device),
                Tensor::empty({queries.rows()}, DType::i32, device),
                Tensor::empty({segments, sizeof(AttentionSegment) / size_of(DType::i64)},
                              DType::i64, device)};
  if (segments == 0) return out;
  key_ranges_fwd(device, {.q_token = queries.token.data<std::int32_t>(),
                          .k_token = keys.token.data<std::int32_t>(),
                          .q_offsets = queries.offsets.data<std::int32_t>(),
                          .k_offsets = keys.offsets.data<std::int32_t>(),
                          .lo = out.lo.data<std::int32_t>(),
                          .hi = out.hi.data<std::int32_t>(),
                          .visible = visible.data<std::int32_t>(),
                          .streams = static_cast<AttentionSegment*>(out.streams.raw()),
                          .segments = segments,
                          .sequences = queries.sequences(),
                          .queries = queries.rows()});
  return out;
}

}  // namespace proteus::ops
