// Models as a whole, on the CPU: a training step, a token of decoding, a point of `proteus sweep`.
// items_per_second are tokens.
//   model_bench --benchmark_filter=train
#include <benchmark/benchmark.h>

#include <memory>

#include "autograd/tape.h"
#include "bench/random_batch.h"
#include "train/models.h"
#include "train/trainer.h"

namespace proteus {
namespace {

constexpr std::int64_t kVocab = 65;  // of Tiny Shakespeare

std::unique_ptr<Transformer> preset(const std::string& name, const std::string& arm,
                                    Options* options) {
  *options = parse_options("duel", {"--preset", name}).options;
  return make_model(*options, arm_named(arm, "arm"), kVocab, 1);
}

void count_tokens(benchmark::State& state, std::int64_t per_iteration) {
  state.SetItemsProcessed(state.iterations() * per_iteration);
}

void train_step(benchmark::State& state, const std::string& name, const std::string& arm) {
  Options options;
  const auto model = preset(name, arm, &options);
  TrainerConfig config;
  config.steps = 1 << 20;
  const std::int64_t rows = options.training.batch;
  const std::int64_t context = options.model.context;
  Trainer trainer(*model, config,
                  [&](std::int64_t i) { return bench::random_batch(rows, context, kVocab, i); });
  trainer.step();  // allocates moments
  for (auto _ : state) trainer.step();
  count_tokens(state, rows * context);
}

void decode(benchmark::State& state, const std::string& name, const std::string& arm,
            CacheType cache) {
  Options options;
  const auto model = preset(name, arm, &options);
  model->set_training(false);
  DecodeState sequence = model->begin_sequence(cache);
  DecodeState* const sequences[] = {&sequence};
  const Tensor token = Tensor::zeros({1}, DType::i32);
  for (std::int64_t t = 0; t < options.model.context; ++t) model->step(token, sequences);
  for (auto _ : state) benchmark::DoNotOptimize(model->step(token, sequences).raw());
  count_tokens(state, 1);
  state.counters["state_bytes"] = static_cast<double>(sequence.bytes());
}

void sweep_point(benchmark::State& state, const std::string& arm, bool backward) {
  const std::int64_t T = state.range(0);
  Options options = parse_options("sweep", {}).options;
  Generator init(1);
  Generator generator(2);
  const AttentionSite site{.layer = 0, .output_std = 0.02, .init = init, .generator = generator};
  const auto layer = make_attention(options, arm_named(arm, "arm"), site, 1);
  layer->set_training(backward);
  const Variable x(Tensor::randn({1, T, options.model.width}, {1, 0}), backward);
  const Tensor dy = Tensor::randn(x.shape(), {1, 1});
  for (auto _ : state) {
    const GradMode mode(backward);
    const Variable y = layer->forward(x);
    if (!backward) continue;
    layer->zero_grad();
    x.zero_grad();
    y.backward(dy);
  }
  count_tokens(state, T);
}

void register_all() {
  const auto add = [](const std::string& name, auto run) {
    return benchmark::RegisterBenchmark(name.c_str(), run)
        ->UseRealTime()
        ->Unit(benchmark::kMillisecond);
  };
  for (const std::string arm : {"dense", "aspa"}) {
    add("train/tiny/" + arm, [=](auto& state) { train_step(state, "tiny", arm); });
    add("train/baby/" + arm, [=](auto& state) { train_step(state, "baby", arm); });
    add("decode/baby/" + arm + "/f32",
        [=](auto& state) { decode(state, "baby", arm, CacheType::full); });
    add("decode/baby/" + arm + "/int8",
        [=](auto& state) { decode(state, "baby", arm, CacheType::int8); });
    add("sweep/" + arm + "/forward", [=](auto& state) { sweep_point(state, arm, false); })
        ->Arg(2048)
        ->Arg(8192);
    add("sweep/" + arm + "/both", [=](auto& state) { sweep_point(state, arm, true); })
        ->Arg(2048)
        ->Arg(8192);
  }
}

}  // namespace
}  // namespace proteus

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  proteus::register_all();
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
