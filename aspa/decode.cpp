// Decoding of an ASPA layer: per sequence a window and anchors of every shared head, the same of
// every routed head's packed stream, and the token before. At alpha = 1 none of it grows with the
// length.
#include <cmath>

#include "aspa/attention.h"
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
  std::vector<KeyStream<A>> routed;

  std::int64_t bytes() const override {
    std::int64_t sum = previous.defined() ? previous.bytes() : 0;
    for (const auto& head : shared) sum += head.bytes();
    for (const auto& head : routed) sum += head.bytes();
    return sum;
  }
};

// (row, head) pairs of a selection i32 [B, k], −1 for none.
struct Pair {
  std::int64_t row;
  std::int64_t head;
};

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

// Row p of the result [pairs, 1, N]: x's row of the pair times its head's weight, w [Hr, K, N].
template <class A>
Tensor products(const Tensor& x, const Tensor& w, const std::vector<Pair>& pairs) {
  const std::int64_t K = w.size(1);
  const std::int64_t N = w.size(2);
  Tensor y = Tensor::zeros({static_cast<std::int64_t>(pairs.size()), 1, N}, x.dtype());
  for (std::size_t p = 0; p < pairs.size(); ++p) {
    add_product(x.data<A>() + pairs[p].row * K, w.data<A>() + pairs[p].head * K * N, K, N,
                y.data<A>() + static_cast<std::int64_t>(p) * N);
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

std::unique_ptr<AttentionState> AspaAttention::make_state() const {
  return dispatch_decode(config_.dtype, [&](auto tag) -> std::unique_ptr<AttentionState> {
    using A = decltype(tag);
    const KeyStream<A> empty(config_.head_width, config_.anchors);
    auto state = std::make_unique<AspaState<A>>();
    state->shared.assign(static_cast<std::size_t>(config_.shared_heads), empty);
    state->routed.assign(static_cast<std::size_t>(config_.routed_heads), empty);
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
    const Tensor weight = weights_.qkv.value().slice(0, i * H * D, (i + 1) * H * D);
    const Tensor rows = ops::linear(in, weight, {}).reshape({B, H, D});
    return (i < 2 ? ops::rope(rows, positions, {.R = D}) : rows).to(accum);
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
    heads = ops::scale_rows(heads.reshape({B * H, D}), blended_gate(Variable(z)).value());
  }
  return ops::linear(heads.reshape({B, H * D}), weights_.out.value(), {});
}

Tensor AspaAttention::routed_step(const Tensor& x, const Tensor& x_key,
                                  std::span<AttentionState* const> states) {
  if (gating_->forced()) throw ConfigError("aspa: step: a forced selection is for forward() only");
  const std::int64_t B = x.size(0);
  const std::int64_t Hr = config_.routed_heads;
  const bool gated = config_.alpha > 0;
  Tensor every = Tensor::arange(Hr, DType::i32).unsqueeze(0).expand({B, Hr}).contiguous();
  std::array<Tensor, kRoles> selected{every, every};
  std::array<Tensor, kRoles> z;
  std::array<Tensor, kRoles> salience;
  if (gated) {
    const Tensor time = TokenState::positions(states);
    for (const Role role : {Role::query, Role::key}) {
      const auto r = static_cast<std::size_t>(role);
      const Tensor& in = role == Role::query ? x : x_key;
      const Tensor projected =
          router_->project(Variable(in.reshape({B, 1, config_.width}))).value();
      const Gating::Choice choice = gating_->choose(role, projected, {1, time});
      z[r] = choice.z;
      selected[r] = choice.heads;
      if (salience_) {
        salience[r] = gating_->salience_of(Variable(projected), choice.nearest).value();
      }
    }
  }
  return dispatch_decode(config_.dtype, [&](auto tag) {
    return routed_values_step<decltype(tag)>(x, x_key, selected, z, salience, states);
  });
}

template <class A>
Tensor AspaAttention::routed_values_step(const Tensor& x, const Tensor& x_key,
                                         const std::array<Tensor, kRoles>& selected,
                                         const std::array<Tensor, kRoles>& z,
                                         const std::array<Tensor, kRoles>& salience,
                                         std::span<AttentionState* const> states) {
  const std::int64_t D = config_.head_width;
  const std::int64_t C = config_.width;
  const DType accum = decode_dtype(config_.dtype);
  const Tensor positions = TokenState::positions(states);
  const auto heads = [&](const Tensor& in, const Variable& weight, const std::vector<Pair>& pairs,
                         bool rotate) {
    const Tensor rows = products<A>(in.to(accum), weight.value().to(accum), pairs);
    if (!rotate || rotated_width() == 0 || pairs.empty()) return rows;
    return ops::rope(rows, positions_of(pairs, positions), {.R = rotated_width()});
  };
  const auto stream = [&](const Pair& p) -> KeyStream<A>& {
    auto& state = static_cast<AspaState<A>&>(*states[static_cast<std::size_t>(p.row)]);
    return state.routed[static_cast<std::size_t>(p.head)];
  };
  // z is f32 or f64 like A: the router is f64 in a layer that is.
  const auto logit = [&](Role role, const Pair& p) {
    return z[static_cast<std::size_t>(role)]
        .template data<A>()[p.row * config_.routed_heads + p.head];
  };
  const auto score = [&](Role role, const Pair& p) {
    return salience[static_cast<std::size_t>(role)].template data<A>()[p.row];
  };
  const auto alpha = static_cast<A>(config_.alpha);
  const bool gated = config_.alpha > 0;

  const auto keys = pairs_of(selected[static_cast<std::size_t>(Role::key)]);
  const Tensor k = heads(x_key, weights_.k, keys, true);
  const Tensor v = heads(x, weights_.v, keys, false);
  for (std::size_t p = 0; p < keys.size(); ++p) {
    const std::int64_t at = static_cast<std::int64_t>(p) * D;
    A bias = 0;
    if (gated && config_.key_bias) bias += vmath::log_sigmoid(logit(Role::key, keys[p]));
    if (gated && salience_) {
      bias += vmath::log_sigmoid(score(Role::key, keys[p])) + static_cast<A>(std::log(2.0));
    }
    bias *= alpha;
    KeyStream<A>& head = stream(keys[p]);
    head.append(k.data<A>() + at, v.data<A>() + at, bias);
    head.forget(first_seen(config_.window, head.size()));
  }

  const auto queries = pairs_of(selected[static_cast<std::size_t>(Role::query)]);
  const Tensor q = heads(x, weights_.q, queries, true);
  const bool sink = weights_.sink.defined() && config_.alpha > 0;
  const Tensor w_out = weights_.o.value().to(accum);
  Tensor y = Tensor::zeros({x.size(0), C}, accum);
  const Tensor o = Tensor::empty({static_cast<std::int64_t>(queries.size()), D}, accum);
  for (std::size_t p = 0; p < queries.size(); ++p) {
    const Pair& pair = queries[p];
    KeyStream<A>& head = stream(pair);
    A* out = o.data<A>() + static_cast<std::int64_t>(p) * D;
    head.attend(q.data<A>() + static_cast<std::int64_t>(p) * D,
                first_seen(config_.window, head.size()),
                sink ? weights_.sink.value().data<A>()[pair.head] : A(0), sink ? alpha : A(0), out);
    A gate = 1;
    if (gated && config_.query_gate) gate *= A(2) * vmath::sigmoid(logit(Role::query, pair));
    if (gated && salience_) gate *= A(2) * vmath::sigmoid(score(Role::query, pair));
    gate = (A(1) - alpha) + alpha * gate;
    for (std::int64_t d = 0; d < D; ++d) out[d] *= gate;
    add_product(out, w_out.data<A>() + pair.head * D * C, D, C, y.data<A>() + pair.row * C);
  }
  Tensor c = y.to(config_.dtype);
  if (watching_) keep_consensus(c, outputs_of(queries, o, x.size(0)));
  return c;
}

}  // namespace proteus
