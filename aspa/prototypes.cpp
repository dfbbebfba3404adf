#include "aspa/prototypes.h"

#include <algorithm>
#include <cmath>

#include "tensor/ops/prototypes.h"

namespace proteus {
namespace {

template <class T>
void normalise(const T* from, T* to, std::int64_t R) {
  double square = 0;
  for (std::int64_t r = 0; r < R; ++r) {
    square += static_cast<double>(from[r]) * static_cast<double>(from[r]);
  }
  if (!(square > 0)) return;
  const double scale = 1 / std::sqrt(square);
  for (std::int64_t r = 0; r < R; ++r) to[r] = T(static_cast<double>(from[r]) * scale);
}

template <class T>
struct Table {
  explicit Table(const GateState& s)
      : w(s.w.data<T>()),
        p(s.p.data<T>()),
        N(s.N.data<T>()),
        P(s.P.data<T>()),
        mass(s.mass.data<T>()),
        head(s.head_of_gate.data<std::int32_t>()),
        starving(s.starving.data<std::int32_t>()),
        G(s.w.size(0)),
        R(s.w.size(1)) {}

  // Takes the gate out of its head; false if it is the head's last.
  bool prune(std::int64_t gate) {
    double rest = 0;
    for (std::int64_t g = 0; g < G; ++g) {
      if (g != gate && head[g] == head[gate]) rest += static_cast<double>(mass[g]);
    }
    if (!(rest > 0)) return false;
    for (std::int64_t g = 0; g < G; ++g) {
      if (head[g] == head[gate]) mass[g] = T(static_cast<double>(mass[g]) / rest);
    }
    return true;
  }

  // Fills a pruned gate with half of another one.
  void clone(std::int64_t gate, std::int64_t source, double noise, RngKey key) {
    head[gate] = head[source];
    mass[gate] = mass[source] /= T(2);
    N[gate] = N[source] /= T(2);
    double square = 0;
    for (std::int64_t r = 0; r < R; ++r) {
      const auto value = static_cast<double>(w[source * R + r]);
      square += value * value;
      P[source * R + r] /= T(2);
    }
    const double std = noise * std::sqrt(square / static_cast<double>(R));
    const auto z = Tensor::randn({R}, key, DType::f64, 0, std).to_vector();
    for (std::int64_t r = 0; r < R; ++r) {
      w[gate * R + r] = T(static_cast<double>(w[source * R + r]) + z[static_cast<std::size_t>(r)]);
    }
  }

  // The token whose nearest prototype is farthest; ties go to the earlier one.
  const T* farthest(const Tensor& recent) const {
    const T* best = nullptr;
    double best_cosine = 2;
    std::vector<T> unit(static_cast<std::size_t>(R));
    for (std::int64_t n = 0; n < recent.size(0); ++n) {
      const T* x = recent.data<T>() + n * R;
      std::fill(unit.begin(), unit.end(), T(0));
      normalise(x, unit.data(), R);
      double nearest = -2;
      for (std::int64_t g = 0; g < G; ++g) {
        double dot = 0;
        for (std::int64_t r = 0; r < R; ++r) {
          dot += static_cast<double>(unit[static_cast<std::size_t>(r)]) *
                 static_cast<double>(p[g * R + r]);
        }
        nearest = std::max(nearest, dot);
      }
      if (nearest < best_cosine) {
        best_cosine = nearest;
        best = x;
      }
    }
    return best;
  }

  void reseed(std::int64_t gate, const Tensor& recent) {
    const T* x = recent.defined() ? farthest(recent) : nullptr;
    const T* from = x ? x : p + gate * R;
    for (std::int64_t r = 0; r < R; ++r) P[gate * R + r] = N[gate] * from[r];
    normalise(from, p + gate * R, R);
    starving[gate] = 0;
  }

