// What the tests of the ASPA layer share.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "aspa/attention.h"
#include "autograd/gradcheck.h"
#include "autograd/tape.h"
#include "tensor/parallel.h"

namespace proteus::testing {

constexpr std::uint64_t kParameterStream = 1000;

/// Every parameter drawn anew, large enough that attention, gates and sinks are far from uniform;
/// thresholds and masses too.
inline void randomize_parameters(Module& layer, std::int64_t width, std::uint64_t seed) {
  RngKey key{seed, kParameterStream};
  for (const Parameter& p : layer.parameters()) {
    ++key.stream;
    const double fan = static_cast<double>(p.variable.value().rank() > 1 ? width : 4);
    const Tensor draw =
        Tensor::randn(p.variable.shape(), key, p.variable.dtype(), 0, 1.5 / std::sqrt(fan));
    p.variable.value().copy_(draw);
  }
  for (const Buffer& b : layer.buffers()) {
    ++key.stream;
    if (b.name == "router.theta_q" || b.name == "router.theta_k") {
      b.tensor.copy_(Tensor::randn(b.tensor.shape(), key, b.tensor.dtype(), 0, 0.1));
    }
  }
}

inline void randomize(AspaAttention& layer, std::uint64_t seed) {
  randomize_parameters(layer, layer.config().width, seed);
}

struct TestLayer {
  Generator init{11};
  Generator dropout{12};
  std::unique_ptr<AspaAttention> layer;

  explicit TestLayer(const AspaConfig& config, std::uint64_t seed = 5) {
    layer = std::make_unique<AspaAttention>(config, 0.02, init, dropout);
    randomize(*layer, seed);
  }
  AspaAttention& operator*() const { return *layer; }
  AspaAttention* operator->() const { return layer.get(); }
};

/// y and the gradients of x and of every parameter, by name; zeros where there is none.
using Results = std::map<std::string, Tensor>;

inline Results gradients(const Module& layer, const Variable& x, const Variable& y) {
  layer.zero_grad();
  x.zero_grad();
  y.backward(Tensor::randn(y.shape(), {77, 1}, y.dtype()));
  Results out{{"y", y.value()}, {"x", x.grad()}};
  for (const Parameter& p : layer.parameters()) out[p.name] = p.variable.grad();
  for (auto& [name, tensor] : out) {
    if (tensor.defined()) continue;
    for (const Parameter& p : layer.parameters()) {
      if (p.name == name) tensor = Tensor::zeros(p.variable.shape(), p.variable.dtype());
    }
  }
  layer.zero_grad();
  return out;
}

/// A layer's forward as a function of v = (x, parameters…), for gradcheck: the parameters take the
/// values of v, and the gradients come from a pass of their own.
template <class Forward>
Variable as_function(const Module& layer, const Forward& forward, const std::vector<Variable>& v) {
  const auto parameters = layer.parameters();
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    parameters[i].variable.set_value(v[i + 1].value());
  }
  const Variable x(v[0].value(), true);
  const Variable y = forward(x);
  return record("layer", v, y.value(), {}, [&layer, x, y](const Backward& ctx) -> Gradients {
    layer.zero_grad();
    y.backward(ctx.dy());
    Gradients grads{x.grad()};
    for (const Parameter& p : layer.parameters()) grads.push_back(p.variable.grad());
    return grads;
  });
}

/// Central differences of every element of x and of every parameter against the gradients.
template <class Layer>
void expect_gradients(Layer& layer, const Variable& x) {
  std::vector<Tensor> inputs{x.value()};
  for (const Parameter& p : layer.parameters()) inputs.push_back(p.variable.value().clone());
  GradcheckOptions options;
  options.tolerance = 2e-6;
  const auto function = [&](const std::vector<Variable>& v) {
    return as_function(
        layer, [&](const Variable& in) { return layer.forward(in); }, v);
  };
  const auto result = gradcheck(function, inputs, {}, options);
  EXPECT_TRUE(result.ok) << result.message;
}

/// Largest difference as a share of the largest number.
inline double difference(const Tensor& a, const Tensor& b) {
  const auto x = a.to_vector();
  const auto y = b.to_vector();
  if (x.size() != y.size()) return 1e9;
  double worst = 0;
  double size = 0.1;
  for (std::size_t i = 0; i < x.size(); ++i) {
    if (!std::isfinite(x[i]) || !std::isfinite(y[i])) return 1e9;
    worst = std::max(worst, std::abs(x[i] - y[i]));
    size = std::max(size, std::abs(y[i]));
  }
  return worst / size;
}

inline void expect_close(const Results& got, const Results& expected, double tolerance) {
  ASSERT_EQ(got.size(), expected.size());
  for (const auto& [name, tensor] : expected) {
    ASSERT_TRUE(got.count(name)) << name;
    EXPECT_LE(difference(got.at(name), tensor), tolerance) << name;
  }
}

inline bool same_bits(const Tensor& a_any, const Tensor& b_any) {
  const Tensor a = a_any.contiguous();
  const Tensor b = b_any.contiguous();
  return a.shape() == b.shape() && a.dtype() == b.dtype() &&
         (a.numel() == 0 ||
          std::memcmp(a.raw(), b.raw(), static_cast<std::size_t>(a.bytes())) == 0);
}

inline void expect_same_bits(const Results& got, const Results& expected) {
  ASSERT_EQ(got.size(), expected.size());
  for (const auto& [name, tensor] : expected) {
    EXPECT_TRUE(same_bits(got.at(name), tensor)) << name;
  }
}

/// One thread: the layers here are too small for two.
class AspaLayer : public ::testing::Test {
 protected:
  AspaLayer() { set_num_threads(1); }
  ~AspaLayer() override { set_num_threads(0); }
};

inline AspaConfig config(DType dtype = DType::f64) {
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

inline Variable input(const AspaConfig& c, std::int64_t B, std::int64_t T, std::uint64_t seed = 3) {
  return Variable(Tensor::randn({B, T, c.width}, {seed, 2}, c.dtype), true);
}

inline Results run(AspaAttention& layer, const Variable& x) {
  return gradients(layer, x, layer.forward(x));
}

/// The configuration with token salience and nucleus head counts.
inline AspaConfig doubly_sparse(AspaConfig c) {
  c.k = 4;
  c.k_min = 1;
  c.top_p = 0.7;
  c.salience.keep = 0.6;
  c.salience.guard = 3;
  return c;
}

/// One training step's statistics, so that thresholds of salience are set.
inline void settle(AspaAttention& layer, std::int64_t T = 64) {
  const bool training = layer.training();
  layer.set_training(true);
  run(layer, input(layer.config(), 4, T, 17));
  layer.after_step(1);
  layer.set_training(training);
}

inline Tensor evaluate(AspaAttention& layer, const Tensor& x) {
  const NoGradGuard no_grad;
  return layer.forward(Variable(x)).value();
}

}  // namespace proteus::testing
