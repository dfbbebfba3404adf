// Optimizer steps and the squared norm of tensor/ops/optim.h on a GPU: many parameters per launch,
// cut into chunks of fixed size, a block each.
#include <cmath>
#include <vector>

#include "cuda/kernel.cuh"
#include "cuda/kernels.h"
#include "tensor/ops/optim.h"

namespace proteus::cuda {
namespace {

constexpr std::int64_t kChunk = 16384;  // elements per block; also the order of the norm's sums
constexpr int kMost = 48;               // parameters per launch: they fit the kernel's arguments
constexpr int V = 4;                    // elements per access

// Up to kMost parameters of one dtype, by value. Parameter i has chunks [first[i], first[i + 1]).
struct Group {
  StepTensor tensors[kMost];
  std::int64_t first[kMost + 1];
  int count;
};
static_assert(sizeof(Group) <= 4000, "kernel arguments are at most 4 KiB on every CUDA device");

// Elements [begin, end) of parameter `tensor` are this block's.
struct Chunk {
  int tensor;
  std::int64_t begin, end;
};

__device__ Chunk chunk_of_block(const Group& g) {
  int t = 0;
  while (static_cast<std::int64_t>(blockIdx.x) >= g.first[t + 1]) ++t;
  const std::int64_t begin = (static_cast<std::int64_t>(blockIdx.x) - g.first[t]) * kChunk;
  return {t, begin, min(g.tensors[t].n, begin + kChunk)};
}

__device__ bool all_aligned(const StepTensor& t) {
  return ((reinterpret_cast<std::uintptr_t>(t.value) | reinterpret_cast<std::uintptr_t>(t.grad) |
           reinterpret_cast<std::uintptr_t>(t.m) | reinterpret_cast<std::uintptr_t>(t.v)) &
          15) == 0;
}

struct AdamW {
  const StepNumbers* numbers;
  double beta1, beta2, eps;
};

// The numbers of a step as the elements need them.
template <class A>
struct AdamWNow {
  A b1, n1, b2, n2, scale, rate, root, eps;

  __device__ AdamWNow(const AdamW& a, const StepNumbers& now)
      : b1(static_cast<A>(a.beta1)),
        n1(static_cast<A>(1 - a.beta1)),
        b2(static_cast<A>(a.beta2)),
        n2(static_cast<A>(1 - a.beta2)),
        scale(static_cast<A>(now.grad_scale)),
        rate(static_cast<A>(now.lr / now.correction1)),
        root(static_cast<A>(1 / std::sqrt(now.correction2))),
        eps(static_cast<A>(a.eps)) {}

