// Matrix products of tensor/ops/gemm.h on a GPU: cuBLASLt multiplies and does what it can of the
// epilogue, the kernels here do the rest. Products of few rows have a kernel of their own.
#include "cuda/column_sums.cuh"
#include "cuda/gemm_cublaslt.h"
#include "cuda/gemm_few.h"
#include "cuda/kernels.h"
#include "cuda/map.cuh"
#include "tensor/ops/gelu.h"
#include "tensor/ops/gemm.h"

namespace proteus::cuda {
namespace {

// One thread per element of C: for what the library does not take, and for K = 0.
template <class T, class C>
__global__ void plain_gemm_kernel(const __grid_constant__ GemmFwd g) {
  using A = accum_t<T>;
  const std::int64_t each = g.M * g.N;
  for (std::int64_t u = first_unit(); u < g.batch * each; u += unit_step()) {
    const std::int64_t batch = quotient(u, each);
    const std::int64_t i = quotient(u - batch * each, g.N);
    const std::int64_t j = u - batch * each - i * g.N;
    const T* a = static_cast<const T*>(g.a) + batch * g.a_stride + (g.trans_a ? i : i * g.lda);
    const T* b = static_cast<const T*>(g.b) + batch * g.b_stride + (g.trans_b ? j * g.ldb : j);
    const std::int64_t a_step = g.trans_a ? g.lda : 1;
    const std::int64_t b_step = g.trans_b ? 1 : g.ldb;
    A sum = 0;
    for (std::int64_t k = 0; k < g.K; ++k) sum += A(a[k * a_step]) * A(b[k * b_step]);
    C* c = static_cast<C*>(g.c) + batch * g.c_stride + i * g.ldc + j;
    sum *= static_cast<A>(g.alpha);
    if (g.beta != 0) sum += static_cast<A>(g.beta) * A(*c);
    if (g.add) sum += A(static_cast<const C*>(g.add)[batch * g.c_stride + i * g.ldc + j]);
    *c = C(sum);
  }
}

// The epilogue of sums that lie as c does, `sums_ld` and `sums_stride` apart; they may be c itself.
// Units of V columns; V divides N and every step.
template <class T, class S, int V>
__global__ void epilogue_kernel(const __grid_constant__ GemmFwd g, const S* sums,
                                std::int64_t sums_ld, std::int64_t sums_stride, const T* bias,
                                const T* add, GemmEpilogue epilogue) {
  using A = accum_t<T>;
  const std::int64_t per_row = g.N / V;
  for (std::int64_t u = first_unit(); u < g.batch * g.M * per_row; u += unit_step()) {
    const std::int64_t row = quotient(u, per_row);
    const std::int64_t j = (u - row * per_row) * V;
    const std::int64_t batch = quotient(row, g.M);
    const std::int64_t i = row - batch * g.M;
    const std::int64_t at = batch * g.c_stride + i * g.ldc + j;
    T* pre = g.pre ? static_cast<T*>(g.pre) + at : nullptr;
    const auto from = load_pack<V>(sums + batch * sums_stride + i * sums_ld + j);
    A sum[V];
#pragma unroll
    for (int k = 0; k < V; ++k) sum[k] = A(from[k]) + (bias ? A(bias[j + k]) : A(0));
    if (add) {
      const auto more = load_pack<V>(add + at);
#pragma unroll
      for (int k = 0; k < V; ++k) sum[k] += A(more[k]);
    }
    Pack<T, V> p;
    if (epilogue == GemmEpilogue::gelu_grad) {
      const auto q = load_pack<V>(static_cast<const T*>(pre));
      Pack<T, V> act;
#pragma unroll
      for (int k = 0; k < V; ++k) {
        p[k] = T(sum[k] * gelu_slope(A(q[k])));
        act[k] = T(gelu_value(A(q[k])));
      }
      if (g.act) store_pack(static_cast<T*>(g.act) + at, act);
    } else {
      const bool gelu = epilogue == GemmEpilogue::gelu;
      if (gelu && pre) {
#pragma unroll
        for (int k = 0; k < V; ++k) p[k] = T(sum[k]);
        store_pack(pre, p);
      }
#pragma unroll
      for (int k = 0; k < V; ++k) p[k] = T(gelu ? gelu_value(sum[k]) : sum[k]);
    }
    store_pack(static_cast<T*>(g.c) + at, p);
  }
}

// What `done` leaves of the epilogue, and `add`, unless it is null.
template <class T, class S>
void finish(const GemmFwd& g, const S* sums, std::int64_t sums_ld, std::int64_t sums_stride,
            const LtDone& done, const T* add = nullptr) {
  constexpr int V = kPackOf<T>;
  const GemmEpilogue epilogue = done.gelu ? GemmEpilogue::none : g.epilogue;
  const T* bias = done.bias ? nullptr : static_cast<const T*>(g.bias);
  if (!bias && !add && epilogue == GemmEpilogue::none) return;
  const std::int64_t n = g.batch * g.M * g.N;
  if (g.N % V == 0 && g.ldc % V == 0 && g.c_stride % V == 0 && sums_ld % V == 0 &&
      sums_stride % V == 0 && can_pack<T, V>(g.c, g.pre, g.act, add) && can_pack<S, V>(sums)) {
    launch("gemm_fwd", epilogue_kernel<T, S, V>, blocks_for(n / V), kBlock, 0, g, sums, sums_ld,
           sums_stride, bias, add, epilogue);
  } else {
    launch("gemm_fwd", epilogue_kernel<T, S, 1>, blocks_for(n), kBlock, 0, g, sums, sums_ld,
           sums_stride, bias, add, epilogue);
  }
}

// The product, and what the library does of its epilogue.
template <class T>
LtDone multiply(const GemmFwd& g) {
  const LtDone done = g.K > 0 ? lt_multiply(g) : LtDone{};
  if (done.product) return done;
  const unsigned grid = blocks_for(g.batch * g.M * g.N);
  if (g.wide_c) {
    launch("gemm_fwd", plain_gemm_kernel<T, accum_t<T>>, grid, kBlock, 0, g);
  } else {
    launch("gemm_fwd", plain_gemm_kernel<T, T>, grid, kBlock, 0, g);
  }
  return done;
}

// Sums in f32 first, so that the result is rounded once.
void multiply_then_finish(const GemmFwd& g) {
  const Storage memory = scratch(static_cast<std::size_t>(g.batch * g.M * g.N) * sizeof(float));
  GemmFwd wide = g;
  wide.c = memory.data();
  wide.ldc = g.N;
  wide.c_stride = g.M * g.N;
  wide.wide_c = true;
  wide.bias = nullptr;
  wide.add = nullptr;
  wide.pre = nullptr;
  wide.act = nullptr;
  wide.epilogue = GemmEpilogue::none;
  multiply<bfloat16>(wide);
  finish<bfloat16>(g, static_cast<const float*>(wide.c), wide.ldc, wide.c_stride, {},
                   static_cast<const bfloat16*>(g.add));
}

struct GeluOf {
  template <class A>
  __device__ void operator()(const A (&in)[1], A (&out)[1]) const {
    out[0] = gelu_value(in[0]);
  }
};

bool lt_does_gelu_grad(const GemmFwd& g) {
  return g.epilogue == GemmEpilogue::gelu_grad && g.K > 0 && lt_finishes(g);
}

// The library multiplies by the slope; the activation is one more pass over `pre`.
void gelu_grad_by_lt(const GemmFwd& g) {
  lt_multiply(g);
  if (!g.act) return;
  map<bfloat16, 1, 1>("gemm_fwd", {{static_cast<const bfloat16*>(g.pre)}},
                      {{static_cast<bfloat16*>(g.act)}}, g.M * g.N, GeluOf{});
}

void gemm_fwd_cuda(const GemmFwd& g) {
  if (g.M == 0 || g.N == 0 || g.batch == 0) return;
  if (few_fits(g)) return few_multiply(g);
  const bool plain = !g.bias && !g.add && g.epilogue == GemmEpilogue::none;
  if (g.dtype == DType::bf16 && lt_does_gelu_grad(g)) return gelu_grad_by_lt(g);
  if (g.dtype == DType::bf16 && !plain && g.beta == 0 && !(g.K > 0 && lt_finishes(g))) {
    return multiply_then_finish(g);
  }
  dispatch_float(g.dtype, "gemm_fwd", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const LtDone done = multiply<T>(g);
    if (!plain) finish<T>(g, static_cast<const T*>(g.c), g.ldc, g.c_stride, done);
  });
}

// dpre[r, c] is written where it is computed; its rounded value goes into the sum, as on the CPU.
template <class T>
struct BiasTerm {
  using A = accum_t<T>;
  const T* dy;
  const T* pre;  // null: the sums are those of dy
  T* dpre;
  std::int64_t N;

