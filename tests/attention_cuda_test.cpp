// Every rung of the CUDA attention kernels against the CPU's f64 kernel, forward and backward, for
// random segments; and what they promise about bits.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>

#include "cuda/attention.h"
#include "cuda/device.h"
#include "cuda/kernels.h"
#include "tests/attention_plans.h"

namespace proteus {
namespace {

struct Case {
  std::int64_t segments = 3;
  std::int64_t D = 64;
  std::int64_t heads = 2;
  std::int64_t max_queries = 100;
  std::int64_t max_keys = 150;
  std::int64_t anchors = 0;
  bool bias = false;
  double sink_scale = 0;
  double dropout = 0;
  std::int64_t dense = 0;  ///< instead: causal attention over so many positions of [T, 3, H, D]
  std::int64_t window = 0;
  std::int64_t last = 0;  ///< only so many queries, the last ones; 0 = all
};

struct Problem {
  Tensor q, k, v, key_bias, sink, dout;
  AttentionPlan plan;
  AttentionOptions options;
};

struct Result {
  Tensor out, lse, dq, dk, dv, dkey_bias, dsink;
};

Problem make_problem(const Case& c, std::uint64_t seed, DType dtype) {
  Problem p;
  std::int64_t q_rows = 0;
  std::int64_t k_rows = 0;
  if (c.dense > 0) {
    k_rows = c.dense;
    q_rows = c.last > 0 ? c.last : c.dense;
    const Tensor qkv = Tensor::randn({k_rows, 3, c.heads, c.D}, {seed, 1}, dtype);
    p.q = qkv.select(1, 0).slice(0, k_rows - q_rows, k_rows);
    p.k = qkv.select(1, 1);
    p.v = qkv.select(1, 2);
    p.plan = ops::causal_plan(1, c.heads, q_rows, k_rows, c.window, c.anchors);
    p.dout = Tensor::randn({q_rows, c.heads, c.D}, {seed, 6}, dtype);
  } else {
    const auto packed =
        testing::random_plan({c.segments, c.heads, c.max_queries, c.max_keys, c.anchors}, seed);
    p.plan = packed.plan;
    q_rows = packed.q_rows;
    k_rows = packed.k_rows;
    p.q = Tensor::randn({q_rows, 1, c.D}, {seed, 1}, dtype);
    p.k = Tensor::randn({k_rows, 1, c.D}, {seed, 2}, dtype);
    p.v = Tensor::randn({k_rows, 1, c.D}, {seed, 3}, dtype);
    p.dout = Tensor::randn({q_rows, 1, c.D}, {seed, 6}, dtype);
  }
  const DType accum = dtype == DType::f64 ? DType::f64 : DType::f32;
  if (c.bias) p.key_bias = Tensor::randn({k_rows}, {seed, 4}, accum);
  if (c.sink_scale > 0) p.sink = Tensor::randn({c.heads}, {seed, 5}, accum);
  p.options.sink_scale = c.sink_scale;
  p.options.dropout = c.dropout;
  p.options.key = {seed, 99};
  return p;
}

// A copy with the same strides: a view of a copied parent would need the parent.
Tensor moved(const Tensor& x, DType dtype, Device device) {
  if (!x.defined()) return x;
  return x.to(kCpu).contiguous().to(dtype).to(device);
}

// Strided views where the dense layers have them: all of [rows, 3, heads, D].
std::array<Tensor, 3> side_by_side(const std::array<Tensor, 3>& parts, DType dtype, Device device) {
  const Tensor& k = parts[1];
  const Tensor whole = Tensor::zeros({k.size(0), 3, k.size(1), k.size(2)}, dtype, device);
  std::array<Tensor, 3> out;
  for (int i = 0; i < 3; ++i) {
    const Tensor& part = parts[static_cast<std::size_t>(i)];
    Tensor view = whole.select(1, i);
    if (part.size(0) < k.size(0)) view = view.slice(0, k.size(0) - part.size(0), k.size(0));
    view.copy_(moved(part, dtype, device));
    out[static_cast<std::size_t>(i)] = view;
  }
  return out;
}

/// A problem's tensors on a device; `strided`: side by side.
struct Placed {
  std::array<Tensor, 3> in, grads;
  Tensor bias, sink, dout;
  AttentionPlan plan;

