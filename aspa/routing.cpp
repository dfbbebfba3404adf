#include "aspa/routing.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "autograd/gemm.h"
#include "autograd/view.h"
#include "tensor/error.h"

namespace proteus {
namespace {

Tensor unit_rows(const Tensor& t) {
  const std::int64_t R = t.size(1);
  auto values = t.to_vector();
  for (std::size_t row = 0; row < values.size(); row += static_cast<std::size_t>(R)) {
    double square = 0;
    for (std::int64_t r = 0; r < R; ++r) {
      const double v = values[row + static_cast<std::size_t>(r)];
      square += v * v;
    }
    for (std::int64_t r = 0; r < R; ++r)
      values[row + static_cast<std::size_t>(r)] /= std::sqrt(square);
  }
  return Tensor::from(values, t.shape(), t.dtype());
}

template <class T>
double magnitude(const T* a, const T* b, std::int64_t R) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t r = 0; r < R; ++r) sum += a[r] * b[r];
  return std::abs(static_cast<double>(sum));
}

// All tensors on the CPU.
template <class T>
ScoreParts parts_of(const ops::GateTensors& gates, const Tensor& projected, const PackedRows& rows,
                    const Tensor& share) {
  const std::int64_t R = projected.size(1);
  const auto* begin = gates.head_begin.data<std::int32_t>();
  const bool prototypes = gates.p.defined();
  const double lambda = prototypes ? std::abs(gates.lambda.item()) : 0;
  ScoreParts sum;
  for (std::int64_t n = 0; n < projected.size(0); ++n) {
    const T* x = projected.data<T>() + n * R;
    const double norm = std::sqrt(magnitude(x, x, R));
    const double cosine_scale = norm > 0 ? lambda / norm : 0;
    for (std::int64_t slot = n * rows.slots(); slot < (n + 1) * rows.slots(); ++slot) {
      const std::int32_t row = rows.row_of.data<std::int32_t>()[slot];
      if (row < 0) break;
      const std::int32_t h = rows.heads.data<std::int32_t>()[slot];
      for (std::int32_t j = begin[h]; j < begin[h + 1]; ++j) {
        const std::int64_t gate = gates.order.data<std::int32_t>()[j];
        const auto weight =
            static_cast<double>(share.data<T>()[row * share.size(1) + j - begin[h]]);
        sum.learned += weight * magnitude(gates.w.data<T>() + gate * R, x, R);
        if (!prototypes) continue;
        sum.prototype += weight * cosine_scale * magnitude(gates.p.data<T>() + gate * R, x, R);
      }
    }
  }
  return sum;
}

}  // namespace

Router::Router(const GatingConfig& c, Generator& init, int roles)
    : heads_(c.routed_heads), dtype_(c.dtype == DType::f64 ? DType::f64 : DType::f32) {
  const std::int64_t G = c.gates();
  const std::int64_t R = c.routing_width;
  const double u_std = 1 / std::sqrt(3.0 * static_cast<double>(c.width));
  const double w_std = 1 / std::sqrt(static_cast<double>(R));
  U_ = add_parameter("U", Tensor::randn({R, c.width}, init.next(), dtype_, 0, u_std));
  w_ = add_parameter("w", Tensor::randn({G, R}, init.next(), dtype_, 0, w_std));
  p_ = unit_rows(Tensor::randn({G, R}, init.next(), dtype_));
  if (c.prototypes.enabled) {
    lambda_ = add_parameter("lambda", Tensor::scalar(c.lambda, dtype_), Decay::no);
    add_buffer("p", p_);
    N_ = add_buffer("N", Tensor::full({G}, 1, dtype_));
    P_ = add_buffer("P", p_.clone());
    starving_ = add_buffer("starving", Tensor::zeros({G}, DType::i32));
  }
  mass_ = add_buffer("mass", Tensor::full({G}, 1.0 / static_cast<double>(c.gates_per_head), dtype_),
                     Home::host);
  head_of_gate_ = add_buffer("head_of_gate", Tensor::zeros({G}, DType::i32), Home::host);
  auto* head = head_of_gate_.data<std::int32_t>();
  for (std::int64_t g = 0; g < G; ++g) head[g] = static_cast<std::int32_t>(g / c.gates_per_head);
  theta_q_ = add_buffer("theta_q", Tensor::zeros({heads_}, dtype_), Home::host);
  if (roles > 1) {
    theta_k_ = add_buffer("theta_k", Tensor::zeros({heads_}, dtype_), Home::host);
  }
  ramp_ = add_buffer("ramp", Tensor::zeros({heads_}, DType::i32), Home::host);
  k_ = add_buffer("k", Tensor::full({1}, static_cast<double>(c.k), DType::i64), Home::host);
  steps_ = add_buffer("steps", Tensor::zeros({1}, DType::i64), Home::host);
  if (c.frozen_router) {
    for (const Variable& v : {U_, w_, lambda_}) {
      if (v.defined()) v.set_requires_grad(false);
    }
  }
  index_gates();
}

void Router::index_gates() const {
  const std::int64_t G = head_of_gate_.numel();
  const auto* head = head_of_gate_.data<std::int32_t>();
  Tensor order = Tensor::empty({G}, DType::i32);
  Tensor begin = Tensor::zeros({heads_ + 1}, DType::i32);
  auto* first = begin.data<std::int32_t>();
  for (std::int64_t g = 0; g < G; ++g) {
    if (head[g] < 0 || head[g] >= heads_) {
      throw ConfigError(
          fmt::format("router: gate {} opens head {}; expected one below {}", g, head[g], heads_));
    }
    ++first[head[g] + 1];
  }
  most_gates_ = 1;
  for (std::int64_t h = 0; h < heads_; ++h) {
    most_gates_ = std::max<std::int64_t>(most_gates_, first[h + 1]);
    if (first[h + 1] == 0) {
      throw ConfigError(fmt::format("router: head {} has no gate; every routed head needs one", h));
    }
    first[h + 1] += first[h];
  }
  std::vector<std::int32_t> next(first, first + heads_);
  for (std::int64_t g = 0; g < G; ++g) {
    order.data<std::int32_t>()[next[static_cast<std::size_t>(head[g])]++] =
        static_cast<std::int32_t>(g);
  }
  order_ = order;
  head_begin_ = begin;
  indexed_version_ = head_of_gate_.version();
}

