// The ladder of CUDA attention kernels (cuda/attention.h), rung by rung, forward and backward: how
// far each is from the plain one (NMSE), TFLOP/s, and the share of what the units that it uses can
// do by the datasheet of an H100 SXM.
//   attention_ladder [T]      causal, 16,384 tokens in sequences of T (2,048), 32 heads of 64
#include <cstdio>
#include <cstdlib>

#include "bench/cuda_attention.h"
#include "bench/nmse.h"
#include "cuda/attention.h"

namespace proteus::bench {
namespace {

constexpr std::int64_t kTokens = 16384;
constexpr std::int64_t kHeads = 32;
constexpr std::int64_t kWidth = 64;
// TFLOP/s: dense bf16 on tensor cores, and f32 multiply-adds.
constexpr double kTensorPeak = 989;
constexpr double kFloatPeak = 67;

struct Row {
  const char* pass;
  const char* rung;
  double error, ms, flops;
};
void print(DType dtype, const Row& row) {
  const bool tensor_cores = dtype == DType::bf16;
  const double rate = row.flops / row.ms / 1e9;
  std::printf("%-9s %-5s %-8s %10.1e %10.3f %10.1f %9.1f%%\n", row.pass,
              tensor_cores ? "bf16" : "f32", row.rung, row.error, row.ms, rate,
              100 * rate / (tensor_cores ? kTensorPeak : kFloatPeak));
  std::fflush(stdout);
}

HeadRows rows_of(const Tensor& x) { return {x.raw(), x.stride(0), x.stride(1)}; }

// What decides whether a rung fits.
AttentionFwd forward_arguments(const AttentionBench& p) {
  AttentionFwd a;
  a.problem.D = p.q.size(2);
  a.problem.dtype = p.q.dtype();
  a.problem.q = rows_of(p.q);
  a.problem.k = rows_of(p.k);
  a.problem.v = rows_of(p.v);
  a.out = rows_of(p.dout);  // strides like the output's
  return a;
}
AttentionBwd backward_arguments(const AttentionBench& p) {
  AttentionBwd a;
  a.problem = forward_arguments(p).problem;
  a.out = rows_of(p.dout);
  a.dout = rows_of(p.dout);
  a.dq = rows_of(p.dq);
  a.dk = rows_of(p.dk);
  a.dv = rows_of(p.dv);
  return a;
}

void climb_forward(const AttentionBench& p, DType dtype) {
  Tensor plain;
  for (const cuda::AttentionFwdRung& rung : cuda::attention_fwd_rungs()) {
    if (!rung.fits(forward_arguments(p))) continue;
    attention_fwd.install(DeviceType::cuda, rung.run);
    const Tensor out = p.forward().out;
    if (!plain.defined()) plain = out;
    const double ms = milliseconds([&] { p.forward(); });
    print(dtype, {"forward", rung.name, nmse(out.to(kCpu).to_vector(), plain.to(kCpu).to_vector()),
                  ms, p.forward_flops()});
  }
}

// The output that is differentiated is the highest rung's, for all of them.
void climb_backward(const AttentionBench& p, DType dtype) {
  const auto saved = p.forward();
  std::vector<Tensor> plain;
  for (const cuda::AttentionBwdRung& rung : cuda::attention_bwd_rungs()) {
    if (!rung.fits(backward_arguments(p))) continue;
    attention_bwd.install(DeviceType::cuda, rung.run);
    p.backward(saved);
    const bool first = plain.empty();
    double error = 0;  // of the gradient that deviates most
    for (const Tensor& slope : {p.dq, p.dk, p.dv}) {
      if (first) plain.push_back(slope.contiguous());
    }
    for (std::size_t i = 0; !first && i < plain.size(); ++i) {
      const Tensor* const slopes[] = {&p.dq, &p.dk, &p.dv};
      error = std::max(error, nmse(slopes[i]->to(kCpu).to_vector(), plain[i].to(kCpu).to_vector()));
    }
    const double ms = milliseconds([&] { p.backward(saved); });
    print(dtype, {"backward", rung.name, error, ms, p.backward_flops()});
  }
}

void climb(Device device, DType dtype, std::int64_t T) {
  const AttentionBench p = dense_attention(device, dtype, kTokens / T, T, kHeads, kWidth);
  climb_forward(p, dtype);
  climb_backward(p, dtype);
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
