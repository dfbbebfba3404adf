// Gate surgery on a gated MLP: the promises of surgery_test.cpp for experts, with gates of their
// own and behind those of attention.
#include <gtest/gtest.h>

#include "aspa/reference.h"
#include "aspa/surgery.h"
#include "tensor/error.h"
#include "tests/error_text.h"
#include "tests/experts.h"
#include "tests/trained.h"

namespace proteus {
namespace {

using testing::AspaLayer;
using testing::difference;
using testing::everything;
using testing::expect_close;
using testing::expect_rows;
using testing::expect_same_bits;
using testing::expert_config;
using testing::gradients;
using testing::message_of;
using testing::Results;
using testing::TestExperts;

Tensor probe(const GatedMlpConfig& c) { return Tensor::randn({2, 50, c.width}, {3, 2}, c.dtype); }

using Trained = testing::Trained<TestExperts>;

// The output stays, and so do the next optimizer steps.
TEST_F(AspaLayer, CloningAnExpertsGateChangesNothing) {
  for (const DType dtype : {DType::f64, DType::f32}) {
    const double tolerance = dtype == DType::f64 ? 1e-12 : 1e-6;
    const GatedMlpConfig c = expert_config(dtype);
    Trained plain(c);
    Trained cloned(c);
    const double change = output_change(*cloned, probe(c), [&] {
      const GateEdit edit = clone_gate(*cloned, 4, 0, {}, cloned.hook());
      EXPECT_EQ(edit.other, 18);
      EXPECT_EQ(edit.head, 1);
    });
    EXPECT_LE(change, tolerance);
    expect_rows(everything(cloned), 19, 6);
    for (int i = 0; i < 4; ++i) {
      plain.train(1);
      cloned.train(1);
      const NoGradGuard no_grad;
      const Variable x(probe(c));
      EXPECT_LE(difference(cloned->forward(x).value(), plain->forward(x).value()), 40 * tolerance);
    }
  }
}

TEST_F(AspaLayer, MergePruneAndRehomeGatesOfExperts) {
  Trained t(expert_config());
  const Results before = everything(t);
  clone_gate(*t, 4, 0, {}, t.hook());
  merge_gates(*t, 4, 18, t.hook());
  expect_close(everything(t), before, 1e-14);
  prune_gate(*t, 4, t.hook());
  expect_rows(everything(t), 17, 6);
  prune_gate(*t, 3, t.hook());
  EXPECT_EQ(message_of<ConfigError>([&] { prune_gate(*t, 3, t.hook()); }),
            "prune gate: gate 3 is the only gate of head 1; a head keeps one");
  EXPECT_EQ(rehome_gate(*t, 0, 1, t.hook()).head, 1);
  t.train(2);
}

TEST_F(AspaLayer, AddedExpertsComeBesideTheOthers) {
  for (const double alpha : {0.0, 0.5, 1.0}) {
    GatedMlpConfig c = expert_config();
    c.alpha = alpha;
    c.kind = MlpKind::swiglu;
    Trained t(c);
    const std::int64_t k = t->gating().k();
    const double change = output_change(*t, probe(c), [&] {
      add_head(*t, {.gates = 2, .ramp_steps = 3}, {9, 9}, t.hook());
    });
    EXPECT_LE(change, 1e-12) << alpha;
    expect_rows(everything(t), 20, 7);
    EXPECT_EQ(t->config().routed_heads, 7);
    EXPECT_EQ(t->gating().k(), k);
    const Variable x(probe(c), true);
    const Tensor selected = t->select(x);
    std::int64_t entered = 0;
    for (const double e : selected.to_vector()) entered += e == 6 ? 1 : 0;
    EXPECT_GT(entered, 0) << alpha;
    expect_close(gradients(*t, x, t->forward(x)),
                 gradients(*t, x, reference_forward(*t, x, selected)), 1e-10);
    if (alpha == 0) continue;
    t.train(3);
    const Tensor down = t->weights().down.value().select(0, 6);
    EXPECT_GT(difference(down, Tensor::zeros(down.shape(), down.dtype())), 0);
    EXPECT_EQ(t->select(x).size(1), t->gating().k());  // the ramp is over
  }
}

TEST_F(AspaLayer, ExpertsArePrunedUnderABoundOnly) {
  Trained t(expert_config());
  const auto usage = head_usage(*t);
  const auto least = std::min_element(usage.begin(), usage.end()) - usage.begin();
  const Results before = everything(t);
  EXPECT_THROW(prune_head(*t, least, 1e-3, t.hook()), ConfigError);
  const EditHook refusing = [](const std::vector<RowEdit>&) { throw OutOfMemory("no room"); };
  EXPECT_THROW(prune_head(*t, least, 100, refusing), OutOfMemory);
  EXPECT_THROW(add_head(*t, {}, {1, 1}, refusing), OutOfMemory);
  expect_same_bits(everything(t), before);
  prune_head(*t, least, 100, t.hook());
  expect_rows(everything(t), 15, 5);
  EXPECT_EQ(t->config().routed_heads, 5);
  t.train(2);
}

// Whatever the reason: rules, a listener, a step under way.
TEST_F(AspaLayer, RefusedSurgeryLeavesExpertsAsTheyWere) {
  Trained t(expert_config());
  const Results before = everything(t);
  const EditHook refusing = [](const std::vector<RowEdit>&) { throw OutOfMemory("no room"); };
  EXPECT_THROW(clone_gate(*t, 1, 0.1, {1, 1}, refusing), OutOfMemory);
  EXPECT_THROW(merge_gates(*t, 1, 2, refusing), OutOfMemory);
  EXPECT_THROW(prune_gate(*t, 1, refusing), OutOfMemory);
  EXPECT_EQ(message_of<ConfigError>([&] { clone_gate(*t, 18, 0, {}, t.hook()); }),
            "clone gate: expected a gate in [0, 18), got 18");
  EXPECT_THROW(prune_gate(*t, -1, t.hook()), ConfigError);
  EXPECT_THROW(merge_gates(*t, 0, 4, t.hook()), ConfigError);
  EXPECT_THROW(rehome_gate(*t, 0, 6, t.hook()), ConfigError);
  EXPECT_THROW(rehome_gate(*t, 0, 0, t.hook()), ConfigError);
  EXPECT_THROW(prune_head(*t, 6, 100, t.hook()), ConfigError);
  expect_same_bits(everything(t), before);
  t->forward(Variable(probe(t->config())));  // a step begins
  for (const auto& operate : std::vector<std::function<void()>>{
           [&] { clone_gate(*t, 1, 0, {}, t.hook()); }, [&] { merge_gates(*t, 1, 2, t.hook()); },
           [&] { prune_gate(*t, 1, t.hook()); }, [&] { rehome_gate(*t, 1, 3, t.hook()); },
           [&] {
             add_head(*t, {}, {1, 1}, t.hook());
           },
           [&] { prune_head(*t, 1, 100, t.hook()); }}) {
    EXPECT_NE(message_of<ConfigError>(operate).find("a training step is under way"),
              std::string::npos);
  }
  expect_same_bits(everything(t), before);
  t->after_step(1);
  prune_gate(*t, 4, t.hook());
  prune_gate(*t, 3, t.hook());
  const Results pruned = everything(t);
  EXPECT_THROW(prune_gate(*t, 3, t.hook()), ConfigError);  // the last gate of its expert
  expect_same_bits(everything(t), pruned);
}

TEST_F(AspaLayer, NoSurgeryOnExpertsWithAFrozenRouter) {
  GatedMlpConfig c = expert_config();
  c.frozen_router = true;
  Trained t(c);
  const Results before = everything(t);
  EXPECT_EQ(message_of<ConfigError>([&] { prune_gate(*t, 1, t.hook()); }),
            "prune gate: the router is frozen; its gates stay as they are");
  EXPECT_THROW(merge_gates(*t, 1, 2, t.hook()), ConfigError);
  EXPECT_THROW(add_head(*t, {}, {1, 1}, t.hook()), ConfigError);
  expect_same_bits(everything(t), before);
}

// Heads and the experts beside them come and go together; their gates belong to attention.
TEST_F(AspaLayer, SharedGatesAreOperatedOnWithAttention) {
  AspaConfig a = testing::config();
  a.routed_heads = 6;
  Generator init{1};
  Generator dropout{2};
  AspaAttention attention(a, 0.02, init, dropout);
  testing::randomize(attention, 5);
  GatedMlp mlp(expert_config(), 0.02, init, attention.gates());
  testing::randomize_parameters(mlp, 12, 6);
  const Variable x(probe(mlp.config()));
  const auto outputs = [&] {
    const NoGradGuard no_grad;
    return std::pair{attention.forward(x).value(), mlp.forward(x).value()};
  };
  attention.set_training(false);
  mlp.set_training(false);
  const auto before = outputs();
  std::vector<std::string> edited;
  add_head(attention, {}, {9, 9}, [&](const std::vector<RowEdit>& edits) {
    for (const RowEdit& e : edits) edited.push_back(e.parameter);
  });
  EXPECT_EQ(edited,
            (std::vector<std::string>{"router.w", "routed.q", "routed.k", "routed.v", "routed.o",
                                      "sink", "../mlp.experts.up", "../mlp.experts.down"}));
  EXPECT_EQ(mlp.config().routed_heads, 7);
  EXPECT_EQ(mlp.weights().up.size(0), 7);
  const auto after = outputs();
  EXPECT_LE(difference(after.first, before.first), 1e-12);
  EXPECT_LE(difference(after.second, before.second), 1e-12);
  EXPECT_EQ(message_of<ConfigError>([&] { clone_gate(mlp, 0); }),
            "clone gate: these gates are those of the block's attention; operate on them there");
  const EditHook refusing = [](const std::vector<RowEdit>&) { throw OutOfMemory("no room"); };
  EXPECT_THROW(add_head(attention, {}, {9, 9}, refusing), OutOfMemory);
  EXPECT_EQ(mlp.weights().up.size(0), 7);
  clone_gate(attention, 2);
  EXPECT_LE(difference(outputs().second, before.second), 1e-12);
}

}  // namespace
}  // namespace proteus
