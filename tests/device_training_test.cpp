// Whole models on a device: the fake one runs the kernels of the CPU on memory that host code must
// not touch, so every loss, parameter and buffer has to come out bit for bit as on the CPU, and
// whatever reads or writes a tensor of the device outside a kernel or a copy ends the program.
#include <gtest/gtest.h>

#include <cstring>

#include "tests/fake_device.h"
#include "tests/temporary_folder.h"
#include "train/checkpoint.h"
#include "train/gates.h"
#include "train/models.h"
#include "train/session.h"

namespace proteus {
namespace {

using testing::FakeDevice;
using testing::kFakeDevice;
using testing::TemporaryFolder;

constexpr std::int64_t kVocab = 11;
constexpr std::int64_t kSteps = 20;

struct Case {
  std::string name;
  std::string arm;
  std::vector<std::string> options;
};

// Salience, several heads of a token by top_p, several gates of a head, and gates that are declared
// dead at once: everything that a step decides on the host.
std::vector<Case> cases() {
  const std::vector<std::string> everything{"--token-keep", "0.7", "--head-top-p",     "0.8",
                                            "--k",          "3",   "--gates-per-head", "3"};
  std::vector<std::string> revived = everything;
  revived.insert(revived.end(), {"--dead-share", "0.9", "--dead-steps", "3"});
  return {{"Dense", "dense", {}},
          {"DenseShiftGated", "dense_shift_gated", {}},
          {"Aspa", "aspa", {}},
          {"AspaWithoutPrototypes", "aspa_no_prototypes", {}},
          {"AspaEverything", "aspa", everything},
          {"AspaRevived", "aspa", revived},
          {"DenseAsGpt2", "dense", {"--positions", "learned", "--bias"}},
          {"AspaAsGpt2", "aspa", {"--positions", "learned", "--bias"}},
          {"AspaBank", "aspa", {"--bank-slots", "4", "--bank-stride", "4"}},
          {"Experts", "aspa", {"--experts", "5", "--k", "2"}},
          {"ExpertsOfTheAttention", "aspa", {"--experts", "6", "--expert-router", "attention"}}};
}

class DeviceTraining : public ::testing::TestWithParam<Case> {
 protected:
  Options options() const {
    std::vector<std::string> words{
        "--layers",        "2",  "--width",         "32", "--head-width",   "8", "--context", "24",
        "--batch",         "3",  "--shared-window", "6",  "--routed-heads", "6", "--window",  "8",
        "--routing-width", "16", "--dropout",       "0.1"};
    words.insert(words.end(), GetParam().options.begin(), GetParam().options.end());
    return parse_options("duel", words).options;
  }
  std::unique_ptr<Transformer> model(std::uint64_t seed, Device device) const {
    auto m = make_model(options(), arm_named(GetParam().arm, "arm"), kVocab, seed);
    m->to(device);
    return m;
  }
};
INSTANTIATE_TEST_SUITE_P(Models, DeviceTraining, ::testing::ValuesIn(cases()),
                         [](const auto& test) { return test.param.name; });

Batch batch_of(std::int64_t index) {
  const Tensor ids = Tensor::rand({3, 25}, {9, static_cast<std::uint64_t>(index)}, DType::f64, 0,
                                  static_cast<double>(kVocab))
                         .to(DType::i32);
  return {ids.slice(1, 0, 24).contiguous(), ids.slice(1, 1, 25).contiguous()};
}

TrainerConfig config() {
  TrainerConfig c;
  c.steps = kSteps;
  c.warmup = 3;
  c.lr = 3e-3;
  c.grad_accum = 2;
  return c;
}

/// What a run leaves behind, on the CPU.
struct Outcome {
  std::vector<double> losses;  ///< of the steps, then of an evaluation
  std::vector<double> norms;
  std::int64_t revived = 0;
  NamedTensors tensors;
};

Outcome outcome_of(Transformer& model, Trainer& trainer, std::int64_t until) {
  Outcome out;
  while (trainer.steps_done() < until) {
    const StepResult step = trainer.step();
    out.losses.push_back(step.loss);
    out.norms.push_back(step.grad_norm);
    if (const AspaAttention* layer = aspa_layer(model, 1))
      out.revived += layer->telemetry().revived;
  }
  out.losses.push_back(evaluate(
                           model, [](std::int64_t i) { return batch_of(1000 + i); }, 2)
                           .loss);
  for (int i = 0; i < 2; ++i) probe_routing(model, batch_of(2000).inputs);
  out.losses.push_back(routing_summary(model).churn);
  for (const auto& [name, tensor] : module_tensors(model)) {
    out.tensors.emplace_back(name, tensor.to(kCpu).clone());
  }
  for (const auto& [name, tensor] : trainer.optimizer_tensors()) {
    out.tensors.emplace_back(name, tensor.to(kCpu).clone());
  }
  return out;
}

Outcome run(Transformer& model) {
  Trainer trainer(model, config(), batch_of);
  return outcome_of(model, trainer, kSteps);
}

void expect_same(const Outcome& got, const Outcome& expected) {
  EXPECT_EQ(got.losses, expected.losses);
  EXPECT_EQ(got.norms, expected.norms);
  ASSERT_EQ(got.tensors.size(), expected.tensors.size());
  for (std::size_t i = 0; i < got.tensors.size(); ++i) {
    const Tensor& a = got.tensors[i].second;
    const Tensor& b = expected.tensors[i].second;
    ASSERT_EQ(a.shape(), b.shape()) << got.tensors[i].first;
    EXPECT_EQ(std::memcmp(a.raw(), b.raw(), static_cast<std::size_t>(a.bytes())), 0)
        << got.tensors[i].first;
  }
}

TEST_P(DeviceTraining, GivesTheBitsOfTheCpu) {
  const auto on_cpu = model(3, kCpu);
  const Outcome expected = run(*on_cpu);
  if (GetParam().name == "AspaRevived") {
    EXPECT_GT(expected.revived, 0);
  }
  const FakeDevice fake;
  {
    const auto there = model(3, kFakeDevice);
    for (const Parameter& p : there->parameters()) EXPECT_EQ(p.variable.device(), kFakeDevice);
    expect_same(run(*there), expected);
    EXPECT_GT(FakeDevice::counts().kernels, 0);
    EXPECT_EQ(FakeDevice::broken_guards(), 0);
    // Back on the CPU the model decodes what it has learned.
    there->to(kCpu);
    there->set_training(false);
    on_cpu->set_training(false);
    const auto logits = [](Transformer& m) {
      DecodeState state = m.begin_sequence();
      DecodeState* const sequence = &state;
      return m.step(Tensor::zeros({1}, DType::i32), std::span(&sequence, 1)).to_vector();
    };
    EXPECT_EQ(logits(*there), logits(*on_cpu));
  }
  EXPECT_EQ(FakeDevice::counts().live_blocks, 0);
}

TEST_P(DeviceTraining, ResumesFromACheckpointOfEitherDevice) {
  const TemporaryFolder folder;
  const std::string path = folder.file("checkpoint");
  const auto whole = model(3, kCpu);
  const Outcome expected = run(*whole);
  const FakeDevice fake;
  const auto resumed = [&](Device device) {
    // The seed is the run's (it draws the noise of revived gates); all weights come from the file.
    const auto m = model(3, kCpu);
    for (const Parameter& p : m->parameters()) p.variable.value().fill_(0.5);
    const Checkpoint saved = load_checkpoint(path);
    restore_model(*m, saved.model, path);
    m->to(device);
    Trainer trainer(*m, config(), batch_of);
    trainer.restore(saved.optimizer, saved.state, path);
    Outcome rest = outcome_of(*m, trainer, kSteps);
    EXPECT_EQ(rest.losses, std::vector<double>(expected.losses.begin() + 8, expected.losses.end()));
    rest.losses = expected.losses;
    rest.norms = expected.norms;
    expect_same(rest, expected);
  };
  for (const Device device : {kFakeDevice, kCpu}) {
    {
      const auto first = model(3, device);
      Trainer trainer(*first, config(), batch_of);
      for (int i = 0; i < 8; ++i) trainer.step();
      save_checkpoint(
          path, {"{}", trainer.state_json(), module_tensors(*first), trainer.optimizer_tensors()});
    }
    resumed(kFakeDevice);
    resumed(kCpu);
  }
}

TEST_P(DeviceTraining, RecomputationAndDenseAlphaRunThereToo) {
  const auto loss = [&](Device device) {
    Options o = options();
    o.model.recompute = true;
    const auto m = make_model(o, arm_named(GetParam().arm, "arm"), kVocab, 3);
    m->to(device);
    std::vector<double> all;
    for (const double alpha : {0.0, 0.5}) {
      for (std::int64_t l = 0; l < m->layers(); ++l) {
        if (AspaAttention* layer = aspa_layer(*m, l)) layer->set_alpha(alpha);
      }
      Trainer trainer(*m, config(), batch_of);
      for (int i = 0; i < 3; ++i) all.push_back(trainer.step().loss);
    }
    return all;
  };
  const auto expected = loss(kCpu);
  const FakeDevice fake;
  EXPECT_EQ(loss(kFakeDevice), expected);
}

// Gate surgery works on copies on the host and puts its results back.
TEST(DeviceTrainingSurgery, GivesTheBitsOfTheCpu) {
  const auto run_with = [](Device device) {
    const Options o =
        parse_options("duel",
                      {"--layers",       "1",  "--width",          "32", "--head-width",    "8",
                       "--context",      "24", "--batch",          "3",  "--shared-window", "6",
                       "--routed-heads", "6",  "--window",         "8",  "--routing-width", "16",
                       "--gate-every",   "4",  "--add-heads",      "1",  "--add-heads-at",  "6",
                       "--head-ramp",    "5",  "--gates-per-head", "2",  "--dead-share",    "0.9",
                       "--dead-steps",   "2"})
            .options;
    const auto m = make_model(o, arm_named("aspa", "arm"), kVocab, 3);
    m->to(device);
    Trainer trainer(*m, config(), batch_of);
    std::vector<double> losses;
    std::int64_t events = 0;
    for (int i = 0; i < 16; ++i) {
      losses.push_back(trainer.step().loss);
      for (const GateEvent& e :
           operate(o.aspa, trainer.steps_done(), 3, *m, trainer.optimizer(), batch_of(500))) {
        losses.push_back(e.loss_after);
        ++events;
      }
    }
    EXPECT_GT(events, 1);
    return losses;
  };
  const auto expected = run_with(kCpu);
  const FakeDevice fake;
  EXPECT_EQ(run_with(kFakeDevice), expected);
}

}  // namespace
}  // namespace proteus
