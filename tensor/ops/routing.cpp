#include "tensor/ops/routing.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>
#include <vector>

#include "tensor/ops/transpose.h"
#include "tensor/parallel.h"
#include "tensor/vmath.h"

namespace proteus {
namespace {

constexpr std::int64_t kTokenGrain = 64;   // tokens per chunk: also fixes the order of dλ's sum
constexpr std::int64_t kSumRows = 1024;    // rows per partial sum of a gate
constexpr std::int64_t kSegmentGrain = 8;  // packed streams per chunk

// 1/|x|, or 0 for a vector too short to have a direction.
template <class T>
T inverse_norm(const T* x, std::int64_t R) {
  T square = 0;
#pragma omp simd reduction(+ : square)
  for (std::int64_t r = 0; r < R; ++r) square += x[r] * x[r];
  return square < std::numeric_limits<T>::min() ? T(0) : T(1) / std::sqrt(square);
}

template <class T>
T dot(const T* a, const T* b, std::int64_t R) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t r = 0; r < R; ++r) sum += a[r] * b[r];
  return sum;
}

template <class T>
void axpy(T scale, const T* x, T* y, std::int64_t R) {
#pragma omp simd
  for (std::int64_t r = 0; r < R; ++r) y[r] += scale * x[r];
}

// Dense logits: tiles of tokens, one token per vector lane, so that a tail is computed as the rest.
template <class T>
struct LogitTile {
  static constexpr int kWidth = static_cast<int>(64 / sizeof(T));
  static constexpr int kVectors = 2;
  static constexpr int kTokens = kWidth * kVectors;
  static constexpr int kGates = 4;
  typedef T Vector __attribute__((vector_size(64), aligned(64)));
  using Integer = std::conditional_t<sizeof(T) == 4, std::int32_t, std::int64_t>;
  typedef Integer Integers __attribute__((vector_size(64), aligned(64)));
  union Lanes {
    Vector v[kVectors];
    T t[kTokens];
  };

  const GateTable& gates;
  const std::vector<T>& log_mass;  // of the gates in their order
  std::vector<Lanes> xt;           // [R]
  std::vector<Lanes> scores;       // [G]
  Lanes inverse;
  Vector best[kVectors];       // largest p·x so far,
  Integers nearest[kVectors];  // and the gate it belongs to

  LogitTile(const GateTable& g, const std::vector<T>& masses)
      : gates(g),
        log_mass(masses),
        xt(static_cast<std::size_t>(g.R)),
        scores(static_cast<std::size_t>(g.G)) {}

  void load(const T* x, std::int64_t count) {
    const std::int64_t R = gates.R;
    for (int v = 0; v < kVectors; ++v) {
      best[v] = Vector{} - std::numeric_limits<T>::infinity();
      nearest[v] = Integers{};
    }
    for (int lane = 0; lane < kTokens; ++lane) {
      const bool real = lane < count;
      inverse.t[lane] = real ? inverse_norm(x + lane * R, R) : T(0);
      for (std::int64_t r = 0; r < R; ++r) {
        xt[static_cast<std::size_t>(r)].t[lane] = real ? x[lane * R + r] : T(0);
      }
    }
  }

  // z of all heads: some of them at a time, so that a token's row is written a cache line at once.
  void write_heads(std::int64_t count, T* z) const {
    constexpr std::int64_t kHeads = kWidth;
    Lanes block[kHeads];
    for (std::int64_t first = 0; first < gates.Hr; first += kHeads) {
      const std::int64_t heads = std::min(kHeads, gates.Hr - first);
      for (std::int64_t h = 0; h < heads; ++h) head(first + h, block[h]);
      transpose(block[0].t, kTokens, z + first, gates.Hr, heads, count);
    }
  }

  // Gates come in the order of their heads: of equally near ones the lower index wins explicitly.
  void keep_nearest(std::int32_t gate, const Vector* cosine) {
    const Integers index = Integers{} + gate;
    for (int v = 0; v < kVectors; ++v) {
      const Integers nearer =
          (cosine[v] > best[v]) | ((cosine[v] == best[v]) & (index < nearest[v]));
      best[v] = nearer ? cosine[v] : best[v];
      nearest[v] = nearer ? index : nearest[v];
    }
  }

  void write_nearest(std::int64_t count, std::int32_t* to) const {
    for (std::int64_t i = 0; i < count; ++i) {
      to[i] = static_cast<std::int32_t>(nearest[i / kWidth][i % kWidth]);
    }
  }

