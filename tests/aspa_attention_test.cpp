// The ASPA layer against its masked-dense reference and against dense attention, and the invariants
// that make its routing safe: docs/aspa.md, "What the tests hold".
#include <gtest/gtest.h>

#include "aspa/reference.h"
#include "aspa/slider.h"
#include "autograd/checkpoint.h"
#include "autograd/gradcheck.h"
#include "nn/attention.h"
#include "tensor/error.h"
#include "tensor/parallel.h"
#include "tests/aspa_layers.h"

namespace proteus {
namespace {

using testing::difference;
using testing::expect_close;
using testing::expect_same_bits;
using testing::gradients;
using testing::Results;
using testing::same_bits;
using testing::TestLayer;

// One thread: the layers here are too small for two.
class AspaLayer : public ::testing::Test {
 protected:
  AspaLayer() { set_num_threads(1); }
  ~AspaLayer() override { set_num_threads(0); }
};

AspaConfig config(DType dtype = DType::f64) {
  AspaConfig c;
  c.width = 12;
  c.head_width = 8;
  c.shared_heads = 2;
  c.shared_window = 5;
  c.anchors = 2;
  c.routed_heads = 5;
  c.k = 2;
  c.window = 4;
  c.gates_per_head = 3;
  c.routing_width = 6;
  c.dtype = dtype;
  return c;
}

Variable input(const AspaConfig& c, std::int64_t B, std::int64_t T, std::uint64_t seed = 3) {
  return Variable(Tensor::randn({B, T, c.width}, {seed, 2}, c.dtype), true);
}

Results run(AspaAttention& layer, const Variable& x) {
  return gradients(layer, x, layer.forward(x));
}

struct Shape2 {
  std::int64_t B;
  std::int64_t T;
};
constexpr Shape2 kShapes[] = {{1, 1}, {1, 2}, {2, 9}, {3, 17}, {1, 70}, {2, 131}};

// Invariant 4: the packed kernels against a plain masked-dense evaluation, forwards and backwards.
TEST_F(AspaLayer, PackedEqualsMaskedReference) {
  for (const Shape2 shape : kShapes) {
    for (const double alpha : {0.0, 0.25, 0.5, 1.0}) {
      for (int variant = 0; variant < 4; ++variant) {
        AspaConfig c = config();
        c.alpha = alpha;
        c.k = 1 + variant;
        c.window = variant == 0 ? 1 : 3 * variant;
        c.anchors = variant;
        c.shared_heads = variant == 1 ? 0 : 2;
        c.sink = variant != 2;
        c.routed_rope = variant == 3 ? RopeSpan::full : RopeSpan::half;
        c.prototypes.enabled = variant != 1;
        c.key_shift = variant != 2;
        SCOPED_TRACE(::testing::Message() << "B " << shape.B << " T " << shape.T << " alpha "
                                          << alpha << " variant " << variant);
        const TestLayer layer(c, 5 + static_cast<std::uint64_t>(variant));
        const Variable x = input(c, shape.B, shape.T);
        const Selection selection = layer->select(x);
        if (alpha > 0) {
          const ReferenceRouting routing = reference_routing(*layer, x);
          EXPECT_TRUE(same_bits(selection.query, routing.selection.query));
          EXPECT_TRUE(same_bits(selection.key, routing.selection.key));
        }
        expect_close(run(*layer, x), gradients(*layer, x, reference_forward(*layer, x, selection)),
                     1e-10);
      }
    }
  }
}

TEST_F(AspaLayer, OnlySharedHeads) {
  AspaConfig c = config();
  c.routed_heads = 0;
  for (const double alpha : {0.0, 0.5, 1.0}) {
    c.alpha = alpha;
    const TestLayer layer(c);
    const Variable x = input(c, 2, 33);
    expect_close(run(*layer, x), gradients(*layer, x, reference_forward(*layer, x, {})), 1e-10);
    EXPECT_THROW(layer->router(), ConfigError);
    layer->after_step(1);  // nothing to do
  }
}

// Copies the weights of an ASPA layer into a dense layer of Hs + Hr heads; `back` turns a gradient
// of the dense layer into those of the ASPA layer.
struct DenseTwin {
  Generator init{1};
  Generator dropout{2};
  std::unique_ptr<DenseAttention> dense;
  AspaConfig c;

