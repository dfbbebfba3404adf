// The gated MLP: against its masked-dense reference and the dense MLP, what training and evaluation
// write, decoding, and gates that it shares with attention.
#include "aspa/experts.h"

#include <gtest/gtest.h>

#include "aspa/reference.h"
#include "aspa/slider.h"
#include "autograd/checkpoint.h"
#include "autograd/gradcheck.h"
#include "nn/transformer.h"
#include "tensor/error.h"
#include "tests/error_text.h"
#include "tests/experts.h"

namespace proteus {
namespace {

using testing::AspaLayer;
using testing::difference;
using testing::expect_close;
using testing::expect_same_bits;
using testing::expert_config;
using testing::message_of;
using testing::Results;
using testing::same_bits;
using testing::TestExperts;

struct Shape2 {
  std::int64_t B;
  std::int64_t T;
};
constexpr Shape2 kShapes[] = {{1, 1}, {1, 2}, {2, 9}, {3, 17}, {2, 131}};

Variable input(const GatedMlpConfig& c, std::int64_t B, std::int64_t T, std::uint64_t seed = 3) {
  return Variable(Tensor::randn({B, T, c.width}, {seed, 2}, c.dtype), true);
}

Results run(GatedMlp& layer, const Variable& x) {
  return testing::gradients(layer, x, layer.forward(x));
}

Tensor evaluate(GatedMlp& layer, const Tensor& x) {
  const NoGradGuard no_grad;
  return layer.forward(Variable(x)).value();
}

Results buffers_of(const GatedMlp& layer) {
  Results out;
  for (const Buffer& b : layer.buffers()) out[b.name] = b.tensor.clone();
  return out;
}

TEST_F(AspaLayer, PackedExpertsEqualTheMaskedReference) {
  for (const Shape2 shape : kShapes) {
    for (const double alpha : {0.0, 0.4, 1.0}) {
      for (int variant = 0; variant < 4; ++variant) {
        GatedMlpConfig c = expert_config();
        c.alpha = alpha;
        c.k = 1 + variant;
        c.kind = variant % 2 == 0 ? MlpKind::gelu : MlpKind::swiglu;
        c.shared_width = variant == 1 ? 0 : 10;
        c.prototypes.enabled = variant != 2;
        SCOPED_TRACE(::testing::Message() << "B " << shape.B << " T " << shape.T << " alpha "
                                          << alpha << " variant " << variant);
        const TestExperts layer(c, 5 + static_cast<std::uint64_t>(variant));
        const Variable x = input(c, shape.B, shape.T);
        const Tensor selected = layer->select(x);
        if (alpha > 0) {
          EXPECT_TRUE(same_bits(selected, reference_experts(*layer, x)));
        }
        expect_close(run(*layer, x),
                     testing::gradients(*layer, x, reference_forward(*layer, x, selected)), 1e-10);
      }
    }
  }
}

// A dense MLP whose hidden units are those of the shared MLP and of all experts.
struct DenseTwin {
  Generator init{1};
  GatedMlpConfig c;
  std::unique_ptr<Mlp> dense;

  explicit DenseTwin(const GatedMlp& layer) : c(layer.config()) {
    const std::int64_t hidden = c.shared_width + c.routed_heads * c.expert_width;
    dense = std::make_unique<Mlp>(c.kind, c.width, hidden, false, 0.02, init, c.dtype);
    each(
        layer, [](const Tensor& own, const Tensor& twin) { twin.copy_(own); },
        [](const Variable& v) { return v.value(); });
  }

  // fn(rows of the layer, the same of the dense MLP), for all of its matrices.
  template <class Fn, class Of>
  void each(const GatedMlp& layer, const Fn& fn, const Of& of) const {
    std::map<std::string, Variable> own;
    for (const Parameter& p : layer.parameters()) own[p.name] = p.variable;
    for (const Parameter& p : dense->parameters()) {
      const std::string short_name = p.name.substr(0, p.name.find('.'));
      const bool down = short_name == "down";
      const Tensor all = down ? of(p.variable).transpose(0, 1) : of(p.variable);  // [hidden, C]
      if (c.shared_width > 0) {
        const Tensor shared = of(own.at("shared." + p.name));
        fn(down ? shared.transpose(0, 1) : shared, all.slice(0, 0, c.shared_width));
      }
      const Tensor experts = of(own.at("experts." + short_name));
      for (std::int64_t e = 0; e < c.routed_heads; ++e) {
        const std::int64_t first = c.shared_width + e * c.expert_width;
        const Tensor expert = experts.select(0, e);
        fn(down ? expert : expert.transpose(0, 1), all.slice(0, first, first + c.expert_width));
      }
    }
  }