  void score(std::int64_t first, bool want_nearest) {
    const auto G = static_cast<std::int64_t>(scores.size());
    const std::int64_t R = gates.R;
    const T* w[kGates];
    const T* p[kGates];
    for (int i = 0; i < kGates; ++i) {
      const std::int64_t g = gates.order[std::min(first + i, G - 1)];
      w[i] = static_cast<const T*>(gates.w) + g * R;
      p[i] = gates.p ? static_cast<const T*>(gates.p) + g * R : w[i];
    }
    Vector sum[kGates][kVectors] = {};
    Vector cosine[kGates][kVectors] = {};
    for (std::int64_t r = 0; r < R; ++r) {
      const Lanes& x = xt[static_cast<std::size_t>(r)];
      for (int i = 0; i < kGates; ++i) {
        for (int v = 0; v < kVectors; ++v) {
          sum[i][v] += w[i][r] * x.v[v];
          cosine[i][v] += p[i][r] * x.v[v];
        }
      }
    }
    const T lambda = gates.p ? *static_cast<const T*>(gates.lambda) : T(0);
    for (int i = 0; i < kGates && first + i < G; ++i) {
      const auto g = static_cast<std::size_t>(first + i);
      for (int v = 0; v < kVectors; ++v) {
        scores[g].v[v] = sum[i][v] + lambda * inverse.v[v] * cosine[i][v] + log_mass[g];
      }
      if (want_nearest) keep_nearest(gates.order[g], cosine[i]);
    }
  }

  // z of one head, with the largest score taken out before exp; of one gate it is the score.
  void head(std::int64_t h, Lanes& z) const {
    if (gates.head_begin[h + 1] == gates.head_begin[h] + 1) {
      z = scores[static_cast<std::size_t>(gates.head_begin[h])];
      return;
    }
    Lanes top;
    Lanes sum;
    std::fill_n(top.t, kTokens, -std::numeric_limits<T>::max());
    std::fill_n(sum.t, kTokens, T(0));
    for (std::int32_t g = gates.head_begin[h]; g < gates.head_begin[h + 1]; ++g) {
      const T* s = scores[static_cast<std::size_t>(g)].t;
#pragma omp simd
      for (int i = 0; i < kTokens; ++i) top.t[i] = s[i] > top.t[i] ? s[i] : top.t[i];
    }
    for (std::int32_t g = gates.head_begin[h]; g < gates.head_begin[h + 1]; ++g) {
      const T* s = scores[static_cast<std::size_t>(g)].t;
#pragma omp simd
      for (int i = 0; i < kTokens; ++i) sum.t[i] += vmath::exp(s[i] - top.t[i]);
    }
#pragma omp simd
    for (int i = 0; i < kTokens; ++i) z.t[i] = top.t[i] + vmath::log(sum.t[i]);
  }
};

template <class T>
void gate_logits_typed(const GateLogitsFwd& a) {
  using Tile = LogitTile<T>;
  const std::int64_t G = a.gates.G;
  // A tile's scores of many gates are worth keeping for more than a few tokens.
  const std::int64_t grain = Tile::kTokens * (G < 256 ? 4 : 32);
  std::vector<T> log_mass(static_cast<std::size_t>(G));
  for (std::size_t i = 0; i < log_mass.size(); ++i) {
    log_mass[i] = std::log(static_cast<const T*>(a.gates.mass)[a.gates.order[i]]);
  }
  parallel_for(a.N, grain, [&](std::int64_t begin, std::int64_t end) {
    Tile tile(a.gates, log_mass);
    for (std::int64_t n = begin; n < end; n += Tile::kTokens) {
      const std::int64_t count = std::min<std::int64_t>(Tile::kTokens, end - n);
      tile.load(static_cast<const T*>(a.x) + n * a.gates.R, count);
      for (std::int64_t g = 0; g < G; g += Tile::kGates) tile.score(g, a.nearest != nullptr);
      if (a.nearest) tile.write_nearest(count, a.nearest + n);
      tile.write_heads(count, static_cast<T*>(a.z) + n * a.gates.Hr);
    }
  });
}