  explicit DenseTwin(AspaAttention& layer) : c(layer.config()) {
    DenseAttentionConfig d;
    d.width = c.width;
    d.heads = c.heads();
    d.head_width = c.head_width;
    d.key_shift = c.key_shift;
    d.dtype = c.dtype;
    dense = std::make_unique<DenseAttention>(d, 0.02, init, dropout);
    const AspaWeights& w = layer.weights();
    const std::int64_t Hs = c.shared_heads;
    for (int part = 0; part < 3; ++part) {
      const Variable& routed = part == 0 ? w.q : part == 1 ? w.k : w.v;
      for (std::int64_t h = 0; h < c.heads(); ++h) {
        const Tensor rows = qkv_rows(parameter("qkv.weight").value(), part, h, c.heads());
        if (h < Hs) {
          rows.copy_(qkv_rows(w.qkv.value(), part, h, Hs));
        } else {
          rows.copy_(routed.value().select(0, h - Hs).transpose(0, 1));
        }
      }
    }
    for (std::int64_t h = 0; h < c.heads(); ++h) {
      const Tensor columns = out_columns(parameter("out.weight").value(), h);
      columns.copy_(h < Hs ? out_columns(w.out.value(), h)
                           : w.o.value().select(0, h - Hs).transpose(0, 1));
    }
    if (c.key_shift) parameter("mu").value().copy_(w.mu.value());
  }

  Variable parameter(const std::string& name) const {
    for (const Parameter& p : dense->parameters()) {
      if (p.name == name) return p.variable;
    }
    throw ConfigError("no parameter " + name);
  }
  Tensor qkv_rows(const Tensor& weight, int part, std::int64_t h, std::int64_t heads) const {
    const std::int64_t at = (part * heads + h) * c.head_width;
    return weight.slice(0, at, at + c.head_width);
  }
  Tensor out_columns(const Tensor& weight, std::int64_t h) const {
    return weight.slice(1, h * c.head_width, (h + 1) * c.head_width);
  }

