// Unary and binary maths of tensor/ops/elementwise.h on a GPU. The formulas are those of the CPU
// kernels; the fused forms are in elementwise_fused.cu.
#include <cmath>
#include <limits>

#include "cuda/kernels.h"
#include "cuda/map.cuh"
#include "cuda/strided.cuh"
#include "tensor/ops/elementwise.h"
#include "tensor/ops/gelu.h"
#include "tensor/vmath.h"

namespace proteus::cuda {
namespace {

template <UnaryOp op>
struct Unary {
  double a = 1;
  double b = 0;

  template <class A>
  __device__ void operator()(const A (&in)[1], A (&out)[1]) const {
    out[0] = value(in[0]);
  }

 private:
  template <class A>
  __device__ A value(A x) const {
    if constexpr (op == UnaryOp::affine) return static_cast<A>(a) * x + static_cast<A>(b);
    if constexpr (op == UnaryOp::exp) return vmath::exp(x);
    if constexpr (op == UnaryOp::log) {
      return x < 0 ? std::numeric_limits<A>::quiet_NaN() : vmath::log(x);
    }
    if constexpr (op == UnaryOp::sqrt) return std::sqrt(x);
    if constexpr (op == UnaryOp::square) return x * x;
    if constexpr (op == UnaryOp::power) return std::pow(x, static_cast<A>(a));
    if constexpr (op == UnaryOp::sigmoid) return vmath::sigmoid(x);
    if constexpr (op == UnaryOp::log_sigmoid) return static_cast<A>(a) * vmath::log_sigmoid(x);
    if constexpr (op == UnaryOp::tanh) return vmath::tanh(x);
    if constexpr (op == UnaryOp::gelu) return gelu_value(x);
    if constexpr (op == UnaryOp::silu) return x * vmath::sigmoid(x);
    if constexpr (op == UnaryOp::relu) return x < 0 ? A(0) : x;
    if constexpr (op == UnaryOp::softplus) return -vmath::log_sigmoid(-x);
  }
};

// in: what was saved (y or x, see unary_saves_output) and dy.
template <UnaryOp op>
struct UnaryGrad {
  double a = 1;

  template <class A>
  __device__ void operator()(const A (&in)[2], A (&out)[1]) const {
    out[0] = value(in[0], in[1]);
  }

