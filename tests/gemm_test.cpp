// Matrix products and grouped products against plain loops in f64, at odd sizes, strides and
// batches.
#include "tensor/ops/gemm.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "autograd/gemm.h"
#include "tensor/error.h"
#include "tensor/ops/gemm_backend.h"
#include "tensor/ops/grouped_gemm.h"
#include "tensor/ops/transpose.h"
#include "tensor/parallel.h"

namespace proteus {
namespace {

double gelu(double x) {
  return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
}

/// a [M, K] · b [K, N] by the definition.
std::vector<double> product(const Tensor& a, const Tensor& b) {
  const auto x = a.to_vector();
  const auto y = b.to_vector();
  const auto M = static_cast<std::size_t>(a.size(0));
  const auto K = static_cast<std::size_t>(a.size(1));
  const auto N = static_cast<std::size_t>(b.size(1));
  std::vector<double> out(M * N);
  for (std::size_t i = 0; i < M; ++i) {
    for (std::size_t k = 0; k < K; ++k) {
      for (std::size_t j = 0; j < N; ++j) out[i * N + j] += x[i * K + k] * y[k * N + j];
    }
  }
  return out;
}

double tolerance(DType dtype) {
  return dtype == DType::f64 ? 1e-12 : dtype == DType::f32 ? 1e-5 : 1e-2;
}

void expect_near(const Tensor& got, const std::vector<double>& wanted, double relative) {
  const auto values = got.to_vector();
  ASSERT_EQ(values.size(), wanted.size());
  double scale = 1e-30;
  for (const double w : wanted) scale = std::max(scale, std::abs(w));
  for (std::size_t i = 0; i < values.size(); ++i) {
    ASSERT_NEAR(values[i], wanted[i], relative * scale) << "element " << i;
  }
}

bool same_bits(const Tensor& a, const Tensor& b) {
  const Tensor x = a.contiguous();
  const Tensor y = b.contiguous();
  return x.shape() == y.shape() &&
         std::memcmp(x.raw(), y.raw(), static_cast<std::size_t>(x.bytes())) == 0;
}

Tensor random(const Shape& shape, std::uint64_t seed, DType dtype = DType::f32) {
  return Tensor::randn(shape, {seed, 1}, dtype);
}

/// The same values in a larger matrix, stored transposed if asked.
Tensor view_of(const Tensor& t, bool trans) {
  const Tensor source = trans ? t.transpose(0, 1) : t;
  const Tensor frame =
      Tensor::full({source.size(0) + 2, source.size(1) + 5}, std::nan(""), t.dtype());
  const Tensor inner = frame.slice(0, 1, 1 + source.size(0)).slice(1, 3, 3 + source.size(1));
  inner.copy_(source);
  return trans ? inner.transpose(0, 1) : inner;
}

struct Size {
  std::int64_t M, N, K;
};

class Products : public ::testing::TestWithParam<Size> {};

TEST_P(Products, EqualTheDefinitionForEveryStorage) {
  const auto [M, N, K] = GetParam();
  for (const DType dtype : {DType::f64, DType::f32, DType::bf16}) {
    const Tensor a = random({M, K}, 1, dtype);
    const Tensor b = random({K, N}, 2, dtype);
    const auto wanted = product(a, b);
    for (int storing = 0; storing < 8; ++storing) {
      SCOPED_TRACE(std::string(name_of(dtype)) + ", storing " + std::to_string(storing));
      const Tensor c = view_of(random({M, N}, 3, dtype), storing & 4);
      ops::gemm_into(c, view_of(a, storing & 1), view_of(b, storing & 2));
      expect_near(c, wanted, tolerance(dtype));
      expect_near(ops::matmul(view_of(a, false), view_of(b, false)), wanted, tolerance(dtype));
    }
  }
}

TEST_P(Products, ScaleAndAccumulate) {
  const auto [M, N, K] = GetParam();
  for (const DType dtype : {DType::f64, DType::f32, DType::bf16}) {
    for (const bool trans : {false, true}) {
      const Tensor a = view_of(random({M, K}, 1, dtype), trans);
      const Tensor b = view_of(random({K, N}, 2, dtype), !trans);
      const Tensor c = random({M, N}, 3, dtype);
      auto wanted = product(a, b);
      const auto before = c.to_vector();
      for (std::size_t i = 0; i < wanted.size(); ++i) wanted[i] = 0.5 * wanted[i] - 2 * before[i];
      ops::gemm_into(c, a, b, 0.5, -2);
      expect_near(c, wanted, tolerance(dtype));
    }
  }
}

TEST_P(Products, EpiloguesEqualTheirParts) {
  const auto [M, N, K] = GetParam();
  for (const DType dtype : {DType::f64, DType::f32}) {
    const Tensor x = random({M, K}, 1, dtype);
    const Tensor w = random({N, K}, 2, dtype);
    const Tensor bias = random({N}, 3, dtype);
    auto pre = product(x, w.transpose(0, 1));
    const auto shift = bias.to_vector();
    for (std::size_t i = 0; i < pre.size(); ++i) pre[i] += shift[i % static_cast<std::size_t>(N)];
    std::vector<double> act;
    for (const double p : pre) act.push_back(gelu(p));
    expect_near(ops::linear(x, w, bias), pre, tolerance(dtype));
    const auto fused = ops::linear_gelu(x, w, bias, true);
    expect_near(fused.pre, pre, tolerance(dtype));
    expect_near(fused.y, act, tolerance(dtype));
    EXPECT_FALSE(ops::linear_gelu(x, w, bias, false).pre.defined());
    // (dy·W)·gelu'(pre) and gelu(pre), the slope by central differences.
    const Tensor dy = random({M, N}, 4, dtype);
    const Tensor hidden = random({M, K}, 5, dtype);
    const auto grad = ops::linear_dx_gelu(dy, w, hidden);
    auto dpre = product(dy, w);
    std::vector<double> activation;
    const auto h = hidden.to_vector();
    for (std::size_t i = 0; i < dpre.size(); ++i) {
      dpre[i] *= (gelu(h[i] + 1e-5) - gelu(h[i] - 1e-5)) / 2e-5;
      activation.push_back(gelu(h[i]));
    }
    expect_near(grad.dpre, dpre, std::max(1e-8, tolerance(dtype)));
    expect_near(grad.act, activation, tolerance(dtype));
  }
}

TEST_P(Products, AnyNumberOfThreadsGivesTheSameBits) {
  const auto [M, N, K] = GetParam();
  for (const DType dtype : {DType::f64, DType::f32, DType::bf16}) {
    std::vector<Tensor> first;
    for (const int threads : {1, 2, 3}) {
      set_num_threads(threads);
      const Tensor x = random({M, K}, 1, dtype);
      const Tensor w = random({N, K}, 2, dtype);
      const Tensor dy = random({M, N}, 4, dtype);
      const std::vector<Tensor> all{ops::linear(x, w, {}), ops::linear_dx(dy, w),
                                    ops::linear_dweight(dy, x),
                                    ops::bias_backward(dy, dy, true).dbias};
      if (first.empty()) first = all;
      for (std::size_t i = 0; i < all.size(); ++i) {
        EXPECT_TRUE(same_bits(all[i], first[i]))
            << name_of(dtype) << ", product " << i << ", " << threads << " threads";
      }
    }
    set_num_threads(0);
  }
}

INSTANTIATE_TEST_SUITE_P(Sizes, Products,
                         ::testing::Values(Size{1, 1, 1}, Size{1, 300, 257}, Size{3, 5, 7},
                                           Size{17, 33, 65}, Size{65, 129, 31}, Size{130, 70, 300},
                                           Size{200, 200, 700}, Size{70, 600, 450}, Size{0, 4, 5},
                                           Size{4, 0, 5}, Size{4, 5, 0}, Size{257, 1, 129}),
                         [](const auto& p) {
                           return std::to_string(p.param.M) + "x" + std::to_string(p.param.N) +
                                  "x" + std::to_string(p.param.K);
                         });

TEST(Gemm, SumsOverBatchDimensionsOfOne) {
  const Tensor a = random({2, 3, 5, 7}, 1, DType::f64);
  const Tensor b = random({3, 7, 4}, 2, DType::f64);
  const Tensor c = Tensor::zeros({1, 3, 5, 4}, DType::f64);
  ops::gemm_into(c, a, b);
  for (std::int64_t j = 0; j < 3; ++j) {
    auto wanted = product(a.select(0, 0).select(0, j), b.select(0, j));
    const auto more = product(a.select(0, 1).select(0, j), b.select(0, j));
    for (std::size_t i = 0; i < wanted.size(); ++i) wanted[i] += more[i];
    expect_near(c.select(0, 0).select(0, j), wanted, 1e-12);
  }
}

TEST(Gemm, ASumOverAnEmptyBatchIsZeroEverywhere) {
  const Tensor c = Tensor::full({1, 3, 2, 5}, 7);
  ops::gemm_into(c, Tensor::zeros({0, 3, 2, 4}), Tensor::zeros({1, 3, 4, 5}), 1, 0.5);
  EXPECT_EQ(c.to_vector(), std::vector<double>(30, 3.5));
  ops::gemm_into(c, Tensor::zeros({0, 3, 2, 4}), Tensor::zeros({1, 3, 4, 5}));
  EXPECT_EQ(c.to_vector(), std::vector<double>(30, 0));
}

TEST(Gemm, Bf16SumsOverABatchAreRoundedOnce) {
  const Tensor ones = Tensor::full({300, 1, 1}, 1, DType::bf16);
  const Tensor c = Tensor::zeros({1, 1, 1}, DType::bf16);
  ops::gemm_into(c, ones, ones);
  EXPECT_EQ(c.item(), 300);  // in steps of bf16 it would stop at 256
}

TEST(Gemm, Bf16ProductsIntoF32KeepTheirSums) {
  for (const std::int64_t M : {5, 70}) {  // few rows, and enough for the packed path
    const Tensor a = random({M, 33}, 1, DType::bf16);
    const Tensor b = random({33, 20}, 2, DType::bf16);
    const auto wanted = product(a, b);
    const Tensor c = Tensor::full({M, 20}, std::nan(""));
    ops::gemm_into(c, a, b);
    expect_near(c, wanted, 1e-5);
    ops::gemm_into(c, a, b, 1, 1);
    auto twice = wanted;
    for (double& v : twice) v *= 2;
    expect_near(c, twice, 2e-5);
    const Tensor transposed = Tensor::zeros({33, 20});
    ops::gemm_into(transposed, a.transpose(0, 1), random({M, 20}, 3, DType::bf16));
    expect_near(transposed, product(a.transpose(0, 1), random({M, 20}, 3, DType::bf16)), 1e-5);
  }
}

TEST(Gemm, AnEmptySumKeepsBetaTimesC) {
  const Tensor c = Tensor::full({1, 2, 2}, 3.0);
  ops::gemm_into(c, Tensor::zeros({0, 2, 4}), Tensor::zeros({4, 2}), 1, 0.5);
  EXPECT_EQ(c.to_vector(), std::vector<double>(4, 1.5));
}

TEST(Gemm, BetaZeroDoesNotReadC) {
  const Tensor c = Tensor::full({70, 70}, std::nan(""));
  ops::gemm_into(c, random({70, 70}, 1), random({70, 70}, 2));
  for (const double v : c.to_vector()) ASSERT_FALSE(std::isnan(v));
}

TEST(Gemm, ARowDependsOnItsOwnRowOnly) {
  const Tensor x = random({300, 128}, 1);
  const Tensor w = random({384, 128}, 2);
  const Tensor y = ops::linear(x, w, {});
  const Tensor other = x.clone();
  other.slice(0, 150, 300).copy_(random({150, 128}, 3));
  EXPECT_TRUE(same_bits(ops::linear(other, w, {}).slice(0, 0, 150), y.slice(0, 0, 150)));
}

TEST(Gemm, GeluFarFromZero) {
  const Tensor x = Tensor::from({-1e4, -100, -12, 0, 12, 100, 1e4}, {7, 1});
  const auto y = ops::linear_gelu(x, Tensor::full({1, 1}, 1.0), {}, false).y.to_vector();
  for (int i = 0; i < 3; ++i) EXPECT_NEAR(y[static_cast<std::size_t>(i)], 0, 1e-20);
  EXPECT_EQ(y[3], 0);
  EXPECT_EQ(y[4], 12);
  EXPECT_EQ(y[5], 100);
  EXPECT_EQ(y[6], 1e4);
}

TEST(Gemm, BackendSaysItsName) { EXPECT_NE(std::string(gemm_backend::name()), ""); }

TEST(Transpose, EveryTailOfABlock) {
  for (const std::int64_t rows : {1, 15, 16, 17, 33}) {
    for (const std::int64_t columns : {1, 15, 16, 31, 48}) {
      const Tensor a = random({rows, columns}, 1);
      const Tensor b = Tensor::zeros({columns, rows});
      transpose(a.data<float>(), columns, b.data<float>(), rows, rows, columns);
      EXPECT_TRUE(same_bits(a.transpose(0, 1), b)) << rows << " by " << columns;
    }
  }
}

// Every token in `slots` groups, rotating, and group 1 left empty.
PackedRows rotating(std::int64_t tokens, std::int64_t groups, std::int64_t slots,
                    std::int64_t sequences = 1) {
  std::vector<std::int32_t> heads;
  for (std::int64_t n = 0; n < tokens; ++n) {
    const auto start = heads.size();
    for (std::int64_t h = 0; h < groups; ++h) {
      const bool taken = h != 1 && (h + n * n) % groups < slots;
      if (taken) heads.push_back(static_cast<std::int32_t>(h));
    }
    heads.resize(start + static_cast<std::size_t>(slots), -1);
  }
  return ops::pack_rows(Tensor::from_data<std::int32_t>(heads, {tokens, slots}), groups, sequences);
}

TEST(GroupedGemm, EqualsPlainLoops) {
  const PackedRows rows = rotating(60, 4, 2, 3);
  const auto token = rows.token.to_vector();
  const auto offsets = rows.offsets.to_vector();
  for (const DType dtype : {DType::f64, DType::f32, DType::bf16}) {
    const Tensor x = random({60, 37}, 1, dtype);
    const Tensor w = random({4, 37, 21}, 2, dtype);
    const Tensor y = ops::grouped_gather(x, w, rows);
    const Tensor z = random({rows.rows(), 21}, 3, dtype);
    const Tensor out = ops::grouped_scatter(z, w, rows, true);
    const Tensor dw = ops::grouped_weight(x, true, z, false, rows);
    std::vector<double> sums(60 * 37, 0.0);
    for (std::int64_t g = 0; g < 4; ++g) {
      std::vector<double> weight(37 * 21, 0.0);
      for (auto r = static_cast<std::int64_t>(offsets[static_cast<std::size_t>(g * 3)]);
           r < static_cast<std::int64_t>(offsets[static_cast<std::size_t>(g * 3 + 3)]); ++r) {
        const auto t = static_cast<std::int64_t>(token[static_cast<std::size_t>(r)]);
        const Tensor row = x.slice(0, t, t + 1);
        const Tensor dz = z.slice(0, r, r + 1);
        expect_near(y.slice(0, r, r + 1), product(row, w.select(0, g)), tolerance(dtype));
        const auto back = product(dz, w.select(0, g).transpose(0, 1));
        for (std::size_t c = 0; c < 37; ++c) sums[static_cast<std::size_t>(t) * 37 + c] += back[c];
        const auto outer = product(row.transpose(0, 1), dz);
        for (std::size_t i = 0; i < outer.size(); ++i) weight[i] += outer[i];
      }
      expect_near(dw.select(0, g), weight, tolerance(dtype));
    }
    expect_near(out, sums, tolerance(dtype));
  }
}

TEST(GroupedGemm, ARowDependsOnNoOther) {
  const std::int64_t tokens = 230;
  const Tensor x = random({tokens, 70}, 1);
  const Tensor w = random({5, 70, 40}, 2);
  const PackedRows all = rotating(tokens, 5, 2);
  const Tensor y = ops::grouped_gather(x, w, all);
  for (const std::int64_t few : {1, 7, 100, 229}) {
    const PackedRows rows = rotating(few, 5, 2);
    const Tensor part = ops::grouped_gather(x.slice(0, 0, few), w, rows);
    const Tensor back = ops::grouped_scatter(part, w, rows, true);
    const Tensor back_all = ops::grouped_scatter(y, w, all, true);
    EXPECT_TRUE(same_bits(back, back_all.slice(0, 0, few))) << few << " tokens";
    for (std::int64_t n = 0; n < few; ++n) {
      for (std::int64_t j = 0; j < 2; ++j) {
        const auto r = static_cast<std::int64_t>(rows.row_of.select(0, n).select(0, j).item());
        const auto s = static_cast<std::int64_t>(all.row_of.select(0, n).select(0, j).item());
        ASSERT_EQ(r < 0, s < 0);
        if (r >= 0) {
          ASSERT_TRUE(same_bits(part.slice(0, r, r + 1), y.slice(0, s, s + 1)))
              << "token " << n << " of " << few;
        }
      }
    }
  }
}

TEST(GroupedGemm, AnyNumberOfThreadsGivesTheSameBits) {
  const PackedRows rows = rotating(400, 7, 3, 4);
  const Tensor x = random({400, 96}, 1);
  const Tensor w = random({7, 96, 80}, 2);
  const Tensor z = random({rows.rows(), 80}, 3);
  std::vector<Tensor> first;
  for (const int threads : {1, 2, 3}) {
    set_num_threads(threads);
    const std::vector<Tensor> all{ops::grouped_gather(x, w, rows),
                                  ops::grouped_scatter(z, w, rows, true),
                                  ops::grouped_weight(x, true, z, false, rows)};
    if (first.empty()) first = all;
    for (std::size_t i = 0; i < all.size(); ++i) EXPECT_TRUE(same_bits(all[i], first[i])) << i;
  }
  set_num_threads(0);
}

}  // namespace
}  // namespace proteus
