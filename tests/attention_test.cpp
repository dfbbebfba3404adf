// The attention kernels against a naive masked softmax in f64, forward and backward, for random
// segments; and what they promise about bits.
#include "tensor/ops/attention.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "autograd/attention.h"
#include "autograd/gradcheck.h"
#include "tensor/error.h"
#include "tensor/parallel.h"
#include "tests/attention_plans.h"

namespace proteus {
namespace {

// A random problem on packed rows.
struct Case {
  std::int64_t segments = 3;
  std::int64_t D = 8;
  std::int64_t heads = 2;
  std::int64_t max_queries = 20;
  std::int64_t max_keys = 20;
  std::int64_t anchors = 0;
  bool bias = false;
  double sink_scale = 0;
  double dropout = 0;
};

struct Problem {
  Tensor q, k, v, key_bias, sink;
  AttentionPlan plan;
  AttentionOptions options;
};

Problem make_problem(const Case& c, std::uint64_t seed, DType dtype = DType::f64) {
  const auto [plan, q_rows, k_rows] =
      testing::random_plan({c.segments, c.heads, c.max_queries, c.max_keys, c.anchors}, seed);
  Problem p;
  p.plan = plan;
  p.q = Tensor::randn({q_rows, 1, c.D}, {seed, 1}, dtype);
  p.k = Tensor::randn({k_rows, 1, c.D}, {seed, 2}, dtype);
  p.v = Tensor::randn({k_rows, 1, c.D}, {seed, 3}, dtype);
  const DType accum = dtype == DType::f64 ? DType::f64 : DType::f32;
  if (c.bias) p.key_bias = Tensor::randn({k_rows}, {seed, 4}, accum);
  if (c.sink_scale > 0) p.sink = Tensor::randn({c.heads}, {seed, 5}, accum);
  p.options.sink_scale = c.sink_scale;
  p.options.dropout = c.dropout;
  p.options.key = {seed, 99};
  return p;
}

// Softmax over the visible keys, one query at a time.
std::vector<double> naive(const Problem& p) {
  const std::int64_t D = p.q.size(2);
  const auto q = p.q.to_vector();
  const auto k = p.k.to_vector();
  const auto v = p.v.to_vector();
  const auto bias = p.key_bias.defined() ? p.key_bias.to_vector() : std::vector<double>();
  const auto sink = p.sink.defined() ? p.sink.to_vector() : std::vector<double>();
  std::vector<double> out(q.size(), 0.0);
  const auto* s = reinterpret_cast<const AttentionSegment*>(p.plan.segments.data<std::int64_t>());
  for (std::int64_t n = 0; n < p.plan.segments.size(0); ++n) {
    for (std::int64_t i = 0; i < s[n].q_count; ++i) {
      const std::int64_t lo = p.plan.lo.data<std::int32_t>()[s[n].range + i];
      const std::int64_t hi = p.plan.hi.data<std::int32_t>()[s[n].range + i];
      const auto at = [&](const std::vector<double>& x, std::int64_t row, std::int64_t d) {
        return x[static_cast<std::size_t>(row * D + d)];
      };
      double total = 0;
      if (!sink.empty()) {
        total = p.options.sink_scale * std::exp(sink[static_cast<std::size_t>(s[n].head)]);
      }
      std::vector<double> weight(static_cast<std::size_t>(s[n].k_count), 0.0);
      for (std::int64_t j = 0; j < hi; ++j) {
        if (j < lo && j >= p.plan.anchors) continue;
        double logit = 0;
        for (std::int64_t d = 0; d < D; ++d)
          logit += at(q, s[n].q_row + i, d) * at(k, s[n].k_row + j, d);
        logit /= std::sqrt(static_cast<double>(D));
        if (!bias.empty()) logit += bias[static_cast<std::size_t>(s[n].k_row + j)];
        total += weight[static_cast<std::size_t>(j)] = std::exp(logit);
      }
      if (total == 0) continue;
      for (std::int64_t j = 0; j < hi; ++j) {
        double w = weight[static_cast<std::size_t>(j)] / total;
        if (p.options.dropout > 0) {
          const auto slot = static_cast<std::uint64_t>(s[n].slot + i);
          const auto r = philox(p.options.key.seed, slot << 32 | static_cast<std::uint64_t>(j / 8),
                                p.options.key.stream, 7);
          const std::uint32_t half = r.v[j % 8 / 2] >> (j % 2 * 16) & 0xffff;
          const auto dropped = static_cast<std::uint32_t>(p.options.dropout * 65536);
          w = half >= dropped ? w / (1 - dropped / 65536.0) : 0;
        }
        for (std::int64_t d = 0; d < D; ++d) {
          out[static_cast<std::size_t>((s[n].q_row + i) * D + d)] += w * at(v, s[n].k_row + j, d);
        }
      }
    }
  }
  return out;
}

double worst(const Tensor& got, const std::vector<double>& expected) {
  const auto x = got.to_vector();
  double error = 0;
  for (std::size_t i = 0; i < x.size(); ++i) error = std::max(error, std::abs(x[i] - expected[i]));
  return error;
}

std::vector<Case> cases() {
  std::vector<Case> all{
      {},
      {.segments = 1, .max_queries = 200, .max_keys = 300},
      {.D = 1},
      {.D = 17, .max_queries = 70, .max_keys = 130},
      {.D = 64, .max_queries = 130, .max_keys = 200, .anchors = 5},
      {.anchors = 2, .bias = true, .sink_scale = 1},
      {.max_queries = 90, .max_keys = 150, .anchors = 70, .bias = true, .sink_scale = 0.3},
      {.segments = 40,
       .D = 16,
       .max_queries = 40,
       .max_keys = 90,
       .anchors = 3,
       .bias = true,
       .sink_scale = 1},
      {.segments = 40, .max_queries = 100, .max_keys = 100, .dropout = 0.3},
      {.segments = 2,
       .max_queries = 150,
       .max_keys = 150,
       .anchors = 1,
       .bias = true,
       .sink_scale = 0.5,
       .dropout = 0.5},
      {.max_queries = 5, .max_keys = 0, .sink_scale = 1},
      {.max_queries = 0, .max_keys = 5, .bias = true},
  };
  return all;
}

bool same_bits(const Tensor& a, const Tensor& b) {
  const Tensor x = a.contiguous();
  const Tensor y = b.contiguous();
  return x.shape() == y.shape() &&
         std::memcmp(x.raw(), y.raw(), static_cast<std::size_t>(x.bytes())) == 0;
}

TEST(Attention, ForwardEqualsNaiveSoftmax) {
  std::uint64_t seed = 1;
  for (const Case& c : cases()) {
    for (int repeat = 0; repeat < 3; ++repeat) {
      const Problem p = make_problem(c, ++seed);
      const auto r = ops::attention(p.q, p.k, p.v, p.key_bias, p.sink, p.plan, p.options);
      EXPECT_LT(worst(r.out, naive(p)), 1e-12) << "seed " << seed;
    }
  }
}

TEST(Attention, F32AndBf16StayNearF64) {
  std::uint64_t seed = 100;
  for (const Case& c : cases()) {
    for (const DType dtype : {DType::f32, DType::bf16}) {
      Problem p = make_problem(c, ++seed, dtype);
      const auto r = ops::attention(p.q, p.k, p.v, p.key_bias, p.sink, p.plan, p.options);
      EXPECT_LT(worst(r.out, naive(p)), dtype == DType::f32 ? 1e-5 : 3e-2) << "seed " << seed;
    }
  }
}

TEST(Attention, GradientsOfRandomSegments) {
  std::uint64_t seed = 200;
  for (const Case& c : cases()) {
    Case small = c;
    small.max_queries = std::min<std::int64_t>(c.max_queries, c.segments > 10 ? 2 : 12);
    small.max_keys = std::min<std::int64_t>(c.max_keys, c.segments > 10 ? 2 : 12);
    small.D = std::min<std::int64_t>(c.D, 5);
    const Problem p = make_problem(small, ++seed);
    std::vector<Tensor> inputs{p.q, p.k, p.v};
    if (small.bias) inputs.push_back(p.key_bias);
    if (small.sink_scale > 0) inputs.push_back(p.sink);
    const auto fn = [&](const std::vector<Variable>& v) {
      return attention(v[0], v[1], v[2], small.bias ? v[3] : Variable(),
                       small.sink_scale > 0 ? v.back() : Variable(), p.plan, p.options);
    };
    const auto result = gradcheck(fn, inputs);
    EXPECT_TRUE(result.ok) << "seed " << seed << ": " << result.message;
  }
}

// Several tiles per segment, with windows that leave whole blocks between them and the anchors.
TEST(Attention, GradientsAcrossTiles) {
  std::uint64_t seed = 300;
  for (const std::int64_t anchors : {0, 3, 70}) {
    for (const double dropout : {0.0, 0.3}) {
      const Problem p = make_problem({.segments = 2,
                                      .D = 2,
                                      .max_queries = 150,
                                      .max_keys = 250,
                                      .anchors = anchors,
                                      .bias = true,
                                      .sink_scale = 0.8,
                                      .dropout = dropout},
                                     ++seed);
      const auto fn = [&](const std::vector<Variable>& v) {
        return attention(v[0], v[1], v[2], v[3], v[4], p.plan, p.options);
      };
      const auto result = gradcheck(fn, {p.q, p.k, p.v, p.key_bias, p.sink});
      EXPECT_TRUE(result.ok) << "anchors " << anchors << ", dropout " << dropout << ": "
                             << result.message;
    }
  }
}

// Keys that come after a stream's last query are seen by nobody and change nothing.
TEST(Attention, GradientsWithKeysThatNoQuerySees) {
  const std::int64_t queries = 100;
  const std::int64_t keys = 1000;
  const std::int64_t seen = 768;
  Problem p = make_problem({.segments = 2, .max_queries = 0, .max_keys = 0}, 1);
  p.q = Tensor::randn({2 * queries, 1, 8}, {5, 1}, DType::f64);
  p.k = Tensor::randn({2 * keys, 1, 8}, {5, 2}, DType::f64);
  p.v = Tensor::randn({2 * keys, 1, 8}, {5, 3}, DType::f64);
  p.plan.lo = Tensor::zeros({queries}, DType::i32);
  p.plan.hi = Tensor::zeros({queries}, DType::i32);
  for (std::int64_t i = 0; i < queries; ++i) {
    p.plan.hi.data<std::int32_t>()[i] = static_cast<std::int32_t>(seen);
  }
  p.plan.slots = 2 * queries;
  const auto gradients = [&](std::int64_t k_count) {
    auto* s = reinterpret_cast<AttentionSegment*>(p.plan.segments.data<std::int64_t>());
    for (std::int64_t n = 0; n < 2; ++n) {
      s[n] = {n * queries, n * keys, n * queries, 0, queries, k_count, 0, 0};
    }
    const Variable q(p.q, true);
    const Variable k(p.k, true);
    const Variable v(p.v, true);
    attention(q, k, v, {}, {}, p.plan, p.options)
        .backward(Tensor::randn({2 * queries, 1, 8}, {5, 4}, DType::f64));
    return std::vector<Tensor>{q.grad(), k.grad(), v.grad()};
  };
  const auto all = gradients(keys);
  const auto few = gradients(seen);
  for (std::size_t i = 0; i < 3; ++i) EXPECT_LT(worst(all[i], few[i].to_vector()), 1e-12) << i;
}

// Long segments are cut into tasks where there are few of them, and not where there are many.
TEST(Attention, ManyEqualSegmentsGiveTheGradientsOfFew) {
  const std::int64_t T = 450;
  const std::int64_t copies = 60;
  const Tensor few = Tensor::randn({2, T, 3, 1, 8}, {7, 1}, DType::f64);
  const Tensor dout = Tensor::randn({2, T, 1, 8}, {7, 2}, DType::f64);
  const Tensor many = Tensor::empty({copies, T, 3, 1, 8}, DType::f64);
  const Tensor dout_many = Tensor::empty({copies, T, 1, 8}, DType::f64);
  for (std::int64_t b = 0; b < copies; ++b) {
    many.select(0, b).copy_(few.select(0, b % 2));
    dout_many.select(0, b).copy_(dout.select(0, b % 2));
  }
  for (const auto& [window, anchors] : {std::pair{0, 0}, {37, 3}, {100, 70}, {5, 130}}) {
    AttentionOptions options;
    options.window = window;
    options.anchors = anchors;
    const Variable x(few, true);
    const Variable y(many, true);
    attention_qkv(x, options).backward(dout);
    attention_qkv(y, options).backward(dout_many);
    for (std::int64_t b = 0; b < copies; b += 7) {
      EXPECT_LT(worst(y.grad().select(0, b), x.grad().select(0, b % 2).to_vector()), 1e-12)
          << "window " << window << ", anchors " << anchors;
    }
  }
}

TEST(Attention, PackedAndSeparateInputsAgree) {
  const Tensor qkv = Tensor::randn({2, 33, 3, 2, 8}, {8, 1}, DType::f64);
  AttentionOptions options;
  options.window = 9;
  const Variable whole(qkv, true);
  const Variable q(qkv.select(2, 0), true);
  const Variable k(qkv.select(2, 1), true);
  const Variable v(qkv.select(2, 2), true);
  const Variable a = attention_qkv(whole, options);
  const Variable b = attention(q, k, v, options);
  EXPECT_TRUE(same_bits(a.value(), b.value()));
  const Tensor dout = Tensor::randn(a.shape(), {8, 2}, DType::f64);
  a.backward(dout);
  b.backward(dout);
  EXPECT_TRUE(same_bits(whole.grad().select(2, 0), q.grad()));
  EXPECT_TRUE(same_bits(whole.grad().select(2, 1), k.grad()));
  EXPECT_TRUE(same_bits(whole.grad().select(2, 2), v.grad()));
}

TEST(Attention, LastQueriesAloneEqualTheEndOfAll) {
  const Tensor qkv = Tensor::randn({2, 70, 3, 2, 16}, {9, 1});
  const Variable q(qkv.select(2, 0));
  const Variable k(qkv.select(2, 1));
  const Variable v(qkv.select(2, 2));
  for (const std::int64_t window : {0, 20}) {
    AttentionOptions options;
    options.window = window;
    options.anchors = 2;
    const Tensor all = attention(q, k, v, options).value();
    const Variable tail(q.value().slice(1, 65, 70));
    const Tensor last = attention(tail, k, v, options).value();
    EXPECT_LT(worst(last, all.slice(1, 65, 70).to_vector()), 1e-6);
  }
}

TEST(Attention, FutureKeysAndQueriesLeaveBitsUnchanged) {
  AttentionOptions options;
  for (const std::int64_t window : {0, 5, 100}) {
    options.window = window;
    options.anchors = window == 5 ? 3 : 0;
    const Tensor a = Tensor::randn({2, 200, 3, 2, 32}, {10, 1});
    const Tensor out = attention_qkv(Variable(a), options).value();
    for (const std::int64_t keep : {1, 63, 64, 65, 130, 199}) {
      const Tensor b = Tensor::randn({2, 200, 3, 2, 32}, {10, 2});
      b.select(0, 1).slice(0, 0, keep).copy_(a.select(0, 1).slice(0, 0, keep));
      const Tensor changed = attention_qkv(Variable(b), options).value();
      EXPECT_TRUE(
          same_bits(changed.select(0, 1).slice(0, 0, keep), out.select(0, 1).slice(0, 0, keep)))
          << keep;
      const Tensor shorter = attention_qkv(Variable(a.slice(1, 0, keep)), options).value();
      EXPECT_TRUE(same_bits(shorter, out.slice(1, 0, keep))) << keep;
    }
  }
}

TEST(Attention, SameBitsForAnyNumberOfThreads) {
  std::vector<Tensor> first;
  for (const int threads : {1, 2, 4}) {
    set_num_threads(threads);
    std::vector<Tensor> all;
    for (const std::int64_t batch : {1, 20}) {
      const Variable x(Tensor::randn({batch, 150, 3, 2, 16}, {11, 1}), true);
      AttentionOptions options;
      options.dropout = 0.1;
      options.key = {3, 4};
      const Variable y = attention_qkv(x, options);
      y.backward(Tensor::randn(y.shape(), {11, 2}));
      all.push_back(y.value());
      all.push_back(x.grad());
    }
    if (first.empty()) first = all;
    for (std::size_t i = 0; i < all.size(); ++i) EXPECT_TRUE(same_bits(all[i], first[i])) << i;
  }
  set_num_threads(0);
}

TEST(Attention, MessagesSayWhatIsWrong) {
  const auto message = [](const std::function<void()>& call) -> std::string {
    try {
      call();
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  };
  const Variable q(Tensor::zeros({1, 4, 2, 8}));
  const Variable k(Tensor::zeros({1, 3, 2, 8}));
  const Variable odd(Tensor::zeros({1, 4, 2, 6}));
  EXPECT_EQ(message([&] { attention(q, k, k); }),
            "attention: q has 4 positions, k only 3; the queries must be the last of the keys' "
            "positions");
  EXPECT_EQ(message([&] { attention(q, odd, odd); }),
            "attention(q, k, v): k: expected [rows, 2, 8] (as q), got [4, 2, 6]");
  const AttentionPlan longer = ops::causal_plan(1, 2, 5, 5, std::int64_t{0}, 0);
  const Tensor rows = Tensor::zeros({4, 2, 8});
  EXPECT_EQ(message([&] { ops::attention(rows, rows, rows, {}, {}, longer, {}); }),
            "attention(q, k, v, plan): segment 0 reaches beyond q [4, 2, 8], k [4, 2, 8], the "
            "plan's slots or ranges, or the sink");
  AttentionPlan wrong = ops::causal_plan(1, 2, 4, 4, std::int64_t{0}, 0);
  wrong.longest = 3;
  EXPECT_EQ(message([&] { ops::attention(rows, rows, rows, {}, {}, wrong, {}); }),
            "attention(q, k, v, plan): segment 0 has 4 queries or keys, more than the plan's "
            "longest, 3");
  const Variable two(Tensor::zeros({2, 4, 2, 8}));
  EXPECT_EQ(
      message([&] { attention(q, two, two); }),
      "attention(q, k, v): expected q [B, Tq, H, D] and k, v [B, Tk, H, D], got [1, 4, 2, 8], "
      "[2, 4, 2, 8], [2, 4, 2, 8]");
  const AttentionPlan beyond = ops::causal_plan(1, 2, 4, 4, std::int64_t{0}, 0);
  beyond.hi.data<std::int32_t>()[3] = 5;
  EXPECT_EQ(message([&] { ops::attention(rows, rows, rows, {}, {}, beyond, {}); }),
            "attention(q, k, v, plan): segment 0, query 3: expected 0 <= lo <= hi <= 4 (its keys), "
            "got 0 and 5");
  AttentionOptions negative;
  negative.scale = -1;
  EXPECT_EQ(message([&] {
              attention_qkv(Variable(Tensor::zeros({1, 2, 3, 1, 4})), negative);
            }),
            "attention: scale: expected at least 0 (0 = 1/sqrt(D)), got -1.000000");
  EXPECT_EQ(message([&] { attention_qkv(q); }),
            "attention_qkv(qkv): expected [B, T, 3, H, D], got [1, 4, 2, 8]");
}

}  // namespace
}  // namespace proteus