// One packed row: z and the shares of its head's gates.
template <class T>
T row_logit(const GateTable& gates, std::int64_t h, const T* x, T* share) {
  const std::int64_t R = gates.R;
  const std::int32_t first = gates.head_begin[h];
  const int count = gates.head_begin[h + 1] - first;
  const std::int32_t* order = gates.order + first;
  const T* mass = static_cast<const T*>(gates.mass);
  const T* w = static_cast<const T*>(gates.w);
  const T* p = static_cast<const T*>(gates.p);
  const T cosine_scale = p ? *static_cast<const T*>(gates.lambda) * inverse_norm(x, R) : T(0);
  T top = -std::numeric_limits<T>::max();
  for (int i = 0; i < count; ++i) {
    T s = dot(w + order[i] * R, x, R);
    if (p) s += cosine_scale * dot(p + order[i] * R, x, R);
    share[i] = s;
    top = std::max(top, s);
  }
  T sum = 0;
  for (int i = 0; i < count; ++i) {
    share[i] = mass[order[i]] * vmath::exp(share[i] - top);
    sum += share[i];
  }
  for (int i = 0; i < count; ++i) share[i] /= sum;
  return top + vmath::log(sum);
}

template <class T>
void gate_rows_typed(const GateRowsFwd& a) {
  parallel_for(a.gates.Hr, 1, [&](std::int64_t h, std::int64_t) {
    const std::int64_t end = a.offsets[(h + 1) * a.stride];
    for (std::int64_t r = a.offsets[h * a.stride]; r < end; ++r) {
      T* share = static_cast<T*>(a.share) + r * a.width;
      std::fill_n(share, a.width, T(0));
      const T* x = static_cast<const T*>(a.x) + a.token[r] * a.gates.R;
      static_cast<T*>(a.z)[r] = row_logit(a.gates, h, x, share);
    }
  });
}

// ds_{r,g} = dz_r·share_{r,g}. With u = Σ ds·w, v = Σ ds·p over a token's gates:
// dx = u + λ/|x|·(v − x̂(x̂·v)) and dλ = Σ_n x̂·v.
template <class T>
T token_gradient(const GateRowsBwd& a, std::int64_t n, T* u, T* v) {
  const std::int64_t R = a.gates.R;
  std::fill_n(u, R, T(0));
  std::fill_n(v, R, T(0));
  for (std::int64_t j = 0; j < a.slots; ++j) {
    const std::int64_t row = a.row_of[n * a.slots + j];
    if (row < 0) continue;
    const std::int32_t h = a.heads[n * a.slots + j];
    const T dz = static_cast<const T*>(a.dz)[row];
    const T* share = static_cast<const T*>(a.share) + row * a.width;
    for (std::int32_t i = a.gates.head_begin[h]; i < a.gates.head_begin[h + 1]; ++i) {
      const T ds = dz * share[i - a.gates.head_begin[h]];
      const std::int64_t g = a.gates.order[i];
      axpy(ds, static_cast<const T*>(a.gates.w) + g * R, u, R);
      if (a.gates.p) axpy(ds, static_cast<const T*>(a.gates.p) + g * R, v, R);
    }
  }
  const T* x = static_cast<const T*>(a.x) + n * R;
  T* dx = static_cast<T*>(a.dx) + n * R;
  const T inverse = a.gates.p ? inverse_norm(x, R) : T(0);
  const T along = inverse * dot(x, v, R);  // x̂·v
  const T scale = a.gates.p ? inverse * *static_cast<const T*>(a.gates.lambda) : T(0);
#pragma omp simd
  for (std::int64_t r = 0; r < R; ++r) dx[r] = u[r] + scale * (v[r] - x[r] * inverse * along);
  return along;
}

template <class T>
void token_gradients(const GateRowsBwd& a) {
  const auto R = static_cast<std::size_t>(a.gates.R);
  std::vector<T> dlambda(static_cast<std::size_t>((a.N + kTokenGrain - 1) / kTokenGrain));
  parallel_for(a.N, kTokenGrain, [&](std::int64_t begin, std::int64_t end) {
    std::vector<T> scratch(2 * R);
    T sum = 0;
    for (std::int64_t n = begin; n < end; ++n) {
      sum += token_gradient(a, n, scratch.data(), scratch.data() + R);
    }
    dlambda[static_cast<std::size_t>(begin / kTokenGrain)] = sum;
  });
  if (!a.dlambda) return;
  T sum = 0;
  for (const T d : dlambda) sum += d;
  *static_cast<T*>(a.dlambda) = sum;
}

// out[g] = Σ_r c_{r,g}·x_{token r} and, unless null, count[g] = Σ_r c_{r,g} over the packed rows of
// g's head; c = share·weight (weight 1 when null).
template <class T>
struct GateSums {
  const GateTable& gates;
  const T* x;
  const T* share;
  const T* weight;
  const std::int32_t* token;
  const std::int32_t* offsets;
  std::int64_t stride;
  std::int64_t width;

