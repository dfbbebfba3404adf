#include "nn/layer_caches.h"

#include "tensor/ops/elementwise.h"
#include "tensor/ops/gemm.h"
#include "tensor/ops/rope.h"

namespace proteus {

Tensor shifted_keys(const Tensor& x, const Tensor& mu, const Tensor& pair) {
  pair.select(1, 1).copy_(x);
  Tensor out = ops::key_shift(pair, mu).select(1, 1).contiguous();
  pair.select(1, 0).copy_(x);
  return out;
}

Tensor attend_step(const StepHeads& heads, const Tensor& x, const Tensor& x_key,
                   const Tensor& weight, const Tensor& bias, const LayerCaches& caches,
                   const Tensor& positions) {
  const std::int64_t B = x.size(0);
  const auto [H, D, rope] = heads;
  const Tensor qkv = ops::linear(x, weight, bias).reshape({B, 3, H, D});
  if (x_key.defined()) {
    const auto keys = [&](const Tensor& t) {
      return t.defined() ? t.slice(0, heads.H * heads.D, 2 * heads.H * heads.D) : t;
    };
    qkv.select(1, 1).copy_(ops::linear(x_key, keys(weight), keys(bias)).reshape({B, H, D}));
  }
  if (rope) ops::rope_(qkv, positions, {.R = D});
  ops::cache_append(caches.shared, qkv.select(1, 1), qkv.select(1, 2));
  return ops::cache_attend(caches.shared, qkv.select(1, 0), {.windows = caches.shared_windows});
}

}  // namespace proteus
