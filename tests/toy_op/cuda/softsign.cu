// tensor/ops/softsign.h on a GPU.
#include "cuda/map.cuh"
#include "tensor/ops/softsign.h"

namespace proteus::cuda {
namespace {

struct Softsign {
  template <class A>
  __device__ void operator()(const A* x, A* y) const {
    y[0] = x[0] / (1 + std::abs(x[0]));
  }
};

struct SoftsignGrad {
  template <class A>
  __device__ void operator()(const A* in, A* dx) const {  // in: x, dy
    const A scale = 1 / (1 + std::abs(in[0]));
    dx[0] = in[1] * scale * scale;
  }
};

void fwd(const SoftsignFwd& a) {
  dispatch_float(a.dtype, "softsign_fwd", [&](auto tag) {
    using T = typename decltype(tag)::type;
    map<T, 1, 1>("softsign_fwd", {{static_cast<const T*>(a.x)}}, {{static_cast<T*>(a.y)}}, a.n,
                 Softsign{});
  });
}

void bwd(const SoftsignBwd& a) {
  dispatch_float(a.dtype, "softsign_bwd", [&](auto tag) {
    using T = typename decltype(tag)::type;
    map<T, 2, 1>("softsign_bwd", {{static_cast<const T*>(a.x), static_cast<const T*>(a.dy)}},
                 {{static_cast<T*>(a.dx)}}, a.n, SoftsignGrad{});
  });
}

}  // namespace

void install_softsign_kernels() {
  softsign_fwd.install(DeviceType::cuda, fwd);
  softsign_bwd.install(DeviceType::cuda, bwd);
}

}  // namespace proteus::cuda
