// Training runs: resumed = never stopped, threads, evaluation changes nothing, checkpoints, and
// what the page on ASPA promises of whole models: causal, and nothing to be learned from random
// tokens.
#include "train/trainer.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <map>

#include "tensor/error.h"
#include "tensor/parallel.h"
#include "tests/error_text.h"
#include "tests/temporary_folder.h"
#include "train/checkpoint.h"
#include "train/models.h"
#include "train/session.h"

namespace proteus {
namespace {

using testing::TemporaryFolder;

constexpr std::int64_t kVocab = 11;

Options small_options() {
  Options o =
      parse_options("duel", {"--layers",       "2",  "--width",  "32", "--head-width",    "8",
                             "--context",      "24", "--batch",  "3",  "--shared-window", "6",
                             "--routed-heads", "6",  "--window", "8",  "--routing-width", "16",
                             "--dropout",      "0.1"})
          .options;
  return o;
}

// A token follows from the one before, mostly.
Batch batch_of(std::int64_t index, std::int64_t rows = 3, std::int64_t T = 24) {
  const Tensor noise = Tensor::rand({rows, T + 1}, {9, static_cast<std::uint64_t>(index)});
  Tensor ids = Tensor::empty({rows, T + 1}, DType::i32);
  for (std::int64_t i = 0; i < ids.numel(); ++i) {
    const float u = noise.data<float>()[i];
    const std::int32_t previous = i % (T + 1) > 0 ? ids.data<std::int32_t>()[i - 1] : 0;
    ids.data<std::int32_t>()[i] =
        u < 0.8f ? (previous * 3 + 1) % kVocab : static_cast<std::int32_t>(u * 1000) % kVocab;
  }
  return {ids.slice(1, 0, T).contiguous(), ids.slice(1, 1, T + 1).contiguous()};
}

Batch random_tokens(std::int64_t index, std::int64_t rows, std::int64_t T) {
  const auto draw = [&](std::uint64_t stream) {
    return Tensor::rand({rows, T + 1}, {index < 0 ? 5u : 6u, stream}, DType::f64, 0, kVocab)
        .to(DType::i32);
  };
  const Tensor ids = draw(static_cast<std::uint64_t>(std::abs(index)));
  return {ids.slice(1, 0, T).contiguous(), ids.slice(1, 1, T + 1).contiguous()};
}

TrainerConfig config_for(std::int64_t steps) {
  TrainerConfig c;
  c.steps = steps;
  c.warmup = 3;
  c.lr = 3e-3;
  return c;
}

bool same_bits(const Tensor& a, const Tensor& b) {
  const Tensor x = a.contiguous();
  const Tensor y = b.contiguous();
  return x.shape() == y.shape() &&
         std::memcmp(x.raw(), y.raw(), static_cast<std::size_t>(x.bytes())) == 0;
}

class EveryArm : public ::testing::TestWithParam<std::string> {
 protected:
  std::unique_ptr<Transformer> model(std::uint64_t seed = 3) const {
    return make_model(small_options(), arm_named(GetParam(), "arm"), kVocab, seed);
  }
};
INSTANTIATE_TEST_SUITE_P(Arms, EveryArm,
                         ::testing::Values("dense", "dense_shift_gated", "aspa",
                                           "aspa_no_prototypes", "aspa_shared"),
                         [](const auto& test) { return test.param; });

std::vector<double> losses(Transformer& model, std::int64_t steps) {
  Trainer trainer(model, config_for(steps), [](std::int64_t i) { return batch_of(i); });
  std::vector<double> all;
  while (!trainer.finished()) all.push_back(trainer.step().loss);
  return all;
}

TEST_P(EveryArm, Learns) {
  const auto m = model();
  const auto all = losses(*m, 60);
  EXPECT_LT(all.back(), all.front() - 0.4);
}

// Parameters, gradients and moments stay in f32; only what flows between them is rounded.
TEST_P(EveryArm, LearnsAlikeWithActivationsInBf16) {
  Options o = small_options();
  o.model.dropout = 0;
  const auto make = [&](const char* dtype) {
    o.common.dtype = dtype;
    return make_model(o, arm_named(GetParam(), "arm"), kVocab, 3);
  };
  const auto wide = make("f32");
  const auto narrow = make("bf16");
  EXPECT_EQ(narrow->hidden(batch_of(0).inputs).dtype(), DType::bf16);
  narrow->loss(batch_of(0).inputs, batch_of(0).targets).backward();
  for (const Parameter& p : narrow->parameters()) {
    EXPECT_EQ(p.variable.dtype(), DType::f32) << p.name;
    if (!p.variable.grad().defined()) continue;
    EXPECT_EQ(p.variable.grad().dtype(), DType::f32) << p.name;
  }
  const auto expected = losses(*wide, 60);
  const auto got = losses(*narrow, 60);
  EXPECT_NE(got[0], expected[0]);
  EXPECT_NEAR(got[0], expected[0], 0.01);  // weights of bf16 are off by 2^-9
  EXPECT_NEAR(got.back(), expected.back(), 0.05);
  EXPECT_LT(got.back(), got.front() - 0.4);
}

TEST_P(EveryArm, SameLossesWithOneAndTwoThreads) {
  std::vector<std::vector<double>> runs;
  for (const int threads : {1, 2, 3}) {
    set_num_threads(threads);
    const auto m = model();
    runs.push_back(losses(*m, 12));
  }
  set_num_threads(0);
  EXPECT_EQ(runs[0], runs[1]);
  EXPECT_EQ(runs[0], runs[2]);
}

TEST_P(EveryArm, ResumedRunRepeatsTheLossesOfOneThatNeverStopped) {
  const TemporaryFolder folder;
  const std::string path = folder.file("checkpoint");
  const auto source = [](std::int64_t i) { return batch_of(i); };
  const auto whole = model();
  const auto expected = losses(*whole, 14);
  {
    const auto first = model();
    Trainer trainer(*first, config_for(14), source);
    for (int i = 0; i < 6; ++i) trainer.step();
    save_checkpoint(
        path, {"{}", trainer.state_json(), module_tensors(*first), trainer.optimizer_tensors()});
  }
  const auto second = model(99);  // other weights: all must come from the checkpoint
  Trainer trainer(*second, config_for(14), source);
  const Checkpoint saved = load_checkpoint(path);
  restore_module(*second, saved.model, path);
  trainer.restore(saved.optimizer, saved.state, path);
  ASSERT_EQ(trainer.steps_done(), 6);
  for (std::size_t i = 6; i < expected.size(); ++i)
    EXPECT_EQ(trainer.step().loss, expected[i]) << i;
}

TEST_P(EveryArm, EvaluationWritesNothing) {
  const auto m = model();
  losses(*m, 5);
  std::vector<Tensor> before;
  for (const auto& [name, tensor] : module_tensors(*m)) before.push_back(tensor.clone());
  const std::uint64_t stream = m->generator().stream();
  evaluate(
      *m, [](std::int64_t i) { return batch_of(100 + i); }, 3);
  m->after_step();
  const auto after = module_tensors(*m);
  for (std::size_t i = 0; i < after.size(); ++i) {
    EXPECT_TRUE(same_bits(after[i].second, before[i])) << after[i].first;
  }
  EXPECT_EQ(m->generator().stream(), stream);
  EXPECT_TRUE(m->training());
}

TEST_P(EveryArm, SuffixAndOtherRowsLeaveEarlierLogitsUnchanged) {
  const auto m = model();
  losses(*m, 5);
  m->set_training(false);
  const Tensor tokens = batch_of(1).inputs;
  const Tensor before = m->logits(tokens);
  for (const std::int64_t keep : {1, 5, 12, 23}) {
    const Tensor changed = batch_of(2).inputs.clone();
    changed.select(0, 1).slice(0, 0, keep).copy_(tokens.select(0, 1).slice(0, 0, keep));
    const Tensor after = m->logits(changed);
    EXPECT_TRUE(
        same_bits(after.select(0, 1).slice(0, 0, keep), before.select(0, 1).slice(0, 0, keep)))
        << keep;
  }
}

// Every arm but the one that is there to leak: what comes later changes nothing, bit for bit.
TEST(Arms, AllButTheLeakAreCausal) {
  const Tensor tokens = batch_of(1).inputs;
  Tensor changed = tokens.clone();
  constexpr std::int64_t kKept = 12;
  changed.slice(1, kKept, 24).copy_(batch_of(2).inputs.slice(1, kKept, 24));
  for (const Arm& arm : arms()) {
    const auto m = make_model(small_options(), arm, kVocab, 3);
    losses(*m, 5);
    m->set_training(false);
    const bool same =
        same_bits(m->logits(changed).slice(1, 0, kKept), m->logits(tokens).slice(1, 0, kKept));
    EXPECT_EQ(same, !arm.leaky) << arm.name;
  }
}

// A model that could see the future would do better than a guess on tokens that have no pattern.
TEST_P(EveryArm, RandomTokensStayUnpredictable) {
  Options o = small_options();
  o.model.dropout = 0;
  const auto m = make_model(o, arm_named(GetParam(), "arm"), kVocab, 4);
  TrainerConfig c = config_for(150);
  Trainer trainer(*m, c, [](std::int64_t i) { return random_tokens(i, 16, 24); });
  while (!trainer.finished()) trainer.step();
  const EvalResult r = evaluate(
      *m, [](std::int64_t i) { return random_tokens(-1 - i, 64, 24); }, 4);
  EXPECT_GE(r.loss, std::log(static_cast<double>(kVocab)) - 0.01);
}

// alpha follows its schedule during a step and is the layer's own between steps.
// nats of every token of `batch`, decoded with such a cache.
std::vector<double> decoded_nats(Transformer& model, const Batch& batch, CacheType cache) {
  std::vector<double> out;
  for (std::int64_t b = 0; b < batch.inputs.size(0); ++b) {
    DecodeState state = model.begin_sequence(cache);
    DecodeState* const states[] = {&state};
    for (std::int64_t t = 0; t < batch.inputs.size(1); ++t) {
      const Tensor token = batch.inputs.select(0, b).slice(0, t, t + 1);
      const std::vector<double> logits = model.step(token, states).to_vector();
      double sum = 0;
      for (const double l : logits) sum += std::exp(l);
      const double target = batch.targets.select(0, b).select(0, t).item();
      out.push_back(std::log(sum) - logits[static_cast<std::size_t>(target)]);
    }
  }
  return out;
}

// What 8-bit caches cost a trained model: next to nothing on the whole, little for any token but
// those that a head near its threshold is decided for otherwise.
TEST_P(EveryArm, EightBitCachesKeepTheLoss) {
  constexpr double kMean = 3e-4;  // nats per token
  constexpr double kEach = 1e-3;  // mean of the differences' sizes
  const auto m = model();
  losses(*m, 60);
  m->set_training(false);
  const Batch batch = batch_of(1000, 8);
  const auto full = decoded_nats(*m, batch, CacheType::full);
  const auto codes = decoded_nats(*m, batch, CacheType::int8);
  double difference = 0;
  double size = 0;
  for (std::size_t i = 0; i < full.size(); ++i) {
    difference += (codes[i] - full[i]) / static_cast<double>(full.size());
    size += std::abs(codes[i] - full[i]) / static_cast<double>(full.size());
  }
  EXPECT_LE(std::abs(difference), kMean);
  EXPECT_LE(size, kEach);
  EXPECT_GT(size, 0);
  RecordProperty("mean_difference", std::to_string(difference));
  RecordProperty("mean_size", std::to_string(size));
}

TEST(Trainer, AlphaFollowsItsSchedule) {
  const auto losses = [](AlphaSchedule::Kind kind, double alpha) {
    Options o = small_options();
    o.model.dropout = 0;
    o.aspa.alpha = alpha;
    const auto m = make_model(o, arm_named("aspa", "arm"), kVocab, 4);
    TrainerConfig c = config_for(4);
    c.alpha = {.kind = kind, .steps = 2, .seed = 5};
    Trainer trainer(*m, c, [](std::int64_t i) { return batch_of(i); });
    std::vector<double> all;
    while (!trainer.finished()) {
      all.push_back(trainer.step().loss);
      EXPECT_EQ(aspa_layer(*m, 1)->alpha(), alpha);
    }
    return all;
  };
  using Kind = AlphaSchedule::Kind;
  EXPECT_EQ(losses(Kind::ramp, 1)[0], losses(Kind::fixed, 0)[0]);
  EXPECT_NE(losses(Kind::ramp, 1)[0], losses(Kind::fixed, 1)[0]);
  EXPECT_EQ(losses(Kind::sampled, 1), losses(Kind::sampled, 1));
}

/// A run whose first steps train nothing but what ASPA adds.
class FrozenStart : public ::testing::Test {
 protected:
  static constexpr std::int64_t kFrozen = 5;

