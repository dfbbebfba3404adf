// A gate is cloned while a model trains, beside a twin that is left alone: the model does not
// notice.
#include <proteus/aspa/surgery.h>
#include <proteus/tensor/parallel.h>
#include <proteus/train/gates.h>
#include <proteus/train/models.h>
#include <proteus/train/trainer.h>

#include <cstdio>

using namespace proteus;

constexpr std::int64_t kWidth = 32;
constexpr std::int64_t kContext = 32;

std::unique_ptr<Transformer> make_model() {
  TransformerConfig config;
  config.vocab = 16;
  config.context = kContext;
  config.layers = 2;
  config.width = kWidth;
  return std::make_unique<Transformer>(config, [](const AttentionSite& site) {
    AspaConfig aspa;
    aspa.width = kWidth;
    aspa.head_width = 16;
    aspa.routed_heads = 4;
    aspa.k = 2;
    aspa.gates_per_head = 2;
    return std::make_unique<AspaAttention>(aspa, site.output_std, site.init, site.generator);
  });
}

// Sequences in which 3·id + 1 (mod 16) follows id.
Batch batch(std::int64_t i) {
  Batch out{Tensor::empty({8, kContext}, DType::i32), Tensor::empty({8, kContext}, DType::i32)};
  for (std::int64_t n = 0; n < out.inputs.numel(); ++n) {
    const std::int32_t first = static_cast<std::int32_t>((i + n / kContext) % 16);
    const std::int32_t id = n % kContext == 0 ? first : out.targets.data<std::int32_t>()[n - 1];
    out.inputs.data<std::int32_t>()[n] = id;
    out.targets.data<std::int32_t>()[n] = (3 * id + 1) % 16;
  }
  return out;
}

int main() {
  set_num_threads(1);
  const auto model = make_model();
  const auto twin = make_model();
  TrainerConfig config;
  config.steps = 60;
  config.lr = 3e-3;
  config.warmup = 10;
  Trainer trainer(*model, config, batch);
  Trainer left_alone(*twin, config, batch);

  std::printf("step   gates   loss    its twin's\n");
  while (!trainer.finished()) {
    AspaAttention& layer = *aspa_layer(*model, 1);
    if (trainer.steps_done() == 30) {
      // The optimizer is told of the rows that double: its moments stay beside their parameters.
      const EditHook hook = optimizer_hook(trainer.optimizer(), gated_parts(*model)[1]);
      const Tensor x = Tensor::randn({2, kContext, kWidth}, {8, 0});
      const double change = output_change(layer, x, [&] { clone_gate(layer, 3, 0, {}, hook); });
      std::printf("gate 3 is cloned; the layer's output changes by %s\n",
                  change < 1e-6 ? "less than 1e-6" : "more than 1e-6");
    }
    const double loss = trainer.step().loss;
    const double other = left_alone.step().loss;
    if (trainer.steps_done() % 10 == 0) {
      std::printf("%4lld %7lld %6.2f %10.2f\n", static_cast<long long>(trainer.steps_done()),
                  static_cast<long long>(layer.router().gate_state().w.size(0)), loss, other);
    }
  }
}
