// The invariants of docs/testing.md on every option of attention and of the gated MLP: one small
// layer per option, the same tests for all.
#include <gtest/gtest.h>

#include "aspa/reference.h"
#include "aspa/slider.h"
#include "aspa/surgery.h"
#include "autograd/checkpoint.h"
#include "autograd/gradcheck.h"
#include "tensor/error.h"
#include "tensor/storage.h"
#include "tests/experts.h"

namespace proteus {
namespace {

using testing::difference;
using testing::expect_close;
using testing::expect_same_bits;
using testing::gradients;
using testing::Results;
using testing::same_bits;

constexpr std::int64_t kWidth = 12;

enum class Kind { attention, experts, experts_behind_attention };

struct Option {
  const char* name;
  Kind kind = Kind::attention;
  void (*change)(AspaConfig&) = nullptr;
  void (*change_experts)(GatedMlpConfig&) = nullptr;
  bool operated = false;  ///< gates were cloned, merged and moved, a head was added
};

void PrintTo(const Option& o, std::ostream* os) { *os << o.name; }

std::int64_t pairs_of(const AttentionPlan& plan) {
  const auto* segment = static_cast<const AttentionSegment*>(plan.segments.raw());
  std::int64_t pairs = 0;
  for (std::int64_t s = 0; s < plan.segments.size(0); ++s) {
    for (std::int64_t q = segment[s].range; q < segment[s].range + segment[s].q_count; ++q) {
      const std::int64_t lo = plan.lo.data<std::int32_t>()[q];
      pairs += plan.hi.data<std::int32_t>()[q] - lo + std::min(plan.anchors, lo);
    }
  }
  return pairs;
}

/// What is under test, with parameters far from zero and, where that counts, a training step old.
class Part {
 public:
  Part(const Option& option, double alpha, DType dtype = DType::f64) : kind_(option.kind) {
    AspaConfig a = testing::config(dtype);
    GatedMlpConfig m = testing::expert_config(dtype);
    a.alpha = m.alpha = alpha;
    if (kind_ == Kind::experts_behind_attention) a.routed_heads = m.routed_heads;
    if (option.change) option.change(a);
    if (option.change_experts) option.change_experts(m);
    if (kind_ != Kind::experts) {
      attention_ = std::make_unique<AspaAttention>(a, 0.02, init_, dropout_);
      testing::randomize(*attention_, 5);
    }
    if (kind_ != Kind::attention) {
      mlp_ = std::make_unique<GatedMlp>(m, 0.02, init_,
                                        kind_ == Kind::experts ? nullptr : attention_->gates());
      testing::randomize_parameters(*mlp_, kWidth, 6);
    }
    if (attention_ && attention_->salience()) testing::settle(*attention_);
    if (option.operated) operate();
  }

