// Elementwise ops against the memory: every iteration runs the op and a triad y = a + s·b of the
// same threads, one after the other, so that a noisy machine slows both. The counter `of_triad` is
// the op's bytes/s over the triad's, each at its best iteration. Bytes are what moves: a written
// line is read first, so a write counts twice.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <functional>
#include <limits>

#include "bench/fma_peak.h"
#include "tensor/ops/elementwise.h"
#include "tensor/ops/reduce.h"
#include "tensor/ops/softmax.h"
#include "tensor/parallel.h"

namespace proteus {
namespace {

constexpr std::int64_t kRows = 16384;
constexpr std::int64_t kColumns = 768;
constexpr std::int64_t kCount = kRows * kColumns;
constexpr std::int64_t kGrain = 16384;

double seconds_of(const std::function<void()>& f) {
  const double begin = bench::seconds();
  f();
  return bench::seconds() - begin;
}

struct Triad {
  Tensor a = Tensor::full({kCount}, 1);
  Tensor b = Tensor::full({kCount}, 2);
  Tensor y = Tensor::zeros({kCount});
  static constexpr double kBytes = 16.0 * kCount;

  void run() const {
    const float* p = a.data<float>();
    const float* q = b.data<float>();
    float* r = y.data<float>();
    parallel_for(kCount, kGrain, [=](std::int64_t begin, std::int64_t end) {
#pragma omp simd
      for (std::int64_t i = begin; i < end; ++i) r[i] = p[i] + 1.5f * q[i];
    });
  }
};

/// `reads` and `writes` are elements that the op reads and writes, per element of [rows, columns].
void against_triad(benchmark::State& state, const std::function<void()>& op, DType dtype,
                   double reads, double writes) {
  const Triad triad;
  const double bytes =
      (reads + 2 * writes) * static_cast<double>(kCount) * static_cast<double>(size_of(dtype));
  double op_time = std::numeric_limits<double>::infinity();
  double triad_time = op_time;
  op();
  triad.run();
  for (auto _ : state) {
    triad_time = std::min(triad_time, seconds_of([&] { triad.run(); }));
    const double t = seconds_of(op);
    op_time = std::min(op_time, t);
    state.SetIterationTime(t);
  }
  state.counters["op_GB/s"] = bytes / op_time * 1e-9;
  state.counters["triad_GB/s"] = Triad::kBytes / triad_time * 1e-9;
  state.counters["of_triad"] = bytes / op_time / (Triad::kBytes / triad_time);
}

struct Case {
  const char* name;
  double reads, writes;
  std::function<Tensor(const Tensor& x, const Tensor& z, const Tensor& row, const Tensor& column)>
      run;
};

std::vector<Case> cases() {
  using T = const Tensor&;
  return {
      {"add", 2, 1, [](T x, T z, T, T) { return ops::add(x, z); }},
      {"mul", 2, 1, [](T x, T z, T, T) { return ops::mul(x, z); }},
      {"div", 2, 1, [](T x, T z, T, T) { return ops::div(x, z); }},
      {"add_row", 1, 1, [](T x, T, T row, T) { return ops::add(x, row); }},
      {"mul_column", 1, 1, [](T x, T, T, T column) { return ops::mul(x, column); }},
      {"affine", 1, 1, [](T x, T, T, T) { return ops::affine(x, 2, 1); }},
      {"sqrt", 1, 1, [](T x, T, T, T) { return ops::unary(UnaryOp::sqrt, "sqrt(x)", x); }},
      {"exp", 1, 1, [](T x, T, T, T) { return ops::unary(UnaryOp::exp, "exp(x)", x); }},
      {"sigmoid", 1, 1, [](T x, T, T, T) { return ops::unary(UnaryOp::sigmoid, "sigmoid(x)", x); }},
      {"tanh", 1, 1, [](T x, T, T, T) { return ops::unary(UnaryOp::tanh, "tanh(x)", x); }},
      {"gelu", 1, 1, [](T x, T, T, T) { return ops::unary(UnaryOp::gelu, "gelu(x)", x); }},
      {"gelu_backward", 2, 1,
       [](T x, T z, T, T) { return ops::unary_backward(UnaryOp::gelu, x, z); }},
      {"swiglu", 2, 1, [](T x, T z, T, T) { return ops::swiglu(x, z); }},
      {"swiglu_backward", 3, 2, [](T x, T z, T, T) { return ops::swiglu_backward(x, z, x).dup; }},
      {"scale_rows", 1, 1,
       [](T x, T, T, T column) { return ops::scale_rows(x, column.squeeze(1)); }},
      {"key_shift", 1, 1,
       [](T x, T, T row, T) {
         return ops::key_shift(x.reshape({-1, 256, kColumns}), row);
       }},
      {"clone", 1, 1, [](T x, T, T, T) { return x.clone(); }},
      {"sum_all", 1, 0, [](T x, T, T, T) { return ops::sum(x); }},
      {"sum_rows", 1, 0, [](T x, T, T, T) { return ops::sum(x, {1}); }},
      {"sum_columns", 1, 0, [](T x, T, T, T) { return ops::sum(x, {0}); }},
      {"softmax", 1, 1, [](T x, T, T, T) { return ops::softmax(x); }},
  };
}

void run_case(benchmark::State& state, const Case& c, DType dtype) {
  const Tensor x = Tensor::rand({kRows, kColumns}, {1, 1}, dtype, 0.5, 2);
  const Tensor z = Tensor::rand({kRows, kColumns}, {1, 2}, dtype, 0.5, 2);
  const Tensor row = Tensor::rand({kColumns}, {1, 3}, dtype);
  const Tensor column = Tensor::rand({kRows, 1}, {1, 4}, dtype);
  against_triad(
      state, [&] { benchmark::DoNotOptimize(c.run(x, z, row, column).raw()); }, dtype, c.reads,
      c.writes);
}

}  // namespace
}  // namespace proteus

int main(int argc, char** argv) {
  using proteus::DType;
  for (const auto& c : proteus::cases()) {
    for (const DType dtype : {DType::f32, DType::bf16}) {
      const std::string name = std::string(c.name) + "/" + std::string(proteus::name_of(dtype));
      benchmark::RegisterBenchmark(
          name.c_str(), [c, dtype](benchmark::State& state) { proteus::run_case(state, c, dtype); })
          ->UseManualTime()
          ->Unit(benchmark::kMillisecond);
    }
  }
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
