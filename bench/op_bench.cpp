// A benchmark of every op of tests/op_cases: its benchmark cases, or its largest case where it has
// none; forward, and forward with backward, at f32 and bf16. What a case's run() prepares is timed,
// too. Where a case says how much work it is, counters are FLOP/s, bytes/s, intensity (FLOP/byte)
// and percent_of_roofline: the least time by bench/roofline.h, measured at the start, over the time
// taken.
//   op_bench --benchmark_out=FILE.json --benchmark_out_format=json
#include <benchmark/benchmark.h>

#include <algorithm>
#include <map>
#include <memory>

#include "autograd/tape.h"
#include "bench/roofline.h"
#include "tests/op_cases/op_case.h"

namespace proteus::testing {
namespace {

bench::Roofline roofline;

std::vector<Variable> variables(const OpCase& c, DType dtype) {
  std::vector<Variable> out;
  const auto inputs = make_inputs(c, dtype);
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    out.emplace_back(inputs[i], is_floating(inputs[i].dtype()) && c.inputs[i].differentiable);
  }
  return out;
}

/// `taken`: seconds of all iterations.
void count(benchmark::State& state, const OpCase& c, DType dtype, double taken) {
  using benchmark::Counter;
  const auto n = static_cast<double>(state.iterations());
  const double bytes = c.bytes * static_cast<double>(size_of(dtype)) / 4;  // cases count at f32
  if (c.flops > 0) state.counters["FLOP/s"] = Counter(n * c.flops, Counter::kIsRate);
  if (bytes > 0) state.counters["bytes/s"] = Counter(n * bytes, Counter::kIsRate);
  if (c.flops > 0 && bytes > 0) state.counters["intensity"] = c.flops / bytes;
  const double least = roofline.seconds(c.flops, bytes);
  if (least > 0) state.counters["percent_of_roofline"] = 100 * n * least / taken;
}

void forward(benchmark::State& state, const OpCase& c, DType dtype) {
  const NoGradGuard no_grad;
  const auto inputs = variables(c, dtype);
  const double begin = bench::seconds();
  for (auto _ : state) benchmark::DoNotOptimize(c.run(inputs).value().raw());
  count(state, c, dtype, bench::seconds() - begin);
}

void forward_backward(benchmark::State& state, const OpCase& c, DType dtype) {
  const auto inputs = variables(c, dtype);
  const Variable y = c.run(inputs);
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

std::int64_t elements(const OpCase& c) {
  std::int64_t n = 0;
  for (const OpInput& input : c.inputs) n += input.shape.numel();
  return n;
}

/// By op, in order of its name.
std::map<std::string, std::vector<OpCase>> cases_of(const OpFamily& family) {
  std::map<std::string, std::vector<OpCase>> marked;
  std::map<std::string, const OpCase*> largest;
  for (const OpCase& c : family.cases) {
    if (c.bench_only) marked[c.op].push_back(c);
    const OpCase*& best = largest[c.op];
    if (!best || elements(*best) < elements(c)) best = &c;
  }
  for (const auto& [op, c] : largest) {
    if (marked[op].empty()) marked[op].push_back(*c);
  }
  return marked;
}

void register_all() {
  for (const OpFamily& family : all_families()) {
    for (const auto& [op, cases] : cases_of(family)) {
      for (const OpCase& op_case : cases) {
        const auto c = std::make_shared<const OpCase>(op_case);
        const bool differentiable =
            std::any_of(c->inputs.begin(), c->inputs.end(),
                        [](const OpInput& i) { return i.differentiable && i.fill != Fill::index; });
        for (const DType dtype : {DType::f32, DType::bf16}) {
          const std::string name =
              family.name + "/" + op + "/" + c->variant + "/" + std::string(name_of(dtype));
          add(name + "/forward", forward, c, dtype);
          if (differentiable) add(name + "/both", forward_backward, c, dtype);
        }
      }
    }
  }
}

}  // namespace
}  // namespace proteus::testing

int main(int argc, char** argv) {
  using proteus::testing::roofline;
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  roofline = proteus::bench::measure_roofline();
  benchmark::AddCustomContext("peak_flops_per_s", std::to_string(roofline.flops_per_s));
  benchmark::AddCustomContext("copy_bytes_per_s", std::to_string(roofline.bytes_per_s));
  proteus::testing::register_all();
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