  Gated& layer() {
    if (mlp_) return *mlp_;
    return *attention_;
  }
  Module& module() { return layer().module(); }
  /// The layer that surgery works on.
  Gated& gates() {
    if (attention_) return *attention_;
    return *mlp_;
  }
  bool routed() { return layer().gates() != nullptr; }
  Results run(const Variable& x) { return gradients(module(), x, layer().forward(x)); }
  Tensor evaluate(const Tensor& x) {
    const NoGradGuard no_grad;
    return layer().forward(Variable(x)).value();
  }
  /// The heads or experts of both roles, one after the other.
  std::vector<Tensor> select(const Variable& x) {
    if (mlp_) return {mlp_->select(x)};
    if (!routed()) return {};
    const Selection s = attention_->select(x);
    return {s.query, s.key};
  }
  std::vector<Tensor> reference_selection(const Variable& x) {
    if (mlp_) return {reference_experts(*mlp_, x)};
    if (!routed()) return {};
    const Selection s = reference_routing(*attention_, x).selection;
    return {s.query, s.key};
  }
  Variable reference(const Variable& x) {
    if (mlp_) return reference_forward(*mlp_, x, mlp_->select(x));
    return reference_forward(*attention_, x, routed() ? attention_->select(x) : Selection{});
  }
  /// From here on the layer decides as it does now for x.
  void freeze(const Variable& x) {
    if (mlp_) return layer().gating().force(Role::query, mlp_->select(x));
    if (!routed()) return;
    Selection s = attention_->select(x);
    evaluate(x.value());
    s.bank = attention_->bank();
    attention_->force_selection(s);
  }
  void expect_gradients(const Variable& x) {
    if (mlp_) return testing::expect_gradients(*mlp_, x);
    testing::expect_gradients(*attention_, x);
  }
  void after_step() {
    if (attention_) attention_->after_step(1);
    if (mlp_) mlp_->after_step(1);
  }
  /// Rows of heads or experts and pairs of attention that a pass over x visits.
  std::int64_t visited(const Variable& x) {
    const std::int64_t B = x.size(0);
    const std::int64_t T = x.size(1);
    std::int64_t sum = 0;
    for (const Tensor& heads : select(x)) {
      for (const double head : heads.to_vector()) sum += head >= 0 ? 1 : 0;
    }
    if (mlp_) return sum;
    const AspaConfig& c = attention_->config();
    if (c.shared_heads > 0) {
      const auto window = [&](std::int64_t n) {
        return slider::window(c.alpha, c.shared_window, n);
      };
      sum += pairs_of(ops::causal_plan(B, c.shared_heads, T, T, window, c.anchors, kCpu));
    }
    if (!routed()) return sum;
    const Tensor visible = Tensor::empty({T + 1}, DType::i32);
    for (std::int64_t n = 0; n <= T; ++n) {
      visible.data<std::int32_t>()[n] =
          static_cast<std::int32_t>(slider::window(c.alpha, c.window, n));
    }
    const RoutedRows rows = pack_selection(attention_->select(x), B, c.routed_heads, visible);
    if (c.bank.slots == 0) return sum + pairs_of(stream_plan(rows, c.anchors));
    evaluate(x.value());
    const BankPlan plan = bank_plan(rows, bank_first(rows.key, visible, c.bank.stride),
                                    attention_->bank(), c.bank.stride, c.anchors);
    return sum + plan.keys.taken() + pairs_of(plan.attention);
  }
  /// forward() of x, one token of every sequence at a time.
  Tensor decode(const Tensor& x) {
    std::vector<std::unique_ptr<AttentionState>> states;
    std::vector<AttentionState*> now;
    for (std::int64_t b = 0; b < x.size(0) && !mlp_; ++b) {
      states.push_back(attention_->make_state(CacheType::full));
      now.push_back(states.back().get());
    }
    Tensor y = Tensor::empty(x.shape(), x.dtype());
    for (std::int64_t t = 0; t < x.size(1); ++t) {
      const Tensor token = x.select(1, t).contiguous();
      y.select(1, t).copy_(mlp_ ? evaluate(token) : attention_->step(token, now));
    }
    return y;
  }
  Results state() {
    Results all;
    for (Module* m : {static_cast<Module*>(attention_.get()), static_cast<Module*>(mlp_.get())}) {
      if (!m) continue;
      for (const Parameter& p : m->parameters()) all[p.name] = p.variable.value().clone();
      for (const Buffer& b : m->buffers()) all[b.name] = b.tensor.clone();
    }
    return all;
  }

 private:
  void operate() {
    clone_gate(gates(), 4, 0.3, {3, 1});
    merge_gates(gates(), 0, 1);
    rehome_gate(gates(), 5, 0);
    add_head(gates(), {.gates = 2, .ramp_steps = 0}, {9, 9});
    // The new head speaks.
    const std::int64_t heads = gates().gating().config().routed_heads;
    const Variable& out = attention_ ? attention_->weights().o : mlp_->weights().down;
    out.value().select(0, heads - 1).copy_(Tensor::randn(out.value().select(0, 0).shape(), {4, 4}));
  }

