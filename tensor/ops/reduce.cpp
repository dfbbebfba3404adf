#include "tensor/ops/reduce.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "tensor/ops/check.h"
#include "tensor/ops/elementwise.h"
#include "tensor/parallel.h"

namespace proteus {
namespace {

constexpr std::int64_t kLanes = 64;     // independent sums: four vectors of f32 in flight
constexpr std::int64_t kRun = 4096;     // elements per run that is summed in the accumulation type
constexpr std::int64_t kChunk = 32768;  // elements per partial sum

/// Rows r that one partial sum covers. With columns the partial sums are C wide: fewer of them.
std::int64_t chunk_rows(std::int64_t C) {
  return C == 1 ? kChunk : std::max<std::int64_t>(32, 4 * kChunk / C);
}

/// Σ term(i), i < n.
template <class A, class F>
double sum_terms(std::int64_t n, F term) {
  double total = 0;
  std::int64_t i = 0;
  while (n - i >= kLanes) {
    A lane[kLanes] = {};
    const std::int64_t end = std::min(n, i + kRun);
    for (; i + kLanes <= end; i += kLanes) {
#pragma omp simd
      for (std::int64_t j = 0; j < kLanes; ++j) lane[j] += term(i + j);
    }
    A sum = 0;
#pragma omp simd reduction(+ : sum)
    for (std::int64_t j = 0; j < kLanes; ++j) sum += lane[j];
    total += static_cast<double>(sum);
  }
  A rest = 0;
  for (; i < n; ++i) rest += term(i);
  return total + static_cast<double>(rest);
}

/// out[c] = Σ_r term(r·C + c): runs of 32 rows in the accumulation type.
template <class A, class F>
void column_sums(std::int64_t rows, std::int64_t C, double* out, F term) {
  constexpr std::int64_t kRows = 32;
  constexpr std::int64_t kColumns = 1024;
  std::fill(out, out + C, 0.0);
  A sum[kColumns];
  for (std::int64_t c0 = 0; c0 < C; c0 += kColumns) {
    const std::int64_t width = std::min(kColumns, C - c0);
    for (std::int64_t r0 = 0; r0 < rows; r0 += kRows) {
      const std::int64_t end = std::min(rows, r0 + kRows);
      std::fill(sum, sum + width, A(0));
      std::int64_t r = r0;
      for (; r + 4 <= end; r += 4) {
        const std::int64_t at = r * C + c0;
#pragma omp simd
        for (std::int64_t c = 0; c < width; ++c) {
          sum[c] +=
              (term(at + c) + term(at + C + c)) + (term(at + 2 * C + c) + term(at + 3 * C + c));
        }
      }
      for (; r < end; ++r) {
        const std::int64_t at = r * C + c0;
#pragma omp simd
        for (std::int64_t c = 0; c < width; ++c) sum[c] += term(at + c);
      }
#pragma omp simd
      for (std::int64_t c = 0; c < width; ++c) out[c0 + c] += static_cast<double>(sum[c]);
    }
  }
}

template <class A, class F>
void block_sums(std::int64_t rows, std::int64_t C, double* out, F term) {
  if (C == 1) {
    *out = sum_terms<A>(rows, term);
  } else {
    column_sums<A>(rows, C, out, term);
  }
}

/// y[a, c] = scale · Σ_k partial[a, k, c], in order of k.
template <class Out>
void finish_sums(const SumFwd& s, const double* partial, std::int64_t chunks) {
  constexpr std::int64_t kColumns = 256;
  const std::int64_t blocks = (s.C + kColumns - 1) / kColumns;
  const std::int64_t work = chunks * std::min(s.C, kColumns);
  const std::int64_t grain = std::max<std::int64_t>(1, kChunk / work);
  parallel_for(s.A * blocks, grain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t a = i / blocks;
      const std::int64_t c0 = i % blocks * kColumns;
      const std::int64_t width = std::min(kColumns, s.C - c0);
      double total[kColumns];
      std::fill(total, total + width, 0.0);
      for (std::int64_t k = 0; k < chunks; ++k) {
        const double* p = partial + (a * chunks + k) * s.C + c0;
#pragma omp simd
        for (std::int64_t c = 0; c < width; ++c) total[c] += p[c];
      }
      Out* y = static_cast<Out*>(s.y) + a * s.C + c0;
      for (std::int64_t c = 0; c < width; ++c)
        y[c] = Out(static_cast<accum_t<Out>>(total[c] * s.scale));
    }
  });
}

