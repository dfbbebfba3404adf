// Gate surgery during training: the policy, the timeline, and checkpoints whose shapes have
// changed.
#include "train/gates.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <nlohmann/json.hpp>

#include "tensor/error.h"
#include "tests/aspa_layers.h"
#include "tests/error_text.h"
#include "train/checkpoint.h"
#include "train/models.h"
#include "train/session.h"

namespace proteus {
namespace {

using testing::message_of;
using testing::same_bits;

constexpr std::int64_t kVocab = 11;

Options small_options(const std::vector<std::string>& more) {
  std::vector<std::string> args{"--model", "aspa"};
  for (const auto& [name, value] :
       std::vector<std::pair<std::string, std::string>>{{"layers", "2"},
                                                        {"width", "32"},
                                                        {"head-width", "8"},
                                                        {"context", "24"},
                                                        {"batch", "3"},
                                                        {"shared-window", "6"},
                                                        {"routed-heads", "6"},
                                                        {"k", "2"},
                                                        {"window", "8"},
                                                        {"routing-width", "16"},
                                                        {"gate-every", "4"},
                                                        {"gate-clone-above", "1.1"},
                                                        {"add-heads", "2"},
                                                        {"add-heads-at", "6"},
                                                        {"head-ramp", "5"}}) {
    args.push_back("--" + name);
    args.push_back(value);
  }
  args.insert(args.end(), more.begin(), more.end());
  return parse_options("train", args).options;
}

Batch batch_of(std::int64_t index) {
  const Tensor ids =
      Tensor::rand({3, 25}, {9, static_cast<std::uint64_t>(index)}, DType::f64, 0, double{kVocab})
          .to(DType::i32);
  return {ids.slice(1, 0, 24).contiguous(), ids.slice(1, 1, 25).contiguous()};
}

/// A run with surgery as a session does it.
struct TrainingRun {
  Options options;
  std::unique_ptr<Transformer> model;
  std::unique_ptr<Trainer> trainer;
  std::vector<double> losses;
  std::vector<GateEvent> events;

  explicit TrainingRun(const std::vector<std::string>& more = {})
      : options(small_options(more)),
        model(make_model(options, arm_named("aspa", "arm"), kVocab, 3)) {}