 private:
  template <class A>
  __device__ A value(A s, A g) const {
    if constexpr (op == UnaryOp::exp) return g * s;
    if constexpr (op == UnaryOp::log) return g / s;
    if constexpr (op == UnaryOp::sqrt) return g / (s + s);
    if constexpr (op == UnaryOp::square) return g * (s + s);
    if constexpr (op == UnaryOp::power) {
      return a == 0 ? A(0) : g * static_cast<A>(a) * std::pow(s, static_cast<A>(a) - A(1));
    }
    if constexpr (op == UnaryOp::sigmoid) return g * vmath::sigmoid(s) * vmath::sigmoid(-s);
    if constexpr (op == UnaryOp::log_sigmoid) return static_cast<A>(a) * g * vmath::sigmoid(-s);
    if constexpr (op == UnaryOp::tanh) {  // 1 − tanh² x = 4·σ(2x)·σ(−2x)
      return A(4) * g * vmath::sigmoid(s + s) * vmath::sigmoid(-s - s);
    }
    if constexpr (op == UnaryOp::gelu) return g * gelu_slope(s);
    if constexpr (op == UnaryOp::silu) {
      const A p = vmath::sigmoid(s);
      return g * p * (A(1) + s * (A(1) - p));
    }
    if constexpr (op == UnaryOp::relu) return s > 0 ? g : A(0);
    if constexpr (op == UnaryOp::softplus) return g * vmath::sigmoid(s);
    return A(0);
  }
};

// Calls fn(integral_constant<UnaryOp, op>).
template <class F>
void dispatch_unary(UnaryOp op, F&& fn) {
#define PROTEUS_UNARY(name) \
  case UnaryOp::name:       \
    return fn(std::integral_constant<UnaryOp, UnaryOp::name>{});
  switch (op) {
    PROTEUS_UNARY(affine)
    PROTEUS_UNARY(exp)
    PROTEUS_UNARY(log)
    PROTEUS_UNARY(sqrt)
    PROTEUS_UNARY(square)
    PROTEUS_UNARY(power)
    PROTEUS_UNARY(sigmoid)
    PROTEUS_UNARY(log_sigmoid)
    PROTEUS_UNARY(tanh)
    PROTEUS_UNARY(gelu)
    PROTEUS_UNARY(silu)
    PROTEUS_UNARY(relu)
    PROTEUS_UNARY(softplus)
  }
#undef PROTEUS_UNARY
}

void unary_fwd_cuda(const UnaryFwd& u) {
  dispatch_float(u.dtype, "unary_fwd", [&](auto tag) {
    using T = typename decltype(tag)::type;
    dispatch_unary(u.op, [&](auto op) {
      map<T, 1, 1>("unary_fwd", {{static_cast<const T*>(u.x)}}, {{static_cast<T*>(u.y)}}, u.n,
                   Unary<decltype(op)::value>{u.a, u.b});
    });
  });
}

void unary_bwd_cuda(const UnaryBwd& u) {
  dispatch_float(u.dtype, "unary_bwd", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const T* dy = static_cast<const T*>(u.dy);
    T* dx = static_cast<T*>(u.dx);
    if (u.op == UnaryOp::affine) {
      return map<T, 1, 1>("unary_bwd", {{dy}}, {{dx}}, u.n, Unary<UnaryOp::affine>{u.a, 0});
    }
    dispatch_unary(u.op, [&](auto op) {
      if constexpr (decltype(op)::value != UnaryOp::affine) {
        map<T, 2, 1>("unary_bwd", {{static_cast<const T*>(u.saved), dy}}, {{dx}}, u.n,
                     UnaryGrad<decltype(op)::value>{u.a});
      }
    });
  });
}

template <BinaryOp op, class A>
__device__ A combine(A a, A b) {
  if constexpr (op == BinaryOp::add) return a + b;
  if constexpr (op == BinaryOp::sub) return a - b;
  if constexpr (op == BinaryOp::mul) return a * b;
  if constexpr (op == BinaryOp::div) return a / b;
}

template <BinaryOp op, class T, int V>
__global__ void binary_kernel(const T* a, const T* b, T* y,
                              const __grid_constant__ Units<3> units) {
  using A = accum_t<T>;
  for (std::int64_t u = first_unit(); u < units.count; u += unit_step()) {
    const auto at = units.template at<V>(u);
    const auto left = load_run<V>(a + at[0], units.walk.inner_stride(0));
    const auto right = load_run<V>(b + at[1], units.walk.inner_stride(1));
    Pack<T, V> out;
#pragma unroll
    for (int j = 0; j < V; ++j) out[j] = T(combine<op>(A(left[j]), A(right[j])));
    if constexpr (V == 1) {
      y[at[2]] = out[0];
    } else {
      store_pack(y + at[2], out);
    }
  }
}

template <BinaryOp op, class T>
void binary_typed(const BinaryFwd& args) {
  constexpr int V = kPackOf<T>;
  const auto walk = make_walk<3>({args.a_layout, args.b_layout, args.y_layout});
  const T* a = static_cast<const T*>(args.a) + args.a_layout.offset;
  const T* b = static_cast<const T*>(args.b) + args.b_layout.offset;
  T* y = static_cast<T*>(args.y) + args.y_layout.offset;
  const auto fits = [&](int n, const T* p) {
    return walk.inner_stride(n) == 0 || packs_fit<T, V>(walk, n, p);
  };
  if (packs_fit<T, V>(walk, 2, static_cast<const T*>(y)) && fits(0, a) && fits(1, b)) {
    const Units<3> units(walk, V);
    launch("binary_fwd", binary_kernel<op, T, V>, blocks_for(units.count), kBlock, 0, a, b, y,
           units);
  } else {
    const Units<3> units(walk, 1);
    launch("binary_fwd", binary_kernel<op, T, 1>, blocks_for(units.count), kBlock, 0, a, b, y,
           units);
  }
}

void binary_fwd_cuda(const BinaryFwd& args) {
  if (args.y_layout.shape.numel() == 0) return;
  dispatch_float(args.dtype, "binary_fwd", [&](auto tag) {
    using T = typename decltype(tag)::type;
    switch (args.op) {
      case BinaryOp::add:
        return binary_typed<BinaryOp::add, T>(args);
      case BinaryOp::sub:
        return binary_typed<BinaryOp::sub, T>(args);
      case BinaryOp::mul:
        return binary_typed<BinaryOp::mul, T>(args);
      case BinaryOp::div:
        return binary_typed<BinaryOp::div, T>(args);
    }
  });
}

}  // namespace

void install_elementwise_kernels() {
  unary_fwd.install(DeviceType::cuda, unary_fwd_cuda);
  unary_bwd.install(DeviceType::cuda, unary_bwd_cuda);
  binary_fwd.install(DeviceType::cuda, binary_fwd_cuda);
}

}  // namespace proteus::cuda
