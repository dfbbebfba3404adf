// Gate surgery: the promise of every operation, and that it happens as a whole or not at all.
#include "aspa/surgery.h"

#include <gtest/gtest.h>

#include "aspa/reference.h"
#include "tensor/error.h"
#include "tests/error_text.h"
#include "tests/trained.h"

namespace proteus {
namespace {

using testing::AspaLayer;
using testing::config;
using testing::difference;
using testing::evaluate;
using testing::everything;
using testing::expect_close;
using testing::expect_same_bits;
using testing::gradients;
using testing::input;
using testing::message_of;
using testing::Results;
using testing::run;
using testing::same_bits;
using testing::TestLayer;

using Trained = testing::Trained<TestLayer>;

// Rows of every table, and masses that sum to 1 in every head.
void expect_consistent(const Trained& t) {
  const std::int64_t G = t->router().gate_state().w.size(0);
  const std::int64_t Hr = t->config().routed_heads;
  testing::expect_rows(everything(t), G, Hr);
  std::vector<double> mass(static_cast<std::size_t>(Hr));
  const GateState gates = t->router().gate_state();
  for (std::int64_t g = 0; g < G; ++g) {
    mass[static_cast<std::size_t>(gates.head_of_gate.data<std::int32_t>()[g])] +=
        gates.mass.select(0, g).item();
  }
  for (const double m : mass) EXPECT_NEAR(m, 1, 1e-6);
}

// The clone's promise: the output stays, and so does the next step's trajectory.
TEST_F(AspaLayer, CloneChangesNothing) {
  for (const DType dtype : {DType::f64, DType::f32}) {
    const double tolerance = dtype == DType::f64 ? 1e-12 : 1e-6;
    const AspaConfig c = config(dtype);
    Trained plain(c);
    Trained cloned(c);
    const Tensor x = input(c, 2, 50).value();
    const double change = output_change(*cloned, x, [&] {
      const GateEdit edit = clone_gate(*cloned, 4, 0, {}, cloned.hook());
      EXPECT_EQ(edit.other, 15);
      EXPECT_EQ(edit.head, 1);
    });
    EXPECT_LE(change, tolerance);
    expect_consistent(cloned);
    for (int i = 0; i < 4; ++i) {
      plain.train(1);
      cloned.train(1);
      EXPECT_LE(difference(evaluate(*cloned, x), evaluate(*plain, x)), 40 * tolerance) << i;
    }
  }
}

TEST_F(AspaLayer, NoiseMakesACloneItsOwnGate) {
  Trained t(config());
  const Tensor x = input(t->config(), 2, 50).value();
  const double change = output_change(*t, x, [&] { clone_gate(*t, 4, 0.1, {3, 1}, t.hook()); });
  EXPECT_GT(change, 1e-6);
  const Tensor w = t->router().gate_state().w;
  EXPECT_FALSE(same_bits(w.select(0, 4), w.select(0, 15)));
  t.train(2);
}

TEST_F(AspaLayer, MergingAClonePutsItBack) {
  Trained t(config());
  const Results before = everything(t);
  clone_gate(*t, 4, 0, {}, t.hook());
  const GateEdit edit = merge_gates(*t, 4, 15, t.hook());
  EXPECT_EQ(edit.head, 1);
  expect_close(everything(t), before, 1e-14);
  expect_consistent(t);
}

// Halving the difference of two gates quarters what merging them changes.
TEST_F(AspaLayer, MergeIsOfSecondOrder) {
  std::vector<double> changes;
  for (const double noise : {0.04, 0.02, 0.01}) {
    AspaConfig c = config();
    c.k = c.routed_heads;  // no selection that could flip
    Trained t(c);
    clone_gate(*t, 4, noise, {3, 1}, t.hook());
    const Tensor x = input(c, 2, 50).value();
    changes.push_back(output_change(*t, x, [&] { merge_gates(*t, 4, 15, t.hook()); }));
  }
  EXPECT_GT(changes[2], 0);
  EXPECT_NEAR(changes[0] / changes[1], 4, 0.4);
  EXPECT_NEAR(changes[1] / changes[2], 4, 0.4);
}

// Dropping a gate with at most the share s of its head moves z by at most −log(1 − s): its mass is
// given to the others, which adds at most −log(1 − m).
TEST_F(AspaLayer, PruneIsBoundedByTheLargestShare) {
  Trained t(config());
  const Tensor x = Tensor::randn({200, 6}, {4, 1}, DType::f64);
  const Tensor before = t->router().logits(x);
  Tensor heads = Tensor::full({200, 1}, 1, DType::i32);
  const PackedRows rows = ops::pack_rows(heads, 5, 1);
  const Tensor share = t->router().row_logits(Variable(x), rows).share;
  double largest = 0;
  for (std::int64_t n = 0; n < 200; ++n) {
    largest = std::max(largest, share.data<double>()[n * share.size(1) + 1]);  // gate 4 of head 1
  }
  const double mass = t->router().gate_state().mass.select(0, 4).item();
  prune_gate(*t, 4, t.hook());
  expect_consistent(t);
  const Tensor after = t->router().logits(x);
  for (std::int64_t n = 0; n < 200; ++n) {
    for (std::int64_t h = 0; h < 5; ++h) {
      const double change =
          std::abs(after.data<double>()[n * 5 + h] - before.data<double>()[n * 5 + h]);
      if (h == 1) {
        EXPECT_LE(change, std::max(-std::log(1 - largest), -std::log(1 - mass)) + 1e-12);
      } else {
        EXPECT_EQ(change, 0);
      }
    }
  }
  t.train(2);
  prune_gate(*t, 3, t.hook());  // one of the two that head 1 has left
  const Results pruned = everything(t);
  EXPECT_EQ(message_of<ConfigError>([&] { prune_gate(*t, 3, t.hook()); }),
            "prune gate: gate 3 is the only gate of head 1; a head keeps one");
  EXPECT_THROW(rehome_gate(*t, 3, 0, t.hook()), ConfigError);  // nor may it move
  expect_same_bits(everything(t), pruned);
}

// A new head changes nothing at first, at any alpha; it learns beside the k and then competes.
TEST_F(AspaLayer, AddedHeadsComeBesideTheOthers) {
  for (const double alpha : {0.0, 0.5, 1.0}) {
    AspaConfig c = config();
    c.alpha = alpha;
    Trained t(c);
    const Tensor x = input(c, 2, 50).value();
    const std::int64_t k = t->k();
    const double change = output_change(*t, x, [&] {
      const GateEdit edit = add_head(*t, {.gates = 2, .ramp_steps = 3}, {9, 9}, t.hook());
      EXPECT_EQ(edit.head, 5);
    });
    EXPECT_LE(change, 1e-12) << alpha;
    expect_consistent(t);
    EXPECT_EQ(t->config().routed_heads, 6);
    EXPECT_EQ(t->k(), k);
    const Tensor heads = t->select(Variable(x)).query;
    std::int64_t entered = 0;
    for (const double h : heads.to_vector()) entered += h == 5 ? 1 : 0;
    EXPECT_GT(entered, 0) << alpha;
    if (alpha == 0) continue;
    EXPECT_EQ(heads.size(1), k + 1);
    const Selection selection = t->select(Variable(x));
    const Variable leaf(x, true);
    expect_close(run(*t, leaf), gradients(*t, leaf, reference_forward(*t, leaf, selection)), 1e-10);
    t->zero_grad();
    t.train(3);
    EXPECT_GT(difference(t->weights().o.value().select(0, 5), Tensor::zeros({8, 12}, DType::f64)),
              0);
    EXPECT_EQ(t->select(Variable(x)).query.size(1), t->k());  // the ramp is over
  }
}

TEST_F(AspaLayer, HeadsArePrunedUnderABoundOnly) {
  AspaConfig c = config();
  c.routed_heads = 3;
  Trained t(c);
  const auto usage = head_usage(*t);
  const auto least = std::min_element(usage.begin(), usage.end()) - usage.begin();
  const Results before = everything(t);
  EXPECT_NE(message_of<ConfigError>([&] {
              prune_head(*t, least, 0.01, t.hook());
            }).find("only heads under"),
            std::string::npos);
  expect_same_bits(everything(t), before);
  const Tensor x = input(c, 1, 40).value();
  EXPECT_GT(output_change(*t, x, [&] { prune_head(*t, least, 2, t.hook()); }), 0);
  expect_consistent(t);
  EXPECT_EQ(t->config().routed_heads, 2);
  t.train(2);
  EXPECT_EQ(message_of<ConfigError>([&] { prune_head(*t, 0, 9, t.hook()); }),
            "prune head: a token enters k = 2 heads and there are 2");
}

TEST_F(AspaLayer, GatesMoveToOtherHeads) {
  Trained t(config());
  const GateEdit edit = rehome_gate(*t, 4, 3, t.hook());
  EXPECT_EQ(edit.head, 3);
  expect_consistent(t);
  EXPECT_NEAR(t->router().gate_state().mass.select(0, 4).item(), 0.25, 1e-12);
  t.train(2);
  EXPECT_EQ(message_of<ConfigError>([&] { rehome_gate(*t, 4, 3, t.hook()); }),
            "re-home gate: gate 4 opens head 3 already");
}

// What is refused, here or by whoever listens, leaves no trace.
TEST_F(AspaLayer, RefusedSurgeryLeavesEverything) {
  Trained t(config());
  const Results before = everything(t);
  const EditHook refusing = [](const std::vector<RowEdit>&) { throw OutOfMemory("no room"); };
  EXPECT_THROW(clone_gate(*t, 1, 0.1, {1, 1}, refusing), OutOfMemory);
  EXPECT_THROW(merge_gates(*t, 1, 2, refusing), OutOfMemory);
  EXPECT_THROW(prune_gate(*t, 1, refusing), OutOfMemory);
  EXPECT_THROW(add_head(*t, {}, {1, 1}, refusing), OutOfMemory);
  EXPECT_THROW(prune_head(*t, 1, 100, refusing), OutOfMemory);
  EXPECT_EQ(message_of<ConfigError>([&] { clone_gate(*t, 15, 0, {}, t.hook()); }),
            "clone gate: expected a gate in [0, 15), got 15");
  EXPECT_EQ(message_of<ConfigError>([&] { merge_gates(*t, 0, 4, t.hook()); }),
            "merge gates: expected two gates of one head, got 0 of head 0 and 4 of head 1");
  EXPECT_EQ(message_of<ConfigError>([&] { rehome_gate(*t, 0, 7, t.hook()); }),
            "re-home gate: expected a head in [0, 5), got 7");
  EXPECT_THROW(prune_gate(*t, -1, t.hook()), ConfigError);
  EXPECT_THROW(prune_head(*t, 5, 100, t.hook()), ConfigError);
  EXPECT_THROW(t.optimizer->map_rows({{"no.such", {}}}), ConfigError);
  expect_same_bits(everything(t), before);
}

// A pass that was counted belongs to the gates it was counted for.
TEST_F(AspaLayer, NoSurgeryDuringAStep) {
  Trained t(config());
  t->forward(input(t->config(), 2, 24, 200));
  const Results before = everything(t);
  EXPECT_EQ(message_of<ConfigError>([&] { clone_gate(*t, 1, 0, {}, t.hook()); }),
            "clone gate: a training step is under way; operate after the optimizer step "
            "(after_step())");
  EXPECT_THROW(merge_gates(*t, 1, 2, t.hook()), ConfigError);
  EXPECT_THROW(prune_gate(*t, 1, t.hook()), ConfigError);
  EXPECT_THROW(rehome_gate(*t, 1, 3, t.hook()), ConfigError);
  EXPECT_THROW(add_head(*t, {}, {1, 1}, t.hook()), ConfigError);
  EXPECT_THROW(prune_head(*t, 1, 100, t.hook()), ConfigError);
  expect_same_bits(everything(t), before);
  t->after_step(1);
  clone_gate(*t, 1, 0, {}, t.hook());
}

TEST_F(AspaLayer, NoSurgeryOnAFrozenRouter) {
  AspaConfig c = config();
  c.frozen_router = true;
  Trained t(c);
  const Results before = everything(t);
  EXPECT_EQ(message_of<ConfigError>([&] { clone_gate(*t, 1, 0, {}, t.hook()); }),
            "clone gate: the router is frozen; its gates stay as they are");
  EXPECT_THROW(merge_gates(*t, 1, 2, t.hook()), ConfigError);
  EXPECT_THROW(prune_gate(*t, 1, t.hook()), ConfigError);
  EXPECT_THROW(rehome_gate(*t, 1, 3, t.hook()), ConfigError);
  EXPECT_THROW(prune_head(*t, 1, 100, t.hook()), ConfigError);
  EXPECT_THROW(add_head(*t, {}, {1, 1}, t.hook()), ConfigError);
  expect_same_bits(everything(t), before);
}

TEST_F(AspaLayer, SurgeryWithoutPrototypes) {
  AspaConfig c = config();
  c.prototypes.enabled = false;
  Trained t(c);
  const Tensor x = input(c, 2, 30).value();
  EXPECT_LE(output_change(*t, x, [&] { clone_gate(*t, 4, 0, {}, t.hook()); }), 1e-12);
  merge_gates(*t, 4, 15, t.hook());
  EXPECT_LE(output_change(*t, x, [&] { add_head(*t, {}, {1, 1}, t.hook()); }), 1e-12);
  t.train(1);
  prune_head(*t, 5, 100, t.hook());
  expect_consistent(t);
}

}  // namespace
}  // namespace proteus
