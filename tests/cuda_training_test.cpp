// Training steps on a GPU that are recorded and replayed: the bits of steps that are queued one by
// one, with masks of dropout that change from step to step, and errors that are found later.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>

#include "aspa/surgery.h"
#include "cuda/device.h"
#include "tensor/error.h"
#include "tensor/ops/elementwise.h"
#include "tensor/queue.h"
#include "tensor/storage.h"
#include "train/checkpoint.h"
#include "train/gates.h"
#include "train/models.h"
#include "train/trainer.h"

namespace proteus {
namespace {

#define PROTEUS_NEED_GPU() \
  if (cuda::device_count() == 0) GTEST_SKIP() << "no GPU: the driver offers none"

constexpr std::int64_t kVocab = 61;
constexpr std::int64_t kSteps = 9;

Options options(const std::string& dtype, const std::string& dropout,
                const std::vector<std::string>& more = {}) {
  std::vector<std::string> all{"--layers",       "2",   "--width",  "128", "--head-width", "32",
                               "--context",      "64",  "--batch",  "5",   "--dropout",    dropout,
                               "--dtype",        dtype, "--window", "24",  "--k",          "2",
                               "--routed-heads", "8"};
  all.insert(all.end(), more.begin(), more.end());
  return parse_options("duel", all).options;
}

std::unique_ptr<Transformer> model_on(Device device, const Options& o,
                                      const std::string& arm = "dense") {
  auto model = make_model(o, arm_named(arm, "arm"), kVocab, 3);
  model->to(device);
  return model;
}

Batch batch_of(std::int64_t index, std::int64_t rows = 5) {
  const Tensor ids = Tensor::rand({rows, 65}, {9, static_cast<std::uint64_t>(index)}, DType::f64, 0,
                                  static_cast<double>(kVocab))
                         .to(DType::i32);
  return {ids.slice(1, 0, 64).contiguous(), ids.slice(1, 1, 65).contiguous()};
}

TrainerConfig config(bool record) {
  TrainerConfig c;
  c.steps = kSteps;
  c.warmup = 3;
  c.lr = 3e-3;
  c.grad_accum = 2;
  c.record = record;
  return c;
}

bool same_bits(const Tensor& a_any, const Tensor& b_any) {
  const Tensor a = a_any.to(kCpu);
  const Tensor b = b_any.to(kCpu);
  return a.shape() == b.shape() && a.dtype() == b.dtype() &&
         std::memcmp(a.raw(), b.raw(), static_cast<std::size_t>(a.bytes())) == 0;
}

/// Losses and norms of a run, an evaluation in its middle, and all tensors it leaves.
struct Outcome {
  std::vector<double> numbers;
  NamedTensors tensors;
  std::int64_t replays = 0;
  std::uint64_t stream = 0;