  Placed(const Problem& p, DType dtype, Device device, bool strided) {
    const DType accum = dtype == DType::f64 ? DType::f64 : DType::f32;
    in = {moved(p.q, dtype, device), moved(p.k, dtype, device), moved(p.v, dtype, device)};
    grads = {Tensor::empty(p.q.shape(), dtype, device), Tensor::empty(p.k.shape(), dtype, device),
             Tensor::empty(p.v.shape(), dtype, device)};
    if (strided) {
      in = side_by_side({p.q, p.k, p.v}, dtype, device);
      grads = side_by_side({p.q, p.k, p.v}, dtype, device);
    }
    bias = moved(p.key_bias, accum, device);
    sink = moved(p.sink, accum, device);
    dout = moved(p.dout, dtype, device);
    plan = p.plan;
    plan.segments = plan.segments.to(device);
    plan.lo = plan.lo.to(device);
    plan.hi = plan.hi.to(device);
  }
  ops::AttentionResult forward(const AttentionOptions& options) const {
    return ops::attention(in[0], in[1], in[2], bias, sink, plan, options);
  }
  Result backward(const AttentionOptions& options, const ops::AttentionResult& saved) const {
    const auto more = ops::attention_backward(in[0], in[1], in[2], bias, sink, plan, options, saved,
                                              dout, grads[0], grads[1], grads[2]);
    return {saved.out, saved.lse, grads[0], grads[1], grads[2], more.dkey_bias, more.dsink};
  }
};

Result run(const Problem& p, DType dtype, Device device, bool strided) {
  const Placed placed(p, dtype, device, strided);
  return placed.backward(p.options, placed.forward(p.options));
}

// Σ (got − expected)² and Σ expected² of some elements; what both sides call −inf is left out.
struct Deviation {
  double error = 0;
  double norm = 0;
  void add(double got, double expected) {
    if (std::isinf(expected) && got == expected) return;
    error += (got - expected) * (got - expected);
    norm += expected * expected;
  }
  double nmse() const { return norm == 0 ? error : error / norm; }
};

double nmse(const Tensor& got, const Tensor& expected) {
  const auto x = got.to(kCpu).to_vector();
  const auto y = expected.to_vector();
  Deviation all;
  for (std::size_t i = 0; i < y.size(); ++i) all.add(x[i], y[i]);
  return all.nmse();
}

// Which rows deviate most: their indices, NMSE, and their first elements on both sides.
std::string worst_rows(const Tensor& got, const Tensor& expected) {
  constexpr std::size_t kShown = 4;
  const auto x = got.to(kCpu).to_vector();
  const auto y = expected.to_vector();
  const auto width = static_cast<std::size_t>(std::max<std::int64_t>(1, expected.size(-1)));
  std::vector<std::pair<double, std::size_t>> rows;  // error, row
  for (std::size_t row = 0; row < y.size() / width; ++row) {
    Deviation d;
    for (std::size_t i = row * width; i < (row + 1) * width; ++i) d.add(x[i], y[i]);
    rows.emplace_back(std::isnan(d.error) ? std::numeric_limits<double>::infinity() : d.error, row);
  }
  std::sort(rows.rbegin(), rows.rend());
  std::string text = "of " + std::to_string(rows.size()) + " rows";
  for (std::size_t n = 0; n < std::min(kShown, rows.size()); ++n) {
    const std::size_t at = rows[n].second * width;
    text += "\n  row " + std::to_string(rows[n].second) + ": Σ error² " +
            std::to_string(rows[n].first) + ":";
    for (std::size_t i = at; i < at + std::min(kShown, width); ++i) {
      text += ' ' + std::to_string(x[i]) + '/' + std::to_string(y[i]);
    }
  }
  return text;
}

void expect_near(const char* name, const Tensor& got, const Tensor& expected, double tolerance) {
  if (!expected.defined()) return;
  const double error = nmse(got, expected);
  EXPECT_TRUE(error <= tolerance)  // NaN fails
      << name << ": NMSE " << error << ", " << worst_rows(got, expected);
}

bool same_bits(const Tensor& a, const Tensor& b) {
  if (!a.defined()) return !b.defined();
  const Tensor x = a.to(kCpu).contiguous();
  const Tensor y = b.to(kCpu).contiguous();
  return x.shape() == y.shape() &&
         std::memcmp(x.raw(), y.raw(), static_cast<std::size_t>(x.bytes())) == 0;
}

std::vector<Case> cases() {
  return {
      {.segments = 1},
      {.segments = 9, .anchors = 5},
      {.segments = 2, .max_queries = 300, .max_keys = 400, .anchors = 70},
      {.segments = 5, .bias = true, .sink_scale = 0.7},
      {.segments = 4, .anchors = 3, .bias = true, .sink_scale = 1, .dropout = 0.3},
      {.segments = 40, .max_queries = 20, .max_keys = 20, .bias = true, .sink_scale = 1},
      {.max_queries = 5, .max_keys = 0, .sink_scale = 1},
      {.max_queries = 0, .max_keys = 5, .bias = true},
      {.dense = 130},
      {.dense = 257, .window = 40},
      {.anchors = 70, .dense = 300, .window = 33},
      {.anchors = 4, .dropout = 0.5, .dense = 100, .window = 20},
      {.segments = 3, .max_queries = 600, .max_keys = 450, .anchors = 3, .dropout = 0.25},
      {.dropout = 0.3, .dense = 400},
      {.anchors = 3, .dropout = 0.1, .dense = 333, .window = 70},
      {.dropout = 0.2, .dense = 500, .last = 299},
      {.anchors = 5, .sink_scale = 1, .dense = 3000, .window = 100},
      {.segments = 1, .max_queries = 9000, .max_keys = 500, .anchors = 9, .bias = true},
      {.dense = 150, .last = 1},
      {.dense = 200, .last = 70},
  };
}

/// Rungs are taken by name, forward and backward together.
class AttentionCuda : public ::testing::Test {
 protected:
  void SetUp() override {
    if (cuda::device_count() == 0) GTEST_SKIP() << "no GPU: " << cuda::why_no_device();
    device_ = cuda::device(0);
  }
  void TearDown() override {
    if (device_.type == DeviceType::cuda) cuda::install_attention_kernels();
  }
  static void use(const cuda::AttentionFwdRung& forward, const cuda::AttentionBwdRung& backward) {
    attention_fwd.install(DeviceType::cuda, forward.run);
    attention_bwd.install(DeviceType::cuda, backward.run);
  }
  /// Calls check(rung's name) with every rung that fits the problem's type in the slots.
  template <class F>
  void for_rungs(const Problem& p, const F& check) {
    const auto forward = cuda::attention_fwd_rungs();
    const auto backward = cuda::attention_bwd_rungs();
    for (const auto& f : forward) {
      if (!f.fits(fwd_args(p))) continue;
      const cuda::AttentionBwdRung* b = nullptr;
      for (const auto& candidate : backward) {
        if (candidate.fits(bwd_args(p))) b = &candidate;
        if (b == &candidate && std::string_view(f.name) == candidate.name) break;
      }
      use(f, *b);
      SCOPED_TRACE(std::string(f.name) + " forward, " + b->name + " backward");
      check();
    }
  }
  // Only what decides whether a rung fits.
  static AttentionProblem shape_of(const Problem& p) {
    AttentionProblem args;
    args.D = p.q.size(2);
    args.dtype = p.q.dtype();
    args.key_bias = p.key_bias.defined() ? p.key_bias.raw() : nullptr;
    args.dropout = p.options.dropout;
    args.longest = p.plan.longest;
    for (HeadRows* rows : {&args.q, &args.k, &args.v}) *rows = {nullptr, args.D, args.D};
    return args;
  }
  static AttentionFwd fwd_args(const Problem& p) {
    AttentionFwd a;
    a.problem = shape_of(p);
    a.out = a.problem.q;
    return a;
  }
  static AttentionBwd bwd_args(const Problem& p) {
    AttentionBwd a;
    a.problem = shape_of(p);
    for (HeadRows* rows : {&a.out, &a.dout, &a.dq, &a.dk, &a.dv}) *rows = a.problem.q;
    return a;
  }
  /// The gradients of the reference are those at the output that the rung rounded and saved.
  void compare(const Case& c, DType dtype, double tolerance, std::uint64_t seed) {
    SCOPED_TRACE("seed " + std::to_string(seed) + ", width " + std::to_string(c.D) +
                 (c.dense > 0 ? ", dense " + std::to_string(c.dense) : ", packed") + ", window " +
                 std::to_string(c.window) + ", anchors " + std::to_string(c.anchors));
    const Problem p = make_problem(c, seed, dtype);
    const Placed reference(p, DType::f64, kCpu, false);
    const auto expected = reference.forward(p.options);
    for_rungs(p, [&] {
      const Result got = run(p, dtype, device_, c.dense > 0);
      expect_near("out", got.out, expected.out, tolerance);
      expect_near("lse", got.lse, expected.lse, tolerance);
      const Result slopes =
          reference.backward(p.options, {moved(got.out, DType::f64, kCpu), expected.lse});
      expect_near("dq", got.dq, slopes.dq, tolerance);
      expect_near("dk", got.dk, slopes.dk, tolerance);
      expect_near("dv", got.dv, slopes.dv, tolerance);
      expect_near("dkey_bias", got.dkey_bias, slopes.dkey_bias, tolerance);
      expect_near("dsink", got.dsink, slopes.dsink, tolerance);
    });
  }

