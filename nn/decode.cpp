// Decoding of dense attention.
#include "nn/decode.h"

#include <algorithm>
#include <string>

#include "autograd/beside.h"
#include "nn/attention.h"
#include "tensor/error.h"
#include "tensor/ops/elementwise.h"
#include "tensor/ops/gemm.h"
#include "tensor/ops/rope.h"

namespace proteus {
namespace {

template <class A>
struct DenseState : TokenState {
  std::vector<KeyStream<A>> heads;

  std::int64_t bytes() const override {
    std::int64_t sum = previous.defined() ? previous.bytes() : 0;
    for (const auto& head : heads) sum += head.bytes();
    return sum;
  }
};

TokenState& token_state(AttentionState* state) { return static_cast<TokenState&>(*state); }

}  // namespace

Tensor TokenState::shifted(const Tensor& x, const Variable& mu,
                           std::span<AttentionState* const> states) {
  if (!mu.defined()) return x;
  // By the function that a forward pass uses: routing compares numbers, which must not be rounded
  // in another way here.
  Tensor pair = Tensor::zeros({x.size(0), 2, x.size(1)}, x.dtype());
  pair.select(1, 1).copy_(x);
  for (std::size_t b = 0; b < states.size(); ++b) {
    const Tensor& previous = token_state(states[b]).previous;
    if (previous.defined())
      pair.select(0, static_cast<std::int64_t>(b)).select(0, 0).copy_(previous);
  }
  return ops::key_shift(pair, mu.value()).select(1, 1).contiguous();
}

Tensor TokenState::positions(std::span<AttentionState* const> states) {
  Tensor out = Tensor::empty({static_cast<std::int64_t>(states.size())}, DType::i32);
  for (std::size_t b = 0; b < states.size(); ++b) {
    out.data<std::int32_t>()[b] = static_cast<std::int32_t>(token_state(states[b]).position);
  }
  return out;
}

void TokenState::advance(const Tensor& x, std::span<AttentionState* const> states) {
  for (std::size_t b = 0; b < states.size(); ++b) {
    TokenState& state = token_state(states[b]);
    ++state.position;
    state.previous = x.select(0, static_cast<std::int64_t>(b)).clone();
  }
}

void check_step(const char* layer, const Tensor& x, std::int64_t width, std::size_t states) {
  if (x.device() != kCpu) {
    throw DeviceError(std::string(layer) + ": step: decoding runs on the CPU only, got " +
                      to_string(x.device()));
  }
  if (x.rank() == 2 && x.size(1) == width && x.size(0) == static_cast<std::int64_t>(states)) return;
  throw ShapeError(std::string(layer) + ": step(x, states): x: expected [" +
                   std::to_string(states) + ", " + std::to_string(width) +
                   "] (= states, width), got " + to_string(x.shape()));
}

std::unique_ptr<AttentionState> DenseAttention::make_state(CacheType cache) const {
  return dispatch_decode(config_.dtype, [&](auto tag) -> std::unique_ptr<AttentionState> {
    using A = decltype(tag);
    auto state = std::make_unique<DenseState<A>>();
    state->heads.assign(static_cast<std::size_t>(config_.heads),
                        KeyStream<A>(config_.head_width, 0, cache));
    return state;
  });
}

Tensor DenseAttention::step(const Tensor& x, std::span<AttentionState* const> states) {
  check_step("attention", x, config_.width, states.size());
  const std::int64_t B = x.size(0);
  const std::int64_t H = config_.heads;
  const std::int64_t D = config_.head_width;
  const Tensor x_key = TokenState::shifted(x, mu_, states);
  const Tensor positions = TokenState::positions(states);
  const auto part = [&](int i, const Tensor& in) {
    const Tensor weight = qkv_weight_.value().slice(0, i * H * D, (i + 1) * H * D);
    const Tensor bias =
        qkv_bias_.defined() ? qkv_bias_.value().slice(0, i * H * D, (i + 1) * H * D) : Tensor();
    const Tensor y = ops::linear(in, weight, bias).reshape({B, H, D});
    return i < 2 && config_.rope ? ops::rope(y, positions, {.R = D}) : y;
  };
  const DType accum = config_.dtype == DType::f64 ? DType::f64 : DType::f32;
  const Tensor q = part(0, x).to(accum);
  const Tensor k = part(1, x_key).to(accum);
  const Tensor v = part(2, x).to(accum);
  Tensor out = Tensor::empty({B, H, D}, accum);
  dispatch_decode(config_.dtype, [&](auto tag) {
    using A = decltype(tag);
    for (std::int64_t i = 0; i < B * H; ++i) {
      auto& state = static_cast<DenseState<A>&>(*states[static_cast<std::size_t>(i / H)]);
      auto& head = state.heads[static_cast<std::size_t>(i % H)];
      head.append(k.data<A>() + i * D, v.data<A>() + i * D, A(0));
      const std::int64_t lo =
          config_.window > 0 ? std::max<std::int64_t>(0, head.size() - config_.window) : 0;
      head.forget(lo);
      head.attend(q.data<A>() + i * D, lo, A(0), A(0), out.data<A>() + i * D);
    }
  });
  Tensor y = out.to(config_.dtype);
  if (gate_weight_.defined()) {
    const Tensor gate =
        ops::unary(UnaryOp::sigmoid, "sigmoid", ops::linear(x, gate_weight_.value(), {}));
    y = ops::mul(y, ops::affine(gate, 2, 0).reshape({B, H, 1}));
  }
  TokenState::advance(x, states);
  return ops::linear(y.reshape({B, H * D}), out_weight_.value(),
                     out_bias_.defined() ? out_bias_.value() : Tensor());
}

LayerCaches DenseAttention::make_caches(const CacheShape& shape) const {
  const std::int64_t window = config_.window > 0 ? std::min(config_.window, shape.longest) : 0;
  LayerCaches caches;
  caches.shared = ops::make_stream_cache({.B = shape.B,
                                          .H = config_.heads,
                                          .capacity = window > 0 ? window : shape.longest,
                                          .D = config_.head_width,
                                          .codes = shape.type == CacheType::int8,
                                          .dtype = shape.dtype,
                                          .device = shape.device});
  if (window > 0) {
    caches.shared_windows = windows_of(shape.longest, shape.device,
                                       [&](std::int64_t n) { return std::min(n, window); });
  }
  if (mu_.defined()) {
    caches.pair = Tensor::zeros({shape.B, 2, config_.width}, shape.dtype, shape.device);
  }
  return caches;
}

Tensor DenseAttention::step(const Tensor& x, const LayerCaches& caches, const Tensor& positions) {
  const std::int64_t B = x.size(0);
  const std::int64_t H = config_.heads;
  const std::int64_t D = config_.head_width;
  const Variable like(x);
  const Tensor x_key =
      mu_.defined() ? shifted_keys(x, value_beside(mu_, like), caches.pair) : Tensor();
  Tensor y = attend_step({H, D, config_.rope}, x, x_key, value_beside(qkv_weight_, like),
                         value_beside(qkv_bias_, like), caches, positions);
  if (gate_weight_.defined()) {
    const Tensor z = ops::linear(x, value_beside(gate_weight_, like), {});
    const Tensor gate = ops::affine(ops::unary(UnaryOp::sigmoid, "sigmoid", z), 2, 0);
    y = ops::mul(y, gate.reshape({B, H, 1}));
  }
  return ops::linear(y.reshape({B, H * D}), value_beside(out_weight_, like),
                     value_beside(out_bias_, like));
}

}  // namespace proteus