  Results gradients_of(const GatedMlp& layer, const Variable& x) const {
    x.zero_grad();
    dense->zero_grad();
    const Variable y = dense->forward(x);
    y.backward(Tensor::randn(y.shape(), {77, 1}, y.dtype()));
    Results out{{"y", y.value()}, {"x", x.grad()}};
    std::map<const void*, Tensor> grads;
    for (const Parameter& p : layer.parameters()) {
      out[p.name] = Tensor::zeros(p.variable.shape(), p.variable.dtype());
      grads[p.variable.value().raw()] = out[p.name];
    }
    for (const Parameter& p : dense->parameters()) {
      grads[p.variable.value().raw()] = p.variable.grad();
    }
    each(
        layer, [](const Tensor& own, const Tensor& twin) { own.copy_(twin); },
        [&](const Variable& v) { return grads.at(v.value().raw()); });
    return out;
  }
};

// At alpha = 0 it is the dense sum over all experts; so it is when all are selected and z is 0,
// where the gates are 1.
TEST_F(AspaLayer, AlphaZeroIsADenseMlp) {
  for (const DType dtype : {DType::f64, DType::f32}) {
    for (const MlpKind kind : {MlpKind::gelu, MlpKind::swiglu}) {
      for (const std::int64_t shared : {0, 10}) {
        GatedMlpConfig c = expert_config(dtype);
        c.alpha = 0;
        c.kind = kind;
        c.shared_width = shared;
        const TestExperts layer(c);
        for (const Shape2 shape : kShapes) {
          const Variable x = input(c, shape.B, shape.T);
          expect_close(run(*layer, x), DenseTwin(*layer).gradients_of(*layer, x),
                       dtype == DType::f64 ? 1e-12 : 1e-5);
        }
      }
    }
  }
}

TEST_F(AspaLayer, SelectingEveryExpertIsADenseMlp) {
  GatedMlpConfig c = expert_config();
  c.k = c.routed_heads;
  c.prototypes.enabled = false;
  const TestExperts layer(c);
  layer->gating().router().gate_weight().value().zero_();  // z = log 1: every gate is 2σ(0)
  const Variable x = input(c, 2, 31);
  Results got = run(*layer, x);
  Results expected = DenseTwin(*layer).gradients_of(*layer, x);
  for (Results* r : {&got, &expected}) r->erase("router.w");  // trains all the same
  expect_close(got, expected, 1e-12);
}

TEST_F(AspaLayer, ExpertsSeeOneToken) {
  for (const double alpha : {0.0, 0.5, 1.0}) {
    GatedMlpConfig c = expert_config(DType::f32);
    c.alpha = alpha;
    const TestExperts layer(c);
    layer->set_training(false);
    constexpr std::int64_t kT = 150;
    const Tensor x = input(c, 3, kT).value();
    const Tensor y = evaluate(*layer, x);
    for (const std::int64_t cut : {1, 2, 31, 64, 65, 100, 149}) {
      Tensor changed = x.clone();
      changed.slice(1, cut, kT).copy_(Tensor::randn({3, kT - cut, c.width}, {9, 9}));
      EXPECT_TRUE(same_bits(evaluate(*layer, changed).slice(1, 0, cut), y.slice(1, 0, cut)))
          << "suffix " << cut;
      if (3 * cut < 16) continue;  // few rows take another path in some GEMM libraries
      EXPECT_TRUE(same_bits(evaluate(*layer, x.slice(1, 0, cut)), y.slice(1, 0, cut))) << cut;
    }
    for (std::int64_t row = 0; row < 3; ++row) {
      EXPECT_TRUE(
          same_bits(evaluate(*layer, x.slice(0, row, row + 1)).select(0, 0), y.select(0, row)));
    }
  }
}

TEST_F(AspaLayer, GradcheckOfExperts) {
  for (const MlpKind kind : {MlpKind::gelu, MlpKind::swiglu}) {
    GatedMlpConfig c = expert_config();
    c.alpha = 0.7;
    c.kind = kind;
    const TestExperts layer(c);
    const Variable x = input(c, 2, 7);
    layer->gating().force(Role::query, layer->select(x));
    testing::expect_gradients(*layer, x);
    for (const auto& [name, gradient] : run(*layer, input(c, 2, 7))) {
      EXPECT_GT(difference(gradient, Tensor::zeros(gradient.shape(), gradient.dtype())), 0)
          << name << " has no gradient to check";
    }
  }
}

TEST_F(AspaLayer, EvaluatingExpertsWritesNothing) {
  const GatedMlpConfig c = expert_config(DType::f32);
  const TestExperts layer(c);
  const Results before = buffers_of(*layer);
  EXPECT_EQ(before.count("router.theta_k"), 0u);
  layer->set_training(false);
  run(*layer, input(c, 2, 40));
  layer->gating().begin_probe();
  evaluate(*layer, input(c, 2, 40).value());
  layer->gating().end_probe();
  layer->after_step(1);
  expect_same_bits(buffers_of(*layer), before);
  layer->set_training(true);
  run(*layer, input(c, 2, 40));
  expect_same_bits(buffers_of(*layer), before);  // not before the step
  layer->after_step(1);
  const Results after = buffers_of(*layer);
  for (const char* name : {"router.p", "router.N", "router.P", "router.theta_q", "router.steps"}) {
    EXPECT_FALSE(same_bits(after.at(name), before.at(name))) << name;
  }
  const AspaTelemetry& t = layer->gating().telemetry();
  EXPECT_NEAR(t.query.heads, 2, 1e-12);
  EXPECT_NEAR(t.density, 2.0 / 6, 1e-12);
  EXPECT_GT(t.query.max_vio, 0);
  EXPECT_TRUE(t.key.load.empty());
}

TEST_F(AspaLayer, ExpertsAreRecomputedAsTheyWereChosen) {
  const GatedMlpConfig c = expert_config(DType::f32);
  const TestExperts plain(c);
  const TestExperts recomputed(c);
  const Variable x = input(c, 2, 40);
  const Results expected = run(*plain, x);
  const Variable y =
      checkpoint([&](const std::vector<Variable>& v) { return recomputed->forward(v[0]); }, {x});
  const Tensor theta = recomputed->gating().router().theta(Role::query);
  const Tensor kept = theta.clone();
  theta.copy_(Tensor::from({0, 50, 0, 50, 50, 0}, {6}));
  EXPECT_FALSE(same_bits(recomputed->select(x), plain->select(x)));
  expect_same_bits(testing::gradients(*recomputed, x, y), expected);
  theta.copy_(kept);
  plain->after_step(1);
  recomputed->after_step(1);
  expect_same_bits(buffers_of(*recomputed), buffers_of(*plain));
}

TEST_F(AspaLayer, SameExpertBitsForAnyNumberOfThreads) {
  GatedMlpConfig c = expert_config(DType::f32);
  c.width = 32;
  c.expert_width = 48;
  Results expected;
  for (const int threads : {1, 2, 3}) {
    set_num_threads(threads);
    const TestExperts layer(c);
    Results got = run(*layer, input(c, 3, 150));
    layer->after_step(1);
    got.merge(buffers_of(*layer));
    if (threads == 1) expected = got;
    expect_same_bits(got, expected);
  }
}

TEST_F(AspaLayer, OneTokenAtATimeEqualsTheSequence) {
  for (const auto& [dtype, tolerance] :
       {std::pair{DType::f64, 1e-12}, {DType::f32, 1e-5}, {DType::bf16, 3e-2}}) {
    const TestExperts layer(expert_config(dtype));
    layer->set_training(false);
    const Tensor x = input(layer->config(), 3, 20).value();
    const Tensor y = evaluate(*layer, x);
    for (std::int64_t t = 0; t < 20; ++t) {
      const Tensor one = evaluate(*layer, x.select(1, t).contiguous());
      EXPECT_LE(difference(one, y.select(1, t)), tolerance) << name_of(dtype) << " " << t;
    }
  }
}

// Balance: what all tokens prefer is entered less after some steps.
TEST_F(AspaLayer, ThresholdsEvenTheLoadOfExperts) {
  GatedMlpConfig c = expert_config(DType::f32);
  c.balance.u = 0.05;
  const TestExperts layer(c);
  const auto step = [&](std::uint64_t seed) {
    run(*layer, input(c, 4, 100, seed));
    layer->after_step(1);
    return layer->gating().telemetry().query.max_vio;
  };
  const double first = step(1);
  double last = first;
  for (std::uint64_t i = 2; i < 80; ++i) last = step(i);
  EXPECT_GT(first, 0.4);
  EXPECT_LT(last, first / 2);
}

TEST_F(AspaLayer, CountsOfExpertWork) {
  GatedMlpConfig c = expert_config(DType::f32);
  c.alpha = 0;
  const TestExperts dense_like(c);
  EXPECT_EQ(dense_like->flops_per_token(), DenseTwin(*dense_like).dense->flops_per_token());
  EXPECT_EQ(dense_like->active_parameter_count(), dense_like->parameter_count());
  c.alpha = 1;
  const TestExperts sparse(c);
  EXPECT_EQ(sparse->parameter_count() - sparse->active_parameter_count(), 4 * 2 * 12 * 7);
  const double router = 2.0 * 5 * (12 + 2 * 18);
  EXPECT_EQ(sparse->flops_per_token(), 2.0 * 2 * 12 * (10 + 2 * 7) + router);
  sparse->set_alpha(0.5);
  EXPECT_EQ(sparse->gating().k(), slider::routed_heads(0.5, 6, 2));
}

/// An ASPA layer of six heads and an MLP behind its gates.
struct Shared {
  AspaConfig a = testing::config();
  GatedMlpConfig c = expert_config();
  Generator init{1};
  Generator dropout{2};
  std::unique_ptr<AspaAttention> attention;
  std::unique_ptr<GatedMlp> mlp;

