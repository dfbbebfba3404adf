#include "aspa/reference.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>

#include "aspa/reference_bank.h"
#include "aspa/slider.h"
#include "autograd/elementwise.h"
#include "autograd/gemm.h"
#include "autograd/view.h"

namespace proteus {
namespace {

constexpr double kBase = 10000;

Variable constant(const std::vector<double>& values, const Shape& shape, DType dtype) {
  return Variable(Tensor::from(values, shape, dtype));
}

Variable ones(const Shape& shape, DType dtype) { return Variable(Tensor::full(shape, 1, dtype)); }

// x_t + mu ⊙ x_{t−1} by moving the sequence along by one.
Variable shifted(const Variable& x, const Variable& mu) {
  const std::int64_t T = x.size(1);
  const Variable start(Tensor::zeros({x.size(0), 1, x.size(2)}, x.dtype()));
  const Variable before = T > 1 ? concat({start, slice(x, 1, 0, T - 1)}, 1) : start;
  return add(x, mul(before, mu));
}

// Rotary positions of the first `width` of D as x ⊙ cos + (x·Q) ⊙ sin, Q the quarter turn of every
// pair (2i, 2i + 1); x [B, H, T, D].
Variable rotated(const Variable& x, std::int64_t width) {
  if (width == 0) return x;
  const std::int64_t T = x.size(2);
  const std::int64_t D = x.size(3);
  std::vector<double> cosine(static_cast<std::size_t>(T * D), 1.0);
  std::vector<double> sine(static_cast<std::size_t>(T * D), 0.0);
  std::vector<double> turn(static_cast<std::size_t>(D * D), 0.0);
  for (std::int64_t d = 0; d < width; ++d) {
    const double exponent = static_cast<double>(d / 2 * 2) / static_cast<double>(width);
    for (std::int64_t t = 0; t < T; ++t) {
      const double angle = static_cast<double>(t) * std::pow(kBase, -exponent);
      cosine[static_cast<std::size_t>(t * D + d)] = std::cos(angle);
      sine[static_cast<std::size_t>(t * D + d)] = std::sin(angle);
    }
    turn[static_cast<std::size_t>((d ^ 1) * D + d)] = d % 2 == 0 ? -1.0 : 1.0;
  }
  const Variable quarter = matmul(x, constant(turn, {D, D}, x.dtype()));
  return add(mul(x, constant(cosine, {T, D}, x.dtype())),
             mul(quarter, constant(sine, {T, D}, x.dtype())));
}

// softmax over the allowed keys with `sink` [.., 1] added to the denominator, times v. All are
// [B, H, T, ·], bias [B, H, 1, T]; undefined bias and sink are zero. A query without keys gets 0.
Variable masked_attention(const Variable& q, const Variable& k, const Variable& v,
                          const std::vector<double>& allowed, const Variable& bias,
                          const Variable& sink) {
  const Shape pairs{q.size(0), q.size(1), q.size(2), k.size(2)};
  const DType dtype = q.dtype();
  Variable logits = scale(matmul(q, k, false, true), 1 / std::sqrt(static_cast<double>(q.size(3))));
  if (bias.defined()) logits = add(logits, bias);
  const Variable weights = mul(exp(logits), constant(allowed, pairs, dtype));
  Variable total = matmul(weights, ones({k.size(2), 1}, dtype));
  if (sink.defined()) {
    total = add(total, sink);
  } else {
    std::vector<double> empty;
    for (auto row = allowed.begin(); row != allowed.end(); row += pairs[-1]) {
      empty.push_back(std::accumulate(row, row + pairs[-1], 0.0) == 0 ? 1.0 : 0.0);
    }
    total = add(total, constant(empty, {pairs[0], pairs[1], pairs[2], 1}, dtype));
  }
  return div(matmul(weights, v), total);
}

// w_g·x̃ + λ·cos(x̃, p_g), [B·T, G].
Variable gate_scores(const Gating& gating, const Variable& x) {
  const Router& router = gating.router();
  const GateState gates = router.gate_state();
  const DType dtype = router.dtype();
  const std::int64_t R = gates.w.size(1);
  const Variable projected = reshape(linear(x, router.direction()), {x.size(0) * x.size(1), R});
  const Variable scores = matmul(projected, router.gate_weight(), false, true);
  if (!gating.config().prototypes.enabled) return scores;
  const Variable norm = sqrt(matmul(mul(projected, projected), ones({R, 1}, dtype)));
  const Variable cosine = matmul(div(projected, norm), Variable(gates.p), false, true);
  return add(scores, mul(cosine, router.lambda()));
}

// How many heads a token enters: k, or the fewest whose softmax(z − θ) reaches top_p. `scores` are
// its z − θ, the largest first.
std::int64_t head_count(const Gating& gating, const std::vector<double>& scores) {
  const GatingConfig& c = gating.config();
  if (c.top_p >= 1) return gating.k();
  double total = 0;
  for (const double s : scores) total += std::exp(s);
  double mass = 0;
  for (std::int64_t count = 1; count <= gating.k(); ++count) {
    mass += std::exp(scores[static_cast<std::size_t>(count - 1)]);
    if (mass >= c.top_p * total) {
      return std::max(count, slider::routed_heads(c.alpha, c.routed_heads, c.k_min));
    }
  }
  return gating.k();
}

// The heads of every token of z [N, Hr]; none of one that is not `kept` (all are if that is empty).
Tensor best_heads(const Gating& gating, const Variable& z, Role role,
                  const std::function<bool(std::int64_t)>& kept) {
  const auto values = z.value().to_vector();
  const auto theta = gating.router().theta(role).to_vector();
  const std::int64_t Hr = z.size(1);
  const std::int64_t k = gating.k();
  std::vector<double> heads;
  for (std::int64_t n = 0; n < z.size(0); ++n) {
    std::vector<std::int64_t> order(static_cast<std::size_t>(Hr));
    std::iota(order.begin(), order.end(), 0);
    const auto value = [&](std::int64_t h) {
      return values[static_cast<std::size_t>(n * Hr + h)] - theta[static_cast<std::size_t>(h)];
    };
    std::stable_sort(order.begin(), order.end(),
                     [&](std::int64_t a, std::int64_t b) { return value(a) > value(b); });
    std::vector<double> scores;
    for (const std::int64_t h : order) scores.push_back(value(h));
    const std::int64_t count = kept && !kept(n) ? 0 : head_count(gating, scores);
    std::sort(order.begin(), order.begin() + count);
    std::fill(order.begin() + count, order.begin() + k, -1);
    heads.insert(heads.end(), order.begin(), order.begin() + k);
  }
  return Tensor::from(heads, {z.size(0), k}, DType::i32);
}

class Reference {
 public:
  Reference(const AspaAttention& layer, const Variable& x)
      : layer_(layer),
        config_(layer.config()),
        weights_(layer.weights()),
        x_(x),
        x_key_(weights_.mu.defined() ? shifted(x, weights_.mu) : x),
        B_(x.size(0)),
        T_(x.size(1)) {}

