// GEMM at transformer shapes: FLOP/s and the share of the FMA peak, measured in turns.
//   gemm_bench --benchmark_filter=forward
// Arguments: rows, in, out, threads. forward: x·Wᵀ + bias; dx: dy·W; dweight: dyᵀ·x.
#include <benchmark/benchmark.h>

#include <vector>

#include "bench/against_peak.h"
#include "tensor/ops/gemm.h"
#include "tensor/parallel.h"

namespace proteus {
namespace {

struct Operands {
  Tensor x, weight, bias, dy, pre;
};

template <class Call>
void measure(benchmark::State& state, DType dtype, Call&& call) {
  const std::int64_t rows = state.range(0);
  const std::int64_t in = state.range(1);
  const std::int64_t out = state.range(2);
  set_num_threads(static_cast<int>(state.range(3)));
  const Operands o{.x = Tensor::randn({rows, in}, {1, 0}, dtype),
                   .weight = Tensor::randn({out, in}, {2, 0}, dtype),
                   .bias = Tensor::randn({out}, {3, 0}, dtype),
                   .dy = Tensor::randn({rows, out}, {4, 0}, dtype),
                   .pre = Tensor::randn({rows, in}, {5, 0}, dtype)};
  const double flops =
      2.0 * static_cast<double>(rows) * static_cast<double>(in) * static_cast<double>(out);
  bench::against_peak(state, flops, [&] { benchmark::DoNotOptimize(call(o).raw()); });
  set_num_threads(0);
}

void forward(benchmark::State& state) {
  measure(state, DType::f32, [](const Operands& o) { return ops::linear(o.x, o.weight, o.bias); });
}
void forward_gelu(benchmark::State& state) {
  measure(state, DType::f32,
          [](const Operands& o) { return ops::linear_gelu(o.x, o.weight, o.bias, true).y; });
}
void forward_bf16(benchmark::State& state) {
  measure(state, DType::bf16, [](const Operands& o) { return ops::linear(o.x, o.weight, o.bias); });
}
void dx(benchmark::State& state) {
  measure(state, DType::f32, [](const Operands& o) { return ops::linear_dx(o.dy, o.weight); });
}
void dx_gelu(benchmark::State& state) {
  measure(state, DType::f32,
          [](const Operands& o) { return ops::linear_dx_gelu(o.dy, o.weight, o.pre).dpre; });
}
void dweight(benchmark::State& state) {
  measure(state, DType::f32, [](const Operands& o) { return ops::linear_dweight(o.dy, o.x); });
}

void shapes(benchmark::internal::Benchmark* b) {
  set_num_threads(0);
  const int threads = num_threads();
  for (const std::int64_t rows : {768, 16384}) {
    for (const auto& [in, out] : {std::pair{128, 128},
                                  {128, 384},
                                  {128, 512},
                                  {512, 128},
                                  {384, 384},
                                  {384, 1152},
                                  {384, 1536},
                                  {1536, 384},
                                  {768, 3072}}) {
      b->Args({rows, in, out, threads});
    }
  }
  b->ArgNames({"rows", "in", "out", "threads"})->UseManualTime()->Unit(benchmark::kMillisecond);
}

void decode_shapes(benchmark::internal::Benchmark* b) {
  for (const std::int64_t rows : {1, 4, 16}) b->Args({rows, 768, 3072, num_threads()});
  shapes(b);
}

BENCHMARK(forward)->Apply(decode_shapes);
BENCHMARK(dx)->Apply(shapes);
BENCHMARK(dweight)->Apply(shapes);
BENCHMARK(forward_gelu)->Apply(shapes);
BENCHMARK(dx_gelu)->Apply(shapes);
BENCHMARK(forward_bf16)->Apply(shapes);

}  // namespace
}  // namespace proteus

BENCHMARK_MAIN();
