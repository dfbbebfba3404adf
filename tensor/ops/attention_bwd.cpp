// The CPU backward kernel. Weights are recomputed from the saved log-sum-exp:
//   P = exp(S − lse),  dP = dO·Vᵀ (dropped like P),  dS = P ⊙ (dP − δ),  δ_i = Σ_d dO_id·O_id
//   dV = Pᵀ·dO,  dK = scale·dSᵀ·Q,  dQ = scale·dS·K,  dbias_j = Σ_i dS_ij,
//   dsink = −Σ_i P_i,sink·δ_i
// With many segments each is one task: five products per tile. With few, key tiles and query tiles
// are separate tasks that recompute dS: seven products, but enough tasks for all threads. Which of
// the two depends on the segments alone, and every sum has a fixed order: any number of threads
// gives the same bits.
#include "tensor/ops/attention_tiles.h"
#include "tensor/parallel.h"

namespace proteus::attention_tiles {
namespace {

constexpr std::int64_t kManySegments = 32;

template <class A>
struct Scratch {
  std::vector<A> q_rows, out_rows, dout_rows, k_rows, v_rows;
  std::vector<A> q_t, dout_t;  // [D, kQueries]
  std::vector<A> weights;      // [kKeys, kQueries]: P^T, dropped
  std::vector<A> dscores;      // [kKeys, kQueries]: dS^T, scaled
  std::vector<A> drop;         // [4, kQueries]
  std::vector<A> dq, dk, dv;   // sums of a tile or a segment
  Rows<A> q, dout;
  A lse[kQueries], delta[kQueries];
};

template <class A>
Scratch<A>& scratch(std::int64_t D) {
  thread_local Scratch<A> s;
  for (auto* t : {&s.q_t, &s.dout_t}) t->resize(static_cast<std::size_t>(D * kQueries));
  for (auto* t : {&s.weights, &s.dscores}) t->resize(static_cast<std::size_t>(kKeys * kQueries));
  s.drop.resize(static_cast<std::size_t>(4 * kQueries));
  return s;
}

template <class T, class A>
void load_queries(const AttentionBwd& a, const QueryTile& tile, Scratch<A>& w) {
  const AttentionProblem& p = tile.p;
  const std::int64_t row = tile.s.q_row + tile.q0;
  const std::int64_t head = tile.s.head;
  w.q = load_rows<T, A>(p.q, head, row, tile.count, p.D, w.q_rows);
  w.dout = load_rows<T, A>(a.dout, head, row, tile.count, p.D, w.dout_rows);
  const Rows<A> out = load_rows<T, A>(a.out, head, row, tile.count, p.D, w.out_rows);
  transpose_rows(w.q, tile.count, tile.padded, p.D, static_cast<A>(p.scale), w.q_t.data());
  transpose_rows(w.dout, tile.count, tile.padded, p.D, A(1), w.dout_t.data());
  const A* lse = static_cast<const A*>(a.lse) + tile.s.slot + tile.q0;
  for (std::int64_t i = 0; i < kQueries; ++i) {
    // A query that sees nothing, or a lane beyond the last, has weights exp(−inf) = 0.
    const bool blind = i >= tile.count || lse[i] == kNegInf<A>;
    w.lse[i] = blind ? -kNegInf<A> : lse[i];
    w.delta[i] = 0;
    if (i >= tile.count) continue;
    A sum = 0;
    const A* x = w.dout.data + i * w.dout.stride;
    const A* y = out.data + i * out.stride;
#pragma omp simd reduction(+ : sum)
    for (std::int64_t d = 0; d < p.D; ++d) sum += x[d] * y[d];
    w.delta[i] = sum;
  }
}

// weights and dscores of the keys [r0, r1); dbias, if wanted, gets its sums.
template <class T, class A>
void pair(const QueryTile& tile, std::int64_t r0, std::int64_t r1, const Rows<A>& k, A* dbias,
          Scratch<A>& w) {
  const AttentionProblem& p = tile.p;
  const std::int64_t keys = r1 - r0;
  const std::int64_t n = tile.padded;
  const Rows<A> v = load_rows<T, A>(p.v, tile.s.head, tile.s.k_row + r0, keys, p.D, w.v_rows);
  tile::gemm<A>(keys, n, p.D, {k.data, k.stride}, w.q_t.data(), kQueries,
                {w.weights.data(), kQueries}, false);
  tile::gemm<A>(keys, n, p.D, {v.data, v.stride}, w.dout_t.data(), kQueries,
                {w.dscores.data(), kQueries}, false);
  Visible visible(tile);
  const A* bias = static_cast<const A*>(p.key_bias);
  const A scale = static_cast<A>(p.scale);
  for (std::int64_t j = r0; j < r1; ++j) {
    A* weight = w.weights.data() + (j - r0) * kQueries;
    A* dscore = w.dscores.data() + (j - r0) * kQueries;
    const A b = bias ? bias[tile.s.k_row + j] : A(0);
    for (std::int64_t i = 0; i < n; ++i) weight[i] = vmath::exp(weight[i] + b - w.lse[i]);
    visible.advance(j);
    for (std::int64_t i = 0; i < visible.begin; ++i) weight[i] = 0;
    for (std::int64_t i = visible.end; i < tile.count; ++i) weight[i] = 0;
    if (p.dropout > 0) {
      if ((j - r0) % 4 == 0) dropout_group(tile, j, w.drop.data());
      const A* factor = w.drop.data() + (j - r0) % 4 * kQueries;
      for (std::int64_t i = 0; i < n; ++i) {
        dscore[i] = weight[i] * (factor[i] * dscore[i] - w.delta[i]);
        weight[i] *= factor[i];
      }
    } else {
      for (std::int64_t i = 0; i < n; ++i) dscore[i] = weight[i] * (dscore[i] - w.delta[i]);
    }
    if (dbias) {
      A sum = 0;
      for (std::int64_t i = 0; i < n; ++i) sum += dscore[i];
      dbias[j] += sum;
    }
    for (std::int64_t i = 0; i < n; ++i) dscore[i] *= scale;
  }
}

template <class T, class A>
void store_rows(const HeadRows& rows, std::int64_t head, std::int64_t row, std::int64_t count,
                std::int64_t D, const A* source) {
  for (std::int64_t i = 0; i < count; ++i) {
    T* out = row_pointer_out<T>(rows, head, row + i);
    for (std::int64_t d = 0; d < D; ++d) out[d] = T(source[i * D + d]);
  }
}

template <class A>
void add_dkv(const QueryTile& tile, std::int64_t keys, A* dk, A* dv, const Scratch<A>& w) {
  const std::int64_t D = tile.p.D;
  tile::gemm<A>(keys, D, tile.count, {w.weights.data(), kQueries}, w.dout.data, w.dout.stride,
                {dv, D}, true);
  tile::gemm<A>(keys, D, tile.count, {w.dscores.data(), kQueries}, w.q.data, w.q.stride, {dk, D},
                true);
}

template <class A>
void add_dq(const QueryTile& tile, std::int64_t keys, const Rows<A>& k, Scratch<A>& w) {
  tile::gemm<A>(tile.count, tile.p.D, keys, {w.dscores.data(), 1, kQueries}, k.data, k.stride,
                {w.dq.data(), tile.p.D}, true);
}

template <class A>
A sink_gradient(const QueryTile& tile, const Scratch<A>& w) {
  const A sink = static_cast<const A*>(tile.p.sink)[tile.s.head];
  A sum = 0;
  for (std::int64_t i = 0; i < tile.count; ++i) {
    sum -= static_cast<A>(tile.p.sink_scale) * vmath::exp(sink - w.lse[i]) * w.delta[i];
  }
  return sum;
}

// What a walk over one query tile's keys is for.
template <class A>
struct Sums {
  A* dk = nullptr;  // of key `first_key`, D per row; null = not wanted
  A* dv = nullptr;
  A* dbias = nullptr;  // of key 0 of the segment
  std::int64_t first_key = 0;
  bool dq = false;
};

template <class T, class A>
void visit(const QueryTile& tile, std::int64_t t0, const Sums<A>& sums, Scratch<A>& w) {
  std::int64_t r0 = 0;
  std::int64_t r1 = 0;
  tile.keys(t0, r0, r1);
  if (r0 >= r1) return;
  const AttentionProblem& p = tile.p;
  const Rows<A> k = load_rows<T, A>(p.k, tile.s.head, tile.s.k_row + r0, r1 - r0, p.D, w.k_rows);
  pair<T, A>(tile, r0, r1, k, sums.dbias, w);
  if (sums.dk) {
    const std::int64_t at = (r0 - sums.first_key) * p.D;
    add_dkv(tile, r1 - r0, sums.dk + at, sums.dv + at, w);
  }
  if (sums.dq) add_dq(tile, r1 - r0, k, w);
}

template <class A>
A* bias_of(const AttentionBwd& a, const AttentionSegment& s) {
  return a.dkey_bias ? static_cast<A*>(a.dkey_bias) + s.k_row : nullptr;
}

// One segment, all gradients.
template <class T, class A>
void backward_segment(const AttentionBwd& a, std::int64_t index) {
  const AttentionProblem& p = a.problem;
  const AttentionSegment& s = p.segments[index];
  Scratch<A>& w = scratch<A>(p.D);
  w.dk.assign(static_cast<std::size_t>(s.k_count * p.D), A(0));
  w.dv.assign(static_cast<std::size_t>(s.k_count * p.D), A(0));
  const Sums<A> sums{w.dk.data(), w.dv.data(), bias_of<A>(a, s), 0, true};
  if (sums.dbias) std::fill(sums.dbias, sums.dbias + s.k_count, A(0));
  A dsink = 0;
  for (std::int64_t q0 = 0; q0 < s.q_count; q0 += kQueries) {
    const QueryTile tile(p, s, q0, tile::kLanes<A>);
    load_queries<T, A>(a, tile, w);
    w.dq.assign(static_cast<std::size_t>(kQueries * p.D), A(0));
    for (std::int64_t t0 = 0; t0 < tile.hi_max(); t0 = tile.next(t0)) {
      visit<T, A>(tile, t0, sums, w);
    }
    store_rows<T>(a.dq, s.head, s.q_row + q0, tile.count, p.D, w.dq.data());
    if (a.dsink) dsink += sink_gradient(tile, w);
  }
  store_rows<T>(a.dk, s.head, s.k_row, s.k_count, p.D, w.dk.data());
  store_rows<T>(a.dv, s.head, s.k_row, s.k_count, p.D, w.dv.data());
  if (a.dsink) static_cast<A*>(a.dsink)[index] = dsink;
}

// dK, dV and dbias of one key tile.
template <class T, class A>
void backward_keys(const AttentionBwd& a, const AttentionSegment& s, std::int64_t t0) {
  const AttentionProblem& p = a.problem;
  Scratch<A>& w = scratch<A>(p.D);
  const std::int64_t keys = std::min(kKeys, s.k_count - t0);
  w.dk.assign(static_cast<std::size_t>(keys * p.D), A(0));
  w.dv.assign(static_cast<std::size_t>(keys * p.D), A(0));
  const Sums<A> sums{w.dk.data(), w.dv.data(), bias_of<A>(a, s), t0, false};
  if (sums.dbias) std::fill(sums.dbias + t0, sums.dbias + t0 + keys, A(0));
  for (std::int64_t q0 = 0; q0 < s.q_count; q0 += kQueries) {
    const QueryTile tile(p, s, q0, tile::kLanes<A>);
    if (t0 >= p.anchors && tile.lo[0] >= t0 + keys) break;  // windows have moved past for good
    if (tile.hi_max() <= t0) continue;
    load_queries<T, A>(a, tile, w);
    visit<T, A>(tile, t0, sums, w);
  }
  store_rows<T>(a.dk, s.head, s.k_row + t0, keys, p.D, w.dk.data());
  store_rows<T>(a.dv, s.head, s.k_row + t0, keys, p.D, w.dv.data());
}

// dQ of one query tile; returns its part of dsink.
template <class T, class A>
A backward_queries(const AttentionBwd& a, const AttentionSegment& s, std::int64_t q0) {
  const AttentionProblem& p = a.problem;
  Scratch<A>& w = scratch<A>(p.D);
  const QueryTile tile(p, s, q0, tile::kLanes<A>);
  load_queries<T, A>(a, tile, w);
  w.dq.assign(static_cast<std::size_t>(kQueries * p.D), A(0));
  Sums<A> sums;
  sums.dq = true;
  for (std::int64_t t0 = 0; t0 < tile.hi_max(); t0 = tile.next(t0)) {
    visit<T, A>(tile, t0, sums, w);
  }
  store_rows<T>(a.dq, s.head, s.q_row + q0, tile.count, p.D, w.dq.data());
  return a.dsink ? sink_gradient(tile, w) : A(0);
}

template <class T, class A>
void backward_by_tiles(const AttentionBwd& a) {
  const AttentionProblem& p = a.problem;
  struct Task {
    std::int64_t segment, first;
    bool keys;
  };
  std::vector<Task> tasks;
  for (std::int64_t n = 0; n < p.segment_count; ++n) {
    const AttentionSegment& s = p.segments[n];
    for (std::int64_t t = 0; t < s.k_count; t += kKeys) tasks.push_back({n, t, true});
    for (std::int64_t t = 0; t < s.q_count; t += kQueries) tasks.push_back({n, t, false});
  }
  std::vector<A> dsink(tasks.size());
  parallel_for(static_cast<std::int64_t>(tasks.size()), 1,
               [&](std::int64_t begin, std::int64_t end) {
                 for (std::int64_t i = begin; i < end; ++i) {
                   const Task& task = tasks[static_cast<std::size_t>(i)];
                   const AttentionSegment& s = p.segments[task.segment];
                   if (task.keys) {
                     backward_keys<T, A>(a, s, task.first);
                   } else {
                     dsink[static_cast<std::size_t>(i)] = backward_queries<T, A>(a, s, task.first);
                   }
                 }
               });
  if (!a.dsink) return;
  A* out = static_cast<A*>(a.dsink);
  std::fill(out, out + p.segment_count, A(0));
  for (std::size_t i = 0; i < tasks.size(); ++i) out[tasks[i].segment] += dsink[i];
}

void backward_cpu(const AttentionBwd& a) {
  dispatch_attention(a.problem.dtype, "attention_bwd", [&](auto t, auto acc) {
    using T = typename decltype(t)::type;
    using A = typename decltype(acc)::type;
    if (a.problem.segment_count < kManySegments) {
      backward_by_tiles<T, A>(a);
      return;
    }
    parallel_for(a.problem.segment_count, 1, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t n = begin; n < end; ++n) backward_segment<T, A>(a, n);
    });
  });
}

}  // namespace
}  // namespace proteus::attention_tiles

namespace proteus {
Slot<AttentionBwd> attention_bwd{"attention_bwd", attention_tiles::backward_cpu};
}
