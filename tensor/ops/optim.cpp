#include "tensor/ops/optim.h"

#include <algorithm>
#include <cmath>

#include "tensor/parallel.h"

namespace proteus {
namespace {

constexpr std::int64_t kChunk =
    16384;  // elements per task; also fixes the order of the norm's sums

struct Chunk {
  std::int64_t tensor, begin, end;
};

std::vector<Chunk> cut(const StepTensor* tensors, std::int64_t count) {
  std::vector<Chunk> chunks;
  for (std::int64_t t = 0; t < count; ++t) {
    for (std::int64_t i = 0; i < tensors[t].n; i += kChunk) {
      chunks.push_back({t, i, std::min(tensors[t].n, i + kChunk)});
    }
  }
  return chunks;
}

// Calls fn(TypeTag, tensor, chunk index, begin, end) for every chunk of every tensor.
template <class F>
void for_chunks(const char* name, const StepTensor* tensors, std::int64_t count, F&& fn) {
  const auto chunks = cut(tensors, count);
  parallel_for(
      static_cast<std::int64_t>(chunks.size()), 1, [&](std::int64_t first, std::int64_t last) {
        for (std::int64_t c = first; c < last; ++c) {
          const Chunk& chunk = chunks[static_cast<std::size_t>(c)];
          const StepTensor& t = tensors[chunk.tensor];
          dispatch_float(t.dtype, name, [&](auto tag) { fn(tag, t, c, chunk.begin, chunk.end); });
        }
      });
}

void adamw_cpu(const AdamWStep& a) {
  const StepNumbers& now = *a.numbers;
  if (now.stopped != 0) return;
  for_chunks(
      "adamw_step", a.tensors, a.count,
      [&](auto tag, const StepTensor& t, std::int64_t, std::int64_t begin, std::int64_t end) {
        using T = typename decltype(tag)::type;
        using A = accum_t<T>;
        T* x = static_cast<T*>(t.value);
        const T* grad = static_cast<const T*>(t.grad);
        A* m = static_cast<A*>(t.m);
        A* v = static_cast<A*>(t.v);
        const A b1 = static_cast<A>(a.beta1);
        const A b2 = static_cast<A>(a.beta2);
        const A n1 = static_cast<A>(1 - a.beta1);
        const A n2 = static_cast<A>(1 - a.beta2);
        const A scale = static_cast<A>(now.grad_scale);
        const A rate = static_cast<A>(now.lr / now.correction1);
        const A root = static_cast<A>(1 / std::sqrt(now.correction2));
        const A eps = static_cast<A>(a.eps);
        const A keep = static_cast<A>(1 - now.lr * t.decay);
#pragma omp simd
        for (std::int64_t i = begin; i < end; ++i) {
          const A g = A(grad[i]) * scale;
          const A first = b1 * m[i] + n1 * g;
          const A second = b2 * v[i] + n2 * g * g;
          m[i] = first;
          v[i] = second;
          x[i] = T(keep * A(x[i]) - rate * first / (std::sqrt(second) * root + eps));
        }
      });
}

void sgd_cpu(const SgdStep& a) {
  const StepNumbers& now = *a.numbers;
  if (now.stopped != 0) return;
  for_chunks(
      "sgd_step", a.tensors, a.count,
      [&](auto tag, const StepTensor& t, std::int64_t, std::int64_t begin, std::int64_t end) {
        using T = typename decltype(tag)::type;
        using A = accum_t<T>;
        T* x = static_cast<T*>(t.value);
        const T* grad = static_cast<const T*>(t.grad);
        A* m = static_cast<A*>(t.m);
        const A momentum = static_cast<A>(a.momentum);
        const A scale = static_cast<A>(now.grad_scale);
        const A rate = static_cast<A>(now.lr);
        const A decay = static_cast<A>(t.decay);
#pragma omp simd
        for (std::int64_t i = begin; i < end; ++i) {
          const A step = momentum * m[i] + A(grad[i]) * scale + decay * A(x[i]);
          m[i] = step;
          x[i] = T(A(x[i]) - rate * step);
        }
      });
}

void squared_norm_cpu(const SquaredNorm& a) {
  std::vector<double> partial(cut(a.tensors, a.count).size());
  for_chunks(
      "squared_norm", a.tensors, a.count,
      [&](auto tag, const StepTensor& t, std::int64_t chunk, std::int64_t begin, std::int64_t end) {
        using T = typename decltype(tag)::type;
        const T* grad = static_cast<const T*>(t.grad);
        double sum = 0;
#pragma omp simd reduction(+ : sum)
        for (std::int64_t i = begin; i < end; ++i) {
          const double g = static_cast<double>(grad[i]);
          sum += g * g;
        }
        partial[static_cast<std::size_t>(chunk)] = sum;
      });
  *a.out = 0;
  for (const double sum : partial) *a.out += sum;
}

}  // namespace

Slot<AdamWStep> adamw_step{"adamw_step", adamw_cpu};
Slot<SgdStep> sgd_step{"sgd_step", sgd_cpu};
Slot<SquaredNorm> squared_norm{"squared_norm", squared_norm_cpu};
Slot<StepScale> step_scale{"step_scale", scale_step};

}  // namespace proteus