  Device device_;
};

TEST_F(AttentionCuda, F32EqualsTheCpu) {
  std::uint64_t seed = 1;
  for (const Case& c : cases()) compare(c, DType::f32, 1e-10, ++seed);
}

TEST_F(AttentionCuda, F64EqualsTheCpu) {
  std::uint64_t seed = 100;
  for (Case c : cases()) {
    c.D = 17;
    compare(c, DType::f64, 1e-24, ++seed);
  }
}

TEST_F(AttentionCuda, Bf16StaysNearF64OfTheSameNumbers) {
  for (const std::int64_t D : {32, 64, 128}) {
    std::uint64_t seed = 200;
    for (Case c : cases()) {
      c.D = D;
      compare(c, DType::bf16, 1e-5, ++seed);
    }
  }
}

TEST_F(AttentionCuda, AnyWidthUpTo256) {
  std::uint64_t seed = 300;
  for (const std::int64_t D : {1, 3, 31, 33, 48, 65, 96, 100, 129, 256}) {
    Case c{.segments = 4,
           .D = D,
           .max_queries = 40,
           .max_keys = 60,
           .anchors = 2,
           .bias = true,
           .sink_scale = 0.5};
    compare(c, DType::f32, 1e-10, ++seed);
  }
  const Problem p = make_problem({.D = 257, .dense = 4}, 1, DType::f32);
  cuda::install_attention_kernels();
  try {
    run(p, DType::f32, device_, false);
    ADD_FAILURE() << "a width of 257 was taken";
  } catch (const DeviceError& error) {
    EXPECT_STREQ(error.what(), "attention_fwd: cuda: heads of at most 256 are supported, got 257");
  }
}

// With bias and dropout, and without, which is what the fastest rungs take.
TEST_F(AttentionCuda, RunsGiveTheSameBits) {
  constexpr int kRepeats = 3;
  const Case plain{.segments = 20, .max_queries = 200, .max_keys = 200, .anchors = 3};
  Case full = plain;
  full.bias = true;
  full.sink_scale = 1;
  full.dropout = 0.2;
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (const Case& c : {full, plain, Case{.dense = 700}, Case{.D = 128, .dense = 300},
                          Case{.dropout = 0.2, .dense = 333}}) {
      const Problem p = make_problem(c, 400, dtype);
      for_rungs(p, [&] {
        const Result a = run(p, dtype, device_, c.dense > 0);
        for (int repeat = 1; repeat < kRepeats; ++repeat) {
          const Result b = run(p, dtype, device_, c.dense > 0);
          EXPECT_TRUE(same_bits(a.out, b.out));
          EXPECT_TRUE(same_bits(a.lse, b.lse));
          EXPECT_TRUE(same_bits(a.dq, b.dq));
          EXPECT_TRUE(same_bits(a.dk, b.dk));
          EXPECT_TRUE(same_bits(a.dv, b.dv));
          EXPECT_TRUE(same_bits(a.dkey_bias, b.dkey_bias));
          EXPECT_TRUE(same_bits(a.dsink, b.dsink));
        }
      });
    }
  }
}

TEST_F(AttentionCuda, GradientsInThePlaceOfOutputKeysAndValuesHaveTheSameBits) {
  const Case plain{.segments = 20, .max_queries = 200, .max_keys = 200, .anchors = 3};
  Case full = plain;
  full.bias = true;
  full.sink_scale = 1;
  full.dropout = 0.2;
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (const Case& c : {full, plain, Case{.dense = 700}, Case{.D = 128, .dense = 300}}) {
      const Problem p = make_problem(c, 450, dtype);
      for_rungs(p, [&] {
        const Result apart = run(p, dtype, device_, c.dense > 0);
        Placed placed(p, dtype, device_, c.dense > 0);
        const auto saved = placed.forward(p.options);
        placed.grads = {saved.out, placed.in[1], placed.in[2]};
        const Result in_place = placed.backward(p.options, saved);
        EXPECT_TRUE(same_bits(apart.dq, in_place.dq));
        EXPECT_TRUE(same_bits(apart.dk, in_place.dk));
        EXPECT_TRUE(same_bits(apart.dv, in_place.dv));
        EXPECT_TRUE(same_bits(apart.dkey_bias, in_place.dkey_bias));
        EXPECT_TRUE(same_bits(apart.dsink, in_place.dsink));
      });
    }
  }
}

