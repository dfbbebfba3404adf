#include "tensor/ops/take.h"

#include <algorithm>
#include <string>
#include <vector>

#include "tensor/ops/check.h"
#include "tensor/ops/pack.h"
#include "tensor/parallel.h"

namespace proteus {
namespace {

constexpr std::int64_t kSumElements = 1 << 14;  // elements per chunk

template <class T>
void rows_sum_typed(const RowsSum& a) {
  using A = accum_t<T>;
  const std::int64_t grain = std::max<std::int64_t>(1, kSumElements / a.C);
  parallel_for(a.rows, grain, [&](std::int64_t first, std::int64_t last) {
    std::vector<A> sum(static_cast<std::size_t>(a.C));
    for (std::int64_t r = first; r < last; ++r) {
      std::fill(sum.begin(), sum.end(), A(0));
      A* total = sum.data();
      for (std::int32_t i = a.begin[r]; i < a.begin[r + 1]; ++i) {
        const T* y = static_cast<const T*>(a.y) + a.place[i] * a.C;
#pragma omp simd
        for (std::int64_t c = 0; c < a.C; ++c) total[c] += A(y[c]);
      }
      T* out = static_cast<T*>(a.out) + r * a.C;
      for (std::int64_t c = 0; c < a.C; ++c) out[c] = T(total[c]);
    }
  });
}

void rows_sum_cpu(const RowsSum& a) {
  dispatch_float(a.dtype, "rows_sum",
                 [&](auto tag) { rows_sum_typed<typename decltype(tag)::type>(a); });
}

void check_taken(const std::string& call, const char* name, const Tensor& t, std::int64_t size,
                 const char* what, const RowIndex& index) {
  ops::check_floating(call, name, t);
  ops::check_device(call, name, t, index.row);
  if (t.rank() == 2 && t.size(0) == size) return;
  throw ShapeError(call + ": " + name + ": expected [" + std::to_string(size) + ", C] (= " + what +
                   "), got " + to_string(t.shape()));
}

}  // namespace

Slot<RowsSum> rows_sum{"rows_sum", rows_sum_cpu};

namespace ops {

RowIndex row_index(const Tensor& row_any, std::int64_t rows) {
  const std::string call = "row_index(row, rows)";
  if (row_any.dtype() != DType::i32) throw_dtype(call + ": row", row_any.dtype(), "i32");
  if (row_any.rank() != 1) {
    throw ShapeError(call + ": row: expected [n], got " + to_string(row_any.shape()));
  }
  const Tensor host = row_any.to(kCpu).contiguous();
  const auto* row = host.data<std::int32_t>();
  const std::int64_t n = host.numel();
  Tensor begin = Tensor::zeros({rows + 1}, DType::i32);
  Tensor place = Tensor::empty({n}, DType::i32);
  auto* bound = begin.data<std::int32_t>();
  for (std::int64_t i = 0; i < n; ++i) {
    if (row[i] < 0 || row[i] >= rows) {
      throw ConfigError(call + ": row: expected rows in [0, " + std::to_string(rows) + "), got " +
                        std::to_string(row[i]) + " at " + std::to_string(i));
    }
    ++bound[row[i] + 1];
  }
  for (std::int64_t r = 0; r < rows; ++r) bound[r + 1] += bound[r];
  std::vector<std::int32_t> next(bound, bound + rows);
  for (std::int64_t i = 0; i < n; ++i) {
    place.data<std::int32_t>()[next[static_cast<std::size_t>(row[i])]++] =
        static_cast<std::int32_t>(i);
  }
  const Device device = row_any.device();
  return {host.to(device), begin.to(device), place.to(device)};
}

Tensor take_rows(const Tensor& x_any, const RowIndex& index) {
  check_taken("take_rows(x, index)", "x", x_any, index.rows(), "rows of the index", index);
  const Tensor x = x_any.contiguous();
  Tensor y = Tensor::empty({index.taken(), x.size(1)}, x.dtype(), x.device());
  if (y.numel() == 0) return y;
  rows_gather(x.device(), {.x = x.raw(),
                           .y = y.raw(),
                           .token = index.row.data<std::int32_t>(),
                           .rows = index.taken(),
                           .C = x.size(1),
                           .dtype = x.dtype()});
  return y;
}

Tensor sum_rows(const Tensor& y_any, const RowIndex& index) {
  check_taken("sum_rows(y, index)", "y", y_any, index.taken(), "rows taken", index);
  const Tensor y = y_any.contiguous();
  Tensor out = Tensor::empty({index.rows(), y.size(1)}, y.dtype(), y.device());
  if (out.numel() == 0) return out;
  rows_sum(y.device(), {.y = y.raw(),
                        .out = out.raw(),
                        .begin = index.begin.data<std::int32_t>(),
                        .place = index.place.data<std::int32_t>(),
                        .rows = index.rows(),
                        .C = y.size(1),
                        .dtype = y.dtype()});
  return out;
}

}  // namespace ops
}  // namespace proteus
