// Decoding of an ASPA layer: per sequence a window and anchors of every shared head, the same and a
// bank of every routed head's packed stream, and the token before. At alpha = 1 none of it grows
// with the length.
#include <algorithm>
#include <cmath>
#include <limits>

#include "aspa/attention.h"
#include "aspa/bank_stream.h"
#include "aspa/slider.h"
#include "autograd/tape.h"
#include "tensor/error.h"
#include "tensor/ops/elementwise.h"
#include "tensor/ops/gemm.h"
#include "tensor/ops/rope.h"
#include "tensor/ops/select.h"

namespace proteus {
namespace {

template <class A>
struct AspaState : TokenState {
  std::vector<KeyStream<A>> shared;
  std::vector<BankStream<A>> routed;

  std::int64_t bytes() const override {
    std::int64_t sum = previous.defined() ? previous.bytes() : 0;
    for (const auto& head : shared) sum += head.bytes();
    for (const auto& head : routed) sum += head.bytes();
    return sum;
  }
};

using Pair = AspaAttention::StepPair;

// The (row, head) pairs of a selection i32 [B, k], −1 for none.
std::vector<Pair> pairs_of(const Tensor& heads) {
  std::vector<Pair> pairs;
  const std::int64_t k = heads.size(1);
  for (std::int64_t i = 0; i < heads.numel(); ++i) {
    const std::int32_t head = heads.data<std::int32_t>()[i];
    if (head >= 0) pairs.push_back({i / k, head});
  }
  return pairs;
}

// y [N] += x [K] · w [K, N].
template <class A>
void add_product(const A* x, const A* w, std::int64_t K, std::int64_t N, A* y) {
  for (std::int64_t c = 0; c < K; ++c) {
    const A value = x[c];
    for (std::int64_t n = 0; n < N; ++n) y[n] += value * w[c * N + n];
  }
}

// Row p of the result [pairs, 1, N]: x's row of the pair times its head's weight, w [Hr, K, N],
// plus its head's bias [Hr, N], if there is one.
template <class A>
Tensor products(const Tensor& x, const Tensor& w, const Tensor& bias,
                const std::vector<Pair>& pairs) {
  const std::int64_t K = w.size(1);
  const std::int64_t N = w.size(2);
  Tensor y = Tensor::zeros({static_cast<std::int64_t>(pairs.size()), 1, N}, x.dtype());
  for (std::size_t p = 0; p < pairs.size(); ++p) {
    const auto& [row, head] = pairs[p];
    A* to = y.data<A>() + static_cast<std::int64_t>(p) * N;
    add_product(x.data<A>() + row * K, w.data<A>() + head * K * N, K, N, to);
    const A one = 1;
    if (bias.defined()) add_product(&one, bias.data<A>() + head * N, 1, N, to);
  }
  return y;
}

Tensor positions_of(const std::vector<Pair>& pairs, const Tensor& positions) {
  Tensor out = Tensor::empty({static_cast<std::int64_t>(pairs.size())}, DType::i32);
  for (std::size_t p = 0; p < pairs.size(); ++p) {
    out.data<std::int32_t>()[p] = positions.data<std::int32_t>()[pairs[p].row];
  }
  return out;
}

// What the heads of every row have found: row p of o [pairs, D] is that of pair p.
std::vector<HeadOutputs> outputs_of(const std::vector<Pair>& pairs, const Tensor& o,
                                    std::int64_t B) {
  std::vector<HeadOutputs> rows(static_cast<std::size_t>(B));
  for (std::size_t p = 0; p < pairs.size(); ++p) {
    HeadOutputs& own = rows[static_cast<std::size_t>(pairs[p].row)];
    own.heads.push_back(static_cast<std::int32_t>(pairs[p].head));
    own.gated.push_back(o.select(0, static_cast<std::int64_t>(p)));
  }
  return rows;
}

DType decode_dtype(DType dtype) { return dtype == DType::f64 ? DType::f64 : DType::f32; }

}  // namespace

std::unique_ptr<AttentionState> AspaAttention::make_state(CacheType cache) const {
  return dispatch_decode(config_.dtype, [&](auto tag) -> std::unique_ptr<AttentionState> {
    using A = decltype(tag);
    const KeyStream<A> shared(config_.head_width, config_.anchors, cache);
    const BankStream<A> routed(config_.head_width, config_.anchors, cache);
    auto state = std::make_unique<AspaState<A>>();
    state->shared.assign(static_cast<std::size_t>(config_.shared_heads), shared);
    state->routed.assign(static_cast<std::size_t>(config_.routed_heads), routed);
    return state;
  });
}

Tensor AspaAttention::step(const Tensor& x, std::span<AttentionState* const> states) {
  check_step("aspa", x, config_.width, states.size());
  const NoGradGuard no_grad;
  const Tensor x_key = TokenState::shifted(x, weights_.mu, states);
  Tensor y;
  if (config_.shared_heads > 0) y = shared_step(x, x_key, states);
  if (router_) {
    const Tensor routed = routed_step(x, x_key, states);
    y = y.defined() ? ops::add(y, routed) : routed;
  }
  if (weights_.out_bias.defined()) y = ops::add(y, weights_.out_bias.value());
  TokenState::advance(x, states);
  return y;
}

std::int64_t AspaAttention::first_seen(std::int64_t window, std::int64_t entries) const {
  return entries - slider::window(config_.alpha, window, entries);
}

Tensor AspaAttention::shared_step(const Tensor& x, const Tensor& x_key,
                                  std::span<AttentionState* const> states) {
  const std::int64_t B = x.size(0);
  const std::int64_t H = config_.shared_heads;
  const std::int64_t D = config_.head_width;
  const DType accum = decode_dtype(config_.dtype);
  const Tensor positions = TokenState::positions(states);
  const auto part = [&](int i, const Tensor& in) {
    const auto third = [&](const Variable& all) {
      return all.defined() ? all.value().slice(0, i * H * D, (i + 1) * H * D) : Tensor();
    };
    const Tensor rows =
        ops::linear(in, third(weights_.qkv), third(weights_.qkv_bias)).reshape({B, H, D});
    const bool rotated = i < 2 && config_.shared_rope;
    return (rotated ? ops::rope(rows, positions, {.R = D}) : rows).to(accum);
  };
  const Tensor q = part(0, x);
  const Tensor k = part(1, x_key);
  const Tensor v = part(2, x);
  Tensor out = Tensor::empty({B, H, D}, accum);
  dispatch_decode(config_.dtype, [&](auto tag) {
    using A = decltype(tag);
    for (std::int64_t i = 0; i < B * H; ++i) {
      auto& state = static_cast<AspaState<A>&>(*states[static_cast<std::size_t>(i / H)]);
      auto& head = state.shared[static_cast<std::size_t>(i % H)];
      head.append(k.data<A>() + i * D, v.data<A>() + i * D, A(0));
      const std::int64_t lo = first_seen(config_.shared_window, head.size());
      head.forget(lo);
      head.attend(q.data<A>() + i * D, lo, A(0), A(0), out.data<A>() + i * D);
    }
  });
  Tensor heads = out.to(config_.dtype);
  if (weights_.shared_gate.defined() && config_.alpha > 0) {
    const Tensor z = ops::linear(x, weights_.shared_gate.value(), {}).reshape({B * H});
    heads = ops::scale_rows(heads.reshape({B * H, D}), z, gate_factor());
  }
  return ops::linear(heads.reshape({B, H * D}), weights_.out.value(), {});
}

Tensor AspaAttention::routed_step(const Tensor& x, const Tensor& x_key,
                                  std::span<AttentionState* const> states) {
  if (gating_->forced()) throw ConfigError("aspa: step: a forced selection is for forward() only");
  if (config_.leaky_selection) {
    throw ConfigError("aspa: step: leaky_selection needs the whole sequence, later tokens too");
  }
  const std::int64_t B = x.size(0);
  const std::int64_t Hr = config_.routed_heads;
  const Tensor every = Tensor::arange(Hr, DType::i32).unsqueeze(0).expand({B, Hr}).contiguous();
  StepChoice chosen{{every, every}, {}, {}, {}};
  if (config_.alpha > 0) {
    const Tensor time = TokenState::positions(states);
    for (const Role role : {Role::query, Role::key}) {
      const auto r = static_cast<std::size_t>(role);
      const Tensor& in = role == Role::query ? x : x_key;
      const Tensor projected =
          router_->project(Variable(in.reshape({B, 1, config_.width}))).value();
      const Gating::Choice choice = gating_->choose(role, projected, {1, time});
      chosen.z[r] = choice.z;
      chosen.heads[r] = choice.heads;
      if (salience_) {
        chosen.salience[r] = gating_->salience_of(Variable(projected), choice.nearest).value();
      }
      if (role == Role::key && config_.bank.slots > 0) {
        chosen.key_gates = main_gates(projected, choice.heads);
      }
    }
  }
  return dispatch_decode(config_.dtype, [&](auto tag) {
    using A = decltype(tag);
    append_keys<A>(x, x_key, chosen, states);
    return answer_queries<A>(x, chosen, states);
  });
}

std::vector<std::int32_t> AspaAttention::main_gates(const Tensor& projected,
                                                    const Tensor& heads) const {
  const PackedRows rows = ops::pack_rows(heads, config_.routed_heads, heads.size(0));
  const Tensor share = router_->row_logits(Variable(projected), rows).share.to(DType::f64);
  std::vector<std::int32_t> gates;
  for (std::int64_t i = 0; i < heads.numel(); ++i) {
    const std::int32_t row = rows.row_of.data<std::int32_t>()[i];
    if (row < 0) continue;
    const double* own = share.data<double>() + row * share.size(1);
    gates.push_back(static_cast<std::int32_t>(std::max_element(own, own + share.size(1)) - own));
  }
  return gates;
}

template <class A>
Tensor AspaAttention::head_rows(const Tensor& in, const Variable& weight, const Variable& bias,
                                const std::vector<StepPair>& pairs, const Tensor& positions) const {
  const DType accum = decode_dtype(config_.dtype);
  const Tensor rows = products<A>(in.to(accum), weight.value().to(accum),
                                  bias.defined() ? bias.value().to(accum) : Tensor(), pairs);
  if (!positions.defined() || rotated_width() == 0 || pairs.empty()) return rows;
  return ops::rope(rows, positions_of(pairs, positions), {.R = rotated_width()});
}

BankUse AspaAttention::bank_use() const {
  return {bank_rule(config_), bank_slots(), config_.bank.stride, rotated_width()};
}

template <class A>
void AspaAttention::append_keys(const Tensor& x, const Tensor& x_key, const StepChoice& chosen,
                                std::span<AttentionState* const> states) const {
  const std::int64_t D = config_.head_width;
  const auto role = static_cast<std::size_t>(Role::key);
  const Tensor positions = TokenState::positions(states);
  const auto pairs = pairs_of(chosen.heads[role]);
  const Tensor k = head_rows<A>(x_key, weights_.k, weights_.k_bias, pairs, positions);
  const Tensor v = head_rows<A>(x, weights_.v, weights_.v_bias, pairs, {});
  const BankUse use = bank_use();
  for (std::size_t p = 0; p < pairs.size(); ++p) {
    const auto& [row, head] = pairs[p];
    const std::int64_t at = static_cast<std::int64_t>(p) * D;
    const std::int32_t position = positions.data<std::int32_t>()[row];
    A open = 0;  // log σ(z), log σ(S)
    A kept = 0;
    if (config_.alpha > 0) {
      // z is f32 or f64 like A: the router is f64 in a layer that is.
      open = vmath::log_sigmoid(chosen.z[role].data<A>()[row * config_.routed_heads + head]);
      if (salience_) kept = vmath::log_sigmoid(chosen.salience[role].data<A>()[row]);
    }
    A bias = config_.key_bias ? open : A(0);
    if (salience_ && config_.alpha > 0) bias += kept + static_cast<A>(std::log(2.0));
    bias *= static_cast<A>(config_.alpha);
    auto& stream = static_cast<AspaState<A>&>(*states[static_cast<std::size_t>(row)])
                       .routed[static_cast<std::size_t>(head)];
    stream.refresh(use, head, position, first_seen(config_.window, stream.size()));
    if (config_.bank.slots == 0) {
      stream.append(k.data<A>() + at, v.data<A>() + at, bias);
    } else {
      // At alpha = 0 nothing is judged: should alpha rise later, these are the first to go.
      const bool judged = !chosen.key_gates.empty();
      stream.append(k.data<A>() + at, v.data<A>() + at, bias,
                    {position, judged ? chosen.key_gates[p] : 0,
                     judged ? open + kept : -std::numeric_limits<A>::infinity()});
    }
    if (use.slots == 0) stream.forget(first_seen(config_.window, stream.size()));
  }
}

template <class A>
Tensor AspaAttention::answer_queries(const Tensor& x, const StepChoice& chosen,
                                     std::span<AttentionState* const> states) {
  const std::int64_t D = config_.head_width;
  const std::int64_t C = config_.width;
  const DType accum = decode_dtype(config_.dtype);
  const auto role = static_cast<std::size_t>(Role::query);
  const Tensor positions = TokenState::positions(states);
  const auto alpha = static_cast<A>(config_.alpha);
  const bool gated = config_.alpha > 0;
  const auto pairs = pairs_of(chosen.heads[role]);
  const Tensor q = head_rows<A>(x, weights_.q, weights_.q_bias, pairs, positions);
  const bool sink = weights_.sink.defined() && gated;
  const BankUse use = bank_use();
  const Tensor w_out = weights_.o.value().to(accum);
  Tensor y = Tensor::zeros({x.size(0), C}, accum);
  const Tensor o = Tensor::empty({static_cast<std::int64_t>(pairs.size()), D}, accum);
  for (std::size_t p = 0; p < pairs.size(); ++p) {
    const auto& [row, head] = pairs[p];
    auto& stream = static_cast<AspaState<A>&>(*states[static_cast<std::size_t>(row)])
                       .routed[static_cast<std::size_t>(head)];
    A* out = o.data<A>() + static_cast<std::int64_t>(p) * D;
    const std::int64_t lo = first_seen(config_.window, stream.size());
    stream.refresh(use, head, positions.data<std::int32_t>()[row], lo);
    stream.attend(use, q.data<A>() + static_cast<std::int64_t>(p) * D, lo,
                  sink ? weights_.sink.value().data<A>()[head] : A(0), sink ? alpha : A(0), out);
    A gate = 1;
    if (gated && config_.query_gate) {
      gate *= A(2) * vmath::sigmoid(chosen.z[role].data<A>()[row * config_.routed_heads + head]);
    }
    if (gated && salience_) gate *= A(2) * vmath::sigmoid(chosen.salience[role].data<A>()[row]);
    gate = (A(1) - alpha) + alpha * gate;
    for (std::int64_t d = 0; d < D; ++d) out[d] *= gate;
    add_product(out, w_out.data<A>() + head * D * C, D, C, y.data<A>() + row * C);
  }
  Tensor c = y.to(config_.dtype);
  if (watching_) keep_consensus(c, outputs_of(pairs, o, x.size(0)));
  return c;
}

}  // namespace proteus
