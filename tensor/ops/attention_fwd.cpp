// The CPU forward kernel: parallel over (segment, query tile), one pass over the visible key tiles.
#include "tensor/ops/attention_tiles.h"
#include "tensor/parallel.h"

namespace proteus::attention_tiles {
namespace {

template <class A>
struct Scratch {
  std::vector<A> q_rows, k_rows, v_rows;  // converted rows, where the storage type is another
  std::vector<A> q_t;                     // [D, kQueries], scaled
  std::vector<A> scores;                  // [kKeys, kQueries]: S^T, then P^T
  std::vector<A> drop;                    // [8, kQueries]
  std::vector<A> out;                     // [kQueries, D]
  A max[kQueries], sum[kQueries], shrink[kQueries];
  bool started[kQueries];  // per vector of queries: it has a part of its output
};

template <class A>
Scratch<A>& scratch(std::int64_t D) {
  thread_local Scratch<A> s;
  s.q_t.resize(static_cast<std::size_t>(D * kQueries));
  s.scores.resize(static_cast<std::size_t>(kKeys * kQueries));
  s.drop.resize(static_cast<std::size_t>(AttentionDropout::kKeys * kQueries));
  s.out.resize(static_cast<std::size_t>(kQueries * D));
  return s;
}

template <class A>
void add_bias(const QueryTile& tile, const Band<A>& band, std::int64_t r0, A* scores) {
  const A* bias = static_cast<const A*>(tile.p.key_bias) + tile.s.k_row + r0;
  for (std::int64_t j = 0; j < band.keys; ++j) {
    A* row = scores + j * kQueries;
    const Range lanes = band.lanes[j / kGroup];
    for (std::int64_t i = lanes.begin; i < lanes.end; i += kLanes<A>) {
      store(row + i, load(row + i) + bias[j]);
    }
  }
}

// scores ← exp(scores − new maximum); sum and the factor for what was summed before follow.
template <class A>
void online_softmax(const Band<A>& band, Scratch<A>& w) {
  for (std::int64_t b = 0; b < band.blocks; ++b) {
    const std::int64_t i = b * kLanes<A>;
    const Range keys = band.span[b];
    A* column = w.scores.data() + i;
    Vec<A> top = load(w.max + i);
    const Vec<A> old = top;
    for (std::int64_t j = keys.begin; j < keys.end; ++j) {
      const Vec<A> x = load(column + j * kQueries);
      top = x > top ? x : top;
    }
    store(w.max + i, top);
    // A query that has seen nothing yet: −inf − 0 keeps its weights at exp(−inf) = 0.
    const Vec<A> base = top == kNegInf<A> ? Vec<A>{} : top;
    const Vec<A> shrink = exp_lanes<A>(old - base);
    Vec<A> sum = load(w.sum + i) * shrink;
    for (std::int64_t j = keys.begin; j < keys.end; ++j) {
      const Vec<A> x = exp_lanes<A>(load(column + j * kQueries) - base);
      store(column + j * kQueries, x);
      sum += x;
    }
    store(w.shrink + i, shrink);
    store(w.sum + i, sum);
  }
}

template <class A>
void drop_scores(const QueryTile& tile, const Band<A>& band, std::int64_t r0, Scratch<A>& w) {
  constexpr std::int64_t kDrawn = AttentionDropout::kKeys;
  for (std::int64_t j = 0; j < band.keys; j += kDrawn) {
    const Range lanes = band.lanes[j / kGroup];
    dropout_group(tile, r0 + j, lanes, w.drop.data());
    for (std::int64_t k = j; k < std::min(band.keys, j + kDrawn); ++k) {
      A* row = w.scores.data() + k * kQueries;
      const A* factor = w.drop.data() + (k - j) * kQueries;
      for (std::int64_t i = lanes.begin; i < lanes.end; i += kLanes<A>) {
        store(row + i, load(row + i) * load(factor + i));
      }
    }
  }
}

// out ← shrink · out + P·V, vector of queries by vector of queries where that is the first part.
template <class A>
void add_values(const Band<A>& band, const Rows<A>& v, std::int64_t D, Scratch<A>& w) {
  band.for_queries([&](std::int64_t first, std::int64_t count, Range keys) {
    const std::int64_t block = first / kLanes<A>;
    const bool started = w.started[block];
    for (std::int64_t i = first; started && i < first + count; ++i) {
      if (w.shrink[i] == A(1)) continue;
      A* row = w.out.data() + i * D;
      for (std::int64_t d = 0; d < D; ++d) row[d] *= w.shrink[i];
    }
    tile::gemm<A>(count, D, keys.end - keys.begin,
                  {w.scores.data() + keys.begin * kQueries + first, 1, kQueries},
                  v.data + keys.begin * v.stride, v.stride, {w.out.data() + first * D, D}, started);
    for (std::int64_t b = block; b * kLanes<A> < first + count; ++b) w.started[b] = true;
  });
}

// Divides by the denominator, sink included, and writes the rows.
template <class T, class A>
void finish(const AttentionFwd& a, const QueryTile& tile, Scratch<A>& w) {
  const AttentionProblem& p = tile.p;
  const bool sink = p.sink && p.sink_scale > 0;
  const A sink_logit = sink ? static_cast<const A*>(p.sink)[tile.s.head] : kNegInf<A>;
  const A sink_scale = sink ? static_cast<A>(p.sink_scale) : A(0);
  A factor[kQueries];
  A lse[kQueries];
  A total[kQueries];
  for (std::int64_t i = 0; i < tile.padded; i += kLanes<A>) {
    const Vec<A> max = load(w.max + i);
    const Vec<A> top = max > sink_logit ? max : Vec<A>{} + sink_logit;
    const Vec<A> base = top == kNegInf<A> ? Vec<A>{} : top;
    const Vec<A> shrink = exp_lanes<A>(max - base);
    const Vec<A> sink_weight = exp_lanes<A>(sink_logit - base) * sink_scale;
    const Vec<A> denominator = load(w.sum + i) * shrink + sink_weight;
    store(factor + i, top == kNegInf<A> ? Vec<A>{} : shrink / denominator);
    store(lse + i, base);
    store(total + i, denominator);
  }
  // log 0 is −inf: a query that sees nothing.
  for (std::int64_t i = 0; i < tile.count; ++i) lse[i] += vmath::log(total[i]);
  std::copy(lse, lse + tile.count, static_cast<A*>(a.lse) + tile.s.slot + tile.q0);
  for (std::int64_t i = 0; i < tile.count; ++i) {
    T* out = row_pointer_out<T>(a.out, tile.s.head, tile.s.q_row + tile.q0 + i);
    const A* row = w.out.data() + i * p.D;
    if (w.started[i / kLanes<A>]) {
      for (std::int64_t d = 0; d < p.D; ++d) out[d] = T(row[d] * factor[i]);
    } else {
      for (std::int64_t d = 0; d < p.D; ++d) out[d] = T(A(0));
    }
  }
}

template <class T, class A>
void forward_tile(const AttentionFwd& a, const AttentionSegment& s, std::int64_t q0) {
  const AttentionProblem& p = a.problem;
  const std::int64_t D = p.D;
  const QueryTile tile(p, s, q0, kLanes<A>);
  Scratch<A>& w = scratch<A>(D);
  const Rows<A> q = load_rows<T, A>(p.q, s.head, s.q_row + q0, tile.count, D, w.q_rows);
  transpose_rows(q, tile.count, tile.padded, D, w.q_t.data());
  for (std::int64_t d = 0; d < D; ++d) {
    A* row = w.q_t.data() + d * kQueries;
    for (std::int64_t i = 0; i < tile.padded; i += kLanes<A>) {
      store(row + i, load(row + i) * static_cast<A>(p.scale));
    }
  }
  std::fill(w.max, w.max + kQueries, kNegInf<A>);
  std::fill(w.sum, w.sum + kQueries, A(0));
  std::fill(w.started, w.started + kQueries, false);
  for (std::int64_t t0 = 0; t0 < tile.hi_max(); t0 = tile.next(t0)) {
    std::int64_t r0 = 0;
    std::int64_t r1 = 0;
    tile.keys(t0, r0, r1);
    if (r0 >= r1) continue;
    const Band<A> band(tile, r0, r1);
    const Rows<A> k = load_rows<T, A>(p.k, s.head, s.k_row + r0, r1 - r0, D, w.k_rows);
    band.for_keys([&](std::int64_t j, std::int64_t keys, Range lanes) {
      tile::gemm<A>(keys, lanes.end - lanes.begin, D, {k.data + j * k.stride, k.stride},
                    w.q_t.data() + lanes.begin, kQueries,
                    {w.scores.data() + j * kQueries + lanes.begin, kQueries}, false);
    });
    if (p.key_bias) add_bias(tile, band, r0, w.scores.data());
    hide_scores(tile, band, r0, w.scores.data());
    online_softmax(band, w);
    if (p.dropout > 0) drop_scores(tile, band, r0, w);
    add_values(band, load_rows<T, A>(p.v, s.head, s.k_row + r0, r1 - r0, D, w.v_rows), D, w);
  }
  finish<T, A>(a, tile, w);
}

struct Task {
  std::int64_t segment;
  std::int64_t q0;
};

void forward_cpu(const AttentionFwd& a) {
  const AttentionProblem& p = a.problem;
  // Segment by segment, so that the keys stay in cache; within one the last tiles, which see most,
  // come first: the light ones even out the threads' loads at the end.
  std::vector<Task> tasks;
  for (std::int64_t n = 0; n < p.segment_count; ++n) {
    const std::int64_t tiles = (p.segments[n].q_count + kQueries - 1) / kQueries;
    for (std::int64_t t = tiles - 1; t >= 0; --t) tasks.push_back({n, t * kQueries});
  }
  dispatch_attention(p.dtype, "attention_fwd", [&](auto t, auto acc) {
    using T = typename decltype(t)::type;
    using A = typename decltype(acc)::type;
    parallel_for(static_cast<std::int64_t>(tasks.size()), task_grain(p, tasks.size()),
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
