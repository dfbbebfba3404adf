// The plain rung: one warp per query, and in the backward pass one warp per key. Nothing is shared
// or staged, every sum has a fixed order, any dtype and any width up to 256. The reference of the
// faster kernels on the GPU.
#include "cuda/attention_common.cuh"
#include "cuda/attention_rungs.h"

namespace proteus::cuda {
namespace {

constexpr int kWarps = 4;  // per block, each with a query (or key) of its own
constexpr int kThreads = kWarps * kWarp;

/// A row of width D spread over a warp: lane l has the elements l, l + 32, …
template <class A, int kPer>
struct Row {
  A x[kPer];

  template <class T>
  __device__ void load(const T* row, std::int64_t D) {
#pragma unroll
    for (int r = 0; r < kPer; ++r) {
      const int d = lane_id() + kWarp * r;
      x[r] = d < D ? A(row[d]) : A(0);
    }
  }
  template <class T>
  __device__ void store(T* row, std::int64_t D, A factor) const {
#pragma unroll
    for (int r = 0; r < kPer; ++r) {
      const int d = lane_id() + kWarp * r;
      if (d < D) row[d] = T(x[r] * factor);
    }
  }
  __device__ void clear() {
#pragma unroll
    for (int r = 0; r < kPer; ++r) x[r] = 0;
  }
  __device__ void scale(A factor) {
#pragma unroll
    for (int r = 0; r < kPer; ++r) x[r] *= factor;
  }
  template <class T>
  __device__ void add(A factor, const T* row, std::int64_t D) {
#pragma unroll
    for (int r = 0; r < kPer; ++r) {
      const int d = lane_id() + kWarp * r;
      if (d < D) x[r] += factor * A(row[d]);
    }
  }
  template <class T>
  __device__ A dot(const T* row, std::int64_t D) const {
    A sum = 0;
#pragma unroll
    for (int r = 0; r < kPer; ++r) {
      const int d = lane_id() + kWarp * r;
      if (d < D) sum += x[r] * A(row[d]);
    }
    return warp_sum(sum);
  }
};

/// fn(j) for the keys that query i of a segment sees, in order.
template <class F>
__device__ void for_keys(const AttentionProblem& p, const AttentionSegment& s, std::int64_t i,
                         F&& fn) {
  const std::int64_t lo = p.lo[s.range + i];
  const std::int64_t hi = p.hi[s.range + i];
  for (std::int64_t j = 0; j < min(p.anchors, lo); ++j) fn(j);
  for (std::int64_t j = lo; j < hi; ++j) fn(j);
}

template <class A>
__device__ A bias_of(const AttentionProblem& p, std::int64_t row) {
  return p.key_bias ? static_cast<const A*>(p.key_bias)[row] : A(0);
}

template <class T, class A, int kPer>
__device__ void forward_query(const AttentionFwd& a, const AttentionSegment& s, std::int64_t i) {
  const AttentionProblem& p = a.problem;
  const Dropout<A> dropout(p);
  Row<A, kPer> q;
  Row<A, kPer> o;
  q.load(row_of<T>(p.q, s.head, s.q_row + i), p.D);
  o.clear();
  A top = -kInfinity<A>;
  A sum = 0;
  for_keys(p, s, i, [&](std::int64_t j) {
    const std::int64_t row = s.k_row + j;
    const A score =
        q.dot(row_of<T>(p.k, s.head, row), p.D) * static_cast<A>(p.scale) + bias_of<A>(p, row);
    const A before = top;
    top = score > top ? score : top;
    if (top == -kInfinity<A>) return;
    const A shrink = exp(before - top);
    A weight = exp(score - top);
    sum = sum * shrink + weight;
    if (p.dropout > 0) weight *= dropout.of(s.slot + i, j);
    o.scale(shrink);
    o.add(weight, row_of<T>(p.v, s.head, row), p.D);
  });
  const bool with_sink = p.sink && p.sink_scale > 0;
  const A sink = with_sink ? static_cast<const A*>(p.sink)[s.head] : -kInfinity<A>;
  const A base = sink > top ? sink : top;
  const bool blind = base == -kInfinity<A>;
  const A shrink = blind ? A(0) : exp(top - base);
  A total = sum * shrink;
  if (with_sink && !blind) total += static_cast<A>(p.sink_scale) * exp(sink - base);
  o.store(row_of_out<T>(a.out, s.head, s.q_row + i), p.D, blind ? A(0) : shrink / total);
  if (lane_id() == 0) {
    static_cast<A*>(a.lse)[s.slot + i] = blind ? -kInfinity<A> : base + log(total);
  }
}

/// Calls fn(segment, item) with a warp for every item of a list of tiles of kWarps.
template <TileOf kOf, class F>
__device__ void for_items(const AttentionProblem& p, const TileList& tiles, F&& fn) {
  for_tiles<kOf>(p, tiles, kWarps, [&](const Tile& t) {
    if (warp_id() < t.count) fn(t.s, t.first + warp_id());
  });
}

template <class T, class A, int kPer>
__global__ void __launch_bounds__(kThreads) forward(const AttentionFwd a, const TileList tiles) {
  for_items<TileOf::queries>(a.problem, tiles, [&](const AttentionSegment& s, std::int64_t i) {
    forward_query<T, A, kPer>(a, s, i);
  });
}

/// Weight p and dS of one (query, key) pair from its two dot products; p dropped like in forward.
template <class A>
struct Pair {
  A weight, dscore;
  __device__ Pair(const AttentionProblem& p, const Dropout<A>& dropout, const AttentionSegment& s,
                  std::int64_t i, std::int64_t j, A qk, A dov, A lse, A delta) {
    const A score = qk * static_cast<A>(p.scale) + bias_of<A>(p, s.k_row + j);
    const A keep = p.dropout > 0 ? dropout.of(s.slot + i, j) : A(1);
    const A softmax = exp(score - lse);
    weight = softmax * keep;
    dscore = softmax * (dov * keep - delta);
  }
};

template <class T, class A, int kPer>
__global__ void __launch_bounds__(kThreads)
    backward_queries(const AttentionBwd a, const TileList tiles, const A* lse, const A* delta) {
  const AttentionProblem& p = a.problem;
  const Dropout<A> dropout(p);
  for_items<TileOf::queries>(p, tiles, [&](const AttentionSegment& s, std::int64_t i) {
    Row<A, kPer> q;
    Row<A, kPer> dout;
    Row<A, kPer> dq;
    q.load(row_of<T>(p.q, s.head, s.q_row + i), p.D);
    dout.load(row_of<T>(a.dout, s.head, s.q_row + i), p.D);
    dq.clear();
    for_keys(p, s, i, [&](std::int64_t j) {
      const T* k = row_of<T>(p.k, s.head, s.k_row + j);
      const A qk = q.dot(k, p.D);
      const A dov = dout.dot(row_of<T>(p.v, s.head, s.k_row + j), p.D);
      const Pair<A> pair(p, dropout, s, i, j, qk, dov, lse[s.slot + i], delta[s.slot + i]);
      dq.add(pair.dscore, k, p.D);
    });
    dq.store(row_of_out<T>(a.dq, s.head, s.q_row + i), p.D, static_cast<A>(p.scale));
  });
}

template <class T, class A, int kPer>
__global__ void __launch_bounds__(kThreads)
    backward_keys(const AttentionBwd a, const TileList tiles, const A* lse, const A* delta) {
  const AttentionProblem& p = a.problem;
  const Dropout<A> dropout(p);
  for_items<TileOf::keys>(p, tiles, [&](const AttentionSegment& s, std::int64_t j) {
    Row<A, kPer> k;
    Row<A, kPer> v;
    Row<A, kPer> dk;
    Row<A, kPer> dv;
    k.load(row_of<T>(p.k, s.head, s.k_row + j), p.D);
    v.load(row_of<T>(p.v, s.head, s.k_row + j), p.D);
    dk.clear();
    dv.clear();
    A dbias = 0;
    const QueryRange queries(p, s, j, j + 1);
    for (std::int64_t i = queries.begin; i < queries.end; ++i) {
      const T* q = row_of<T>(p.q, s.head, s.q_row + i);
      const T* dout = row_of<T>(a.dout, s.head, s.q_row + i);
      const Pair<A> pair(p, dropout, s, i, j, k.dot(q, p.D), v.dot(dout, p.D), lse[s.slot + i],
                         delta[s.slot + i]);
      dk.add(pair.dscore, q, p.D);
      dv.add(pair.weight, dout, p.D);
      dbias += pair.dscore;
    }
    const std::int64_t row = s.k_row + j;
    if (a.dk.data) dk.store(row_of_out<T>(a.dk, s.head, row), p.D, static_cast<A>(p.scale));
    if (a.dv.data) dv.store(row_of_out<T>(a.dv, s.head, row), p.D, A(1));
    if (a.dkey_bias && lane_id() == 0) static_cast<A*>(a.dkey_bias)[row] = dbias;
  });
}

/// Calls fn(type, elements of a row per lane).
template <class F>
void dispatch(const AttentionProblem& p, const char* name, F&& fn) {
  dispatch_float(p.dtype, name, [&](auto t) {
    if (p.D <= 1 * kWarp) return fn(t, std::integral_constant<int, 1>{});
    if (p.D <= 2 * kWarp) return fn(t, std::integral_constant<int, 2>{});
    if (p.D <= 4 * kWarp) return fn(t, std::integral_constant<int, 4>{});
    return fn(t, std::integral_constant<int, 8>{});
  });
}

}  // namespace

bool plain_fits(const AttentionProblem& p) { return p.D <= 8 * kWarp; }

void attention_fwd_plain(const AttentionFwd& a) {
  const AttentionProblem& p = a.problem;
  const Tiles tiles(p, TileOf::queries, kWarps);
  dispatch(p, "attention_fwd", [&](auto t, auto per) {
    using T = typename decltype(t)::type;
    using A = accum_t<T>;
    launch("attention_fwd: plain", forward<T, A, per()>, tiles.grid(), kThreads, 0, a,
           tiles.list());
  });
}

void attention_bwd_plain(const AttentionBwd& a) {
  const AttentionProblem& p = a.problem;
  const Tiles query_tiles(p, TileOf::queries, kWarps);
  const Tiles key_tiles(p, TileOf::keys, kWarps);
  dispatch(p, "attention_bwd", [&](auto t, auto per) {
    using T = typename decltype(t)::type;
    using A = accum_t<T>;
    const QueryStats<A> stats(a);
    stats.compute(a);
    stats.sinks(a);
    if (a.dq.data) {
      launch("attention_bwd: plain, queries", backward_queries<T, A, per()>, query_tiles.grid(),
             kThreads, 0, a, query_tiles.list(), stats.lse(), stats.delta());
    }
    if (!a.dk.data && !a.dv.data && !a.dkey_bias) return;
    launch("attention_bwd: plain, keys", backward_keys<T, A, per()>, key_tiles.grid(), kThreads, 0,
           a, key_tiles.list(), stats.lse(), stats.delta());
  });
}

}  // namespace proteus::cuda
