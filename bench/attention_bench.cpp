// Attention: FLOP/s and the share of the FMA peak, measured in turns.
//   attention_bench --benchmark_filter=dense
// dense: 6 heads of 64 over T positions; window: the same with the newest 256 keys and 4 anchors;
// heads: packed segments of 8 to 64 queries and keys, as routed heads have them. Operations are
// counted for the visible (query, key) pairs alone: 4·D forward, 10·D backward.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <vector>

#include "bench/against_peak.h"
#include "tensor/ops/attention.h"
#include "tensor/parallel.h"

namespace proteus {
namespace {

struct Problem {
  Tensor q, k, v, key_bias, sink;
  AttentionPlan plan;
  AttentionOptions options;
};

double visible_pairs(const AttentionPlan& plan) {
  double pairs = 0;
  const auto* s = reinterpret_cast<const AttentionSegment*>(plan.segments.data<std::int64_t>());
  for (std::int64_t n = 0; n < plan.segments.size(0); ++n) {
    for (std::int64_t i = s[n].range; i < s[n].range + s[n].q_count; ++i) {
      const std::int64_t lo = plan.lo.data<std::int32_t>()[i];
      const std::int64_t hi = plan.hi.data<std::int32_t>()[i];
      pairs += static_cast<double>(hi - lo + std::min(plan.anchors, lo));
    }
  }
  return pairs;
}

/// q, k and v in one tensor, as dense layers have them; [T, 3, H, D].
Problem dense_problem(std::int64_t T, std::int64_t window, std::int64_t D, DType dtype) {
  const std::int64_t H = 384 / D;
  const Tensor qkv = Tensor::randn({T, 3, H, D}, {1, 0}, dtype);
  Problem p;
  p.q = qkv.select(1, 0);
  p.k = qkv.select(1, 1);
  p.v = qkv.select(1, 2);
  p.plan = ops::causal_plan(1, H, T, T, window, window > 0 ? 4 : 0);
  return p;
}

/// Short segments on packed rows with a key bias and a sink.
Problem packed_problem(std::int64_t segments, std::int64_t length, std::int64_t D) {
  Problem p;
  const std::int64_t rows = segments * length;
  p.q = Tensor::randn({rows, 1, D}, {1, 0});
  p.k = Tensor::randn({rows, 1, D}, {1, 1});
  p.v = Tensor::randn({rows, 1, D}, {1, 2});
  p.key_bias = Tensor::randn({rows}, {1, 3});
  p.sink = Tensor::randn({16}, {1, 4});
  p.options.sink_scale = 1;
  p.plan = ops::causal_plan(segments, 1, length, length, std::int64_t{0}, 0);
  auto* s = reinterpret_cast<AttentionSegment*>(p.plan.segments.data<std::int64_t>());
  for (std::int64_t n = 0; n < segments; ++n) s[n].head = n % 16;
  return p;
}

void forward(benchmark::State& state, const Problem& p) {
  const double flops = 4.0 * static_cast<double>(p.q.size(2)) * visible_pairs(p.plan);
  bench::against_peak(state, flops, [&] {
    benchmark::DoNotOptimize(
        ops::attention(p.q, p.k, p.v, p.key_bias, p.sink, p.plan, p.options).out.raw());
  });
}

void backward(benchmark::State& state, const Problem& p) {
  const double flops = 10.0 * static_cast<double>(p.q.size(2)) * visible_pairs(p.plan);
  const auto saved = ops::attention(p.q, p.k, p.v, p.key_bias, p.sink, p.plan, p.options);
  const Tensor dout = Tensor::randn(p.q.shape(), {2, 0}, p.q.dtype());
  const Tensor dq = Tensor::empty(p.q.shape(), p.q.dtype());
  const Tensor dk = Tensor::empty(p.k.shape(), p.k.dtype());
  const Tensor dv = Tensor::empty(p.v.shape(), p.v.dtype());
  bench::against_peak(state, flops, [&] {
    benchmark::DoNotOptimize(ops::attention_backward(p.q, p.k, p.v, p.key_bias, p.sink, p.plan,
                                                     p.options, saved, dout, dq, dk, dv));
  });
}

void dense_forward(benchmark::State& state) {
  forward(state, dense_problem(state.range(0), 0, state.range(1), DType::f32));
}
void dense_backward(benchmark::State& state) {
  backward(state, dense_problem(state.range(0), 0, state.range(1), DType::f32));
}
void dense_forward_bf16(benchmark::State& state) {
  forward(state, dense_problem(state.range(0), 0, state.range(1), DType::bf16));
}
void window_forward(benchmark::State& state) {
  forward(state, dense_problem(state.range(0), 256, state.range(1), DType::f32));
}
void window_backward(benchmark::State& state) {
  backward(state, dense_problem(state.range(0), 256, state.range(1), DType::f32));
}
void heads_forward(benchmark::State& state) {
  forward(state, packed_problem(state.range(0), state.range(1), state.range(2)));
}
void heads_backward(benchmark::State& state) {
  backward(state, packed_problem(state.range(0), state.range(1), state.range(2)));
}

void lengths(benchmark::internal::Benchmark* b) {
  for (const std::int64_t T : {64, 256, 512, 1024, 2048, 4096, 8192}) b->Args({T, 64});
  b->Args({256, 32})->Args({2048, 32})->Args({2048, 128});
  b->ArgNames({"T", "D"})->UseManualTime()->Unit(benchmark::kMillisecond);
}
void windows(benchmark::internal::Benchmark* b) {
  for (const std::int64_t T : {1024, 2048, 8192}) b->Args({T, 64});
  b->ArgNames({"T", "D"})->UseManualTime()->Unit(benchmark::kMillisecond);
}
void packed(benchmark::internal::Benchmark* b) {
  for (const std::int64_t length : {8, 16, 32, 64}) {
    for (const std::int64_t D : {32, 64}) b->Args({1024, length, D});
  }
  b->ArgNames({"segments", "length", "D"})->UseManualTime()->Unit(benchmark::kMillisecond);
}

BENCHMARK(dense_forward)->Apply(lengths);
BENCHMARK(dense_backward)->Apply(lengths);
BENCHMARK(dense_forward_bf16)->Apply(windows);
BENCHMARK(window_forward)->Apply(windows);
BENCHMARK(window_backward)->Apply(windows);
BENCHMARK(heads_forward)->Apply(packed);
BENCHMARK(heads_backward)->Apply(packed);

}  // namespace
}  // namespace proteus

BENCHMARK_MAIN();