  ReferenceRouting routing() const {
    ReferenceRouting out{gate_logits(x_), gate_logits(x_key_), {}};
    out.selection = {select(out.query, x_, Role::query), select(out.key, x_key_, Role::key)};
    return out;
  }

  Variable forward(const Selection& selection) const {
    Variable y;
    if (config_.shared_heads > 0) y = shared();
    if (config_.routed_heads > 0) {
      const Variable sum = routed(selection);
      y = y.defined() ? add(y, sum) : sum;
    }
    return weights_.out_bias.defined() ? add(y, weights_.out_bias) : y;
  }

 private:
  // [B, T, H·D] → [B, H, T, D].
  Variable split(const Variable& u, std::int64_t H) const {
    return transpose(reshape(u, {B_, T_, H, config_.head_width}), 1, 2);
  }

  Variable shared() const {
    const std::int64_t H = config_.shared_heads;
    const std::int64_t HD = H * config_.head_width;
    const auto part = [&](int i, const Variable& in) {
      Variable y = linear(in, slice(weights_.qkv, 0, i * HD, (i + 1) * HD));
      if (weights_.qkv_bias.defined()) {
        y = add(y, slice(weights_.qkv_bias, 0, i * HD, (i + 1) * HD));
      }
      return split(y, H);
    };
    std::vector<double> allowed;
    for (std::int64_t bh = 0; bh < B_ * H; ++bh) {
      for (std::int64_t t = 0; t < T_; ++t) {
        const std::int64_t window = slider::window(config_.alpha, config_.shared_window, t + 1);
        for (std::int64_t j = 0; j < T_; ++j) {
          allowed.push_back(j <= t && (t - j < window || j < config_.anchors) ? 1.0 : 0.0);
        }
      }
    }
    const std::int64_t R = config_.shared_rope ? config_.head_width : 0;
    Variable o = masked_attention(rotated(part(0, x_), R), rotated(part(1, x_key_), R), part(2, x_),
                                  allowed, {}, {});
    o = transpose(o, 1, 2);  // [B, T, H, D]
    if (weights_.shared_gate.defined()) {
      const Variable gate = blend(linear(x_, weights_.shared_gate));
      o = mul(o, reshape(gate, {B_, T_, H, 1}));
    }
    return linear(reshape(o, {B_, T_, HD}), weights_.out);
  }