  static std::unique_ptr<Transformer> model(std::uint64_t seed) {
    Options o = small_options();
    o.aspa.token_keep = 0.7;
    o.model.bias = true;
    return make_model(o, arm_named("aspa", "arm"), kVocab, seed);
  }
  static TrainerConfig config() {
    TrainerConfig c = config_for(9);
    c.freeze_steps = kFrozen;
    return c;
  }
  static Trainer trainer(Transformer& model) {
    return {model, config(), [](std::int64_t i) { return batch_of(i); }};
  }
  static std::map<std::string, Tensor> copies(const NamedTensors& tensors) {
    std::map<std::string, Tensor> out;
    for (const auto& [name, tensor] : tensors) out[name] = tensor.clone();
    return out;
  }
};

TEST_F(FrozenStart, MovesWhatRoutesAndNotOneBitOfTheRest) {
  const auto m = model(3);
  Trainer run = trainer(*m);
  const auto before = copies(module_tensors(*m));
  for (int i = 0; i < kFrozen; ++i) run.step();
  std::int64_t routing = 0;
  for (const Parameter& p : m->parameters()) {
    const bool same = same_bits(p.variable.value(), before.at(p.name));
    EXPECT_EQ(same, !routes(p.name)) << p.name;
    routing += routes(p.name) ? 1 : 0;
  }
  EXPECT_GT(routing, 10) << "U, w, λ, v, κ, sinks, gates and μ of two layers";
  for (const Buffer& b : m->buffers()) {
    if (!b.name.ends_with("router.P")) continue;
    EXPECT_FALSE(same_bits(b.tensor, before.at(b.name))) << b.name << ": prototypes move, too";
  }
  for (const auto& [name, tensor] : run.optimizer_tensors()) {
    if (routes(name)) continue;
    EXPECT_TRUE(same_bits(tensor, Tensor::zeros(tensor.shape(), tensor.dtype()))) << name;
  }
  run.step();
  for (const Parameter& p : m->parameters()) {
    EXPECT_FALSE(same_bits(p.variable.value(), before.at(p.name))) << p.name;
  }
}

TEST_F(FrozenStart, ResumesInItsMiddleBitForBit) {
  const TemporaryFolder folder;
  const std::string path = folder.file("checkpoint");
  const auto whole = model(3);
  Trainer expected = trainer(*whole);
  {
    const auto first = model(3);
    Trainer run = trainer(*first);
    for (int i = 0; i < 3; ++i) {
      run.step();
      expected.step();
    }
    save_checkpoint(path,
                    {"{}", run.state_json(), module_tensors(*first), run.optimizer_tensors()});
  }
  const auto second = model(99);
  Trainer run = trainer(*second);
  const Checkpoint saved = load_checkpoint(path);
  restore_module(*second, saved.model, path);
  run.restore(saved.optimizer, saved.state, path);
  while (!run.finished()) EXPECT_EQ(run.step().loss, expected.step().loss) << run.steps_done();
  for (const auto& [name, tensor] : module_tensors(*second)) {
    const auto all = copies(module_tensors(*whole));
    EXPECT_TRUE(same_bits(tensor, all.at(name))) << name;
  }
}

TEST_F(FrozenStart, RoutesAtFullAlphaAndThenRampsFromZero) {
  const auto m = model(3);
  TrainerConfig c = config();
  c.alpha = {.kind = AlphaSchedule::Kind::ramp, .steps = 4};
  std::vector<double> alphas;
  Trainer run(*m, c, [&](std::int64_t i) {
    alphas.push_back(aspa_layer(*m, 0)->alpha());
    return batch_of(i);
  });
  while (!run.finished()) run.step();
  EXPECT_EQ(alphas, (std::vector<double>{1, 1, 1, 1, 1, 0, 0.25, 0.5, 0.75}));
}

TEST_F(FrozenStart, IsForModelsThatRoute) {
  const auto m = make_model(small_options(), arm_named("dense", "arm"), kVocab, 3);
  const auto plain = make_model(small_options(), arm_named("dense", "arm"), kVocab, 3);
  Trainer run = trainer(*m);
  const auto expected = losses(*plain, 9);
  for (const double loss : expected) EXPECT_EQ(run.step().loss, loss);
}

TEST(Trainer, LossThatIsNotANumberChangesNothing) {
  const auto m = make_model(small_options(), arm_named("dense", "arm"), kVocab, 1);
  Trainer trainer(*m, config_for(5), [](std::int64_t i) { return batch_of(i); });
  trainer.step();
  m->parameters()[0].variable.value().fill_(NAN);
  std::vector<Tensor> before;
  for (const auto& [name, tensor] : module_tensors(*m)) before.push_back(tensor.clone());
  try {
    trainer.step();
    FAIL() << "no error";
  } catch (const NumericError& error) {
    EXPECT_NE(std::string(error.what()).find("the loss became nan at step 2"), std::string::npos)
        << error.what();
  }
  const auto after = module_tensors(*m);
  for (std::size_t i = 0; i < after.size(); ++i) EXPECT_TRUE(same_bits(after[i].second, before[i]));
  EXPECT_EQ(trainer.steps_done(), 1);
}

TEST(Trainer, QueuedStepsAreCollectedInOrder) {
  const auto run = [](bool halves) {
    const auto m = make_model(small_options(), arm_named("dense", "arm"), kVocab, 1);
    Trainer trainer(*m, config_for(6), [](std::int64_t i) { return batch_of(i); });
    std::vector<double> all;
    const auto keep = [&](const StepResult& step) {
      EXPECT_EQ(step.step, static_cast<std::int64_t>(all.size()) / 2 + 1);
      all.push_back(step.loss);
      all.push_back(step.grad_norm);
    };
    for (int i = 0; i < 2; ++i) {
      for (int k = 0; k < 3; ++k) halves ? trainer.queue_step() : keep(trainer.step());
      while (trainer.pending() > 0) keep(trainer.collect());
    }
    return all;
  };
  EXPECT_EQ(run(true), run(false));
}

TEST(Trainer, StepsBehindOneThatWentBadAreForgotten) {
  const auto m = make_model(small_options(), arm_named("dense", "arm"), kVocab, 1);
  Trainer trainer(*m, config_for(9), [](std::int64_t i) { return batch_of(i); });
  trainer.step();
  const Tensor scale = m->parameters()[1].variable.value();
  const Tensor good = scale.clone();
  trainer.queue_step();
  scale.fill_(NAN);
  for (int i = 0; i < 3; ++i) trainer.queue_step();
  EXPECT_EQ(trainer.collect().step, 2);
  EXPECT_THROW(trainer.collect(), NumericError);
  EXPECT_EQ(trainer.steps_done(), 2);
  EXPECT_EQ(trainer.pending(), 0);
  scale.copy_(good);
  EXPECT_EQ(trainer.step().step, 3);
}

TEST(Trainer, AccumulatedBatchesAreOneLargeBatch) {
  Options o = small_options();
  o.model.dropout = 0;
  const auto whole = make_model(o, arm_named("dense", "arm"), kVocab, 1);
  const auto parts = make_model(o, arm_named("dense", "arm"), kVocab, 1);
  TrainerConfig c = config_for(3);
  Trainer large(*whole, c, [](std::int64_t i) { return batch_of(i, 6); });
  c.grad_accum = 2;
  Trainer small(*parts, c, [](std::int64_t i) {
    const Batch b = batch_of(i / 2, 6);
    const std::int64_t row = 3 * (i % 2);
    return Batch{b.inputs.slice(0, row, row + 3).contiguous(),
                 b.targets.slice(0, row, row + 3).contiguous()};
  });
  for (int i = 0; i < 3; ++i) EXPECT_NEAR(large.step().loss, small.step().loss, 1e-5);
}

TEST(Checkpoint, WrongPartsAreNamedAndChangeNothing) {
  const auto m = make_model(small_options(), arm_named("dense", "arm"), kVocab, 1);
  NamedTensors tensors;
  for (const auto& [name, tensor] : module_tensors(*m)) tensors.emplace_back(name, tensor.clone());
  const Tensor before = tensors[1].second.clone();
  tensors[1].second.fill_(7);
  const auto removed = tensors.back();
  tensors.pop_back();
  EXPECT_THROW(restore_module(*m, tensors, "here"), FileError);
  EXPECT_TRUE(same_bits(module_tensors(*m)[1].second, before));
  tensors.push_back(removed);
  tensors.emplace_back("extra", Tensor::zeros({1}));
  EXPECT_THROW(restore_module(*m, tensors, "here"), FileError);
  tensors.pop_back();
  tensors.back().second = Tensor::zeros({1, 2, 3});
  EXPECT_THROW(restore_module(*m, tensors, "here"), FileError);
  EXPECT_TRUE(same_bits(module_tensors(*m)[1].second, before));
}

TEST(Models, ConfigurationSurvivesTheCheckpoint) {
  const Options o = small_options();
  const SavedModel saved{o, "aspa", kVocab, 7, ""};
  const SavedModel back = parse_model_json(model_json(saved), "here");
  EXPECT_EQ(back.arm, "aspa");
  EXPECT_EQ(back.vocab, kVocab);
  EXPECT_EQ(back.seed, 7u);
  const auto a = make_model(o, arm_named("aspa", "arm"), kVocab, 2);
  const auto b = make_model(back.options, arm_named("aspa", "arm"), kVocab, 2);
  const auto ta = module_tensors(*a);
  const auto tb = module_tensors(*b);
  ASSERT_EQ(ta.size(), tb.size());
  for (std::size_t i = 0; i < ta.size(); ++i) {
    EXPECT_EQ(ta[i].first, tb[i].first);
    EXPECT_TRUE(same_bits(ta[i].second, tb[i].second));
  }
  EXPECT_THROW(parse_model_json("{}", "here"), FileError);
  EXPECT_THROW(parse_model_json("not json", "here"), FileError);
}

}  // namespace
}  // namespace proteus
