#include "cuda/attention.h"
#include "cuda/attention_rungs.h"
#include "cuda/kernels.h"
#include "tensor/error.h"

namespace proteus::cuda {
namespace {

template <class Args>
void run_highest(auto rungs, const char* slot, const Args& a) {
  for (auto rung = rungs.rbegin(); rung != rungs.rend(); ++rung) {
    if (rung->fits(a)) return rung->run(a);
  }
  throw DeviceError(std::string(slot) + ": cuda: heads of at most 256 are supported, got " +
                    std::to_string(a.problem.D));
}

constexpr AttentionFwdRung kForward[] = {
    {"plain", [](const AttentionFwd& a) { return plain_fits(a.problem); }, attention_fwd_plain},
    {"tiled", tiled_fwd_fits, attention_fwd_tiled},
    {"mma", mma_fwd_fits, attention_fwd_mma},
    {"hopper", hopper_fwd_fits, attention_fwd_hopper},
};

constexpr AttentionBwdRung kBackward[] = {
    {"plain", [](const AttentionBwd& a) { return plain_fits(a.problem); }, attention_bwd_plain},
    {"tiled", tiled_bwd_fits, attention_bwd_tiled},
    {"mma", mma_bwd_fits, attention_bwd_mma},
    {"hopper", hopper_bwd_fits, attention_bwd_hopper},
};

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
}

}  // namespace proteus::cuda