  void run(T* out, T* count) const {
    parallel_for(gates.Hr, 1, [&](std::int64_t h, std::int64_t) { head(h, out, count); });
  }

  void head(std::int64_t h, T* out, T* count) const {
    const std::int64_t R = gates.R;
    const std::int32_t* order = gates.order + gates.head_begin[h];
    const auto n = static_cast<std::int64_t>(gates.head_begin[h + 1] - gates.head_begin[h]);
    std::vector<T> sum(static_cast<std::size_t>(n * (R + 1)));
    std::vector<T> part(sum.size());
    const std::int64_t end = offsets[(h + 1) * stride];
    for (std::int64_t from = offsets[h * stride]; from < end; from += kSumRows) {
      std::fill(part.begin(), part.end(), T(0));
      for (std::int64_t r = from; r < std::min(end, from + kSumRows); ++r) {
        const T scale = weight ? weight[r] : T(1);
        for (std::int64_t i = 0; i < n; ++i) {
          const T c = scale * share[r * width + i];
          part[static_cast<std::size_t>(n * R + i)] += c;
          axpy(c, x + token[r] * R, part.data() + i * R, R);
        }
      }
      axpy(T(1), part.data(), sum.data(), n * (R + 1));
    }
    for (std::int64_t i = 0; i < n; ++i) {
      std::copy_n(sum.data() + i * R, R, out + order[i] * R);
      if (count) count[order[i]] = sum[static_cast<std::size_t>(n * R + i)];
    }
  }
};

template <class T>
void gate_rows_bwd_typed(const GateRowsBwd& a) {
  if (a.dx) token_gradients<T>(a);
  if (!a.dw) return;
  GateSums<T>{a.gates,
              static_cast<const T*>(a.x),
              static_cast<const T*>(a.share),
              static_cast<const T*>(a.dz),
              a.token,
              a.offsets,
              a.stride,
              a.width}
      .run(static_cast<T*>(a.dw), nullptr);
}

template <class T>
void prototype_stats_typed(const PrototypeStats& a) {
  GateSums<T>{a.gates,
              static_cast<const T*>(a.x),
              static_cast<const T*>(a.share),
              nullptr,
              a.token,
              a.offsets,
              a.stride,
              a.width}
      .run(static_cast<T*>(a.weighted_sum), static_cast<T*>(a.weight_sum));
}

void key_ranges_cpu(const KeyRangesFwd& a) {
  parallel_for(a.segments, kSegmentGrain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t s = begin; s < end; ++s) {
      a.streams[s] = stream_of(a, s);
      const std::int32_t first = a.k_offsets[s];
      std::int32_t key = first;
      for (std::int32_t q = a.q_offsets[s]; q < a.q_offsets[s + 1]; ++q) {
        while (key < a.k_offsets[s + 1] && a.k_token[key] <= a.q_token[q]) ++key;
        const std::int64_t n = key - first;
        a.hi[q] = static_cast<std::int32_t>(n);
        a.lo[q] = static_cast<std::int32_t>(n) - a.visible[n];
      }
    }
  });
}

template <class Args, void (*F32)(const Args&), void (*F64)(const Args&)>
void by_dtype(const Args& a) {
  if (a.dtype == DType::f64) {
    F64(a);
  } else {
    F32(a);
  }
}

}  // namespace

Slot<GateLogitsFwd> gate_logits_fwd{
    "gate_logits_fwd",
    by_dtype<GateLogitsFwd, gate_logits_typed<float>, gate_logits_typed<double>>};
Slot<GateRowsFwd> gate_rows_fwd{
    "gate_rows_fwd", by_dtype<GateRowsFwd, gate_rows_typed<float>, gate_rows_typed<double>>};
Slot<GateRowsBwd> gate_rows_bwd{
    "gate_rows_bwd",
    by_dtype<GateRowsBwd, gate_rows_bwd_typed<float>, gate_rows_bwd_typed<double>>};
Slot<PrototypeStats> prototype_stats{
    "prototype_stats",
    by_dtype<PrototypeStats, prototype_stats_typed<float>, prototype_stats_typed<double>>};
Slot<KeyRangesFwd> key_ranges_fwd{"key_ranges_fwd", key_ranges_cpu};

}  // namespace proteus
