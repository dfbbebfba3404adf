// Causal attention three times: with the matrix of all weights, block by block without it, and by
// the library's kernel.
#include <proteus/autograd/attention.h>
#include <proteus/autograd/gemm.h>
#include <proteus/autograd/softmax.h>
#include <proteus/autograd/tape.h>
#include <proteus/autograd/view.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <vector>

using namespace proteus;

constexpr std::int64_t T = 1024;
constexpr std::int64_t D = 64;

// softmax(QKᵀ/√D + mask)·V, all T² weights at once.
Tensor with_the_matrix(const Tensor& q, const Tensor& k, const Tensor& v) {
  const Tensor scores = matmul(Variable(q), Variable(k), false, true).value();
  float* s = scores.data<float>();
  for (std::int64_t i = 0; i < T; ++i) {
    for (std::int64_t j = 0; j < T; ++j) {
      s[i * T + j] = j > i ? -INFINITY : s[i * T + j] / std::sqrt(float{D});
    }
  }
  return matmul(softmax(Variable(scores)), Variable(v)).value();
}

// The same sum in blocks of keys. m is the largest score so far, l = Σ exp(s − m), o = Σ exp(s −
// m)·v; where m grows, what was summed before shrinks by exp(m_before − m).
Tensor block_by_block(const Tensor& q, const Tensor& k, const Tensor& v) {
  constexpr std::int64_t kBlock = 64;
  Tensor out = Tensor::zeros({T, D});
  for (std::int64_t i = 0; i < T; ++i) {
    float* o = out.data<float>() + i * D;
    float m = -INFINITY;
    float l = 0;
    for (std::int64_t begin = 0; begin <= i; begin += kBlock) {
      std::vector<float> s;
      for (std::int64_t j = begin; j < std::min(begin + kBlock, i + 1); ++j) {
        float dot = 0;
        for (std::int64_t c = 0; c < D; ++c) {
          dot += q.data<float>()[i * D + c] * k.data<float>()[j * D + c];
        }
        s.push_back(dot / std::sqrt(float{D}));
      }
      const float before = std::exp(m - std::max(m, *std::max_element(s.begin(), s.end())));
      m = std::max(m, *std::max_element(s.begin(), s.end()));
      l *= before;
      for (std::int64_t c = 0; c < D; ++c) o[c] *= before;
      for (std::size_t j = 0; j < s.size(); ++j) {
        const float p = std::exp(s[j] - m);
        l += p;
        const float* row = v.data<float>() + (begin + static_cast<std::int64_t>(j)) * D;
        for (std::int64_t c = 0; c < D; ++c) o[c] += p * row[c];
      }
    }
    for (std::int64_t c = 0; c < D; ++c) o[c] /= l;
  }
  return out;
}

Tensor by_the_kernel(const Tensor& q, const Tensor& k, const Tensor& v) {
  const auto heads = [](const Tensor& x) { return Variable(x.reshape({1, T, 1, D})); };
  return attention(heads(q), heads(k), heads(v)).value().reshape({T, D});
}

int main() {
  const NoGradGuard no_grad;
  const Tensor q = Tensor::randn({T, D}, {1, 0});
  const Tensor k = Tensor::randn({T, D}, {1, 1});
  const Tensor v = Tensor::randn({T, D}, {1, 2});
  const auto expected = with_the_matrix(q, k, v).to_vector();
  const auto report = [&](const char* name, const std::function<Tensor()>& compute) {
    const auto live = memory_stats(DeviceType::cpu).live_bytes;
    reset_peak_memory(DeviceType::cpu);
    const Tensor got = compute();
    const auto peak = memory_stats(DeviceType::cpu).peak_bytes - live;
    const auto y = got.to_vector();
    double worst = 0;
    for (std::size_t i = 0; i < y.size(); ++i) {
      worst = std::max(worst, std::abs(y[i] - expected[i]));
    }
    std::printf("%-16s %6lld KiB  %s\n", name, static_cast<long long>(peak / 1024),
                worst < 1e-5 ? "equal to 1e-5" : "different");
  };
  report("with the matrix", [&] { return with_the_matrix(q, k, v); });
  report("block by block", [&] { return block_by_block(q, k, v); });
  report("by the kernel", [&] { return by_the_kernel(q, k, v); });
}