  void start() {
    TrainerConfig c;
    c.steps = 20;
    c.warmup = 3;
    c.lr = 3e-3;
    trainer = std::make_unique<Trainer>(*model, c, batch_of);
  }
  void train(std::int64_t until) {
    while (trainer->steps_done() < until) {
      losses.push_back(trainer->step().loss);
      for (GateEvent& e : operate(options.aspa, trainer->steps_done(), 3, *model,
                                  trainer->optimizer(), batch_of(1000))) {
        events.push_back(std::move(e));
      }
    }
  }
};

NamedTensors copies_of(const NamedTensors& tensors) {
  NamedTensors out;
  for (const auto& [name, tensor] : tensors) out.emplace_back(name, tensor.clone());
  return out;
}

void expect_same_run(const TrainingRun& got, const TrainingRun& expected) {
  const auto same = [](const NamedTensors& a, const NamedTensors& b) {
    ASSERT_EQ(a.size(), b.size());
    for (std::size_t i = 0; i < a.size(); ++i) {
      EXPECT_TRUE(same_bits(a[i].second, b[i].second)) << a[i].first;
    }
  };
  same(module_tensors(*got.model), module_tensors(*expected.model));
  same(got.trainer->optimizer_tensors(), expected.trainer->optimizer_tensors());
}

/// Trains to step 14 with surgery, and again with a stop before or after it; returns the whole run.
TrainingRun resumed_bit_for_bit(const std::vector<std::string>& more) {
  TrainingRun whole(more);
  whole.start();
  whole.train(14);
  for (const std::int64_t stop : {3, 4, 6, 7, 12}) {
    TrainingRun first(more);
    first.start();
    first.train(stop);
    TrainingRun second(more);
    restore_model(*second.model, module_tensors(*first.model), "memory");
    second.start();
    second.trainer->restore(first.trainer->optimizer_tensors(), first.trainer->state_json(),
                            "memory");
    second.train(14);
    for (std::int64_t i = stop; i < 14; ++i) {
      EXPECT_EQ(second.losses[static_cast<std::size_t>(i - stop)],
                whole.losses[static_cast<std::size_t>(i)])
          << i;
    }
    expect_same_run(second, whole);
  }
  return whole;
}

TEST(Gates, ARunWithSurgeryResumesBitForBit) {
  const TrainingRun whole = resumed_bit_for_bit({});
  std::map<std::string, int> operations;
  for (const GateEvent& e : whole.events) {
    ++operations[e.edit.operation];
    EXPECT_TRUE(std::isfinite(e.loss_before) && std::isfinite(e.loss_after));
    EXPECT_FALSE(e.why.empty());
    if (e.edit.operation == "add-head") {
      EXPECT_EQ(e.step, 6);
      EXPECT_NEAR(e.loss_after, e.loss_before, 1e-6);
    }
    const auto json = event_json(e);
    EXPECT_EQ(json["operation"], e.edit.operation);
    EXPECT_TRUE(json["loss_after"].is_number());
  }
  EXPECT_EQ(operations["add-head"], 4);  // two in each layer
  EXPECT_EQ(aspa_layer(*whole.model, 0)->config().routed_heads, 8);
}

TEST(Gates, SoDoesARunWithExperts) {
  const TrainingRun own =
      resumed_bit_for_bit({"--experts", "5", "--prototype-ema", "0.5", "--dead-steps", "2"});
  std::map<std::string, int> operations;
  for (const GateEvent& e : own.events) ++operations[e.part + " " + e.edit.operation];
  EXPECT_EQ(operations["attention add-head"], 4);
  EXPECT_EQ(operations["mlp add-head"], 0);
  EXPECT_GT(operations["mlp clone"] + operations["mlp prune"], 0);
  const TrainingRun shared =
      resumed_bit_for_bit({"--experts", "6", "--expert-router", "attention"});
  for (const GateEvent& e : shared.events) EXPECT_EQ(e.part, "attention");
  const auto parts = gated_parts(*shared.model);
  ASSERT_EQ(parts.size(), 4u);
  EXPECT_EQ(parts[1].gated->gates()->config().routed_heads, 8);
  EXPECT_FALSE(parts[1].own_gates());
}

// Into a model whose tables have other sizes by now.
TEST(Gates, ACheckpointFromBeforeSurgeryStillLoads) {
  for (const std::vector<std::string>& more :
       {std::vector<std::string>{}, {"--experts", "6", "--expert-router", "attention"}}) {
    TrainingRun run(more);
    run.start();
    run.train(3);
    const NamedTensors model = copies_of(module_tensors(*run.model));
    const NamedTensors moments = copies_of(run.trainer->optimizer_tensors());
    const auto state = run.trainer->state_json();
    run.train(14);
    TrainingRun again(more);
    again.start();
    again.train(9);  // other gates, more heads
    EXPECT_EQ(aspa_layer(*again.model, 0)->config().routed_heads, 8);
    restore_model(*again.model, model, "memory");
    EXPECT_EQ(aspa_layer(*again.model, 0)->config().routed_heads, 6);
    again.start();
    again.trainer->restore(moments, state, "memory");
    again.train(14);
    expect_same_run(again, run);
  }
}

TEST(Gates, TablesThatDoNotFitAreRefused) {
  TrainingRun run;
  run.start();
  run.train(7);
  const auto refusal = [&](const std::string& name, const Tensor& tensor) {
    NamedTensors tensors = module_tensors(*run.model);
    for (auto& [n, t] : tensors) {
      if (n == name) t = tensor;
    }
    const TrainingRun fresh;
    return message_of<FileError>([&] { restore_model(*fresh.model, tensors, "file"); });
  };
  EXPECT_NE(refusal("blocks.0.attn.router.mass", Tensor::zeros({3})).find("router.mass"),
            std::string::npos);
  const Tensor heads = aspa_layer(*run.model, 0)->router().gate_state().head_of_gate.clone();
  heads.select(0, 1).fill_(99);
  EXPECT_NE(refusal("blocks.0.attn.router.head_of_gate", heads).find("opens head 99"),
            std::string::npos);
  heads.fill_(0);
  EXPECT_NE(refusal("blocks.0.attn.router.head_of_gate", heads).find("has no gate"),
            std::string::npos);
}

TEST(GatePolicy, DeadThenTwinsThenBusy) {
  TrainingRun run;
  run.start();
  run.train(3);
  AspaAttention& layer = *aspa_layer(*run.model, 0);
  GatePolicy policy;
  policy.clone_above = 3;
  const GateState gates = layer.router().gate_state();
  gates.N.fill_(1);
  EXPECT_FALSE(propose(policy, layer));  // even use
  gates.N.select(0, 5).fill_(40);
  auto proposal = propose(policy, layer);
  ASSERT_TRUE(proposal);
  EXPECT_EQ(proposal->operation, "clone");
  EXPECT_EQ(proposal->gate, 5);
  apply(policy, *proposal, layer, {1, 1},
        optimizer_hook(run.trainer->optimizer(), gated_parts(*run.model)[0]));
  proposal = propose(policy, layer);
  EXPECT_TRUE(!proposal || proposal->operation != "merge");  // the busy twins stay apart
  const GateState after = layer.router().gate_state();
  after.N.fill_(1);
  after.N.select(0, 5).fill_(0.1);
  proposal = propose(policy, layer);
  ASSERT_TRUE(proposal);
  EXPECT_EQ(proposal->operation, "merge");
  EXPECT_EQ(proposal->gate, 5);
  EXPECT_EQ(proposal->other, 24);
  after.starving.select(0, 7).fill_(1000);
  proposal = propose(policy, layer);
  ASSERT_TRUE(proposal);
  EXPECT_EQ(proposal->operation, "prune");
  EXPECT_EQ(proposal->gate, 7);
}

}  // namespace
}  // namespace proteus
