// A benchmark of every op case that says how much work it is: forward, and forward with backward,
// at f32 and bf16. The families are those of the tests (tests/op_cases/).
#include <benchmark/benchmark.h>

#include <memory>

#include "autograd/tape.h"
#include "tests/op_cases/op_case.h"

namespace proteus::testing {
namespace {

std::vector<Variable> variables(const OpCase& c, DType dtype) {
  std::vector<Variable> out;
  const auto inputs = make_inputs(c, dtype);
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    out.emplace_back(inputs[i], is_floating(inputs[i].dtype()) && c.inputs[i].differentiable);
  }
  return out;
}

void count(benchmark::State& state, const OpCase& c, DType dtype) {
  const auto n = static_cast<double>(state.iterations());
  const double width = static_cast<double>(size_of(dtype)) / 4;
  state.counters["FLOP/s"] = benchmark::Counter(n * c.flops, benchmark::Counter::kIsRate);
  state.counters["bytes/s"] = benchmark::Counter(n * c.bytes * width, benchmark::Counter::kIsRate);
}

void forward(benchmark::State& state, const OpCase& c, DType dtype) {
  const NoGradGuard no_grad;
  const auto inputs = variables(c, dtype);
  for (auto _ : state) benchmark::DoNotOptimize(c.run(inputs).value().raw());
  count(state, c, dtype);
}

void forward_backward(benchmark::State& state, const OpCase& c, DType dtype) {
  const auto inputs = variables(c, dtype);
  const Variable y = c.run(inputs);
  if (!y.requires_grad()) {
    state.SkipWithError("not differentiable");
    return;
  }
  const Tensor cotangent = Tensor::randn(y.shape(), {1, 1}, y.dtype());
  for (auto _ : state) {
    for (const Variable& v : inputs) v.zero_grad();
    c.run(inputs).backward(cotangent);
  }
}

void add(const std::string& name, void (*run)(benchmark::State&, const OpCase&, DType),
         const std::shared_ptr<const OpCase>& c, DType dtype) {
  benchmark::RegisterBenchmark(name.c_str(),
                               [=](benchmark::State& state) { run(state, *c, dtype); })
      ->UseRealTime()
      ->Unit(benchmark::kMicrosecond);
}

void register_all() {
  for (const OpFamily& family : all_families()) {
    for (const OpCase& op_case : family.cases) {
      if (!op_case.bench_only || op_case.flops <= 0) continue;
      const auto c = std::make_shared<const OpCase>(op_case);
      for (const DType dtype : {DType::f32, DType::bf16}) {
        const std::string name =
            family.name + "/" + c->op + "/" + c->variant + "/" + std::string(name_of(dtype));
        add(name + "/forward", forward, c, dtype);
        add(name + "/both", forward_backward, c, dtype);
      }
    }
  }
}

}  // namespace
}  // namespace proteus::testing

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  proteus::testing::register_all();
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