TEST_F(AttentionCuda, LaterKeysLeaveEarlierBitsUnchanged) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    const Problem p = make_problem({.dense = 200, .window = 150}, 500, dtype);
    for (const std::int64_t keep : {1, 63, 64, 130, 199}) {
      const Problem other = make_problem({.dense = 200, .window = 150}, 501, dtype);
      for (const auto& [to, from] : {std::pair{other.q, p.q}, {other.k, p.k}, {other.v, p.v}}) {
        to.slice(0, 0, keep).copy_(from.slice(0, 0, keep));
      }
      for_rungs(p, [&] {
        const Tensor a = run(p, dtype, device_, true).out.to(kCpu);
        const Tensor b = run(other, dtype, device_, true).out.to(kCpu);
        EXPECT_TRUE(same_bits(a.slice(0, 0, keep), b.slice(0, 0, keep))) << keep;
      });
    }
  }
}

// Rows that do not begin at multiples of 16 bytes go to a rung that can read them.
TEST_F(AttentionCuda, UnalignedRowsAreTaken) {
  const Tensor wide = Tensor::randn({70, 65}, {600, 1}, DType::bf16);
  const Tensor x = wide.slice(1, 1, 65).unsqueeze(1);
  const AttentionPlan plan = ops::causal_plan(1, 1, 70, 70, std::int64_t{0}, 0);
  const auto expected = ops::attention(x, x, x, {}, {}, plan, {});
  cuda::install_attention_kernels();
  const Tensor moved_wide = wide.to(device_);
  const Tensor y = moved_wide.slice(1, 1, 65).unsqueeze(1);
  const AttentionPlan there = ops::causal_plan(1, 1, 70, 70, std::int64_t{0}, 0, device_);
  EXPECT_LE(nmse(ops::attention(y, y, y, {}, {}, there, {}).out, expected.out.to(DType::f64)),
            1e-5);
}

}  // namespace
}  // namespace proteus
