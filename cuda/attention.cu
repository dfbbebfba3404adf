#include "cuda/attention.h"
#include "cuda/attention_rungs.h"
#include "cuda/graph.h"
#include "cuda/kernels.h"
#include "cuda/rows.cuh"
#include "tensor/error.h"

namespace proteus::cuda {
namespace {

template <class Args>
void run_highest(auto rungs, const char* slot, const Args& a) {
  for (auto rung = rungs.rbegin(); rung != rungs.rend(); ++rung) {
    if (!rung->fits(a)) continue;
    if (a.problem.dropout > 0 && !rung->records_dropout) {
      check_not_recording("dropout of attention without tensor cores");
    }
    return rung->run(a);
  }
  throw DeviceError(std::string(slot) + ": cuda: heads of at most 256 are supported, got " +
                    std::to_string(a.problem.D));
}

constexpr AttentionFwdRung kForward[] = {
    {"plain", [](const AttentionFwd& a) { return plain_fits(a.problem); }, attention_fwd_plain},
    {"tiled", tiled_fwd_fits, attention_fwd_tiled},
    {"mma", mma_fwd_fits, attention_fwd_mma, true},
    {"hopper", hopper_fwd_fits, attention_fwd_hopper, true},
};

constexpr AttentionBwdRung kBackward[] = {
    {"plain", [](const AttentionBwd& a) { return plain_fits(a.problem); }, attention_bwd_plain},
    {"tiled", tiled_bwd_fits, attention_bwd_tiled},
    {"mma", mma_bwd_fits, attention_bwd_mma, true},
    {"hopper", hopper_bwd_fits, attention_bwd_hopper, true},
};

// A warp to a head; which lane adds what depends on the number of segments alone.
template <class A>
__global__ void sink_gradient_kernel(SinkGradient a) {
  const std::int64_t head = warp_unit();
  if (head >= a.heads) return;
  double sum = 0;
  for (std::int64_t n = lane(); n < a.segment_count; n += kWarp) {
    if (a.segments[n].head == head) sum += static_cast<const A*>(a.per_segment)[n];
  }
  sum = warp_sum(sum);
  if (lane() == 0) static_cast<A*>(a.dsink)[head] = static_cast<A>(sum);
}

}  // namespace

std::span<const AttentionFwdRung> attention_fwd_rungs() { return kForward; }
std::span<const AttentionBwdRung> attention_bwd_rungs() { return kBackward; }

void install_attention_kernels() {
  attention_fwd.install(DeviceType::cuda, [](const AttentionFwd& a) {
    run_highest(attention_fwd_rungs(), "attention_fwd", a);
  });
  attention_bwd.install(DeviceType::cuda, [](const AttentionBwd& a) {
    run_highest(attention_bwd_rungs(), "attention_bwd", a);
  });
  sink_gradient.install(DeviceType::cuda, [](const SinkGradient& a) {
    launch("sink_gradient",
           a.dtype == DType::f64 ? sink_gradient_kernel<double> : sink_gradient_kernel<float>,
           warp_blocks(a.heads), kBlock, 0, a);
  });
}

}  // namespace proteus::cuda