  Variable blend(const Variable& z) const {
    return shift(scale(sigmoid(z), 2 * config_.alpha), 1 - config_.alpha);
  }

  Variable gate_logits(const Variable& in) const { return reference_logits(layer_.gating(), in); }

  // S [B·T] = v·x̃ + κ·max_g cos(x̃, p_g).
  Variable salience(const Variable& in) const {
    const Router& router = layer_.router();
    const GateState gates = router.gate_state();
    const DType dtype = router.dtype();
    const std::int64_t G = gates.w.size(0);
    const std::int64_t R = gates.w.size(1);
    const std::int64_t N = B_ * T_;
    Variable v;
    Variable kappa;
    for (const Parameter& p : layer_.salience()->parameters())
      (p.name == "v" ? v : kappa) = p.variable;
    const Variable projected = reshape(linear(in, router.direction()), {N, R});
    const Variable sum = reshape(matmul(projected, reshape(v, {R, 1})), {N});
    if (!kappa.defined()) return sum;
    const Variable norm = sqrt(matmul(mul(projected, projected), ones({R, 1}, dtype)));
    const Variable cosine = matmul(div(projected, norm), Variable(gates.p), false, true);
    const auto values = cosine.value().to_vector();
    std::vector<double> nearest(values.size(), 0.0);
    for (auto row = values.begin(); row != values.end(); row += G) {
      nearest[static_cast<std::size_t>(std::max_element(row, row + G) - values.begin())] = 1;
    }
    const Variable best =
        matmul(mul(cosine, constant(nearest, {N, G}, dtype)), ones({G, 1}, dtype));
    return add(sum, mul(reshape(best, {N}), kappa));
  }

  Tensor select(const Variable& z, const Variable& in, Role role) const {
    if (!layer_.salience()) return best_heads(layer_.gating(), z, role, {});
    const auto saliences = salience(in).value().to_vector();
    const double threshold = layer_.salience()->threshold(role, config_.alpha);
    return best_heads(layer_.gating(), z, role, [&](std::int64_t n) {
      return n % T_ < config_.salience.guard || saliences[static_cast<std::size_t>(n)] > threshold;
    });
  }

  // [B, Hr, T] of 0 and 1.
  std::vector<double> mask_of(const Tensor& heads) const {
    std::vector<double> mask(static_cast<std::size_t>(B_ * config_.routed_heads * T_), 0.0);
    const auto values = heads.to_vector();
    const auto k = static_cast<std::size_t>(heads.size(1));
    for (std::size_t i = 0; i < values.size(); ++i) {
      if (values[i] < 0) continue;
      const auto n = static_cast<std::int64_t>(i / k);
      const auto h = static_cast<std::int64_t>(values[i]);
      mask[static_cast<std::size_t>((n / T_ * config_.routed_heads + h) * T_ + n % T_)] = 1;
    }
    return mask;
  }

  // The last W entries of the stream at or before t, and its first A; with a bank everything from
  // the first entry that was not yet offered, and what the bank holds.
  std::vector<double> visible(const std::vector<double>& queries, const std::vector<double>& keys,
                              const Variable& k, const Variable& v) const {
    const bool banked = slider::bank_slots(config_.alpha, config_.bank.slots) > 0;
    const auto judged = banked ? judge(k, v) : ReferenceBank::Keys();
    std::vector<double> allowed;
    for (std::int64_t bh = 0; bh < B_ * config_.routed_heads; ++bh) {
      const double* is_query = queries.data() + bh * T_;
      const double* is_key = keys.data() + bh * T_;
      ReferenceBank bank(config_, judged, bh, T_, is_key);
      for (std::int64_t t = 0; t < T_; ++t) {
        const auto n = static_cast<std::int64_t>(std::accumulate(is_key, is_key + t + 1, 0.0));
        if (banked) bank.advance(t);
        const std::int64_t first =
            banked ? bank.offered() : n - slider::window(config_.alpha, config_.window, n);
        std::int64_t entry = 0;
        for (std::int64_t j = 0; j < T_; ++j) {
          const bool here = is_query[t] > 0 && is_key[j] > 0 && j <= t &&
                            (entry >= first || entry < config_.anchors || bank.holds(j));
          allowed.push_back(here ? 1.0 : 0.0);
          if (is_key[j] > 0) ++entry;
        }
      }
    }
    return allowed;
  }

