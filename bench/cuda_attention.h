// What the benchmarks of CUDA attention share: problems, their operations, and timing with events.
#pragma once

#include <algorithm>
#include <functional>
#include <vector>

#include "cuda/device.h"
#include "cuda/stream.h"
#include "tensor/ops/attention.h"

namespace proteus::bench {

struct AttentionBench {
  Tensor q, k, v, key_bias, dout, dq, dk, dv;
  AttentionPlan plan;
  AttentionOptions options;
  double pairs = 0;  ///< visible (query, key) pairs

  double forward_flops() const { return 4.0 * static_cast<double>(q.size(2)) * pairs; }
  double backward_flops() const { return 2.5 * forward_flops(); }
  ops::AttentionResult forward() const {
    return ops::attention(q, k, v, key_bias, {}, plan, options);
  }
  void backward(const ops::AttentionResult& saved) const {
    ops::attention_backward(q, k, v, key_bias, {}, plan, options, saved, dout, dq, dk, dv);
  }
};

/// Normal numbers on a device. They are made on the host: a slab of rows, repeated.
inline Tensor random_rows(const Shape& shape, std::uint64_t stream, DType dtype, Device device) {
  constexpr std::int64_t kNumbers = std::int64_t{1} << 25;  // of a slab
  const std::int64_t rows = shape[0];
  Shape part = shape;
  part[0] = std::min(rows, std::max<std::int64_t>(1, kNumbers * rows / shape.numel()));
  const Tensor slab = Tensor::randn(part, {1, stream}, dtype).to(device);
  Tensor out = Tensor::empty(shape, dtype, device);
  for (std::int64_t at = 0; at < rows; at += part[0]) {
    const std::int64_t end = std::min(rows, at + part[0]);
    out.slice(0, at, end).copy_(slab.slice(0, 0, end - at));
  }
  return out;
}

/// Causal attention of B sequences over T positions; q, k and v in one tensor [B·T, 3, H, D], as
/// dense layers have them.
inline AttentionBench dense_attention(Device device, DType dtype, std::int64_t B, std::int64_t T,
                                      std::int64_t H, std::int64_t D, std::int64_t window = 0) {
  const std::int64_t rows = B * T;
  AttentionBench p;
  const Tensor qkv = random_rows({rows, 3, H, D}, 0, dtype, device);
  const Tensor slopes = Tensor::empty({rows, 3, H, D}, dtype, device);
  p.q = qkv.select(1, 0);
  p.k = qkv.select(1, 1);
  p.v = qkv.select(1, 2);
  p.dq = slopes.select(1, 0);
  p.dk = slopes.select(1, 1);
  p.dv = slopes.select(1, 2);
  p.dout = random_rows({rows, H, D}, 1, dtype, device);
  p.plan = ops::causal_plan(B, H, T, T, window, 0, device);
  const auto n = static_cast<double>(T);
  const double w = window > 0 ? std::min(static_cast<double>(window), n) : n;
  p.pairs = static_cast<double>(B * H) * (w * (w + 1) / 2 + (n - w) * w);
  return p;
}

/// Milliseconds of one call: the median of several samples, each of about 20 ms.
inline double milliseconds(const std::function<void()>& call) {
  constexpr int kSamples = 7;
  constexpr double kSampleMs = 20;
  const cuda::Event start(true);
  const cuda::Event stop(true);
  const auto sample = [&](int calls) {
    start.record(cuda::current_stream());
    for (int i = 0; i < calls; ++i) call();
    stop.record(cuda::current_stream());
    stop.synchronize();
    return static_cast<double>(stop.milliseconds_since(start)) / calls;
  };
  sample(1);  // loads the module
  const double once = sample(1);
  const int calls = 1 + static_cast<int>(kSampleMs / std::max(once, 1e-3));
  std::vector<double> times;
  for (int i = 0; i < kSamples; ++i) times.push_back(sample(std::min(calls, 200)));
  std::sort(times.begin(), times.end());
  return times[kSamples / 2];
}

}  // namespace proteus::bench
