// Cross-entropy rows and row copies of tensor/ops/loss.h on a GPU.
#include <cmath>

#include "cuda/kernels.h"
#include "cuda/row_softmax.cuh"
#include "tensor/ops/loss.h"

namespace proteus::cuda {
namespace {

// dlogits may be the logits: a group has read what it needs of its row before it writes, and then
// every element is read and written by one thread.
template <class T, class D, int V, int kThreads>
__global__ void cross_entropy_kernel(const T* logits, const std::int64_t* targets, double* loss,
                                     D* dlogits, std::int64_t rows, std::int64_t width,
                                     accum_t<T> scale) {
  using A = accum_t<T>;
  using Groups = RowGroups<kThreads>;
  for (std::int64_t row = Groups::first(); row < rows; row += Groups::step()) {
    const T* z = logits + row * width;
    const std::int64_t target = targets[row];
    const bool counts = target >= 0;
    A top = 0;
    A sum = 1;
    A picked = 0;
    if (counts) {
      picked = A(z[target]);
      const auto row_sum = row_sum_exp<V, kThreads>(z, width);
      top = row_sum.top;
      sum = row_sum.sum;
    }
    if (Groups::lane() == 0) {
      loss[row] = counts ? static_cast<double>(std::log(sum) + (top - picked)) : 0.0;
    }
    if (!dlogits) continue;
    __syncwarp();  // `picked` has been read (in a block the reductions saw to it)
    const A share = scale / sum;
    D* dz = dlogits + row * width;
    for (std::int64_t v = Groups::lane() * V; v < width; v += kThreads * V) {
      const auto p = load_pack<V>(z + v);
      Pack<D, V> d;
#pragma unroll
      for (int j = 0; j < V; ++j) {
        const A e = counts ? vmath::exp(A(p[j]) - top) : A(0);
        d[j] = v + j == target ? D((e / sum - A(1)) * scale) : D(e * share);
      }
      store_pack(dz + v, d);
    }
  }
}

// The same of long rows of f32: a block keeps its row in shared memory and reads it once.
constexpr int kHeldThreads = 1024;

template <class D>
__global__ void __launch_bounds__(kHeldThreads, 1)
    cross_entropy_held_kernel(const float* logits, const std::int64_t* targets, double* loss,
                              D* dlogits, std::int64_t rows, std::int64_t width, float scale) {
  constexpr int V = 4;
  constexpr float kInf = std::numeric_limits<float>::infinity();
  extern __shared__ __align__(16) float held[];
  for (std::int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    const float* z = logits + row * width;
    const std::int64_t target = targets[row];
    const bool counts = target >= 0;
    const float picked = counts ? z[target] : 0.0f;
    float top = -kInf;
    float sum = 0;
#pragma unroll 4
    for (std::int64_t v = threadIdx.x * V; v < width; v += kHeldThreads * V) {
      const auto p = load_pack<V>(z + v);
      store_pack(held + v, p);
      float larger = top;
#pragma unroll
      for (int j = 0; j < V; ++j) larger = p[j] > larger ? p[j] : larger;
      if (larger > top) {
        sum *= shifted_exp(top, larger);
        top = larger;
      }
#pragma unroll
      for (int j = 0; j < V; ++j) sum += shifted_exp(p[j], top);
    }
    const float all = group_reduce<kHeldThreads>(top, Larger{}, -kInf);
    sum = group_sum<kHeldThreads>(sum * shifted_exp(top, all));
    if (threadIdx.x == 0) {
      loss[row] = counts ? static_cast<double>(std::log(sum) + (all - picked)) : 0.0;
    }
    if (!dlogits) continue;
    const float share = scale / sum;
    // Every thread reads what it has written itself.
    for (std::int64_t v = threadIdx.x * V; v < width; v += kHeldThreads * V) {
      const auto p = load_pack<V>(held + v);
      Pack<D, V> d;
#pragma unroll
      for (int j = 0; j < V; ++j) {
        const float e = counts ? vmath::exp(p[j] - all) : 0.0f;
        d[j] = v + j == target ? D((e / sum - 1.0f) * scale) : D(e * share);
      }
      store_pack(dlogits + row * width + v, d);
    }
  }
}

// Whether a row is long enough to be worth a block of its own, and fits.
bool row_is_held(const CrossEntropyFwd& c) {
  constexpr std::int64_t kShortest = 8192;
  if (c.dtype != DType::f32 || c.V < kShortest || c.V % 4 != 0 ||
      !can_pack<float, 4>(static_cast<const float*>(c.logits))) {
    return false;
  }
  int most = 0;
  check(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, current_device()),
        "cudaDeviceGetAttribute");
  constexpr std::int64_t kReductions = 2048;  // static shared memory of the sums
  return c.V * static_cast<std::int64_t>(sizeof(float)) + kReductions <= most;
}

template <class D>
void cross_entropy_held(const CrossEntropyFwd& c) {
  const int bytes = static_cast<int>(c.V * static_cast<std::int64_t>(sizeof(float)));
  check(cudaFuncSetAttribute(cross_entropy_held_kernel<D>,
                             cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
        "cudaFuncSetAttribute");
  launch("cross_entropy_fwd", cross_entropy_held_kernel<D>, blocks_for(c.rows, 1), kHeldThreads,
         static_cast<std::size_t>(bytes), static_cast<const float*>(c.logits), c.target, c.loss,
         static_cast<D*>(c.dlogits), c.rows, c.V, static_cast<float>(c.scale));
}

template <class T, class D>
void cross_entropy_typed(const CrossEntropyFwd& c) {
  const T* z = static_cast<const T*>(c.logits);
  D* dz = static_cast<D*>(c.dlogits);
  const auto scale = static_cast<accum_t<T>>(c.scale);
  const auto run = [&](auto V, auto threads) {
    using Groups = RowGroups<decltype(threads)::value>;
    launch("cross_entropy_fwd",
           cross_entropy_kernel<T, D, decltype(V)::value, decltype(threads)::value>,
           Groups::blocks(c.rows), Groups::kBlockThreads, 0, z, c.target, c.loss, dz, c.rows, c.V,
           scale);
  };
  dispatch_row_threads(c.V, [&](auto threads) {
    constexpr int kV = kPackOf<T>;
    if (c.V % kV == 0 && can_pack<T, kV>(z) && can_pack<D, kV>(dz)) {
      run(std::integral_constant<int, kV>{}, threads);
    } else {
      run(std::integral_constant<int, 1>{}, threads);
    }
  });
}

void cross_entropy_cuda(const CrossEntropyFwd& c) {
  if (c.rows * c.V == 0) return;
  if (row_is_held(c)) {
    const bool narrow = c.dlogits_dtype == DType::bf16;
    return narrow ? cross_entropy_held<bfloat16>(c) : cross_entropy_held<float>(c);
  }
  dispatch_float(c.dtype, "cross_entropy_fwd", [&](auto tag) {
    using T = typename decltype(tag)::type;
    if (std::is_same_v<T, float> && c.dlogits_dtype == DType::bf16) {
      cross_entropy_typed<float, bfloat16>(c);
    } else {
      cross_entropy_typed<T, T>(c);
    }
  });
}

// A row is `words` words long.
template <class Word>
__global__ void row_copy_kernel(const Word* src, Word* dst, const std::int64_t* src_row,
                                const std::int64_t* dst_row, std::int64_t rows,
                                std::int64_t words) {
  for (std::int64_t u = first_unit(); u < rows * words; u += unit_step()) {
    const std::int64_t i = quotient(u, words);
    const std::int64_t w = u - i * words;
    const std::int64_t from = src_row ? src_row[i] : i;
    const std::int64_t to = dst_row ? dst_row[i] : i;
    dst[to * words + w] = src[from * words + w];
  }
}

template <class Word>
bool copy_rows(const RowCopy& c) {
  const auto mask = static_cast<std::uintptr_t>(sizeof(Word) - 1);
  if ((reinterpret_cast<std::uintptr_t>(c.src) | reinterpret_cast<std::uintptr_t>(c.dst) |
       static_cast<std::uintptr_t>(c.row_bytes)) &
      mask) {
    return false;
  }
  const std::int64_t words = c.row_bytes / static_cast<std::int64_t>(sizeof(Word));
  launch("row_copy", row_copy_kernel<Word>, blocks_for(c.rows * words), kBlock, 0,
         static_cast<const Word*>(c.src), static_cast<Word*>(c.dst), c.src_row, c.dst_row, c.rows,
         words);
  return true;
}

void row_copy_cuda(const RowCopy& c) {
  if (c.rows * c.row_bytes == 0) return;
  if (!copy_rows<uint4>(c) && !copy_rows<std::uint16_t>(c)) copy_rows<std::uint8_t>(c);
}

template <class T, int V>
__global__ void rescale_kernel(T* x, const accum_t<T>* factor, std::int64_t units) {
  using A = accum_t<T>;
  const A by = *factor;
  if (by == A(1)) return;
  for (std::int64_t u = first_unit(); u < units; u += unit_step()) {
    auto p = load_pack<V>(x + u * V);
#pragma unroll
    for (int j = 0; j < V; ++j) p[j] = T(by * A(p[j]));
    store_pack(x + u * V, p);
  }
}

void rescale_cuda(const Rescale& r) {
  if (r.n == 0) return;
  dispatch_float(r.dtype, "rescale", [&](auto tag) {
    using T = typename decltype(tag)::type;
    constexpr int V = kPackOf<T>;
    T* x = static_cast<T*>(r.x);
    const auto* factor = static_cast<const accum_t<T>*>(r.factor);
    if (r.n % V == 0 && can_pack<T, V>(x)) {
      launch("rescale", rescale_kernel<T, V>, blocks_for(r.n / V), kBlock, 0, x, factor, r.n / V);
    } else {
      launch("rescale", rescale_kernel<T, 1>, blocks_for(r.n), kBlock, 0, x, factor, r.n);
    }
  });
}

}  // namespace

void install_loss_kernels() {
  cross_entropy_fwd.install(DeviceType::cuda, cross_entropy_cuda);
  row_copy.install(DeviceType::cuda, row_copy_cuda);
  rescale.install(DeviceType::cuda, rescale_cuda);
}

}  // namespace proteus::cuda