  ReferenceBank::Keys judge(const Variable& k, const Variable& v) const {
    const std::int64_t Hr = config_.routed_heads;
    ReferenceBank::Keys out{k.value().to_vector(),
                            v.value().to_vector(),
                            log_sigmoid(by_head(gate_logits(x_key_))).value().to_vector(),
                            {}};
    const auto scores = gate_scores(layer_.gating(), x_key_).value().to_vector();
    const GateState gates = layer_.router().gate_state();
    const auto mass = gates.mass.to_vector();
    const auto heads = gates.head_of_gate.to_vector();
    const auto salience_score = layer_.salience()
                                    ? log_sigmoid(salience(x_key_)).value().to_vector()
                                    : std::vector<double>(static_cast<std::size_t>(B_ * T_), 0.0);
    for (std::int64_t i = 0; i < B_ * Hr * T_; ++i) {
      const auto token = static_cast<std::size_t>(i / (Hr * T_) * T_ + i % T_);
      out.score[static_cast<std::size_t>(i)] += salience_score[token];
      std::int64_t best = -1;
      double most = 0;
      for (std::size_t g = 0; g < mass.size(); ++g) {
        if (static_cast<std::int64_t>(heads[g]) != i / T_ % Hr) continue;
        const double share = mass[g] * std::exp(scores[token * mass.size() + g]);
        if (best < 0 || share > most) {
          best = static_cast<std::int64_t>(g);
          most = share;
        }
      }
      out.gate.push_back(best);
    }
    return out;
  }

  Variable routed(const Selection& selection) const {
    const std::int64_t Hr = config_.routed_heads;
    const auto queries = mask_of(selection.query);
    const auto keys = mask_of(selection.key);
    const std::int64_t D = config_.head_width;
    const auto heads = [&](const Variable& in, const Variable& weight, const Variable& bias) {
      const Variable y = matmul(reshape(in, {B_, 1, T_, config_.width}), weight);  // [B, Hr, T, D]
      return bias.defined() ? add(y, reshape(bias, {1, Hr, 1, D})) : y;
    };
    const std::int64_t width = config_.routed_rope == RopeSpan::none   ? 0
                               : config_.routed_rope == RopeSpan::half ? D / 2
                                                                       : D;
    const bool gated = config_.alpha > 0;
    Variable bias;
    if (gated && config_.key_bias) bias = log_sigmoid(by_head(gate_logits(x_key_)));
    if (gated && layer_.salience()) {
      const Variable more =
          shift(log_sigmoid(reshape(salience(x_key_), {B_, 1, T_})), std::log(2.0));
      bias = bias.defined() ? add(bias, more) : add(more, zeros_by_head());
    }
    if (bias.defined()) bias = reshape(scale(bias, config_.alpha), {B_, Hr, 1, T_});
    Variable sink;
    if (gated && weights_.sink.defined()) {
      sink = reshape(scale(exp(weights_.sink), config_.alpha), {1, Hr, 1, 1});
    }
    const Variable k = heads(x_key_, weights_.k, weights_.k_bias);
    const Variable v = heads(x_, weights_.v, weights_.v_bias);
    Variable o = masked_attention(rotated(heads(x_, weights_.q, weights_.q_bias), width),
                                  rotated(k, width), v, visible(queries, keys, k, v), bias, sink);
    Variable gate;
    if (gated && config_.query_gate) gate = scale(sigmoid(by_head(gate_logits(x_))), 2);
    if (gated && layer_.salience()) {
      const Variable more = scale(sigmoid(reshape(salience(x_), {B_, 1, T_})), 2);
      gate = gate.defined() ? mul(gate, more) : add(more, zeros_by_head());
    }
    if (gate.defined()) {
      gate = shift(scale(gate, config_.alpha), 1 - config_.alpha);
      o = mul(o, reshape(gate, {B_, Hr, T_, 1}));
    }
    o = mul(o, constant(queries, {B_, Hr, T_, 1}, x_.dtype()));
    const Variable out = matmul(o, weights_.o);  // [B, Hr, T, C]
    Variable sum = slice(out, 1, 0, 1);
    for (std::int64_t h = 1; h < Hr; ++h) sum = add(sum, slice(out, 1, h, h + 1));
    return reshape(sum, x_.shape());
  }