template <class T, class Out>
void sum_typed(const SumFwd& s) {
  using A = accum_t<T>;
  const T* x = static_cast<const T*>(s.x);
  const T* z = static_cast<const T*>(s.z);
  const std::int64_t rows = chunk_rows(s.C);
  const std::int64_t chunks = (s.R + rows - 1) / rows;
  std::vector<double> partial(static_cast<std::size_t>(s.A * chunks * s.C));
  const std::int64_t work = std::max<std::int64_t>(1, std::min(rows, s.R) * s.C);
  parallel_for(s.A * chunks, std::max<std::int64_t>(1, kChunk / work),
               [&](std::int64_t begin, std::int64_t end) {
                 for (std::int64_t i = begin; i < end; ++i) {
                   const std::int64_t r0 = i % chunks * rows;
                   const std::int64_t n = std::min(rows, s.R - r0);
                   const std::int64_t at = (i / chunks * s.R + r0) * s.C;
                   const T* p = x + at;
                   double* to = partial.data() + i * s.C;
                   if (z) {
                     const T* q = z + at;
                     block_sums<A>(n, s.C, to, [=](std::int64_t k) { return A(p[k]) * A(q[k]); });
                   } else {
                     block_sums<A>(n, s.C, to, [=](std::int64_t k) { return A(p[k]); });
                   }
                 }
               });
  finish_sums<Out>(s, partial.data(), chunks);
}

void sum_fwd_cpu(const SumFwd& s) {
  dispatch_float(s.x_dtype, "sum_fwd", [&](auto in) {
    using T = typename decltype(in)::type;
    dispatch_float(s.y_dtype, "sum_fwd", [&](auto out) {
      using Out = typename decltype(out)::type;
      if constexpr (std::is_same_v<accum_t<T>, accum_t<Out>>) {
        sum_typed<T, Out>(s);
      } else {
        throw_dtype("sum_fwd", s.y_dtype, name_of(s.x_dtype));
      }
    });
  });
}

template <class T>
void max_fwd_typed(const MaxFwd& m) {
  using A = accum_t<T>;
  const std::int64_t grain = std::max<std::int64_t>(1, kChunk / m.R);
  parallel_for(m.A, grain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t a = begin; a < end; ++a) {
      const T* x = static_cast<const T*>(m.x) + a * m.R;
      std::int64_t at = 0;
      A best = A(x[0]);
      for (std::int64_t r = 1; r < m.R && !std::isnan(best); ++r) {
        const A v = A(x[r]);
        if (v > best || std::isnan(v)) {
          best = v;
          at = r;
        }
      }
      static_cast<T*>(m.y)[a] = x[at];
      m.index[a] = static_cast<std::int32_t>(at);
    }
  });
}

template <class T>
void max_bwd_typed(const MaxBwd& m) {
  const std::int64_t grain = std::max<std::int64_t>(1, kChunk / m.R);
  parallel_for(m.A, grain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t a = begin; a < end; ++a) {
      T* dx = static_cast<T*>(m.dx) + a * m.R;
      std::fill(dx, dx + m.R, T(0));
      dx[m.index[a]] = static_cast<const T*>(m.dy)[a];
    }
  });
}

void max_fwd_cpu(const MaxFwd& m) {
  dispatch_float(m.dtype, "max_fwd",
                 [&](auto tag) { max_fwd_typed<typename decltype(tag)::type>(m); });
}

void max_bwd_cpu(const MaxBwd& m) {
  dispatch_float(m.dtype, "max_bwd",
                 [&](auto tag) { max_bwd_typed<typename decltype(tag)::type>(m); });
}

/// Which dimensions are reduced, as flags; all if none is named.
std::vector<bool> reduced_dims(const std::string& call, const ops::Dims& dims, int rank) {
  std::vector<bool> reduced(static_cast<std::size_t>(rank), dims.empty());
  for (const int dim : dims) {
    const auto d = static_cast<std::size_t>(checked_dim(call, dim, rank));
    if (reduced[d]) {
      throw ShapeError(call + ": dims: dimension " + std::to_string(dim) + " named twice");
    }
    reduced[d] = true;
  }
  return reduced;
}

