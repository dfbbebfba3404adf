// What an attention layer remembers of sequences that are decoded side by side, on any device.
#pragma once

#include "nn/key_cache.h"
#include "tensor/ops/cache.h"

namespace proteus {

struct CacheShape {
  std::int64_t B = 0;
  std::int64_t longest = 0;  ///< tokens of a sequence
  CacheType type = CacheType::full;
  DType dtype = DType::f32;  ///< of what flows between the layers
  Device device = kCpu;
};

struct LayerCaches {
  ops::StreamCache shared = {};  ///< of heads that see raw time: all of a dense layer
  ops::StreamCache routed = {};  ///< of routed heads' packed streams
  Tensor shared_windows = {};    ///< i32 [longest + 1] as in ops::SightOptions
  Tensor routed_windows = {};
  Tensor every_head = {};  ///< i32 [B, routed heads], where no gate chooses any
  Tensor pair = {};  ///< [B, 2, C], the token before and this one, for layers with shifted keys

  std::int64_t bytes() const {
    std::int64_t sum = pair.defined() ? pair.bytes() : 0;
    for (const ops::StreamCache* c : {&shared, &routed}) sum += c->defined() ? c->bytes() : 0;
    return sum;
  }
  /// As before the first token.
  void clear() const {
    for (const ops::StreamCache* c : {&shared, &routed}) {
      if (c->defined()) c->clear();
    }
    if (pair.defined()) pair.zero_();
  }
};

/// x_t + mu ⊙ x_{t−1} for x [B, C], by the function of a forward pass; `pair` moves on.
Tensor shifted_keys(const Tensor& x, const Tensor& mu, const Tensor& pair);

/// The heads of an attention layer, H of width D, that see raw time.
struct StepHeads {
  std::int64_t H = 0, D = 0;
  bool rope = true;
};
/// One more token of every sequence for these heads, into caches.shared: x [B, C], weight [3·H·D,
/// C], bias [3·H·D] or undefined → what they find, [B, H, D]. Keys read x_key, where that is
/// defined.
Tensor attend_step(const StepHeads& heads, const Tensor& x, const Tensor& x_key,
                   const Tensor& weight, const Tensor& bias, const LayerCaches& caches,
                   const Tensor& positions);

/// windows[n] = window(n) for n in [0, longest], on a device.
template <class F>
Tensor windows_of(std::int64_t longest, Device device, F&& window) {
  const Tensor out = Tensor::empty({longest + 1}, DType::i32);
  for (std::int64_t n = 0; n <= longest; ++n) {
    out.data<std::int32_t>()[n] = static_cast<std::int32_t>(window(n));
  }
  return out.to(device);
}

}  // namespace proteus