  // One element; the formula of the CPU kernel.
  template <class T>
  __device__ void step(T& x, T grad, A& m, A& v, A keep) const {
    const A g = A(grad) * scale;
    m = b1 * m + n1 * g;
    v = b2 * v + n2 * g * g;
    x = T(keep * A(x) - rate * m / (std::sqrt(v) * root + eps));
  }
};

template <class T>
__global__ void adamw_kernel(const __grid_constant__ Group g, AdamW args) {
  using A = accum_t<T>;
  const StepNumbers now = *args.numbers;
  if (now.stopped != 0) return;
  const AdamWNow<A> a(args, now);
  const Chunk chunk = chunk_of_block(g);
  const StepTensor& t = g.tensors[chunk.tensor];
  T* x = static_cast<T*>(t.value);
  const T* grad = static_cast<const T*>(t.grad);
  A* m = static_cast<A*>(t.m);
  A* v = static_cast<A*>(t.v);
  const A keep = static_cast<A>(1 - now.lr * t.decay);
  const std::int64_t packed =
      all_aligned(t) ? chunk.begin + (chunk.end - chunk.begin) / V * V : chunk.begin;
  for (std::int64_t i = chunk.begin + threadIdx.x * V; i < packed; i += blockDim.x * V) {
    auto px = load_pack<V>(x + i);
    const auto pg = load_pack<V>(grad + i);
    auto pm = load_pack<V>(m + i);
    auto pv = load_pack<V>(v + i);
#pragma unroll
    for (int j = 0; j < V; ++j) a.step(px[j], pg[j], pm[j], pv[j], keep);
    store_pack(x + i, px);
    store_pack(m + i, pm);
    store_pack(v + i, pv);
  }
  for (std::int64_t i = packed + threadIdx.x; i < chunk.end; i += blockDim.x) {
    a.step(x[i], grad[i], m[i], v[i], keep);
  }
}

template <class T>
__global__ void sgd_kernel(const __grid_constant__ Group g, const StepNumbers* numbers,
                           double momentum) {
  using A = accum_t<T>;
  const StepNumbers now = *numbers;
  if (now.stopped != 0) return;
  const Chunk chunk = chunk_of_block(g);
  const StepTensor& t = g.tensors[chunk.tensor];
  T* x = static_cast<T*>(t.value);
  const T* grad = static_cast<const T*>(t.grad);
  A* m = static_cast<A*>(t.m);
  for (std::int64_t i = chunk.begin + threadIdx.x; i < chunk.end; i += blockDim.x) {
    const A step = static_cast<A>(momentum) * m[i] + A(grad[i]) * static_cast<A>(now.grad_scale) +
                   static_cast<A>(t.decay) * A(x[i]);
    m[i] = step;
    x[i] = T(A(x[i]) - static_cast<A>(now.lr) * step);
  }
}

// partial[block] = Σ g² over the block's chunk.
template <class T>
__global__ void squared_norm_kernel(const __grid_constant__ Group g, double* partial) {
  const Chunk chunk = chunk_of_block(g);
  const T* grad = static_cast<const T*>(g.tensors[chunk.tensor].grad);
  const bool aligned = (reinterpret_cast<std::uintptr_t>(grad) & 15) == 0;
  const std::int64_t packed =
      aligned ? chunk.begin + (chunk.end - chunk.begin) / V * V : chunk.begin;
  double sum = 0;
  for (std::int64_t i = chunk.begin + threadIdx.x * V; i < packed; i += blockDim.x * V) {
    const auto p = load_pack<V>(grad + i);
#pragma unroll
    for (int j = 0; j < V; ++j) sum += static_cast<double>(p[j]) * static_cast<double>(p[j]);
  }
  for (std::int64_t i = packed + threadIdx.x; i < chunk.end; i += blockDim.x) {
    const double value = static_cast<double>(grad[i]);
    sum += value * value;
  }
  sum = group_sum<kBlock>(sum);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

__global__ void sum_partials_kernel(const double* partial, std::int64_t n, double* out) {
  double sum = 0;
  for (std::int64_t i = threadIdx.x; i < n; i += blockDim.x) sum += partial[i];
  sum = group_sum<kBlock>(sum);
  if (threadIdx.x == 0) *out = sum;
}

// Calls fn(TypeTag, group) for groups of parameters, one dtype after the other.
template <class F>
void for_groups(const char* name, const StepTensor* tensors, std::int64_t count, F&& fn) {
  for (const DType dtype : {DType::f64, DType::f32, DType::bf16}) {
    dispatch_float(dtype, name, [&](auto tag) {
      Group g{};
      const auto flush = [&] {
        if (g.count > 0) fn(tag, static_cast<const Group&>(g));
        g.count = 0;
      };
      for (std::int64_t i = 0; i < count; ++i) {
        if (tensors[i].dtype != dtype || tensors[i].n == 0) continue;
        g.tensors[g.count] = tensors[i];
        g.first[g.count + 1] = g.first[g.count] + ceil_div(tensors[i].n, kChunk);
        if (++g.count == kMost) flush();
      }
      flush();
    });
  }
}

unsigned chunks_of(const Group& g) { return static_cast<unsigned>(g.first[g.count]); }

void adamw_cuda(const AdamWStep& s) {
  const AdamW a{s.numbers, s.beta1, s.beta2, s.eps};
  for_groups("adamw_step", s.tensors, s.count, [&](auto tag, const Group& g) {
    using T = typename decltype(tag)::type;
    launch("adamw_step", adamw_kernel<T>, chunks_of(g), kBlock, 0, g, a);
  });
}

void sgd_cuda(const SgdStep& s) {
  for_groups("sgd_step", s.tensors, s.count, [&](auto tag, const Group& g) {
    using T = typename decltype(tag)::type;
    launch("sgd_step", sgd_kernel<T>, chunks_of(g), kBlock, 0, g, s.numbers, s.momentum);
  });
}

__global__ void step_scale_kernel(StepScale s) { scale_step(s); }

void step_scale_cuda(const StepScale& s) { launch("step_scale", step_scale_kernel, 1, 1, 0, s); }

void squared_norm_cuda(const SquaredNorm& s) {
  std::int64_t chunks = 0;
  for (std::int64_t i = 0; i < s.count; ++i) chunks += ceil_div(s.tensors[i].n, kChunk);
  const Storage memory = scratch(static_cast<std::size_t>(chunks) * sizeof(double));
  double* partial = static_cast<double*>(memory.data());
  std::int64_t done = 0;
  for_groups("squared_norm", s.tensors, s.count, [&](auto tag, const Group& g) {
    using T = typename decltype(tag)::type;
    launch("squared_norm", squared_norm_kernel<T>, chunks_of(g), kBlock, 0, g, partial + done);
    done += chunks_of(g);
  });
  launch("squared_norm", sum_partials_kernel, 1, kBlock, 0, static_cast<const double*>(partial),
         done, s.out);
}

}  // namespace

void install_optim_kernels() {
  adamw_step.install(DeviceType::cuda, adamw_cuda);
  sgd_step.install(DeviceType::cuda, sgd_cuda);
  squared_norm.install(DeviceType::cuda, squared_norm_cuda);
  step_scale.install(DeviceType::cuda, step_scale_cuda);
}

}  // namespace proteus::cuda