Shape reduced_shape(const Shape& shape, const std::vector<bool>& reduced, bool keepdim) {
  Shape out;
  for (int d = 0; d < shape.rank(); ++d) {
    if (!reduced[static_cast<std::size_t>(d)]) {
      out.push_back(shape[d]);
    } else if (keepdim) {
      out.push_back(1);
    }
  }
  return out;
}

Tensor call_sum(const Tensor& x, const Tensor& z, std::int64_t A, std::int64_t R, std::int64_t C,
                double scale, DType dtype) {
  Tensor y = Tensor::empty({A * C}, dtype, x.device());
  if (y.numel() == 0) return y;
  if (R == 0) {
    y.zero_();
    return y;
  }
  sum_fwd(x.device(), {.x = x.raw(),
                       .z = z.defined() ? z.raw() : nullptr,
                       .y = y.raw(),
                       .A = A,
                       .R = R,
                       .C = C,
                       .scale = scale,
                       .x_dtype = x.dtype(),
                       .y_dtype = dtype});
  return y;
}

// Reduces one group of neighbouring dimensions after the other, the last one first; between groups
// the sums stay in the accumulation type. The result has the elements of the reduced shape.
Tensor sum_flags(const Tensor& x_any, const Tensor& z_any, const std::vector<bool>& reduced,
                 double scale) {
  Tensor x = x_any.contiguous();
  Tensor z = z_any.defined() ? z_any.contiguous() : z_any;
  std::vector<std::int64_t> sizes(x.shape().begin(), x.shape().end());
  std::vector<bool> flags = reduced;
  const DType dtype = x.dtype();
  while (true) {
    const auto last = std::find(flags.rbegin(), flags.rend(), true);
    if (last == flags.rend()) break;
    const auto end = static_cast<std::ptrdiff_t>(flags.rend() - last);
    std::ptrdiff_t begin = end - 1;
    while (begin > 0 && flags[static_cast<std::size_t>(begin - 1)]) --begin;
    const auto product = [&](std::ptrdiff_t from, std::ptrdiff_t to) {
      std::int64_t n = 1;
      for (auto i = from; i < to; ++i) n *= sizes[static_cast<std::size_t>(i)];
      return n;
    };
    const auto rank = static_cast<std::ptrdiff_t>(sizes.size());
    const std::int64_t A = product(0, begin);
    const std::int64_t R = product(begin, end);
    const std::int64_t C = product(end, rank);
    sizes.erase(sizes.begin() + begin, sizes.begin() + end);
    flags.erase(flags.begin() + begin, flags.begin() + end);
    const bool done = std::find(flags.begin(), flags.end(), true) == flags.end();
    x = call_sum(x, z, A, R, C, done ? scale : 1, done ? dtype : ops::accum_dtype(dtype));
    z = {};
  }
  return x;
}

/// Flags of the dimensions of `from` in which `to` is 1 or absent.
std::vector<bool> broadcast_dims(const Shape& from, const Shape& to) {
  const int lead = from.rank() - to.rank();
  std::vector<bool> reduced;
  for (int d = 0; d < from.rank(); ++d) {
    reduced.push_back(d < lead || (to[d - lead] == 1 && from[d] != 1));
  }
  return reduced;
}

bool any(const std::vector<bool>& flags) {
  return std::find(flags.begin(), flags.end(), true) != flags.end();
}

// x seen as [A, R]: kept dimensions, then reduced ones. `order` gets the permutation.
Tensor reduced_last(const Tensor& x, const std::vector<bool>& reduced, std::vector<int>& order) {
  for (const bool wanted : {false, true}) {
    for (int d = 0; d < x.rank(); ++d) {
      if (reduced[static_cast<std::size_t>(d)] == wanted) order.push_back(d);
    }
  }
  return x.permute(order);
}

}  // namespace

Slot<SumFwd> sum_fwd{"sum_fwd", sum_fwd_cpu};
Slot<MaxFwd> max_fwd{"max_fwd", max_fwd_cpu};
Slot<MaxBwd> max_bwd{"max_bwd", max_bwd_cpu};