  Variable zeros_by_head() const {
    return Variable(Tensor::zeros({B_, config_.routed_heads, T_}, x_.dtype()));
  }

  // [B·T, Hr] → [B, Hr, T].
  Variable by_head(const Variable& z) const {
    return transpose(reshape(z, {B_, T_, config_.routed_heads}), 1, 2);
  }

  const AspaAttention& layer_;
  const AspaConfig& config_;
  const AspaWeights& weights_;
  Variable x_;
  Variable x_key_;
  std::int64_t B_;
  std::int64_t T_;
};

}  // namespace

Variable reference_logits(const Gating& gating, const Variable& x) {
  const GateState gates = gating.router().gate_state();
  const std::int64_t G = gates.w.size(0);
  const std::int64_t Hr = gating.config().routed_heads;
  std::vector<double> mass(static_cast<std::size_t>(G * Hr), 0.0);
  const auto masses = gates.mass.to_vector();
  const auto heads = gates.head_of_gate.to_vector();
  for (std::size_t g = 0; g < masses.size(); ++g) {
    mass[g * static_cast<std::size_t>(Hr) + static_cast<std::size_t>(heads[g])] = masses[g];
  }
  return log(matmul(exp(gate_scores(gating, x)), constant(mass, {G, Hr}, gating.router().dtype())));
}

Tensor reference_experts(const GatedMlp& layer, const Variable& x) {
  return best_heads(layer.gating(), reference_logits(layer.gating(), x), Role::query, {});
}

Variable reference_forward(const GatedMlp& layer, const Variable& x, const Tensor& selected) {
  const GatedMlpConfig& c = layer.config();
  const ExpertWeights& weights = layer.weights();
  const std::int64_t N = x.size(0) * x.size(1);
  const std::int64_t E = c.routed_heads;
  std::vector<double> mask(static_cast<std::size_t>(N * E), 0.0);
  const auto entered = selected.to_vector();
  const auto k = static_cast<std::size_t>(selected.size(1));
  for (std::size_t i = 0; i < entered.size(); ++i) {
    if (entered[i] < 0) continue;
    mask[i / k * static_cast<std::size_t>(E) + static_cast<std::size_t>(entered[i])] = 1;
  }
  Variable r = constant(mask, {N, E}, x.dtype());
  if (c.alpha > 0) {
    const Variable gate = sigmoid(reference_logits(layer.gating(), x));
    r = mul(r, shift(scale(gate, 2 * c.alpha), 1 - c.alpha));
  }
  const Variable tokens = reshape(x, {N, c.width});
  Variable y = layer.shared() ? reshape(layer.shared()->forward(x), {N, c.width}) : Variable();
  for (std::int64_t e = 0; e < E; ++e) {
    const auto product = [&](const Variable& in, const Variable& weight, const Shape& shape) {
      return matmul(in, reshape(slice(weight, 0, e, e + 1), shape));
    };
    const Shape in{c.width, c.expert_width};
    const Variable up = product(tokens, weights.up, in);
    const Variable hidden =
        c.kind == MlpKind::gelu ? gelu(up) : mul(silu(product(tokens, weights.gate, in)), up);
    const Variable out =
        mul(product(hidden, weights.down, {c.expert_width, c.width}), slice(r, 1, e, e + 1));
    y = y.defined() ? add(y, out) : out;
  }
  return reshape(y, x.shape());
}

ReferenceRouting reference_routing(const AspaAttention& layer, const Variable& x) {
  return Reference(layer, x).routing();
}

Variable reference_forward(const AspaAttention& layer, const Variable& x,
                           const Selection& selection) {
  return Reference(layer, x).forward(selection);
}

}  // namespace proteus