  Kind kind_;
  Generator init_{11};
  Generator dropout_{12};
  std::unique_ptr<AspaAttention> attention_;
  std::unique_ptr<GatedMlp> mlp_;
};

Variable input(std::int64_t B, std::int64_t T, DType dtype = DType::f64) {
  return Variable(Tensor::randn({B, T, kWidth}, {3, 2}, dtype), true);
}

// As in a GPT-2 that was converted.
void with_biases(AspaConfig& c) {
  c.bias = true;
  c.shared_rope = false;
  c.routed_rope = RopeSpan::none;
}

void with_bank(AspaConfig& c) {
  c.anchors = 1;
  c.bank = {.slots = 3, .stride = 8, .delta = 0.5, .delta_v = 0.3};
}

class EveryOption : public ::testing::TestWithParam<Option> {
 protected:
  EveryOption() { set_num_threads(1); }
  ~EveryOption() override { set_num_threads(0); }
  Part make(double alpha, DType dtype = DType::f64) const { return {GetParam(), alpha, dtype}; }
};

// Invariant 4, and 2: at alpha = 0 the plain evaluation is that of dense attention, or of a dense
// MLP, over all heads.
TEST_P(EveryOption, EqualsTheMaskedReference) {
  for (const double alpha : {0.0, 0.5, 1.0}) {
    SCOPED_TRACE(alpha);
    Part part = make(alpha);
    const Variable x = input(2, 41);
    const auto selected = part.select(x);
    const auto expected = part.reference_selection(x);
    for (std::size_t role = 0; role < selected.size(); ++role) {
      if (alpha == 0) {
        EXPECT_EQ(selected[role].size(1), part.layer().gating().config().routed_heads);
        for (const double head : selected[role].to_vector()) EXPECT_GE(head, 0);
      } else {
        EXPECT_TRUE(same_bits(selected[role], expected[role])) << "role " << role;
      }
    }
    expect_close(part.run(x), gradients(part.module(), x, part.reference(x)), 1e-10);
  }
}

// Invariant 1, bit for bit.
TEST_P(EveryOption, IsCausalBitForBit) {
  for (const double alpha : {0.0, 0.5, 1.0}) {
    Part part = make(alpha, DType::f32);
    part.module().set_training(false);
    constexpr std::int64_t kT = 100;
    const Tensor x = input(2, kT, DType::f32).value();
    const Tensor y = part.evaluate(x);
    for (const std::int64_t cut : {1, 33, 64, 99}) {
      Tensor suffix = x.clone();
      suffix.slice(1, cut, kT).copy_(Tensor::randn({2, kT - cut, kWidth}, {9, 9}));
      const Tensor changed = part.evaluate(suffix);
      EXPECT_TRUE(same_bits(changed.slice(1, 0, cut), y.slice(1, 0, cut))) << alpha << " " << cut;
      EXPECT_FALSE(same_bits(changed, y));
    }
    EXPECT_TRUE(same_bits(part.evaluate(x.slice(0, 1, 2)).select(0, 0), y.select(0, 1)));
  }
}

// Invariant 5.
TEST_P(EveryOption, DecodingEqualsTheForwardPass) {
  for (const double alpha : {0.0, 0.5, 1.0}) {
    Part part = make(alpha);
    part.module().set_training(false);
    const Tensor x = input(2, 45).value();
    EXPECT_LE(difference(part.decode(x), part.evaluate(x)), 1e-11) << alpha;
  }
}

// Invariant 6, with what is decided frozen.
TEST_P(EveryOption, GradientsAreThoseOfTheFunction) {
  Part part = make(0.7);
  const Variable x = input(1, 13);
  part.freeze(x);
  part.expect_gradients(x);
}

// Invariant 7: a clone and a new head change nothing.
TEST_P(EveryOption, ClonesAndNewHeadsChangeNothing) {
  for (const double alpha : {0.5, 1.0}) {
    Part part = make(alpha);
    if (!part.routed()) GTEST_SKIP() << "no gates";
    part.module().set_training(false);
    const Tensor x = input(2, 41).value();
    const Tensor before = part.evaluate(x);
    clone_gate(part.gates(), 2);
    EXPECT_LE(difference(part.evaluate(x), before), 1e-12) << alpha;
    add_head(part.gates(), {.gates = 2, .ramp_steps = 5}, {9, 9});
    EXPECT_LE(difference(part.evaluate(x), before), 1e-12) << alpha;
  }
}

// Invariant 8; and that training does write.
TEST_P(EveryOption, EvaluationWritesNothing) {
  Part part = make(1.0, DType::f32);
  const Results before = part.state();
  part.module().set_training(false);
  part.run(input(2, 40, DType::f32));
  part.after_step();
  expect_same_bits(part.state(), before);
  if (!part.routed()) return;
  part.module().set_training(true);
  part.run(input(2, 40, DType::f32));
  part.after_step();
  EXPECT_FALSE(same_bits(part.state().at("router.N"), before.at("router.N")));
}

// Invariant 9: thresholds that have moved in between choose nothing anew.
TEST_P(EveryOption, RecomputationReusesDecisions) {
  Part plain = make(1.0, DType::f32);
  Part recomputed = make(1.0, DType::f32);
  const Variable x = input(2, 40, DType::f32);
  const Results expected = plain.run(x);
  const Variable y = checkpoint(
      [&](const std::vector<Variable>& v) { return recomputed.layer().forward(v[0]); }, {x});
  if (recomputed.routed()) {
    const Tensor& theta = recomputed.gates().gating().router().theta(Role::query);
    theta.slice(0, 1, 2).fill_(50);
    EXPECT_FALSE(same_bits(recomputed.select(x)[0], plain.select(x)[0]));
  }
  expect_same_bits(gradients(recomputed.module(), x, y), expected);
}

// Invariant 10, counted instead of timed: (query, key) pairs and (token, head) rows, as the kernels
// are told to visit them, and the bytes that a pass and its gradients need.
TEST_P(EveryOption, WorkAndMemoryPerTokenAreConstant) {
  Part part = make(1.0, DType::f32);
  part.module().set_training(false);
  const auto count = [&](std::int64_t T) {
    const Variable x = input(1, T, DType::f32);
    const double work = static_cast<double>(part.visited(x));
    reset_peak_memory(DeviceType::cpu);
    const std::int64_t before = memory_stats(DeviceType::cpu).live_bytes;
    part.run(x);
    const double bytes = static_cast<double>(memory_stats(DeviceType::cpu).peak_bytes - before);
    return std::pair{work / static_cast<double>(T), bytes / static_cast<double>(T)};
  };
  const auto [work, bytes] = count(1024);
  const auto [long_work, long_bytes] = count(8192);
  EXPECT_GT(work, 0);
  EXPECT_LE(long_work, 1.05 * work);
  EXPECT_LE(long_bytes, 1.05 * bytes);
}

TEST_P(EveryOption, SameBitsForAnyNumberOfThreads) {
  Results expected;
  for (const int threads : {1, 3}) {
    set_num_threads(threads);
    Part part = make(0.5, DType::f32);
    const Results got = part.run(input(3, 150, DType::f32));
    if (threads == 1) expected = got;
    expect_same_bits(got, expected);
  }
}

INSTANTIATE_TEST_SUITE_P(
    Options, EveryOption,
    ::testing::Values(
        Option{.name = "Plain"},
        Option{.name = "OneGateAHead", .change = [](AspaConfig& c) { c.gates_per_head = 1; }},
        Option{.name = "Nucleus",
               .change =
                   [](AspaConfig& c) {
                     c.k = 4;
                     c.top_p = 0.7;
                   }},
        Option{.name = "TokenSalience", .change = [](AspaConfig& c) { c.salience.keep = 0.6; }},
        Option{.name = "NucleusAndSalience",
               .change = [](AspaConfig& c) { c = testing::doubly_sparse(c); }},
        Option{.name = "Bank", .change = with_bank},
        Option{.name = "BankFifo",
               .change =
                   [](AspaConfig& c) {
                     with_bank(c);
                     c.bank.eviction = BankEviction::fifo;
                   }},
        Option{.name = "BankRandom",
               .change =
                   [](AspaConfig& c) {
                     with_bank(c);
                     c.bank.eviction = BankEviction::random;
                   }},
        Option{.name = "BankNucleusAndSalience",
               .change =
                   [](AspaConfig& c) {
                     c = testing::doubly_sparse(c);
                     with_bank(c);
                   }},
        Option{.name = "Operated", .operated = true},
        Option{.name = "OperatedWithAll",
               .change =
                   [](AspaConfig& c) {
                     c = testing::doubly_sparse(c);
                     with_bank(c);
                   },
               .operated = true},
        Option{.name = "SharedHeadsOnly", .change = [](AspaConfig& c) { c.routed_heads = 0; }},
        Option{.name = "RoutedHeadsOnly", .change = [](AspaConfig& c) { c.shared_heads = 0; }},
        Option{.name = "Bias", .change = [](AspaConfig& c) { c.bias = true; }},
        Option{.name = "BiasWithoutRotation", .change = with_biases},
        Option{.name = "BiasRoutedHeadsOnly",
               .change =
                   [](AspaConfig& c) {
                     with_biases(c);
                     c.shared_heads = 0;
                   }},
        Option{.name = "BiasSharedHeadsOnly",
               .change =
                   [](AspaConfig& c) {
                     with_biases(c);
                     c.routed_heads = 0;
                   }},
        Option{.name = "BiasOperatedWithAll",
               .change =
                   [](AspaConfig& c) {
                     c = testing::doubly_sparse(c);
                     with_biases(c);
                     with_bank(c);
                   },
               .operated = true},
        Option{.name = "Experts", .kind = Kind::experts},
        Option{.name = "ExpertsNucleus",
               .kind = Kind::experts,
               .change_experts =
                   [](GatedMlpConfig& c) {
                     c.k = 4;
                     c.top_p = 0.7;
                   }},
        Option{.name = "ExpertsOperated", .kind = Kind::experts, .operated = true},
        Option{.name = "ExpertsBehindAttention", .kind = Kind::experts_behind_attention},
        Option{.name = "ExpertsBehindNucleusAndSalience",
               .kind = Kind::experts_behind_attention,
               .change = [](AspaConfig& c) { c = testing::doubly_sparse(c); },
               .change_experts =
                   [](GatedMlpConfig& c) {
                     c.top_p = 0.7;
                     c.kind = MlpKind::swiglu;
                   }},
        Option{.name = "ExpertsBehindAttentionOperated",
               .kind = Kind::experts_behind_attention,
               .operated = true}),
    [](const auto& option) { return std::string(option.param.name); });

}  // namespace
}  // namespace proteus
