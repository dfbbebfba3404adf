// The CPU forward kernel: parallel over (segment, query tile), one pass over the visible key tiles.
#include <numeric>

#include "tensor/ops/attention_tiles.h"
#include "tensor/parallel.h"

namespace proteus::attention_tiles {
namespace {

template <class A>
struct Scratch {
  std::vector<A> q_rows, k_rows, v_rows;  // converted rows, where the storage type is another
  std::vector<A> q_t;                     // [D, kQueries], scaled
  std::vector<A> scores;                  // [kKeys, kQueries]: S^T, then P^T
  std::vector<A> drop;                    // [4, kQueries]
  std::vector<A> out;                     // [kQueries, D]
  A max[kQueries], sum[kQueries], shrink[kQueries];
};

template <class A>
Scratch<A>& scratch(std::int64_t D) {
  thread_local Scratch<A> s;
  s.q_t.resize(static_cast<std::size_t>(D * kQueries));
  s.scores.resize(static_cast<std::size_t>(kKeys * kQueries));
  s.drop.resize(static_cast<std::size_t>(4 * kQueries));
  s.out.resize(static_cast<std::size_t>(kQueries * D));
  return s;
}

// Adds the bias and hides what a query does not see.
template <class A>
void mask_scores(const QueryTile& tile, std::int64_t r0, std::int64_t r1, A* scores) {
  Visible visible(tile);
  const A* bias = static_cast<const A*>(tile.p.key_bias);
  for (std::int64_t j = r0; j < r1; ++j) {
    A* row = scores + (j - r0) * kQueries;
    if (bias) {
      const A b = bias[tile.s.k_row + j];
      for (std::int64_t i = 0; i < tile.padded; ++i) row[i] += b;
    }
    visible.advance(j);
    for (std::int64_t i = 0; i < visible.begin; ++i) row[i] = kNegInf<A>;
    for (std::int64_t i = visible.end; i < tile.count; ++i) row[i] = kNegInf<A>;
  }
}

// scores ← exp(scores − new maximum); sum and the factor for what was summed before follow.
template <class A>
void online_softmax(const QueryTile& tile, std::int64_t keys, Scratch<A>& w) {
  const std::int64_t n = tile.padded;
  A base[kQueries];
  for (std::int64_t i = 0; i < n; ++i) base[i] = w.max[i];
  for (std::int64_t j = 0; j < keys; ++j) {
    const A* row = w.scores.data() + j * kQueries;
    for (std::int64_t i = 0; i < n; ++i) base[i] = row[i] > base[i] ? row[i] : base[i];
  }
  for (std::int64_t i = 0; i < n; ++i) {
    const A old = w.max[i];
    w.max[i] = base[i];
    base[i] = base[i] == kNegInf<A> ? A(0) : base[i];
    w.shrink[i] = vmath::exp(old - base[i]);
    w.sum[i] *= w.shrink[i];
  }
  for (std::int64_t j = 0; j < keys; ++j) {
    A* row = w.scores.data() + j * kQueries;
    for (std::int64_t i = 0; i < n; ++i) {
      row[i] = vmath::exp(row[i] - base[i]);
      w.sum[i] += row[i];
    }
  }
}

template <class A>
void drop_scores(const QueryTile& tile, std::int64_t r0, std::int64_t r1, Scratch<A>& w) {
  for (std::int64_t j = r0; j < r1; j += 4) {
    dropout_group(tile, j, w.drop.data());
    for (std::int64_t k = j; k < std::min(r1, j + 4); ++k) {
      A* row = w.scores.data() + (k - r0) * kQueries;
      const A* factor = w.drop.data() + (k - j) * kQueries;
      for (std::int64_t i = 0; i < tile.padded; ++i) row[i] *= factor[i];
    }
  }
}

// Divides by the denominator, sink included, and writes the rows.
template <class T, class A>
void finish(const AttentionFwd& a, const QueryTile& tile, Scratch<A>& w) {
  const AttentionProblem& p = tile.p;
  const bool sink = p.sink && p.sink_scale > 0;
  const A sink_logit = sink ? static_cast<const A*>(p.sink)[tile.s.head] : A(0);
  for (std::int64_t i = 0; i < tile.count; ++i) {
    A top = w.max[i];
    if (sink) top = std::max(top, sink_logit);
    A factor = A(0);
    A lse = kNegInf<A>;
    if (top != kNegInf<A>) {
      const A shrink = vmath::exp(w.max[i] - top);
      A denominator = w.sum[i] * shrink;
      if (sink) denominator += static_cast<A>(p.sink_scale) * vmath::exp(sink_logit - top);
      factor = shrink / denominator;
      lse = top + std::log(denominator);
    }
    static_cast<A*>(a.lse)[tile.s.slot + tile.q0 + i] = lse;
    T* out = row_pointer_out<T>(a.out, tile.s.head, tile.s.q_row + tile.q0 + i);
    const A* row = w.out.data() + i * p.D;
    for (std::int64_t d = 0; d < p.D; ++d) out[d] = T(row[d] * factor);
  }
}

template <class T, class A>
void forward_tile(const AttentionFwd& a, const AttentionSegment& s, std::int64_t q0) {
  const AttentionProblem& p = a.problem;
  const std::int64_t D = p.D;
  const QueryTile tile(p, s, q0, tile::kLanes<A>);
  Scratch<A>& w = scratch<A>(D);
  const Rows<A> q = load_rows<T, A>(p.q, s.head, s.q_row + q0, tile.count, D, w.q_rows);
  transpose_rows(q, tile.count, tile.padded, D, static_cast<A>(p.scale), w.q_t.data());
  std::fill(w.max, w.max + kQueries, kNegInf<A>);
  std::fill(w.sum, w.sum + kQueries, A(0));
  std::fill(w.out.begin(), w.out.end(), A(0));
  for (std::int64_t t0 = 0; t0 < tile.hi_max(); t0 = tile.next(t0)) {
    std::int64_t r0 = 0;
    std::int64_t r1 = 0;
    tile.keys(t0, r0, r1);
    if (r0 >= r1) continue;
    const std::int64_t keys = r1 - r0;
    const Rows<A> k = load_rows<T, A>(p.k, s.head, s.k_row + r0, keys, D, w.k_rows);
    tile::gemm<A>(keys, tile.padded, D, {k.data, k.stride}, w.q_t.data(), kQueries,
                  {w.scores.data(), kQueries}, false);
    mask_scores(tile, r0, r1, w.scores.data());
    online_softmax(tile, keys, w);
    for (std::int64_t i = 0; i < tile.count; ++i) {
      if (w.shrink[i] == A(1)) continue;
      A* row = w.out.data() + i * D;
      for (std::int64_t d = 0; d < D; ++d) row[d] *= w.shrink[i];
    }
    if (p.dropout > 0) drop_scores(tile, r0, r1, w);
    const Rows<A> v = load_rows<T, A>(p.v, s.head, s.k_row + r0, keys, D, w.v_rows);
    tile::gemm<A>(tile.count, D, keys, {w.scores.data(), 1, kQueries}, v.data, v.stride,
                  {w.out.data(), D}, true);
  }
  finish<T, A>(a, tile, w);
}

struct Task {
  std::int64_t segment;
  std::int64_t q0;
  std::int64_t cost;
};

void forward_cpu(const AttentionFwd& a) {
  const AttentionProblem& p = a.problem;
  std::vector<Task> tasks;
  for (std::int64_t n = 0; n < p.segment_count; ++n) {
    const AttentionSegment& s = p.segments[n];
    for (std::int64_t q0 = 0; q0 < s.q_count; q0 += kQueries) {
      const QueryTile tile(p, s, q0, 1);
      const std::int64_t keys =
          tile.hi_max() - tile.lo[0] + std::min<std::int64_t>(p.anchors, tile.lo[0]);
      tasks.push_back({n, q0, tile.count * (keys + kKeys)});
    }
  }
  // Heavy tiles first: the light ones even out the threads' loads at the end.
  std::stable_sort(tasks.begin(), tasks.end(),
                   [](const Task& x, const Task& y) { return x.cost > y.cost; });
  dispatch_attention(p.dtype, "attention_fwd", [&](auto t, auto acc) {
    using T = typename decltype(t)::type;
    using A = typename decltype(acc)::type;
    parallel_for(static_cast<std::int64_t>(tasks.size()), 1,
                 [&](std::int64_t begin, std::int64_t end) {
                   for (std::int64_t i = begin; i < end; ++i) {
                     const Task& task = tasks[static_cast<std::size_t>(i)];
                     forward_tile<T, A>(a, p.segments[task.segment], task.q0);
                   }
                 });
  });
}

}  // namespace
}  // namespace proteus::attention_tiles

namespace proteus {
Slot<AttentionFwd> attention_fwd{"attention_fwd", attention_tiles::forward_cpu};
}
