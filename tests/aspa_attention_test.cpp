// The ASPA layer against its masked-dense reference and against dense attention, and the invariants
// that make its routing safe: docs/aspa.md, "What the tests hold".
#include <gtest/gtest.h>

#include "aspa/reference.h"
#include "autograd/gradcheck.h"
#include "nn/attention.h"
#include "tensor/error.h"
#include "tensor/parallel.h"
#include "tests/aspa_layers.h"

namespace proteus {
namespace {

using testing::AspaLayer;
using testing::config;
using testing::evaluate;
using testing::expect_close;
using testing::gradients;
using testing::input;
using testing::Results;
using testing::run;
using testing::same_bits;
using testing::TestLayer;

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

// The same for token salience and nucleus head counts, alone and together.
TEST_F(AspaLayer, DoublySparseEqualsMaskedReference) {
  for (const double alpha : {0.25, 1.0}) {
    for (int variant = 0; variant < 5; ++variant) {
      AspaConfig c = testing::doubly_sparse(config());
      c.alpha = alpha;
      if (variant == 1) c.salience.keep = 1;
      if (variant == 2) c.top_p = 1;
      if (variant == 3) c.query_gate = c.key_bias = false;
      c.prototypes.enabled = variant != 4;
      SCOPED_TRACE(::testing::Message() << "alpha " << alpha << " variant " << variant);
      const TestLayer layer(c);
      testing::settle(*layer);
      const Variable x = input(c, 2, 41);
      const Selection selection = layer->select(x);
      const ReferenceRouting routing = reference_routing(*layer, x);
      EXPECT_TRUE(same_bits(selection.query, routing.selection.query));
      EXPECT_TRUE(same_bits(selection.key, routing.selection.key));
      expect_close(run(*layer, x), gradients(*layer, x, reference_forward(*layer, x, selection)),
                   1e-10);
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

// A config whose selection takes everything: dense in evaluation.
AspaConfig everything() {
  AspaConfig c = config();
  c.alpha = 1;
  c.k = c.routed_heads;
  c.window = 200;
  c.query_gate = c.key_bias = false;
  return c;
}

// runs_dense() chooses kernels, not a function: a forced selection of the same heads is packed.
TEST_F(AspaLayer, DenseKernelsEqualPackedRows) {
  for (const Shape2 shape : kShapes) {
    for (int variant = 0; variant < 4; ++variant) {
      AspaConfig c = variant == 3 ? everything() : config();
      if (variant < 3) c.alpha = 0;
      c.shared_heads = variant == 1 ? 0 : 2;
      c.bias = variant == 2;
      c.key_shift = variant != 2;
      c.routed_rope = variant == 1 ? RopeSpan::none : RopeSpan::half;
      SCOPED_TRACE(::testing::Message() << "T " << shape.T << " variant " << variant);
      const TestLayer layer(c);
      layer->set_training(variant < 3);
      const Variable x = input(c, shape.B, shape.T);
      ASSERT_TRUE(layer->runs_dense(shape.T));
      const Results dense = run(*layer, x);
      layer->force_selection(layer->select(x));
      ASSERT_FALSE(layer->runs_dense(shape.T));
      expect_close(run(*layer, x), dense, 1e-12);
    }
  }
}

TEST_F(AspaLayer, RunsDenseWhereNothingIsChosenAndNobodyLooks) {
  const TestLayer layer(everything());
  EXPECT_FALSE(layer->runs_dense(8));  // training
  layer->set_training(false);
  EXPECT_TRUE(layer->runs_dense(200));
  EXPECT_FALSE(layer->runs_dense(201));
  layer->set_k(layer->k() - 1);
  EXPECT_FALSE(layer->runs_dense(8));
  layer->set_alpha(0);
  layer->set_training(true);
  EXPECT_TRUE(layer->runs_dense(std::int64_t{1} << 20));
  layer->watch_consensus(true);
  EXPECT_FALSE(layer->runs_dense(8));
  layer->watch_consensus(false);
  layer->begin_probe();
  EXPECT_FALSE(layer->runs_dense(8));
  layer->end_probe();
  layer->gates()->begin_tally();
  EXPECT_FALSE(layer->runs_dense(8));
  layer->gates()->end_tally();
  EXPECT_TRUE(layer->runs_dense(8));

  for (int option = 0; option < 4; ++option) {
    AspaConfig c = everything();
    if (option == 0) c.query_gate = true;
    if (option == 1) c.key_bias = true;
    if (option == 2) c.top_p = 0.9;
    if (option == 3) c.bank.slots = 2;
    const TestLayer other(c);
    other->set_training(false);
    EXPECT_FALSE(other->runs_dense(8)) << option;
  }
}

// Invariant 1, bit for bit: what comes later, the other rows and the length change nothing.
TEST_F(AspaLayer, CausalBitForBit) {
  for (const auto& [alpha, sparse] : std::vector<std::pair<double, bool>>{
           {0.0, false}, {0.25, false}, {0.5, false}, {1.0, false}, {0.5, true}, {1.0, true}}) {
    AspaConfig c = config(DType::f32);
    if (sparse) c = testing::doubly_sparse(c);
    c.alpha = alpha;
    const TestLayer layer(c);
    testing::settle(*layer);
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

// Invariant 6: every parameter (U, w, λ, μ, a, all projections and gates), selection frozen.
TEST_F(AspaLayer, Gradcheck) {
  for (const auto& [alpha, sparse] :
       std::vector<std::pair<double, bool>>{{0.4, false}, {1.0, false}, {1.0, true}}) {
    AspaConfig c = config();
    if (sparse) c = testing::doubly_sparse(c);
    c.alpha = alpha;
    const TestLayer layer(c);
    testing::settle(*layer);
    const Variable x = input(c, 2, 7);
    layer->force_selection(layer->select(x));
    testing::expect_gradients(*layer, x);
    for (const auto& [name, gradient] : run(*layer, input(c, 2, 7))) {
      double size = 0;
      for (const double g : gradient.to_vector()) size = std::max(size, std::abs(g));
      EXPECT_GT(size, 0) << name << " has no gradient to check";
    }
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

}  // namespace
}  // namespace proteus