  __device__ void operator()(std::int64_t, std::int64_t r, std::int64_t c, A (&add)[1]) const {
    const std::int64_t at = r * N + c;
    if (pre) {
      const T rounded = T(A(dy[at]) * gelu_slope(A(pre[at])));
      dpre[at] = rounded;
      add[0] = A(rounded);
    } else {
      add[0] = A(dy[at]);
    }
  }
};

template <class T>
struct StoreBias {
  using A = accum_t<T>;
  T* dbias;

  __device__ void operator()(std::int64_t, std::int64_t, std::int64_t c, const A (&sum)[1]) const {
    dbias[c] = T(sum[0]);
  }
};

struct GeluGradient {
  template <class A>
  __device__ void operator()(const A (&in)[2], A (&out)[1]) const {
    out[0] = in[0] * gelu_slope(in[1]);
  }
};

void bias_bwd_cuda(const BiasBwd& b) {
  if (b.N == 0) return;
  dispatch_float(b.dtype, "bias_bwd", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const T* dy = static_cast<const T*>(b.dy);
    const T* pre = static_cast<const T*>(b.pre);
    T* dpre = static_cast<T*>(b.dpre);
    T* dbias = static_cast<T*>(b.dbias);
    if (!dbias) {
      if (pre) map<T, 2, 1>("bias_bwd", {{dy, pre}}, {{dpre}}, b.M * b.N, GeluGradient{});
    } else if (b.M == 0) {
      check(cudaMemsetAsync(dbias, 0, static_cast<std::size_t>(b.N) * sizeof(T), current_stream()),
            "cudaMemsetAsync");
    } else {
      column_sums<accum_t<T>, 1>("bias_bwd", 1, b.M, b.N, BiasTerm<T>{dy, pre, dpre, b.N},
                                 StoreBias<T>{dbias});
    }
  });
}

}  // namespace

void install_gemm_kernels() {
  gemm_fwd.install(DeviceType::cuda, gemm_fwd_cuda);
  bias_bwd.install(DeviceType::cuda, bias_bwd_cuda);
}

}  // namespace proteus::cuda
