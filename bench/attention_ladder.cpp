// The ladder of CUDA attention kernels (cuda/attention.h), rung by rung: how far each is from the
// plain one (NMSE), TFLOP/s, and the share of what the units that it uses can do by the datasheet
// of an H100 SXM.
//   attention_ladder [T]      causal, 16,384 tokens in sequences of T (2,048), 32 heads of 64
#include <cstdio>
#include <cstdlib>

#include "bench/cuda_attention.h"
#include "cuda/attention.h"

namespace proteus::bench {
namespace {

constexpr std::int64_t kTokens = 16384;
constexpr std::int64_t kHeads = 32;
constexpr std::int64_t kWidth = 64;
// TFLOP/s: dense bf16 on tensor cores, and f32 multiply-adds.
constexpr double kTensorPeak = 989;
constexpr double kFloatPeak = 67;

double nmse(const Tensor& got, const Tensor& expected) {
  const auto x = got.to(kCpu).to_vector();
  const auto y = expected.to(kCpu).to_vector();
  double error = 0;
  double norm = 0;
  for (std::size_t i = 0; i < y.size(); ++i) {
    error += (x[i] - y[i]) * (x[i] - y[i]);
    norm += y[i] * y[i];
  }
  return error / norm;
}

void print(const char* dtype, const char* name, double error, double ms, double flops,
           double peak) {
  const double rate = flops / ms / 1e9;
  std::printf("%-9s %-5s %-8s %10.1e %10.3f %10.1f %9.1f%%\n", "forward", dtype, name, error, ms,
              rate, 100 * rate / peak);
  std::fflush(stdout);
}

AttentionFwd arguments(const AttentionBench& p) {
  AttentionFwd a;
  a.problem.D = p.q.size(2);
  a.problem.dtype = p.q.dtype();
  a.problem.q = {p.q.raw(), p.q.stride(0), p.q.stride(1)};
  a.problem.k = {p.k.raw(), p.k.stride(0), p.k.stride(1)};
  a.problem.v = {p.v.raw(), p.v.stride(0), p.v.stride(1)};
  a.out = {p.dout.raw(), p.dout.stride(0), p.dout.stride(1)};  // strides like the output's
  return a;
}

void climb(Device device, DType dtype, std::int64_t T) {
  const AttentionBench p = dense_attention(device, dtype, kTokens / T, T, kHeads, kWidth);
  Tensor plain;
  for (const cuda::AttentionFwdRung& rung : cuda::attention_fwd_rungs()) {
    if (!rung.fits(arguments(p))) continue;
    attention_fwd.install(DeviceType::cuda, rung.run);
    const Tensor out = p.forward().out;
    if (!plain.defined()) plain = out;
    const double ms = milliseconds([&] { p.forward(); });
    const bool tensor_cores = dtype == DType::bf16;
    print(tensor_cores ? "bf16" : "f32", rung.name, nmse(out, plain), ms, p.forward_flops(),
          tensor_cores ? kTensorPeak : kFloatPeak);
  }
}

}  // namespace
}  // namespace proteus::bench

int main(int argc, char** argv) {
  using namespace proteus;
  const std::int64_t T = argc > 1 ? std::atoll(argv[1]) : 2048;
  if (T < 1 || bench::kTokens % T != 0) {
    std::fprintf(stderr, "attention_ladder: T: expected a divisor of %lld, got %s\n",
                 static_cast<long long>(bench::kTokens), argv[1]);
    return 2;
  }
  if (cuda::device_count() == 0) {
    std::puts("attention_ladder: no GPU here");
    return 0;
  }
  const Device device = cuda::device(0);
  std::printf("%-9s %-5s %-8s %10s %10s %10s %10s\n", "", "", "", "NMSE", "ms", "TFLOP/s",
              "of peak");
  for (const DType dtype : {DType::f32, DType::bf16}) bench::climb(device, dtype, T);
}
