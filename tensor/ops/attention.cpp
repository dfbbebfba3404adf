#include "tensor/ops/attention.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "tensor/ops/check.h"

namespace proteus {
namespace {

template <class A>
void sink_gradient_typed(const SinkGradient& a) {
  std::vector<double> total(static_cast<std::size_t>(a.heads));
  for (std::int64_t n = 0; n < a.segment_count; ++n) {
    total[static_cast<std::size_t>(a.segments[n].head)] +=
        static_cast<double>(static_cast<const A*>(a.per_segment)[n]);
  }
  for (std::size_t h = 0; h < total.size(); ++h) {
    static_cast<A*>(a.dsink)[h] = static_cast<A>(total[h]);
  }
}

void sink_gradient_cpu(const SinkGradient& a) {
  a.dtype == DType::f64 ? sink_gradient_typed<double>(a) : sink_gradient_typed<float>(a);
}

}  // namespace

Slot<SinkGradient> sink_gradient{"sink_gradient", sink_gradient_cpu};

namespace ops {
namespace {

static_assert(sizeof(AttentionSegment) == 8 * sizeof(std::int64_t));

void check_rows(const char* name, const Tensor& t, const Tensor& q) {
  const std::string where = std::string("attention(q, k, v): ") + name;
  if (t.rank() != 3 || t.size(2) != q.size(2) || (t.size(1) != q.size(1))) {
    throw ShapeError(where + ": expected [rows, " + std::to_string(q.size(1)) + ", " +
                     std::to_string(q.size(2)) + "] (as q), got " + to_string(t.shape()));
  }
  if (t.dtype() != q.dtype()) throw_dtype(where, t.dtype(), name_of(q.dtype()));
  if (t.device() != q.device()) {
    throw DeviceError(where + ": expected on " + to_string(q.device()) + " (as q), got " +
                      to_string(t.device()));
  }
  if (t.numel() > 0 && t.size(2) > 1 && t.stride(2) != 1) {
    throw ShapeError(where + ": its last dimension must be contiguous; call contiguous() first");
  }
}

void check_vector(const char* name, const Tensor& t, std::int64_t size, DType dtype,
                  const Tensor& like) {
  if (!t.defined()) return;
  const std::string where = std::string("attention(q, k, v, key_bias, sink): ") + name;
  if (t.rank() != 1 || (size >= 0 && t.size(0) != size)) {
    throw ShapeError(where + ": expected [" + (size >= 0 ? std::to_string(size) : "H") + "], got " +
                     to_string(t.shape()));
  }
  if (t.dtype() != dtype) throw_dtype(where, t.dtype(), name_of(dtype));
  check_device("attention(q, k, v, key_bias, sink)", name, t, like);
  if (!t.is_contiguous()) throw ShapeError(where + ": expected a contiguous vector");
}

HeadRows rows_of(const Tensor& t) {
  return {t.raw(), t.stride(0), t.size(1) > 1 ? t.stride(1) : 0};
}

const void* data_or_null(const Tensor& t) { return t.defined() ? t.raw() : nullptr; }

// Segments outside the tensors would be read and written all the same. Plans of other devices are
// taken on trust.
void check_plan(const AttentionPlan& plan, const Tensor& q, const Tensor& k, const Tensor& sink) {
  if (plan.segments.rank() != 2 || plan.segments.size(1) != 8 ||
      plan.lo.shape() != plan.hi.shape()) {
    throw ShapeError("attention(q, k, v, plan): expected segments [S, 8] and lo, hi of one shape");
  }
  if (plan.segments.device() != kCpu) return;
  const auto* s = reinterpret_cast<const AttentionSegment*>(plan.segments.data<std::int64_t>());
  const auto inside = [](std::int64_t first, std::int64_t count, std::int64_t size) {
    return first >= 0 && count >= 0 && first + count <= size;
  };
  for (std::int64_t n = 0; n < plan.segments.size(0); ++n) {
    const std::int64_t heads = std::max(q.size(1) > 1 ? q.size(1) : s[n].head + 1, std::int64_t{0});
    if (!inside(s[n].q_row, s[n].q_count, q.size(0)) ||
        !inside(s[n].k_row, s[n].k_count, k.size(0)) ||
        !inside(s[n].slot, s[n].q_count, plan.slots) ||
        !inside(s[n].range, s[n].q_count, plan.lo.numel()) || !inside(s[n].head, 1, heads) ||
        (sink.defined() && s[n].head >= sink.size(0))) {
      throw ShapeError("attention(q, k, v, plan): segment " + std::to_string(n) +
                       " reaches beyond q " + to_string(q.shape()) + ", k " + to_string(k.shape()) +
                       ", the plan's slots or ranges, or the sink");
    }
    if (plan.longest > 0 && std::max(s[n].q_count, s[n].k_count) > plan.longest) {
      throw ShapeError("attention(q, k, v, plan): segment " + std::to_string(n) + " has " +
                       std::to_string(std::max(s[n].q_count, s[n].k_count)) +
                       " queries or keys, more than the plan's longest, " +
                       std::to_string(plan.longest));
    }
    const std::int32_t* lo = plan.lo.data<std::int32_t>() + s[n].range;
    const std::int32_t* hi = plan.hi.data<std::int32_t>() + s[n].range;
    for (std::int64_t i = 0; i < s[n].q_count; ++i) {
      if (lo[i] >= 0 && lo[i] <= hi[i] && hi[i] <= s[n].k_count) continue;
      throw ShapeError(
          "attention(q, k, v, plan): segment " + std::to_string(n) + ", query " +
          std::to_string(i) + ": expected 0 <= lo <= hi <= " + std::to_string(s[n].k_count) +
          " (its keys), got " + std::to_string(lo[i]) + " and " + std::to_string(hi[i]));
    }
  }
}

AttentionProblem problem(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& key_bias,
                         const Tensor& sink, const AttentionPlan& plan,
                         const AttentionOptions& options) {
  if (q.rank() != 3 || q.size(2) < 1) {
    throw ShapeError("attention(q, k, v): q: expected [rows, heads, D], got " +
                     to_string(q.shape()));
  }
  if (!is_floating(q.dtype())) throw_dtype("attention(q, k, v): q", q.dtype(), "f64, f32 or bf16");
  check_rows("q", q, q);
  check_rows("k", k, q);
  check_rows("v", v, q);
  if (v.size(0) != k.size(0)) {
    throw ShapeError("attention(q, k, v): v: expected " + std::to_string(k.size(0)) +
                     " rows (as k), got " + std::to_string(v.size(0)));
  }
  const DType accum = accum_dtype(q.dtype());
  check_vector("key_bias", key_bias, k.size(0), accum, q);
  check_vector("sink", sink, -1, accum, q);
  check_device("attention(q, k, v, plan)", "segments", plan.segments, q);
  check_device("attention(q, k, v, plan)", "lo", plan.lo, q);
  check_device("attention(q, k, v, plan)", "hi", plan.hi, q);
  check_plan(plan, q, k, sink);
  if (!(options.dropout >= 0 && options.dropout < 1)) {
    throw ConfigError("attention: dropout: expected 0 <= p < 1, got " +
                      std::to_string(options.dropout));
  }
  if (!(options.scale >= 0)) {
    throw ConfigError("attention: scale: expected at least 0 (0 = 1/sqrt(D)), got " +
                      std::to_string(options.scale));
  }
  AttentionProblem p;
  p.q = rows_of(q);
  p.k = rows_of(k);
  p.v = rows_of(v);
  p.key_bias = data_or_null(key_bias);
  p.sink = data_or_null(sink);
  p.sink_scale = options.sink_scale;
  p.lo = plan.lo.data<std::int32_t>();
  p.hi = plan.hi.data<std::int32_t>();
  p.segments = reinterpret_cast<const AttentionSegment*>(plan.segments.data<std::int64_t>());
  p.segment_count = plan.segments.size(0);
  p.queries = plan.slots;
  p.keys = k.size(0) * k.size(1);
  p.longest = plan.longest;
  p.D = q.size(2);
  p.anchors = plan.anchors;
  p.scale = options.scale != 0 ? options.scale : 1.0 / std::sqrt(static_cast<double>(p.D));
  p.dropout = options.dropout;
  p.key = options.key;
  p.dtype = q.dtype();
  return p;
}

}  // namespace

AttentionPlan causal_plan(std::int64_t B, std::int64_t H, std::int64_t Tq, std::int64_t Tk,
                          const std::function<std::int64_t(std::int64_t)>& window,
                          std::int64_t anchors, Device device) {
  if (Tq > Tk) {
    throw ShapeError("attention: q has " + std::to_string(Tq) + " positions, k only " +
                     std::to_string(Tk) + "; the queries must be the last of the keys' positions");
  }
  AttentionPlan plan;
  plan.whole = true;
  plan.longest = Tk;
  plan.slots = B * H * Tq;
  plan.anchors = anchors;
  Tensor segments = Tensor::zeros({B * H, 8}, DType::i64);
  auto* s = reinterpret_cast<AttentionSegment*>(segments.data<std::int64_t>());
  for (std::int64_t n = 0; n < B * H; ++n) {
    s[n] = {.q_row = n / H * Tq,
            .k_row = n / H * Tk,
            .slot = n * Tq,
            .range = 0,
            .q_count = Tq,
            .k_count = Tk,
            .head = n % H};
  }
  Tensor lo = Tensor::empty({Tq}, DType::i32);
  Tensor hi = Tensor::empty({Tq}, DType::i32);
  for (std::int64_t i = 0; i < Tq; ++i) {
    const std::int64_t n = Tk - Tq + i + 1;
    const std::int64_t width = window ? std::clamp<std::int64_t>(window(n), 0, n) : n;
    hi.data<std::int32_t>()[i] = static_cast<std::int32_t>(n);
    lo.data<std::int32_t>()[i] = static_cast<std::int32_t>(n - width);
  }
  plan.segments = segments.to(device);
  plan.lo = lo.to(device);
  plan.hi = hi.to(device);
  return plan;
}

AttentionPlan causal_plan(std::int64_t B, std::int64_t H, std::int64_t Tq, std::int64_t Tk,
                          std::int64_t window, std::int64_t anchors, Device device) {
  if (window <= 0) return causal_plan(B, H, Tq, Tk, nullptr, anchors, device);
  return causal_plan(
      B, H, Tq, Tk, [window](std::int64_t) { return window; }, anchors, device);
}

AttentionResult attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& key_bias,
                          const Tensor& sink, const AttentionPlan& plan,
                          const AttentionOptions& options) {
  AttentionFwd args;
  args.problem = problem(q, k, v, key_bias, sink, plan, options);
  // Rows that no segment covers are zero.
  const bool whole = plan.slots == q.size(0) * q.size(1);
  AttentionResult result{whole ? Tensor::empty(q.shape(), q.dtype(), q.device())
                               : Tensor::zeros(q.shape(), q.dtype(), q.device()),
                         Tensor::empty({plan.slots}, accum_dtype(q.dtype()), q.device())};
  args.out = rows_of(result.out);
  args.lse = result.lse.raw();
  if (args.problem.segment_count > 0) attention_fwd(q.device(), args);
  return result;
}

AttentionGrads attention_backward(const Tensor& q, const Tensor& k, const Tensor& v,
                                  const Tensor& key_bias, const Tensor& sink,
                                  const AttentionPlan& plan, const AttentionOptions& options,
                                  const AttentionResult& saved, const Tensor& dout_any,
                                  const Tensor& dq, const Tensor& dk, const Tensor& dv) {
  AttentionBwd args;
  args.problem = problem(q, k, v, key_bias, sink, plan, options);
  const Tensor dout = dout_any.contiguous();
  check_rows("dout", dout, q);
  check_rows("dq", dq, q);
  check_rows("dk", dk, q);
  check_rows("dv", dv, q);
  const auto same_rows = [](const char* name, const Tensor& t, const Tensor& of) {
    check_shape("attention_backward", name, t, of.shape(), "");
  };
  same_rows("dout", dout, q);
  same_rows("saved.out", saved.out, q);
  same_rows("dq", dq, q);
  same_rows("dk", dk, k);
  same_rows("dv", dv, v);
  check_shape("attention_backward", "saved.lse", saved.lse, {plan.slots}, "(= the plan's slots)");
  const DType accum = accum_dtype(q.dtype());
  const std::int64_t count = args.problem.segment_count;
  const bool with_sink = sink.defined() && options.sink_scale > 0;
  AttentionGrads grads;
  if (key_bias.defined()) grads.dkey_bias = Tensor::zeros(key_bias.shape(), accum, q.device());
  Tensor dsink;
  if (with_sink) dsink = Tensor::zeros({count}, accum, q.device());
  if (sink.defined()) grads.dsink = Tensor::zeros(sink.shape(), accum, q.device());
  if (count == 0) return grads;
  args.out = rows_of(saved.out);
  args.dout = rows_of(dout);
  args.lse = saved.lse.raw();
  args.dq = rows_of(dq);
  args.dk = rows_of(dk);
  args.dv = rows_of(dv);
  args.dkey_bias = grads.dkey_bias.defined() ? grads.dkey_bias.raw() : nullptr;
  args.dsink = with_sink ? dsink.raw() : nullptr;
  attention_bwd(q.device(), args);
  if (with_sink) {
    sink_gradient(q.device(), {.per_segment = dsink.raw(),
                               .segments = args.problem.segments,
                               .dsink = grads.dsink.raw(),
                               .segment_count = count,
                               .heads = sink.size(0),
                               .dtype = q.dtype()});
  }
  return grads;
}

}  // namespace ops
}  // namespace proteus