  Shared() {
    a.routed_heads = c.routed_heads;
    attention = std::make_unique<AspaAttention>(a, 0.02, init, dropout);
    testing::randomize(*attention, 5);
    mlp = std::make_unique<GatedMlp>(c, 0.02, init, attention->gates());
    testing::randomize_parameters(*mlp, c.width, 6);
  }
};

TEST_F(AspaLayer, ExpertsBehindTheGatesOfAttention) {
  Shared s;
  const Variable x = input(s.c, 2, 30);
  for (const Parameter& p : s.mlp->parameters()) EXPECT_FALSE(p.name.starts_with("router."));
  const Tensor selected = s.mlp->select(x);
  EXPECT_TRUE(same_bits(selected, reference_experts(*s.mlp, x)));
  EXPECT_TRUE(same_bits(selected, s.attention->select(x).query));
  expect_close(run(*s.mlp, x),
               testing::gradients(*s.mlp, x, reference_forward(*s.mlp, x, selected)), 1e-10);
  // Its rows move the attention's thresholds and prototypes, once per step.
  s.attention->zero_grad();
  const Tensor before = s.attention->router().gate_state().N.clone();
  s.attention->after_step(1);
  EXPECT_FALSE(same_bits(s.attention->router().gate_state().N, before));
  EXPECT_EQ(s.attention->router().steps(), 1);
  s.mlp->after_step(1);
  EXPECT_EQ(s.attention->router().steps(), 1);
  EXPECT_EQ(s.mlp->gating().telemetry().query.load, s.attention->telemetry().query.load);
  GatedMlpConfig odd = s.c;
  odd.routed_heads = 4;
  EXPECT_EQ(
      message_of<ConfigError>([&] { const GatedMlp bad(odd, 0.02, s.init, s.attention->gates()); }),
      "gated mlp: routed_heads: expected 6 (= the attention's, whose gates it shares), got 4");
}

// Blocks of both kinds inside a model: parameter names, decoding, recomputation.
TEST_F(AspaLayer, ModelsWithExperts) {
  for (const bool shares : {false, true}) {
    const auto make = [&](bool recompute) {
      TransformerConfig config{.vocab = 13, .context = 30, .layers = 2, .width = 12};
      config.recompute = recompute;
      return std::make_unique<Transformer>(
          config,
          [&](const AttentionSite& site) {
            AspaConfig a = testing::config(DType::f32);
            a.routed_heads = 6;
            a = shares ? testing::doubly_sparse(a) : a;
            return std::make_unique<AspaAttention>(a, site.output_std, site.init, site.generator);
          },
          [&](const FeedForwardSite& site) {
            auto& attention = dynamic_cast<AspaAttention&>(site.attention);
            return std::make_unique<GatedMlp>(expert_config(DType::f32), site.output_std, site.init,
                                              shares ? attention.gates() : nullptr);
          });
    };
    const auto model = make(false);
    const auto recomputing = make(true);
    const Tensor tokens = Tensor::rand({2, 30}, {4, 4}, DType::f64, 0, 13.0).to(DType::i32);
    for (const auto& m : {model.get(), recomputing.get()}) {
      for (int i = 0; i < 2; ++i) {
        m->zero_grad();
        m->loss(tokens, tokens).backward();
        m->after_step(1);
      }
    }
    std::map<std::string, Tensor> grads;
    for (const Parameter& p : model->parameters()) grads[p.name] = p.variable.grad();
    EXPECT_EQ(grads.count("blocks.1.mlp.experts.down"), 1u);
    EXPECT_EQ(grads.count("blocks.1.mlp.shared.up.weight"), 1u);
    EXPECT_EQ(grads.count("blocks.1.mlp.router.U"), shares ? 0u : 1u);
    for (const Parameter& p : recomputing->parameters()) {
      EXPECT_TRUE(same_bits(p.variable.grad(), grads.at(p.name))) << p.name;
    }
    std::int64_t spared = 0;
    for (std::int64_t l = 0; l < 2; ++l) {
      spared += model->feed_forward(l).parameter_count() -
                model->feed_forward(l).active_parameter_count() +
                model->attention(l).parameter_count() -
                model->attention(l).active_parameter_count();
    }
    EXPECT_EQ(model->active_parameter_count(), model->parameter_count() - spared);

    model->set_training(false);
    const Tensor expected = model->logits(tokens);
    DecodeState a = model->begin_sequence();
    DecodeState b = model->begin_sequence();
    DecodeState* const both[] = {&a, &b};
    for (std::int64_t t = 0; t < 30; ++t) {
      const Tensor logits = model->step(tokens.select(1, t).contiguous(), both);
      EXPECT_LE(difference(logits, expected.select(1, t)), 1e-5) << t;
    }
  }
}

TEST_F(AspaLayer, ExpertErrorsSayWhatToChange) {
  const auto refusal = [](void (*change)(GatedMlpConfig&)) {
    GatedMlpConfig c = expert_config();
    change(c);
    return message_of<ConfigError>([&] { const TestExperts bad(c); });
  };
  EXPECT_EQ(refusal([](GatedMlpConfig& c) { c.k = 7; }),
            "gated mlp: k: expected at most 6 (= routed_heads), got 7");
  EXPECT_EQ(refusal([](GatedMlpConfig& c) { c.expert_width = 0; }),
            "gated mlp: expert_width: expected at least 1, got 0");
  EXPECT_EQ(refusal([](GatedMlpConfig& c) { c.shared_width = -1; }),
            "gated mlp: shared_width: expected at least 0, got -1");
  EXPECT_EQ(refusal([](GatedMlpConfig& c) { c.routed_heads = 0; }),
            "gated mlp: routed_heads: expected at least 1, got 0");
  EXPECT_EQ(refusal([](GatedMlpConfig& c) { c.salience.keep = 0.5; }),
            "gated mlp: salience.keep: expected 1, got 0.5; every token enters experts (an MLP is "
            "what a token that skips routed heads has left), keep < 1 is for attention");
  const TestExperts layer(expert_config());
  EXPECT_EQ(message_of<ConfigError>([&] { layer->set_alpha(2); }),
            "gated mlp: alpha: expected a number in [0, 1], got 2");
  EXPECT_EQ(message_of<ShapeError>([&] {
              layer->forward(Variable(Tensor::zeros({2, 3, 7}, DType::f64)));
            }),
            "gated mlp(x): x: expected [B, T, 12] or [B, 12] (= width), got [2, 3, 7]");
}

}  // namespace
}  // namespace proteus