namespace ops {

Tensor sum(const Tensor& x, const Dims& dims, bool keepdim, double scale) {
  check_floating("sum(x, dims)", "x", x);
  const auto reduced = reduced_dims("sum(x, dims)", dims, x.rank());
  const Shape shape = reduced_shape(x.shape(), reduced, keepdim);
  if (!any(reduced)) return affine(x, scale, 0);
  return sum_flags(x, {}, reduced, scale).reshape(shape);
}

Tensor mean(const Tensor& x, const Dims& dims, bool keepdim) {
  check_floating("mean(x, dims)", "x", x);
  const auto reduced = reduced_dims("mean(x, dims)", dims, x.rank());
  std::int64_t n = 1;
  for (int d = 0; d < x.rank(); ++d) n *= reduced[static_cast<std::size_t>(d)] ? x.size(d) : 1;
  if (n == 0) {
    return Tensor::full(reduced_shape(x.shape(), reduced, keepdim),
                        std::numeric_limits<double>::quiet_NaN(), x.dtype(), x.device());
  }
  return sum(x, dims, keepdim, 1.0 / static_cast<double>(n));
}

Tensor sum_to(const Tensor& x, const Shape& shape) {
  const auto reduced = broadcast_dims(x.shape(), shape);
  if (!any(reduced)) return x.reshape(shape);
  return sum_flags(x, {}, reduced, 1).reshape(shape);
}

Tensor sum_product_to(const Tensor& x, const Tensor& z, const Shape& shape) {
  const auto reduced = broadcast_dims(x.shape(), shape);
  if (!any(reduced)) return mul(x, z).reshape(shape);
  return sum_flags(x, z.expand(x.shape()), reduced, 1).reshape(shape);
}

MaxResult max(const Tensor& x, const Dims& dims, bool keepdim) {
  const std::string call = "max(x, dims)";
  check_floating(call, "x", x);
  const auto reduced = reduced_dims(call, dims, x.rank());
  const Shape shape = reduced_shape(x.shape(), reduced, keepdim);
  MaxResult out{Tensor::empty(shape, x.dtype(), x.device()),
                Tensor::empty(shape, DType::i32, x.device())};
  const std::int64_t A = shape.numel();
  if (A == 0) return out;
  const std::int64_t R = x.numel() / A;
  if (R == 0) {
    throw ShapeError(call + ": x: " + to_string(x.shape()) + " has no elements to compare");
  }
  if (R > std::numeric_limits<std::int32_t>::max()) {
    throw ShapeError(call + ": x: " + to_string(x.shape()) + " reduces more than 2^31 elements");
  }
  std::vector<int> order;
  const Tensor rows = reduced_last(x, reduced, order).contiguous();
  max_fwd(x.device(), {.x = rows.raw(),
                       .y = out.y.raw(),
                       .index = out.index.data<std::int32_t>(),
                       .A = A,
                       .R = R,
                       .dtype = x.dtype()});
  return out;
}

Tensor max_backward(const Tensor& dy_any, const Tensor& index, const Shape& x_shape,
                    const Dims& dims) {
  const Tensor dy = dy_any.contiguous();
  Tensor dx = Tensor::empty(x_shape, dy.dtype(), dy.device());
  if (dx.numel() == 0) return dx;
  std::vector<int> order;
  const auto reduced = reduced_dims("max(x, dims)", dims, x_shape.rank());
  Shape rows_shape = reduced_last(dx, reduced, order).shape();
  const Tensor rows = Tensor::empty(rows_shape, dy.dtype(), dy.device());
  const std::int64_t A = index.numel();
  max_bwd(dy.device(), {.dy = dy.raw(),
                        .index = index.data<std::int32_t>(),
                        .dx = rows.raw(),
                        .A = A,
                        .R = dx.numel() / A,
                        .dtype = dy.dtype()});
  std::vector<int> back(order.size());
  for (std::size_t i = 0; i < order.size(); ++i) {
    back[static_cast<std::size_t>(order[i])] = static_cast<int>(i);
  }
  return rows.permute(back);
}

}  // namespace ops
}  // namespace proteus
