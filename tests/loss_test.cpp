// Cross-entropy against the definition in f64: chunks, ignored targets, extreme logits.
#include "tensor/ops/loss.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "autograd/gemm.h"
#include "autograd/loss.h"
#include "tensor/ops/gemm.h"
#include "tensor/parallel.h"
#include "tensor/storage.h"

namespace proteus {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();

Tensor random(const Shape& shape, std::uint64_t seed, DType dtype = DType::f64) {
  return Tensor::randn(shape, {seed, 2}, dtype);
}

// Targets spread over [0, V), every `every`-th ignored.
Tensor spread(std::int64_t rows, std::int64_t V, std::int64_t every = 0) {
  const Tensor t = Tensor::zeros({rows}, DType::i64);
  auto* p = t.data<std::int64_t>();
  for (std::int64_t i = 0; i < rows; ++i) p[i] = every && i % every == 0 ? -100 : i * 7919 % V;
  return t;
}

double definition(const Tensor& logits, const Tensor& targets) {
  const auto z = logits.to_vector();
  const auto t = targets.to_vector();
  const auto V = static_cast<std::size_t>(logits.size(-1));
  double sum = 0;
  double count = 0;
  for (std::size_t i = 0; i < t.size(); ++i) {
    if (t[i] == -100) continue;
    double top = -kInf;
    for (std::size_t v = 0; v < V; ++v) top = std::max(top, z[i * V + v]);
    double total = 0;
    for (std::size_t v = 0; v < V; ++v) total += std::exp(z[i * V + v] - top);
    sum += std::log(total) + top - z[i * V + static_cast<std::size_t>(t[i])];
    count += 1;
  }
  return sum / count;
}

double worst(const Tensor& a, const Tensor& b) {
  const auto x = a.to_vector();
  const auto y = b.to_vector();
  EXPECT_EQ(x.size(), y.size());
  double out = 0;
  for (std::size_t i = 0; i < x.size(); ++i) out = std::max(out, std::abs(x[i] - y[i]));
  return out;
}

TEST(CrossEntropy, EqualsTheDefinition) {
  for (const std::int64_t every : {0, 3}) {
    const Tensor hidden = random({50, 20}, 1);
    const Tensor weight = random({31, 20}, 2);
    const Tensor targets = spread(50, 31, every);
    const double wanted = definition(ops::linear(hidden, weight, {}), targets);
    EXPECT_NEAR(ops::cross_entropy(hidden, weight, targets, -100, false, false).loss.item(), wanted,
                1e-12);
    const Tensor logits = ops::linear(hidden, weight, {});
    EXPECT_NEAR(ops::cross_entropy_logits(logits, targets, -100, false).loss.item(), wanted, 1e-12);
  }
}

// 300 rows of 70,000 words need two chunks of logits.
TEST(CrossEntropy, ChunksEqualOneWholeProduct) {
  const Variable hidden(random({300, 8}, 1, DType::f32), true);
  const Variable weight(random({70000, 8}, 2, DType::f32), true);
  const Tensor targets = spread(300, 70000, 5);
  const Variable fused = cross_entropy(hidden, weight, targets);
  fused.backward();
  const Tensor dhidden = hidden.grad();
  const Tensor dweight = weight.grad();
  hidden.zero_grad();
  weight.zero_grad();
  const Variable whole = cross_entropy_logits(linear(hidden, weight), targets);
  whole.backward();
  EXPECT_NEAR(fused.value().item(), whole.value().item(), 1e-5);
  EXPECT_LT(worst(dhidden, hidden.grad()), 1e-7);
  EXPECT_LT(worst(dweight, weight.grad()), 1e-7);
}

TEST(CrossEntropy, NeverHoldsTheLogitsOfTheBatch) {
  const Tensor hidden = random({4000, 4}, 1, DType::f32);
  const Tensor weight = random({30000, 4}, 2, DType::f32);
  const Tensor targets = spread(4000, 30000);
  reset_peak_memory(DeviceType::cpu);
  const auto before = memory_stats(DeviceType::cpu).peak_bytes;
  ops::cross_entropy(hidden, weight, targets, -100, false, false);
  const auto used = memory_stats(DeviceType::cpu).peak_bytes - before;
  EXPECT_LT(used, std::int64_t{80} << 20);  // all logits would be 458 MiB
}

TEST(CrossEntropy, IgnoredRowsChangeNothing) {
  const Tensor hidden = random({12, 6}, 1);
  const Tensor weight = random({9, 6}, 2);
  const Tensor targets = spread(12, 9, 2);
  const Tensor poisoned = hidden.clone();
  for (std::int64_t i = 0; i < 12; i += 2) poisoned.slice(0, i, i + 1).fill_(std::nan(""));
  const auto clean = ops::cross_entropy(hidden, weight, targets, -100, true, true);
  const auto got = ops::cross_entropy(poisoned, weight, targets, -100, true, true);
  EXPECT_EQ(clean.count, 6);
  EXPECT_EQ(got.loss.item(), clean.loss.item());
  EXPECT_EQ(worst(got.dhidden, clean.dhidden), 0);
  EXPECT_EQ(worst(got.dweight, clean.dweight), 0);
  for (const double v : got.dhidden.slice(0, 0, 1).to_vector()) EXPECT_EQ(v, 0);
}

TEST(CrossEntropy, AllIgnoredIsZero) {
  const Variable hidden(random({4, 3}, 1), true);
  const Variable weight(random({5, 3}, 2), true);
  const Tensor none = Tensor::full({4}, -100, DType::i64);
  const Variable loss = cross_entropy(hidden, weight, none);
  EXPECT_EQ(loss.value().item(), 0);
  loss.backward();
  for (const double v : hidden.grad().to_vector()) EXPECT_EQ(v, 0);
  for (const double v : weight.grad().to_vector()) EXPECT_EQ(v, 0);
  const Variable logits(random({4, 5}, 3), true);
  const Variable other = cross_entropy_logits(logits, none);
  EXPECT_EQ(other.value().item(), 0);
  other.backward();
  for (const double v : logits.grad().to_vector()) EXPECT_EQ(v, 0);
}

TEST(CrossEntropy, NoRowsAtAll) {
  const auto out = ops::cross_entropy(Tensor::zeros({0, 3}), Tensor::zeros({5, 3}),
                                      Tensor::zeros({0}, DType::i64), -100, true, true);
  EXPECT_EQ(out.loss.item(), 0);
  EXPECT_EQ(to_string(out.dhidden.shape()), "[0, 3]");
  EXPECT_EQ(
      ops::cross_entropy_logits(Tensor::zeros({0, 3}), Tensor::zeros({0}, DType::i32), -100, true)
          .loss.item(),
      0);
}

TEST(CrossEntropy, LogitsOfAThousandDoNotOverflow) {
  const Tensor logits = Tensor::from({1000, -1000, 0, -1000, 1000, 0}, {2, 3});
  const Tensor targets = Tensor::from({0, 0}, {2}, DType::i32);
  const auto out = ops::cross_entropy_logits(logits, targets, -100, true);
  EXPECT_NEAR(out.loss.item(), 1000, 1e-3);
  EXPECT_EQ(out.dlogits.to_vector(), (std::vector<double>{0, 0, 0, -0.5, 0.5, 0}));
}

TEST(CrossEntropy, NotANumberIsNotHidden) {
  const Tensor logits = Tensor::from({0, std::nan(""), 1}, {1, 3});
  const Tensor target = Tensor::from({0}, {1}, DType::i32);
  EXPECT_TRUE(std::isnan(ops::cross_entropy_logits(logits, target, -100, false).loss.item()));
}

TEST(CrossEntropy, AnotherIgnoreIndex) {
  const Tensor logits = random({2, 3}, 1);
  const Tensor targets = Tensor::from({2, 0}, {2}, DType::i32);
  const double one = ops::cross_entropy_logits(logits, targets, 0, false).loss.item();
  EXPECT_NEAR(one, definition(logits.slice(0, 0, 1), Tensor::from({2}, {1}, DType::i32)), 1e-12);
}

TEST(CrossEntropy, AnyNumberOfThreadsGivesTheSameBits) {
  const Tensor hidden = random({700, 96}, 1, DType::f32);
  const Tensor weight = random({300, 96}, 2, DType::f32);
  const Tensor targets = spread(700, 300, 4);
  set_num_threads(1);
  const auto one = ops::cross_entropy(hidden, weight, targets, -100, true, true);
  set_num_threads(2);
  const auto two = ops::cross_entropy(hidden, weight, targets, -100, true, true);
  set_num_threads(0);
  for (const auto& [a, b] :
       {std::pair{one.loss, two.loss}, {one.dhidden, two.dhidden}, {one.dweight, two.dweight}}) {
    EXPECT_EQ(std::memcmp(a.raw(), b.raw(), static_cast<std::size_t>(a.bytes())), 0);
  }
}

}  // namespace
}  // namespace proteus
