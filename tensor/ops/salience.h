// How much a token matters to routed heads (docs/aspa.md, "Which tokens are routed at all"):
//   S_n = v·x̃_n + κ·cos(x̃_n, p_{g(n)})
// with g(n) the gate whose prototype is nearest to the token (ops::gate_logits finds it), and
// cos(0, p) = 0. f32, or f64 throughout. A token is looked at on its own.
#pragma once

#include "tensor/slot.h"
#include "tensor/tensor.h"

namespace proteus {

/// x [N, R], v [R], s [N]; p [G, R] unit rows, gate [N] and kappa [1] may be null together.
struct SalienceFwd {
  const void* x = nullptr;
  const void* v = nullptr;
  const void* p = nullptr;
  const void* kappa = nullptr;
  const std::int32_t* gate = nullptr;
  void* s = nullptr;
  std::int64_t N = 0;
  std::int64_t R = 0;
  DType dtype = DType::f32;
};
extern Slot<SalienceFwd> salience_fwd;

/// From ds [N]: dx [N, R], dv [R] and dkappa [1] (null without prototypes).
struct SalienceBwd {
  const void* x = nullptr;
  const void* v = nullptr;
  const void* p = nullptr;
  const void* kappa = nullptr;
  const std::int32_t* gate = nullptr;
  const void* ds = nullptr;
  void* dx = nullptr;
  void* dv = nullptr;
  void* dkappa = nullptr;
  std::int64_t N = 0;
  std::int64_t R = 0;
  DType dtype = DType::f32;
};
extern Slot<SalienceBwd> salience_bwd;

namespace ops {

/// x [N, R] and v [R] f32 or f64; p [G, R], kappa [] of the same dtype and gate i32 [N], or all
/// three undefined → [N]. Throws ShapeError, DTypeError, ConfigError for a gate outside [0, G).
Tensor salience(const Tensor& x, const Tensor& v, const Tensor& p, const Tensor& kappa,
                const Tensor& gate);

struct SalienceGrads {
  Tensor dx, dv, dkappa;  ///< dkappa is undefined without prototypes
};
SalienceGrads salience_backward(const Tensor& x, const Tensor& v, const Tensor& p,
                                const Tensor& kappa, const Tensor& gate, const Tensor& ds);

}  // namespace ops
}  // namespace proteus