ops::GateTensors Router::table() const {
  const std::int64_t most = most_gates();
  const bool prototypes = lambda_.defined();
  const Device device = w_.device();
  return {w_.value(),
          prototypes ? p_ : Tensor(),
          prototypes ? lambda_.value() : Tensor(),
          mass_there_.of(mass_, device),
          order_there_.of(order_, device),
          head_begin_there_.of(head_begin_, device),
          most};
}

const Tensor& Router::theta(Role role, Device device) const {
  return theta_there_[static_cast<std::size_t>(role)].of(theta(role), device);
}

std::int64_t Router::most_gates() const {
  if (head_of_gate_.version() != indexed_version_) index_gates();
  return most_gates_;
}

void Router::renew_copies() const {
  table();
  theta(Role::query, device());
  if (theta_k_.defined()) theta(Role::key, device());
}

Variable Router::project(const Variable& x) const {
  const std::int64_t rows = x.value().numel() / x.size(-1);
  return reshape(wide_linear(x, U_), {rows, U_.size(0)});
}

Tensor Router::logits(const Tensor& projected) const {
  return ops::gate_logits(projected, table());
}

ops::NearestGates Router::logits_and_nearest(const Tensor& projected) const {
  return ops::gate_logits_and_nearest(projected, table());
}

RowLogitsVar Router::row_logits(const Variable& projected, const PackedRows& rows) const {
  return gate_row_logits(projected, {w_, lambda_, table()}, rows);
}

ops::GateStatistics Router::statistics(const Tensor& projected, const PackedRows& rows,
                                       const Tensor& share) const {
  return ops::gate_statistics(projected, table(), rows, share);
}

ScoreParts Router::score_parts(const RoutedSample& sample) const {
  ops::GateTensors gates = table();
  PackedRows rows = ops::pack_rows(sample.heads, heads_, 1);
  const Tensor share = ops::gate_row_logits(sample.projected, gates, rows).share.to(kCpu);
  for (Tensor* t :
       {&gates.w, &gates.p, &gates.order, &gates.head_begin, &rows.row_of, &rows.heads}) {
    if (t->defined()) *t = t->to(kCpu);
  }
  const Tensor x = sample.projected.to(kCpu);
  return dtype_ == DType::f64 ? parts_of<double>(gates, x, rows, share)
                              : parts_of<float>(gates, x, rows, share);
}

GateState Router::gate_state() const {
  return {w_.value(), p_, N_, P_, mass_, head_of_gate_, starving_};
}

void Router::replace(const RouterTables& t) {
  const Device device = w_.device();
  const auto there = [&](const Tensor& x) { return x.defined() ? x.to(device) : x; };
  w_.resize(there(t.gates.w));
  p_ = there(t.gates.p);
  N_ = there(t.gates.N);
  P_ = there(t.gates.P);
  starving_ = there(t.gates.starving);
  mass_ = t.gates.mass;
  head_of_gate_ = t.gates.head_of_gate;
  theta_q_ = t.theta_q;
  theta_k_ = t.theta_k;
  ramp_ = t.ramp;
  heads_ = theta_q_.numel();
  replace_buffer("p", p_);
  replace_buffer("N", N_);
  replace_buffer("P", P_);
  replace_buffer("mass", mass_);
  replace_buffer("head_of_gate", head_of_gate_);
  replace_buffer("starving", starving_);
  replace_buffer("theta_q", theta_q_);
  replace_buffer("theta_k", theta_k_);
  replace_buffer("ramp", ramp_);
  index_gates();
  index_ramp();
}

double Router::flops_per_token() const {
  const std::int64_t per_gate = lambda_.defined() ? 2 : 1;
  return 2 * static_cast<double>(U_.size(0) * (U_.size(1) + per_gate * w_.size(0)));
}

void Router::set_k(std::int64_t k) const { k_.fill_(static_cast<double>(k)); }

std::int64_t Router::established() const {
  if (ramp_.version() != ramp_version_) index_ramp();
  return heads_ - ramping_;
}

const Tensor& Router::extra_heads() const {
  if (ramp_.version() != ramp_version_) index_ramp();
  return extra_;
}

void Router::index_ramp() const {
  ramp_version_ = ramp_.version();
  extra_ = Tensor();
  ramping_ = 0;
  for (std::int64_t h = 0; h < heads_; ++h) ramping_ += ramp_.data<std::int32_t>()[h] > 0 ? 1 : 0;
  if (ramping_ == 0) return;
  extra_ = Tensor::zeros({heads_}, DType::i32);
  for (std::int64_t h = 0; h < heads_; ++h) {
    extra_.data<std::int32_t>()[h] = ramp_.data<std::int32_t>()[h] > 0 ? 1 : 0;
  }
}

void Router::count_step() const {
  ++steps_.data<std::int64_t>()[0];
  steps_.bump_version();
  if (established() == heads_) return;
  for (std::int64_t h = 0; h < heads_; ++h) {
    auto& left = ramp_.data<std::int32_t>()[h];
    if (left > 0) --left;
  }
  ramp_.bump_version();
}

}  // namespace proteus