  // The gradients as the ASPA layer names them; what dense attention lacks is zero.
  Results gradients_of(const AspaAttention& layer, const Variable& x) const {
    x.zero_grad();
    dense->zero_grad();
    const Variable y = dense->forward(x);
    y.backward(Tensor::randn(y.shape(), {77, 1}, y.dtype()));
    Results out{{"y", y.value()}, {"x", x.grad()}};
    for (const Parameter& p : layer.parameters()) {
      out[p.name] = Tensor::zeros(p.variable.shape(), p.variable.dtype());
    }
    const Tensor qkv = parameter("qkv.weight").grad();
    const std::int64_t Hs = c.shared_heads;
    const char* names[] = {"routed.q", "routed.k", "routed.v"};
    for (int part = 0; part < 3; ++part) {
      for (std::int64_t h = 0; h < c.heads(); ++h) {
        const Tensor rows = qkv_rows(qkv, part, h, c.heads());
        if (h < Hs) {
          qkv_rows(out["qkv.weight"], part, h, Hs).copy_(rows);
        } else {
          out[names[part]].select(0, h - Hs).copy_(rows.transpose(0, 1));
        }
      }
    }
    for (std::int64_t h = 0; h < c.heads(); ++h) {
      const Tensor columns = out_columns(parameter("out.weight").grad(), h);
      if (h < Hs) {
        out_columns(out["out.weight"], h).copy_(columns);
      } else {
        out["routed.o"].select(0, h - Hs).copy_(columns.transpose(0, 1));
      }
    }
    if (c.key_shift) out["mu"] = parameter("mu").grad();
    return out;
  }
};

// Invariant 2: alpha = 0 is dense attention over Hs + Hr heads, outputs and every gradient.
TEST_F(AspaLayer, AlphaZeroIsDense) {
  for (const DType dtype : {DType::f64, DType::f32}) {
    for (const Shape2 shape : kShapes) {
      SCOPED_TRACE(::testing::Message() << "B " << shape.B << " T " << shape.T);
      AspaConfig c = config(dtype);
      c.alpha = 0;
      c.routed_rope = RopeSpan::full;
      const TestLayer layer(c);
      const Variable x = input(c, shape.B, shape.T);
      expect_close(run(*layer, x), DenseTwin(*layer).gradients_of(*layer, x),
                   dtype == DType::f64 ? 1e-12 : 1e-5);
    }
  }
}

// Invariant 3: on the sparse path too, when it selects everything and gates are off.
TEST_F(AspaLayer, SelectingEverythingIsDense) {
  for (const DType dtype : {DType::f64, DType::f32}) {
    AspaConfig c = config(dtype);
    c.alpha = 1;
    c.k = c.routed_heads;
    c.window = c.shared_window = c.anchors = std::int64_t{1} << 30;
    c.query_gate = c.key_bias = c.sink = c.shared_gate = false;
    c.routed_rope = RopeSpan::full;
    const TestLayer layer(c);
    for (const Shape2 shape : kShapes) {
      const Variable x = input(c, shape.B, shape.T);
      expect_close(run(*layer, x), DenseTwin(*layer).gradients_of(*layer, x),
                   dtype == DType::f64 ? 1e-12 : 1e-5);
    }
  }
}

Tensor evaluate(AspaAttention& layer, const Tensor& x) {
  const NoGradGuard no_grad;
  return layer.forward(Variable(x)).value();
}

// Invariant 1, bit for bit: what comes later, the other rows and the length change nothing.
TEST_F(AspaLayer, CausalBitForBit) {
  for (const double alpha : {0.0, 0.25, 0.5, 1.0}) {
    AspaConfig c = config(DType::f32);
    c.alpha = alpha;
    const TestLayer layer(c);
    layer->set_training(false);
    constexpr std::int64_t kT = 150;
    const Tensor x = input(c, 3, kT).value();
    const Tensor y = evaluate(*layer, x);
    for (const std::int64_t cut : {1, 2, 31, 64, 65, 100, 149}) {
      SCOPED_TRACE(::testing::Message() << "alpha " << alpha << " cut " << cut);
      const Tensor expected = y.slice(1, 0, cut);
      Tensor suffix = x.clone();
      suffix.slice(1, cut, kT).copy_(Tensor::randn({3, kT - cut, c.width}, {9, 9}));
      EXPECT_TRUE(same_bits(evaluate(*layer, suffix).slice(1, 0, cut), expected)) << "suffix";
      EXPECT_FALSE(same_bits(evaluate(*layer, suffix), y));
      // A product of fewer than 16 rows takes another path in some GEMM libraries.
      if (3 * cut < 16) continue;
      EXPECT_TRUE(same_bits(evaluate(*layer, x.slice(1, 0, cut)), expected)) << "length";
    }
    for (std::int64_t row = 0; row < 3; ++row) {
      Tensor others = Tensor::randn(x.shape(), {4, static_cast<std::uint64_t>(row)});
      others.select(0, row).copy_(x.select(0, row));
      EXPECT_TRUE(same_bits(evaluate(*layer, others).select(0, row), y.select(0, row))) << row;
      EXPECT_TRUE(
          same_bits(evaluate(*layer, x.slice(0, row, row + 1)).select(0, 0), y.select(0, row)))
          << row;
    }
  }
}

// The layer as a function of (x, parameters…) for gradcheck.
Variable as_function(AspaAttention& layer, const std::vector<Variable>& v) {
  const auto parameters = layer.parameters();
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    parameters[i].variable.set_value(v[i + 1].value());
  }
  const Variable x(v[0].value(), true);
  const Variable y = layer.forward(x);
  return record("layer", v, y.value(), {}, [&layer, x, y](const Backward& ctx) -> Gradients {
    layer.zero_grad();
    y.backward(ctx.dy());
    Gradients grads{x.grad()};
    for (const Parameter& p : layer.parameters()) grads.push_back(p.variable.grad());
    return grads;
  });
}

// Invariant 6: every parameter (U, w, λ, μ, a, all projections and gates), selection frozen.
TEST_F(AspaLayer, Gradcheck) {
  for (const double alpha : {0.4, 1.0}) {
    AspaConfig c = config();
    c.alpha = alpha;
    const TestLayer layer(c);
    const Variable x = input(c, 2, 7);
    layer->force_selection(layer->select(x));
    std::vector<Tensor> inputs{x.value()};
    for (const Parameter& p : layer->parameters()) inputs.push_back(p.variable.value().clone());
    GradcheckOptions options;
    options.tolerance = 2e-6;
    const auto result =
        gradcheck([&](const std::vector<Variable>& v) { return as_function(*layer, v); }, inputs,
                  {}, options);
    EXPECT_TRUE(result.ok) << result.message;
    for (const auto& [name, gradient] : run(*layer, input(c, 2, 7))) {
      double size = 0;
      for (const double g : gradient.to_vector()) size = std::max(size, std::abs(g));
      EXPECT_GT(size, 0) << name << " has no gradient to check";
    }
  }
}

std::map<std::string, Tensor> buffers_of(const AspaAttention& layer) {
  std::map<std::string, Tensor> out;
  for (const Buffer& b : layer.buffers()) out[b.name] = b.tensor.clone();
  return out;
}

// Invariant 8: evaluation writes nothing, with and without recording; training does.
TEST_F(AspaLayer, EvaluationWritesNothing) {
  const AspaConfig c = config(DType::f32);
  const TestLayer layer(c);
  const auto before = buffers_of(*layer);
  EXPECT_EQ(before.size(), 9u);
  layer->set_training(false);
  run(*layer, input(c, 2, 40));
  evaluate(*layer, input(c, 2, 40).value());
  layer->begin_probe();
  evaluate(*layer, input(c, 2, 40).value());
  layer->end_probe();
  layer->after_step(1);
  expect_same_bits(buffers_of(*layer), before);
  layer->set_training(true);
  run(*layer, input(c, 2, 40));
  expect_same_bits(buffers_of(*layer), before);  // not before the step
  layer->after_step(1);
  const auto after = buffers_of(*layer);
  for (const char* name :
       {"router.p", "router.N", "router.P", "router.theta_q", "router.theta_k", "router.steps"}) {
    EXPECT_FALSE(same_bits(after.at(name), before.at(name))) << name;
  }
}

// Invariant 9: recomputation reuses the selection and counts nothing twice.
TEST_F(AspaLayer, CheckpointingReusesTheSelection) {
  const AspaConfig c = config(DType::f32);
  const TestLayer plain(c);
  const TestLayer recomputed(c);
  const auto through = [](AspaAttention& layer, const Variable& x) {
    return checkpoint([&layer](const std::vector<Variable>& v) { return layer.forward(v[0]); },
                      {x});
  };
  const Variable x = input(c, 2, 40);
  const Results expected = run(*plain, x);
  const Variable y = through(*recomputed, x);
  // New thresholds between forward and backward would choose other heads.
  const Tensor theta = recomputed->router().theta(Role::query);
  const Tensor kept = theta.clone();
  theta.copy_(Tensor::from({0, 50, 0, 50, 50}, {5}));
  EXPECT_FALSE(same_bits(recomputed->select(x).query, plain->select(x).query));
  expect_same_bits(gradients(*recomputed, x, y), expected);
  theta.copy_(kept);
  plain->after_step(1);
  recomputed->after_step(1);
  expect_same_bits(buffers_of(*recomputed), buffers_of(*plain));
  EXPECT_EQ(recomputed->telemetry().query.load, plain->telemetry().query.load);
}

TEST_F(AspaLayer, DropoutIsReusedToo) {
  AspaConfig c = config(DType::f32);
  c.dropout = 0.3;
  const TestLayer plain(c);
  const TestLayer recomputed(c);
  const Variable x = input(c, 2, 40);
  const Results expected = run(*plain, x);
  const Variable y =
      checkpoint([&](const std::vector<Variable>& v) { return recomputed->forward(v[0]); }, {x});
  expect_same_bits(gradients(*recomputed, x, y), expected);
  EXPECT_FALSE(same_bits(run(*plain, x).at("y"), expected.at("y")));  // another mask
  plain->set_training(false);
  EXPECT_TRUE(same_bits(run(*plain, x).at("y"), run(*plain, x).at("y")));
}

TEST_F(AspaLayer, SameBitsForAnyNumberOfThreads) {
  AspaConfig c = config(DType::f32);
  c.width = 32;
  Results expected;
  std::map<std::string, Tensor> state;
  for (const int threads : {1, 2, 3}) {
    set_num_threads(threads);
    const TestLayer layer(c);
    const Results got = run(*layer, input(c, 3, 150));
    layer->after_step(1);
    if (threads == 1) {
      expected = got;
      state = buffers_of(*layer);
    }
    expect_same_bits(got, expected);
    expect_same_bits(buffers_of(*layer), state);
  }
}

// Sums over micro-batches: two halves and a step are the whole and a step.
TEST_F(AspaLayer, StatisticsAddUpOverAccumulation) {
  const AspaConfig c = config();
  const TestLayer whole(c);
  const TestLayer halves(c);
  const Variable x = input(c, 4, 30);
  run(*whole, x);
  for (const std::int64_t b : {0, 2}) run(*halves, Variable(x.value().slice(0, b, b + 2), true));
  whole->after_step(1);
  halves->after_step(1);
  const auto expected = buffers_of(*whole);
  for (const auto& [name, tensor] : buffers_of(*halves)) {
    EXPECT_LE(difference(tensor, expected.at(name)), 1e-12) << name;
  }
  EXPECT_EQ(halves->telemetry().query.load, whole->telemetry().query.load);
  double sum = 0;
  for (const double load : whole->telemetry().key.load) sum += load;
  EXPECT_NEAR(sum, static_cast<double>(c.k), 1e-12);
}

TEST_F(AspaLayer, TiesGoToTheLowerHead) {
  for (const DType dtype : {DType::f64, DType::f32}) {
    const AspaConfig c = config(dtype);
    const TestLayer layer(c);
    layer->router().theta(Role::query).zero_();
    layer->router().theta(Role::key).fill_(0.5);
    const Variable nothing(Tensor::zeros({1, 6, c.width}, dtype), true);  // x̃ = 0, cos = 0
    const Selection selection = layer->select(nothing);
    for (const Tensor& heads : {selection.query, selection.key}) {
      EXPECT_EQ(heads.to_vector(), (std::vector<double>{0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1}));
    }
    for (const auto& [name, tensor] : run(*layer, nothing)) {
      for (const double v : tensor.to_vector()) ASSERT_TRUE(std::isfinite(v)) << name;
    }
  }
}

// Heads that nobody enters, tokens that enter none, queries without keys.
TEST_F(AspaLayer, EmptyHeadsAndAbsentTokens) {
  for (const bool sink : {true, false}) {
    AspaConfig c = config();
    c.sink = sink;
    const TestLayer layer(c);
    const Variable x = input(c, 2, 3);
    const auto heads = [](std::initializer_list<double> v) {
      return Tensor::from(v, {6, 2}, DType::i32);
    };
    // Head 3 has queries without keys, head 4 keys without queries, head 0 nothing at all.
    const Selection selection{heads({1, 3, 3, -1, -1, -1, 1, 2, 1, 3, 2, -1}),
                              heads({1, 4, -1, -1, 2, 4, 1, -1, -1, -1, 2, 4})};
    layer->force_selection(selection);
    expect_close(run(*layer, x), gradients(*layer, x, reference_forward(*layer, x, selection)),
                 1e-10);
    layer->after_step(1);
    EXPECT_GT(layer->telemetry().query.max_vio, 0);
    const Selection none{Tensor::full({6, 2}, -1, DType::i32),
                         Tensor::full({6, 2}, -1, DType::i32)};
    layer->force_selection(none);
    expect_close(run(*layer, x), gradients(*layer, x, reference_forward(*layer, x, none)), 1e-10);
    layer->after_step(1);
    EXPECT_EQ(layer->telemetry().query.max_vio, 0);
  }
}

TEST_F(AspaLayer, TokensCanSkipRoutedHeads) {
  const AspaConfig c = config();
  const TestLayer layer(c);
  const Variable x = input(c, 1, 9);
  const Selection all = layer->select(x);
  layer->set_token_keep([](Role role, const Tensor& projected, std::int64_t k) {
    Tensor count = Tensor::full({projected.size(0)}, static_cast<double>(k), DType::i32);
    if (role == Role::query) count.data<std::int32_t>()[4] = 0;
    return count;
  });
  const Selection some = layer->select(x);
  EXPECT_TRUE(same_bits(some.key, all.key));
  EXPECT_EQ(some.query.select(0, 4).to_vector(), (std::vector<double>{-1, -1}));
  EXPECT_TRUE(same_bits(some.query.slice(0, 0, 4), all.query.slice(0, 0, 4)));
  EXPECT_TRUE(same_bits(some.query.slice(0, 5, 9), all.query.slice(0, 5, 9)));
  expect_close(run(*layer, x), gradients(*layer, x, reference_forward(*layer, x, some)), 1e-10);
}

std::string message_of(const std::function<void()>& fn) {
  try {
    fn();
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

TEST_F(AspaLayer, ErrorsSayWhatToChange) {
  const AspaConfig c = config(DType::f32);
  const TestLayer layer(c);
  EXPECT_EQ(message_of([&] { layer->set_alpha(1.25); }),
            "aspa: alpha: expected a number in [0, 1], got 1.25");
  EXPECT_EQ(layer->alpha(), 1);
  EXPECT_EQ(message_of([&] {
              layer->forward(Variable(Tensor::zeros({2, 3, 7})));
            }),
            "aspa(x): x: expected [B, T, 12] (= width), got [2, 3, 7]");
  AspaConfig greedy = c;
  greedy.k = 9;
  EXPECT_EQ(message_of([&] { const TestLayer bad(greedy); }),
            "aspa: k: expected at most 5 (= routed_heads), got 9");
  layer->force_selection(Selection{Tensor::from({2, 1}, {1, 2}, DType::i32),
                                   Tensor::from({1, 2}, {1, 2}, DType::i32)});
  EXPECT_EQ(message_of([&] {
              layer->forward(Variable(Tensor::zeros({1, 1, 12})));
            }),
            "selection: query: token 0: expected ascending heads below 5 and then -1, got 2, 1");
  EXPECT_EQ(message_of([&] {
              layer->forward(Variable(Tensor::zeros({1, 2, 12})));
            }),
            "selection: query: expected [2, k] (= tokens), got [1, 2]");
}

TEST_F(AspaLayer, AlphaMovesAtRunTime) {
  AspaConfig c = config();
  const TestLayer moving(c);
  const Variable x = input(c, 2, 50);
  for (const double alpha : {0.0, 0.3, 1.0, 0.6}) {
    c.alpha = alpha;
    const TestLayer fixed(c);
    moving->set_alpha(alpha);
    EXPECT_EQ(moving->k(), slider::routed_heads(alpha, 5, 2));
    expect_same_bits(run(*moving, x), run(*fixed, x));
  }
}

TEST_F(AspaLayer, CountsOfWork) {
  AspaConfig c = config(DType::f32);
  c.alpha = 0;
  c.anchors = 0;
  const TestLayer dense_like(c);
  const DenseTwin twin(*dense_like);
  EXPECT_NEAR(dense_like->attention_flops_per_token(64), twin.dense->attention_flops_per_token(64),
              1e-6);
  EXPECT_NEAR(dense_like->total_flops_per_token(64), twin.dense->total_flops_per_token(64), 1e-6);
  EXPECT_EQ(dense_like->active_parameter_count(), dense_like->parameter_count());
  c.alpha = 1;
  const TestLayer sparse(c);
  // 2 shared heads see at most 5 of 4,000 positions, k routed ones at most 4 entries.
  EXPECT_NEAR(sparse->attention_flops_per_token(4000), 4.0 * 8 * (2 * 5 + 2 * 4), 1);
  EXPECT_EQ(sparse->parameter_count() - sparse->active_parameter_count(), 3 * (4 * 12 * 8 + 1));
  EXPECT_LT(sparse->total_flops_per_token(4000), dense_like->total_flops_per_token(4000) / 10);
}

TEST_F(AspaLayer, ChurnIsMeasuredBetweenProbes) {
  const AspaConfig c = config(DType::f32);
  const TestLayer layer(c);
  layer->set_training(false);
  const Tensor probe = input(c, 2, 30).value();
  const auto measure = [&] {
    layer->begin_probe();
    evaluate(*layer, probe);
    layer->end_probe();
  };
  measure();
  EXPECT_EQ(layer->telemetry().churn_query, -1);
  measure();
  EXPECT_EQ(layer->telemetry().churn_query, 0);
  layer->router().theta(Role::query).copy_(Tensor::from({50, 0, 50, 0, 50}, {5}));
  measure();
  EXPECT_GT(layer->telemetry().churn_query, 0.2);
  EXPECT_EQ(layer->telemetry().churn_key, 0);
}

TEST_F(AspaLayer, AFrozenRouterStaysAsDrawn) {
  AspaConfig c = config();
  c.frozen_router = true;
  const TestLayer layer(c);
  const Results got = run(*layer, input(c, 2, 20));
  for (const char* name : {"router.U", "router.w", "router.lambda"}) {
    for (const double g : got.at(name).to_vector()) ASSERT_EQ(g, 0) << name;
  }
  EXPECT_GT(difference(got.at("routed.q"), Tensor::zeros(got.at("routed.q").shape(), c.dtype)), 0);
}

TEST_F(AspaLayer, Bf16IsNearF32) {
  AspaConfig c = config(DType::f32);
  const TestLayer exact(c);
  c.dtype = DType::bf16;
  const TestLayer rounded(c);
  for (const Parameter& p : exact->parameters()) {
    for (const Parameter& q : rounded->parameters()) {
      if (q.name != p.name) continue;
      q.variable.value().copy_(p.variable.value());
      p.variable.value().copy_(q.variable.value());
    }
  }
  const Tensor x = Tensor::randn({2, 40, c.width}, {3, 2}, DType::bf16);
  const Variable x32(x.to(DType::f32), true);
  const Variable x16(x, true);
  const Selection selection = exact->select(x32);
  exact->force_selection(selection);
  rounded->force_selection(selection);
  const Results got = run(*rounded, x16);
  EXPECT_EQ(got.at("y").dtype(), DType::bf16);
  expect_close(got, run(*exact, x32), 0.06);
}

}  // namespace
}  // namespace proteus