  T* w;
  T* p;
  T* N;
  T* P;
  T* mass;
  std::int32_t* head;
  std::int32_t* starving;
  std::int64_t G;
  std::int64_t R;
};

template <class F>
void with_table(const GateState& gates, F&& fn) {
  if (gates.w.dtype() == DType::f64) {
    Table<double> table(gates);
    fn(table);
  } else {
    Table<float> table(gates);
    fn(table);
  }
}

std::vector<Tensor> tensors_of(const GateState& s) {
  return {s.w, s.p, s.N, s.P, s.mass, s.head_of_gate, s.starving};
}

GateState on_host(const GateState& s) {
  return {s.w.to(kCpu),       s.p.to(kCpu),    s.N.to(kCpu),
          s.P.to(kCpu),       s.mass.to(kCpu), s.head_of_gate.to(kCpu),
          s.starving.to(kCpu)};
}

// Writes what was changed on the host back to where it came from; the same tensors need no copy.
void write_back(const GateState& host, const GateState& gates) {
  const auto from = tensors_of(host);
  const auto to = tensors_of(gates);
  for (std::size_t i = 0; i < to.size(); ++i) {
    if (to[i].device() == kCpu) {
      to[i].bump_version();
    } else {
      to[i].copy_(from[i]);
    }
  }
}

}  // namespace

void update_prototypes(const PrototypeConfig& config, const GateState& gates,
                       const GateUpdate& update) {
  if (!config.enabled || !update.weight_sum.defined()) return;
  ops::prototypes_step({gates.N, gates.P, gates.p, gates.starving}, update.weight_sum,
                       update.weighted_sum, config.ema, config.dead_share);
}

double prototype_drift(const Tensor& before, const Tensor& after) {
  if (!before.defined() || !after.defined() || before.shape() != after.shape()) return -1;
  const std::int64_t G = after.size(0);
  const std::int64_t R = after.size(1);
  const std::vector<double> a = before.to_vector();
  const std::vector<double> b = after.to_vector();
  double sum = 0;
  for (std::int64_t g = 0; g < G; ++g) {
    double dot = 0;
    double aa = 0;
    double bb = 0;
    for (auto i = static_cast<std::size_t>(g * R); i < static_cast<std::size_t>((g + 1) * R); ++i) {
      dot += a[i] * b[i];
      aa += a[i] * a[i];
      bb += b[i] * b[i];
    }
    sum += aa > 0 && bb > 0 ? 1 - dot / std::sqrt(aa * bb) : 0;
  }
  return G > 0 ? sum / static_cast<double>(G) : 0;
}

std::vector<std::int64_t> dead_gates(const PrototypeConfig& config, const GateState& gates) {
  std::vector<std::int64_t> dead;
  const Tensor host = gates.starving.to(kCpu);
  const auto* starving = host.data<std::int32_t>();
  for (std::int64_t g = 0; g < gates.starving.numel(); ++g) {
    if (starving[g] >= config.dead_steps) dead.push_back(g);
  }
  return dead;
}

std::vector<Revival> revive_gates(const PrototypeConfig& config, const GateState& gates,
                                  const GateUpdate& update, RngKey noise) {
  std::vector<Revival> revived;
  const auto dead = dead_gates(config, gates);
  if (dead.empty()) return revived;
  const GateState host = on_host(gates);
  const Tensor recent = update.recent.defined() ? update.recent.to(kCpu) : update.recent;
  for (const std::int64_t gate : dead) {
    with_table(host, [&](auto& table) {
      const std::int64_t busiest = std::max_element(table.N, table.N + table.G) - table.N;
      const bool moved = busiest != gate && table.prune(gate);
      if (moved) {
        const RngKey key{noise.seed, noise.stream + static_cast<std::uint64_t>(gate)};
        table.clone(gate, busiest, config.clone_noise, key);
      }
      table.reseed(gate, recent);
      revived.push_back({gate, moved ? busiest : gate});
    });
  }
  write_back(host, gates);
  return revived;
}

}  // namespace proteus