  /// `between(model, trainer, i)` comes before step i.
  using Between = std::function<void(Transformer&, Trainer&, std::int64_t)>;
  Outcome(Device device, const Options& o, bool record, const std::string& arm = "dense",
          const Between& between = {}) {
    const auto model = model_on(device, o, arm);
    TrainerConfig c = config(record);
    c.freeze_steps = o.training.freeze_steps;
    if (o.aspa.alpha_schedule == "sample") c.alpha.kind = AlphaSchedule::Kind::sampled;
    Trainer trainer(*model, c, [](std::int64_t i) { return batch_of(i); });
    for (std::int64_t i = 0; i < kSteps; ++i) {
      if (between) between(*model, trainer, i);
      const StepResult step = trainer.step();
      numbers.push_back(step.loss);
      numbers.push_back(step.grad_norm);
      if (i != kSteps / 2) continue;
      // Batches of another shape: plans of attention are made anew.
      numbers.push_back(evaluate(
                            *model, [](std::int64_t k) { return batch_of(100 + k, 3); }, 2)
                            .loss);
    }
    for (const auto& [name, tensor] : module_tensors(*model)) {
      tensors.emplace_back(name, tensor.to(kCpu).clone());
    }
    for (const auto& [name, tensor] : trainer.optimizer_tensors()) {
      tensors.emplace_back(name, tensor.to(kCpu).clone());
    }
    replays = trainer.replays();
    stream = model->generator().stream();
  }
};

void expect_same(const Outcome& replayed, const Outcome& eager) {
  EXPECT_EQ(replayed.numbers, eager.numbers);
  EXPECT_EQ(replayed.stream, eager.stream);
  ASSERT_EQ(replayed.tensors.size(), eager.tensors.size());
  for (std::size_t i = 0; i < eager.tensors.size(); ++i) {
    EXPECT_TRUE(same_bits(replayed.tensors[i].second, eager.tensors[i].second))
        << eager.tensors[i].first;
  }
}

/// All steps but the first are replayed, and leave nothing behind.
void expect_replays(Device device, const Options& o, const std::string& arm) {
  const auto before = memory_stats(DeviceType::cuda).live_bytes;
  {
    const Outcome eager(device, o, false, arm);
    const Outcome replayed(device, o, true, arm);
    EXPECT_EQ(eager.replays, 0);
    EXPECT_EQ(replayed.replays, kSteps - 1);
    expect_same(replayed, eager);
  }
  EXPECT_EQ(memory_stats(DeviceType::cuda).live_bytes, before);
}

TEST(CudaTraining, ReplaysGiveTheBitsOfQueuedSteps) {
  PROTEUS_NEED_GPU();
  for (const auto& [dtype, dropout] : {std::pair{"bf16", "0.2"}, {"bf16", "0"}, {"f32", "0"}}) {
    SCOPED_TRACE(std::string(dtype) + ", dropout " + dropout);
    expect_replays(cuda::device(0), options(dtype, dropout), "dense");
  }
}

// Thresholds, prototypes and their counters are among the tensors.
TEST(CudaTraining, ReplaysOfRoutedLayersGiveTheBitsOfQueuedSteps) {
  PROTEUS_NEED_GPU();
  const std::vector<std::vector<std::string>> kinds{
      {},
      {"--experts", "4"},
      {"--experts", "8", "--expert-router", "attention", "--recompute"},
      {"--no-prototypes", "--no-key-shift"},
      {"--positions", "learned", "--bias"}};
  for (const auto& kind : kinds) {
    for (const auto& [dtype, dropout] : {std::pair{"bf16", "0.2"}, {"f32", "0"}}) {
      SCOPED_TRACE(std::string(dtype) + (kind.empty() ? "" : kind[0]));
      expect_replays(cuda::device(0), options(dtype, dropout, kind), "aspa");
    }
  }
}

TEST(CudaTraining, StepsThatTheHostTakesPartInAreQueued) {
  PROTEUS_NEED_GPU();
  const Device device = cuda::device(0);
  for (const std::vector<std::string>& kind : std::vector<std::vector<std::string>>{
           {"--token-keep", "0.5"}, {"--head-top-p", "0.9"}, {"--alpha-schedule", "sample"}}) {
    SCOPED_TRACE(kind[0]);
    const Options o = options("f32", "0", kind);
    const Outcome replayed(device, o, true, "aspa");
    EXPECT_EQ(replayed.replays, 0);
    expect_same(replayed, Outcome(device, o, false, "aspa"));
  }
}

TEST(CudaTraining, ChangedGatesAreRecordedAnew) {
  PROTEUS_NEED_GPU();
  const Device device = cuda::device(0);
  const auto change = [](Transformer& model, Trainer& trainer, std::int64_t step) {
    const GatedPart part = gated_parts(model).front();
    if (step == 3) part.gated->gating().set_k(3);
    if (step == 6) clone_gate(*part.gated, 2, 0.1, {7}, optimizer_hook(trainer.optimizer(), part));
  };
  const Options o = options("bf16", "0.1");
  const Outcome eager(device, o, false, "aspa", change);
  const Outcome replayed(device, o, true, "aspa", change);
  EXPECT_EQ(replayed.replays, kSteps - 1 - 2);
  expect_same(replayed, eager);
}

TEST(CudaTraining, TheEndOfAFrozenStartIsRecordedAnew) {
  PROTEUS_NEED_GPU();
  const Device device = cuda::device(0);
  const Options o = options("bf16", "0.1", {"--freeze-steps", "3"});
  const Outcome eager(device, o, false, "aspa");
  const Outcome replayed(device, o, true, "aspa");
  EXPECT_EQ(replayed.replays, kSteps - 1 - 1);
  expect_same(replayed, eager);
}

// An evaluation rounds the parameters as they are; the step that is recorded behind it has to round
// those of every replay.
TEST(CudaTraining, AnEvaluationBeforeTheRecordedStepChangesNothing) {
  PROTEUS_NEED_GPU();
  const auto look = [](Transformer& model, Trainer&, std::int64_t step) {
    if (step == 1)
      evaluate(
          model, [](std::int64_t k) { return batch_of(50 + k); }, 1);
  };
  const Options o = options("bf16", "0.1");
  for (const char* arm : {"dense", "aspa"}) {
    SCOPED_TRACE(arm);
    const Outcome eager(cuda::device(0), o, false, arm, look);
    const Outcome replayed(cuda::device(0), o, true, arm, look);
    EXPECT_EQ(replayed.replays, kSteps - 1);
    expect_same(replayed, eager);
  }
}

TEST(CudaTraining, DropoutDrawsAnewInEveryReplay) {
  PROTEUS_NEED_GPU();
  const auto model = model_on(cuda::device(0), options("bf16", "0.5"));
  TrainerConfig c = config(true);
  c.lr = 0;
  c.min_lr = 0;
  c.grad_accum = 1;
  Trainer trainer(*model, c, [](std::int64_t) { return batch_of(0); });
  std::vector<double> losses;
  for (int i = 0; i < 6; ++i) losses.push_back(trainer.step().loss);
  EXPECT_EQ(trainer.replays(), 5);
  for (std::size_t i = 1; i < losses.size(); ++i) EXPECT_NE(losses[i], losses[i - 1]) << i;
}

TEST(CudaTraining, NumbersThatWentBadAreFoundLaterAndChangeNothing) {
  PROTEUS_NEED_GPU();
  const auto model = model_on(cuda::device(0), options("bf16", "0"));
  Trainer trainer(*model, config(true), [](std::int64_t i) { return batch_of(i); });
  for (int i = 0; i < 4; ++i) trainer.step();
  const Tensor scale = model->parameters()[1].variable.value();
  const Tensor good = scale.clone();
  scale.fill_(NAN);
  std::vector<Tensor> before;
  for (const auto& [name, tensor] : module_tensors(*model)) before.push_back(tensor.clone());
  for (int i = 0; i < 3; ++i) trainer.queue_step();
  try {
    trainer.collect();
    FAIL() << "no error";
  } catch (const NumericError& error) {
    EXPECT_NE(std::string(error.what()).find("the loss became nan at step 5"), std::string::npos)
        << error.what();
  }
  EXPECT_EQ(trainer.steps_done(), 4);
  EXPECT_EQ(trainer.pending(), 0);
  const auto after = module_tensors(*model);
  for (std::size_t i = 0; i < after.size(); ++i) {
    EXPECT_TRUE(same_bits(after[i].second, before[i])) << after[i].first;
  }
  scale.copy_(good);
  EXPECT_TRUE(std::isfinite(trainer.step().loss));
}

TEST(CudaGraph, CopiesToTheHostCannotBeRecorded) {
  PROTEUS_NEED_GPU();
  const Device device = cuda::device(0);
  const Tensor x = Tensor::full({}, 2, DType::f32, device);
  try {
    const Recording recording(device, [&] { x.item(); });
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("cannot be recorded"), std::string::npos)
        << error.what();
  }
  EXPECT_EQ(x.item(), 2);
}

TEST(CudaGraph, ReplaysReadWhatIsThereNow) {
  PROTEUS_NEED_GPU();
  const Device device = cuda::device(0);
  const Tensor x = Tensor::full({1000}, 1, DType::f32, device);
  const Tensor y = Tensor::zeros({1000}, DType::f32, device);
  ops::affine(x, 2, 1);
  const Recording recording(device, [&] { y.copy_(ops::affine(x, 2, 1)); });
  EXPECT_EQ(y.slice(0, 0, 1).to_vector()[0], 0) << "it ran while it was recorded";
  for (int i = 0; i < 3; ++i) {
    x.fill_(i);
    recording.replay(0);
    EXPECT_EQ(y.to_vector(), std::vector<double>(1000, 2.0 * i + 1));
  }
}

}  // namespace
}  // namespace proteus
