// The CPU backward kernel. Weights are recomputed from the saved log-sum-exp:
//   P = exp(S − lse),  dP = dO·Vᵀ (dropped like P),  dS = P ⊙ (dP − δ),  δ_i = Σ_d dO_id·O_id
//   dV = Pᵀ·dO,  dK = scale·dSᵀ·Q,  dQ = scale·dS·K,  dbias_j = Σ_i dS_ij,
//   dsink = −Σ_i P_i,sink·δ_i
// A task is a segment, or where segments are few a run of its key tiles: it owns their dK, dV and
// dbias, and has its own partial dQ, which are summed afterwards in the order of the keys. How
// segments are split depends on their sizes alone, and every sum has a fixed order: any number of
// threads gives the same bits.
#include <memory>

#include "tensor/ops/attention_tiles.h"
#include "tensor/parallel.h"

namespace proteus::attention_tiles {
namespace {

constexpr std::int64_t kTasks = 32;        // wanted in all, so that every thread has some
constexpr std::int64_t kFewestVisits = 8;  // pairs of tiles that are worth a task

template <class A>
struct Scratch {
  std::vector<A> q_rows, out_rows, dout_rows, k_rows, v_rows;
  std::vector<A> q_t, dout_t;  // [D, kQueries]
  std::vector<A> weights;      // [kKeys, kQueries]: P^T, dropped
  std::vector<A> dscores;      // [kKeys, kQueries]: dS^T, not scaled
  std::vector<A> drop;         // [8, kQueries]
  std::vector<A> dq;           // [kQueries, D]
  std::vector<A> dk, dv;       // [keys of the task, D]
  Rows<A> q, dout;
  A lse[kQueries], delta[kQueries];
};

template <class A>
Scratch<A>& scratch(std::int64_t D) {
  thread_local Scratch<A> s;
  for (auto* t : {&s.q_t, &s.dout_t, &s.dq}) t->resize(static_cast<std::size_t>(D * kQueries));
  for (auto* t : {&s.weights, &s.dscores}) t->resize(static_cast<std::size_t>(kKeys * kQueries));
  s.drop.resize(static_cast<std::size_t>(AttentionDropout::kKeys * kQueries));
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
  transpose_rows(w.q, tile.count, tile.padded, p.D, w.q_t.data());
  transpose_rows(w.dout, tile.count, tile.padded, p.D, w.dout_t.data());
  const A* lse = static_cast<const A*>(a.lse) + tile.s.slot + tile.q0;
  for (std::int64_t i = 0; i < tile.padded; ++i) {
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

// weights ← P and dscores ← dS from the scores and dP that stand there; dbias gets its sums.
template <class A>
void weigh(const QueryTile& tile, const Band<A>& band, std::int64_t r0, A* dbias, Scratch<A>& w) {
  constexpr std::int64_t kDrawn = AttentionDropout::kKeys;
  const bool drop = tile.p.dropout > 0;
  const A scale = static_cast<A>(tile.p.scale);
  const A* bias = static_cast<const A*>(tile.p.key_bias);
  for (std::int64_t j = 0; j < band.keys; ++j) {
    const Range lanes = band.lanes[j / kGroup];
    if (band.holes) {
      A* dscore = w.dscores.data() + j * kQueries;
      std::fill(dscore, dscore + lanes.begin, A(0));
      std::fill(dscore + lanes.end, dscore + band.padded, A(0));
    }
    if (drop && j % kDrawn == 0) dropout_group(tile, r0 + j, lanes, w.drop.data());
    const A* factor = w.drop.data() + j % kDrawn * kQueries;
    const A b = bias ? bias[tile.s.k_row + r0 + j] : A(0);
    Vec<A> sum{};
    for (std::int64_t i = lanes.begin; i < lanes.end; i += kLanes<A>) {
      A* weight = w.weights.data() + j * kQueries + i;
      A* dscore = w.dscores.data() + j * kQueries + i;
      Vec<A> p = exp_lanes<A>(load(weight) * scale + (b - load(w.lse + i)));
      Vec<A> dp = load(dscore);
      if (drop) {
        const Vec<A> keep = load(factor + i);
        store(weight, p * keep);
        dp *= keep;
      } else {
        store(weight, p);
      }
      const Vec<A> ds = p * (dp - load(w.delta + i));
      store(dscore, ds);
      sum += ds;
    }
    if (!dbias) continue;
    for (std::int64_t l = 0; l < kLanes<A>; ++l) dbias[r0 + j] += sum[l];
  }
}

// Sums of a task: of the keys from `first` on. dbias counts from key 0 of the segment.
template <class A>
struct KeySums {
  A* dk = nullptr;
  A* dv = nullptr;
  A* dbias = nullptr;
  std::int64_t first = 0;
};

// One pair of tiles: five products.
template <class T, class A>
void visit(const QueryTile& tile, std::int64_t t0, const KeySums<A>& sums, Scratch<A>& w) {
  std::int64_t r0 = 0;
  std::int64_t r1 = 0;
  tile.keys(t0, r0, r1);
  if (r0 >= r1) return;
  const AttentionProblem& p = tile.p;
  const std::int64_t D = p.D;
  const Band<A> band(tile, r0, r1);
  const std::int64_t row = tile.s.k_row + r0;
  const Rows<A> k = load_rows<T, A>(p.k, tile.s.head, row, r1 - r0, D, w.k_rows);
  const Rows<A> v = load_rows<T, A>(p.v, tile.s.head, row, r1 - r0, D, w.v_rows);
  band.for_keys([&](std::int64_t j, std::int64_t keys, Range lanes) {
    const std::int64_t n = lanes.end - lanes.begin;
    const std::int64_t at = j * kQueries + lanes.begin;
    tile::gemm<A>(keys, n, D, {k.data + j * k.stride, k.stride}, w.q_t.data() + lanes.begin,
                  kQueries, {w.weights.data() + at, kQueries}, false);
    tile::gemm<A>(keys, n, D, {v.data + j * v.stride, v.stride}, w.dout_t.data() + lanes.begin,
                  kQueries, {w.dscores.data() + at, kQueries}, false);
  });
  hide_scores(tile, band, r0, w.weights.data());
  weigh(tile, band, r0, sums.dbias, w);
  band.for_keys([&](std::int64_t j, std::int64_t keys, Range lanes) {
    const std::int64_t n = std::min(lanes.end, tile.count) - lanes.begin;
    const std::int64_t from = j * kQueries + lanes.begin;
    const std::int64_t to = (r0 - sums.first + j) * D;
    tile::gemm<A>(keys, D, n, {w.weights.data() + from, kQueries},
                  w.dout.data + lanes.begin * w.dout.stride, w.dout.stride, {sums.dv + to, D},
                  true);
    tile::gemm<A>(keys, D, n, {w.dscores.data() + from, kQueries},
                  w.q.data + lanes.begin * w.q.stride, w.q.stride, {sums.dk + to, D}, true);
  });
  band.for_queries([&](std::int64_t i, std::int64_t n, Range keys) {
    tile::gemm<A>(n, D, keys.end - keys.begin,
                  {w.dscores.data() + keys.begin * kQueries + i, 1, kQueries},
                  k.data + keys.begin * k.stride, k.stride, {w.dq.data() + i * D, D}, true);
  });
}

template <class T, class A>
void store_rows(const HeadRows& rows, std::int64_t head, std::int64_t row, std::int64_t count,
                std::int64_t D, A factor, const A* source) {
  for (std::int64_t i = 0; i < count; ++i) {
    T* out = row_pointer_out<T>(rows, head, row + i);
    for (std::int64_t d = 0; d < D; ++d) out[d] = T(source[i * D + d] * factor);
  }
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

// The keys [key_begin, key_end) of a segment, and the queries [q_begin, q_end) that may see them.
struct Task {
  std::int64_t segment = 0;
  std::int64_t key_begin = 0, key_end = 0;
  std::int64_t q_begin = 0, q_end = 0;
  std::int64_t partial = -1;  // of its dQ, in rows of the workspace; −1: it writes dQ itself
};

template <class T, class A>
void run_task(const AttentionBwd& a, const Task& task, A* workspace) {
  const AttentionProblem& p = a.problem;
  const AttentionSegment& s = p.segments[task.segment];
  const std::int64_t D = p.D;
  const std::int64_t keys = task.key_end - task.key_begin;
  Scratch<A>& w = scratch<A>(D);
  w.dk.assign(static_cast<std::size_t>(keys * D), A(0));
  w.dv.assign(static_cast<std::size_t>(keys * D), A(0));
  A* dbias = a.dkey_bias ? static_cast<A*>(a.dkey_bias) + s.k_row : nullptr;
  if (dbias) std::fill(dbias + task.key_begin, dbias + task.key_end, A(0));
  const KeySums<A> sums{w.dk.data(), w.dv.data(), dbias, task.key_begin};
  A dsink = 0;
  for (std::int64_t q0 = task.q_begin; q0 < task.q_end; q0 += kQueries) {
    const QueryTile tile(p, s, q0, kLanes<A>);
    load_queries<T, A>(a, tile, w);
    std::fill(w.dq.begin(), w.dq.begin() + tile.count * D, A(0));
    const std::int64_t end = std::min(task.key_end, tile.hi_max());
    for (std::int64_t t0 = 0; t0 < end; t0 = tile.next(t0)) {
      if (t0 >= task.key_begin) visit<T, A>(tile, t0, sums, w);
    }
    if (task.partial < 0) {
      store_rows<T>(a.dq, s.head, s.q_row + q0, tile.count, D, static_cast<A>(p.scale),
                    w.dq.data());
    } else {
      std::copy(w.dq.begin(), w.dq.begin() + tile.count * D,
                workspace + (task.partial + q0 - task.q_begin) * D);
    }
    if (a.dsink && task.key_begin == 0) dsink += sink_gradient(tile, w);
  }
  const A scale = static_cast<A>(p.scale);
  store_rows<T>(a.dk, s.head, s.k_row + task.key_begin, keys, D, scale, w.dk.data());
  store_rows<T>(a.dv, s.head, s.k_row + task.key_begin, keys, D, A(1), w.dv.data());
  if (a.dsink && task.key_begin == 0) static_cast<A*>(a.dsink)[task.segment] = dsink;
}

// How often each key tile of a segment is visited.
void count_visits(const AttentionProblem& p, const AttentionSegment& s,
                  std::vector<std::int64_t>& visits) {
  visits.assign(static_cast<std::size_t>((s.k_count + kKeys - 1) / kKeys), 0);
  for (std::int64_t q0 = 0; q0 < s.q_count; q0 += kQueries) {
    const QueryTile tile(p, s, q0, 1);
    for (std::int64_t t0 = 0; t0 < tile.hi_max(); t0 = tile.next(t0)) {
      ++visits[static_cast<std::size_t>(t0 / kKeys)];
    }
  }
}

// Narrows a task's queries to the tiles that see its keys. The first task keeps them all: it sums
// dsink, and writes zeros where nothing is seen.
void narrow(const AttentionProblem& p, Task& task) {
  const AttentionSegment& s = p.segments[task.segment];
  const auto tile = [&](std::int64_t q0) { return QueryTile(p, s, q0, 1); };
  while (task.q_begin < task.q_end && tile(task.q_begin).hi_max() <= task.key_begin) {
    task.q_begin += kQueries;
  }
  task.q_begin = std::min(task.q_begin, task.q_end);  // nobody may see these keys
  if (task.key_begin < p.anchors) return;
  std::int64_t last = task.q_begin;
  while (last < task.q_end && tile(last).lo[0] < task.key_end) last += kQueries;
  task.q_end = std::min(last, task.q_end);
}

// Cuts segment n into runs of key tiles with about `share` visits each; returns the rows of the
// workspace that it needs.
std::int64_t cut_segment(const AttentionProblem& p, std::int64_t n,
                         const std::vector<std::int64_t>& visits, std::int64_t share,
                         std::int64_t workspace, std::vector<Task>& tasks) {
  const AttentionSegment& s = p.segments[n];
  const std::size_t first = tasks.size();
  Task task{n, 0, 0, 0, s.q_count, -1};
  std::int64_t sum = 0;
  for (std::size_t t = 0; t < visits.size(); ++t) {
    sum += visits[t];
    task.key_end = std::min(s.k_count, task.key_end + kKeys);
    if (t + 1 < visits.size() && sum < share) continue;
    tasks.push_back(task);
    task.key_begin = task.key_end;
    sum = 0;
  }
  if (tasks.size() == first) tasks.push_back(task);  // no keys: zero gradients
  if (tasks.size() == first + 1) return 0;
  std::int64_t rows = 0;
  for (std::size_t i = first; i < tasks.size(); ++i) {
    if (i > first) narrow(p, tasks[i]);
    tasks[i].partial = workspace + rows;
    rows += tasks[i].q_end - tasks[i].q_begin;
  }
  return rows;
}

// dQ of a query tile whose segment was cut: tasks [first, last).
template <class T, class A>
void add_partials(const AttentionBwd& a, const std::vector<Task>& tasks, std::size_t first,
                  std::size_t last, std::int64_t q0, const A* workspace) {
  const AttentionProblem& p = a.problem;
  const AttentionSegment& s = p.segments[tasks[first].segment];
  const std::int64_t count = std::min(kQueries, s.q_count - q0);
  Scratch<A>& w = scratch<A>(p.D);
  std::fill(w.dq.begin(), w.dq.end(), A(0));
  for (std::size_t i = first; i < last; ++i) {
    const Task& task = tasks[i];
    if (q0 < task.q_begin || q0 >= task.q_end) continue;
    const A* part = workspace + (task.partial + q0 - task.q_begin) * p.D;
    for (std::int64_t d = 0; d < count * p.D; ++d) w.dq[static_cast<std::size_t>(d)] += part[d];
  }
  store_rows<T>(a.dq, s.head, s.q_row + q0, count, p.D, static_cast<A>(p.scale), w.dq.data());
}

template <class T, class A>
void backward(const AttentionBwd& a) {
  const AttentionProblem& p = a.problem;
  std::vector<std::int64_t> visits;
  std::int64_t total = 0;
  for (std::int64_t n = 0; n < p.segment_count; ++n) {
    count_visits(p, p.segments[n], visits);
    for (const std::int64_t v : visits) total += v;
  }
  const std::int64_t share = std::max(kFewestVisits, (total + kTasks - 1) / kTasks);
  std::vector<Task> tasks;
  std::int64_t rows = 0;
  for (std::int64_t n = 0; n < p.segment_count; ++n) {
    count_visits(p, p.segments[n], visits);
    rows += cut_segment(p, n, visits, share, rows, tasks);
  }
  const auto workspace = std::make_unique_for_overwrite<A[]>(static_cast<std::size_t>(rows * p.D));
  parallel_for(static_cast<std::int64_t>(tasks.size()), task_grain(p, tasks.size()),
               [&](std::int64_t begin, std::int64_t end) {
                 for (std::int64_t i = begin; i < end; ++i) {
                   run_task<T, A>(a, tasks[static_cast<std::size_t>(i)], workspace.get());
                 }
               });
  for (std::size_t first = 0; rows > 0 && first < tasks.size();) {
    std::size_t last = first;
    while (last < tasks.size() && tasks[last].segment == tasks[first].segment) ++last;
    const std::int64_t queries = p.segments[tasks[first].segment].q_count;
    if (tasks[first].partial >= 0) {
      parallel_for(queries, kQueries, [&](std::int64_t q0, std::int64_t) {
        add_partials<T, A>(a, tasks, first, last, q0, workspace.get());
      });
    }
    first = last;
  }
}

void backward_cpu(const AttentionBwd& a) {
  dispatch_attention(a.problem.dtype, "attention_bwd", [&](auto t, auto acc) {
    backward<typename decltype(t)::type, typename decltype(acc)::type>(a);
  });
}

}  // namespace
}  // namespace proteus::attention_tiles

namespace proteus {
Slot<AttentionBwd> attention_bwd{"attention_bwd", attention_tiles::backward_cpu};
}
