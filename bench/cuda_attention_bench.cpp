// Attention on a GPU: TFLOP/s forward and backward, with the slots' own choice of kernels.
//   cuda_attention_bench [T D]     all problems, or one dense one
// dense: 16,384 tokens in sequences of 1,024 to 16,384 at width 2,048 (32 heads of 64, 16 of 128,
// …), the shapes in which FlashAttention is usually quoted, in bf16; window: one sequence, 8 heads
// of 64, the newest 256 keys. Operations are counted for the visible (query, key) pairs alone: 4·D
// forward, 10·D backward. bench/peers/attention.py measures the same shapes in PyTorch.
#include <cstdio>
#include <cstdlib>

#include "bench/cuda_attention.h"

namespace proteus::bench {
namespace {

constexpr std::int64_t kTokens = 16384;  // of the dense problems
constexpr std::int64_t kWidth = 2048;

void report(const char* name, const AttentionBench& p, std::int64_t T, std::int64_t D) {
  const double forward = milliseconds([&] { p.forward(); });
  const auto saved = p.forward();
  const double backward = milliseconds([&] { p.backward(saved); });
  std::printf("%-10s %8lld %4lld %10.3f %10.1f %10.3f %10.1f\n", name, static_cast<long long>(T),
              static_cast<long long>(D), forward, p.forward_flops() / forward / 1e9, backward,
              p.backward_flops() / backward / 1e9);
  std::fflush(stdout);
}

void dense(const char* name, Device device, DType dtype, std::int64_t T, std::int64_t D,
           double dropout = 0) {
  AttentionBench p = dense_attention(device, dtype, kTokens / T, T, kWidth / D, D);
  p.options.dropout = dropout;
  report(name, p, T, D);
}

void window(Device device, std::int64_t T) {
  constexpr std::int64_t kHeads = 8;
  constexpr std::int64_t kHeadWidth = 64;
  constexpr std::int64_t kWindow = 256;
  report("window", dense_attention(device, DType::bf16, 1, T, kHeads, kHeadWidth, kWindow), T,
         kHeadWidth);
}

// Many short segments on packed rows with a key bias, as routed heads have them.
void packed(Device device, std::int64_t segments, std::int64_t length) {
  AttentionBench p = dense_attention(device, DType::bf16, segments, length, 1, 64);
  p.key_bias = Tensor::randn({segments * length}, {1, 3}, DType::f32).to(device);
  report("packed", p, length, 64);
}

void all(Device device) {
  for (const std::int64_t D : {64, 128}) {
    for (const std::int64_t T : {1024, 2048, 4096, 8192, 16384}) {
      dense("bf16", device, DType::bf16, T, D);
    }
  }
  dense("bf16", device, DType::bf16, 4096, 32);
  dense("dropout", device, DType::bf16, 2048, 64, 0.1);
  for (const std::int64_t D : {32, 64, 128}) dense("f32", device, DType::f32, 1024, D);
  for (const std::int64_t T : {16384, 65536, 262144, 1048576}) window(device, T);
  for (const std::int64_t length : {16, 64, 256}) packed(device, 131072 / length, length);
}

}  // namespace
}  // namespace proteus::bench

int main(int argc, char** argv) {
  using namespace proteus;
  const std::int64_t T = argc == 3 ? std::atoll(argv[1]) : bench::kTokens;
  const std::int64_t D = argc == 3 ? std::atoll(argv[2]) : bench::kWidth;
  if ((argc != 1 && argc != 3) || T < 1 || bench::kTokens % T != 0 || D < 1 ||
      bench::kWidth % D != 0) {
    std::fprintf(stderr, "usage: cuda_attention_bench [T D], divisors of %lld and %lld\n",
                 static_cast<long long>(bench::kTokens), static_cast<long long>(bench::kWidth));
    return 2;
  }
  if (cuda::device_count() == 0) {
    std::puts("cuda_attention_bench: no GPU here");
    return 0;
  }
  const Device device = cuda::device(0);
  std::printf("%-10s %8s %4s %10s %10s %10s %10s\n", "", "T", "D", "fwd ms", "TFLOP/s", "bwd ms",
              "TFLOP/s");
  if (argc == 3) {
    bench::dense("bf16", device, DType::bf16, T, D);
  } else {
    bench::all(device);
  }
}
