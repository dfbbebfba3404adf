#include "tensor/ops/wide_linear.h"

#include "tensor/ops/check.h"
#include "tensor/ops/gemm.h"
#include "tensor/parallel.h"
#include "tensor/storage.h"

namespace proteus {
namespace {

constexpr std::int64_t kGrain = 1 << 16;  // elements of a chunk that is widened or rounded

DType wide(DType dtype) { return ops::accum_dtype(dtype); }

std::size_t bytes(std::int64_t n, DType dtype) {
  return static_cast<std::size_t>(n) * size_of(dtype);
}

/// Elements in the accumulation type: as they are, or a copy.
class Widened {
 public:
  Widened(const void* x, std::int64_t n, DType dtype)
      : copy_(dtype == DType::bf16 ? bytes(n, DType::f32) : 0, kCpu), data_(x) {
    if (dtype != DType::bf16) return;
    data_ = copy_.data();
    const auto* from = static_cast<const bfloat16*>(x);
    auto* to = static_cast<float*>(copy_.data());
    parallel_for(n, kGrain, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) to[i] = static_cast<float>(from[i]);
    });
  }
  const void* data() const { return data_; }

 private:
  Storage copy_;
  const void* data_;
};

void wide_linear_fwd_cpu(const WideLinearFwd& a) {
  const Widened x(a.x, a.M * a.K, a.dtype);
  gemm_fwd(kCpu, {.a = x.data(),
                  .b = a.weight,
                  .c = a.y,
                  .M = a.M,
                  .N = a.N,
                  .K = a.K,
                  .lda = a.K,
                  .ldb = a.K,
                  .ldc = a.N,
                  .trans_b = true,
                  .dtype = wide(a.dtype)});
}

void wide_linear_dx(const WideLinearBwd& a) {
  const bool narrow = a.dtype == DType::bf16;
  const Storage sums(narrow ? bytes(a.M * a.K, DType::f32) : 0, kCpu);
  gemm_fwd(kCpu, {.a = a.dy,
                  .b = a.weight,
                  .c = narrow ? sums.data() : a.dx,
                  .M = a.M,
                  .N = a.K,
                  .K = a.N,
                  .lda = a.N,
                  .ldb = a.K,
                  .ldc = a.K,
                  .beta = a.add_dx && !narrow ? 1.0 : 0.0,
                  .dtype = wide(a.dtype)});
  if (!narrow) return;
  const auto* from = static_cast<const float*>(sums.data());
  auto* to = static_cast<bfloat16*>(a.dx);
  parallel_for(a.M * a.K, kGrain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      to[i] = bfloat16(a.add_dx ? static_cast<float>(to[i]) + from[i] : from[i]);
    }
  });
}

void wide_linear_bwd_cpu(const WideLinearBwd& a) {
  if (a.dx) wide_linear_dx(a);
  if (!a.dweight) return;
  const Widened x(a.x, a.M * a.K, a.dtype);
  gemm_fwd(kCpu, {.a = a.dy,
                  .b = x.data(),
                  .c = a.dweight,
                  .M = a.N,
                  .N = a.K,
                  .K = a.M,
                  .lda = a.N,
                  .ldb = a.K,
                  .ldc = a.K,
                  .trans_a = true,
                  .dtype = wide(a.dtype)});
}

void check_call(const std::string& call, const Tensor& x, const Tensor& weight) {
  ops::check_floating(call, "x", x);
  if (weight.dtype() != wide(x.dtype())) {
    throw_dtype(call + ": weight", weight.dtype(), name_of(wide(x.dtype())));
  }
  ops::check_device(call, "weight", weight, x);
  if (x.rank() < 1 || weight.rank() != 2 || weight.size(1) != x.size(-1)) {
    throw ShapeError(call + ": weight: expected [out, in] with in = x.shape[-1], got " +
                     to_string(weight.shape()) + "; x is " + to_string(x.shape()));
  }
}

std::int64_t rows_of(const Tensor& x) {
  std::int64_t rows = 1;
  for (int d = 0; d < x.rank() - 1; ++d) rows *= x.size(d);
  return rows;
}

Shape shape_of_y(const Tensor& x, const Tensor& weight) {
  Shape shape = x.shape();
  shape[-1] = weight.size(0);
  return shape;
}

}  // namespace

Slot<WideLinearFwd> wide_linear_fwd{"wide_linear_fwd", wide_linear_fwd_cpu};
Slot<WideLinearBwd> wide_linear_bwd{"wide_linear_bwd", wide_linear_bwd_cpu};

namespace ops {

Tensor wide_linear(const Tensor& x_any, const Tensor& weight_any) {
  check_call("wide_linear(x, weight)", x_any, weight_any);
  const Tensor x = x_any.contiguous();
  const Tensor weight = weight_any.contiguous();
  Tensor y = Tensor::empty(shape_of_y(x, weight), weight.dtype(), x.device());
  if (y.numel() == 0) return y;
  wide_linear_fwd(x.device(), {.x = x.raw(),
                               .weight = weight.raw(),
                               .y = y.raw(),
                               .M = rows_of(x),
                               .N = weight.size(0),
                               .K = weight.size(1),
                               .dtype = x.dtype()});
  return y;
}

WideLinearGrads wide_linear_backward(const Tensor& x_any, const Tensor& weight_any,
                                     const Tensor& dy_any, bool want_dx, bool want_dweight,
                                     const Tensor* sum) {
  const std::string call = "wide_linear_backward(x, weight, dy)";
  check_call(call, x_any, weight_any);
  check_like(call, "dy", dy_any, weight_any);
  check_shape(call, "dy", dy_any, shape_of_y(x_any, weight_any), "(= the shape of y)");
  const Tensor x = x_any.contiguous();
  const Tensor weight = weight_any.contiguous();
  const Tensor dy = dy_any.contiguous();
  WideLinearGrads out;
  if (sum) {
    check_like(call, "sum", *sum, x);
    check_shape(call, "sum", *sum, x.shape(), "(= x.shape)");
    if (!sum->is_contiguous()) throw ShapeError(call + ": sum: expected contiguous rows");
  }
  if (want_dx && !sum) out.dx = Tensor::empty(x.shape(), x.dtype(), x.device());
  if (want_dweight) out.dweight = Tensor::empty(weight.shape(), weight.dtype(), x.device());
  WideLinearBwd args{.x = x.raw(),
                     .weight = weight.raw(),
                     .dy = dy.raw(),
                     .M = rows_of(x),
                     .N = weight.size(0),
                     .K = weight.size(1),
                     .add_dx = sum != nullptr,
                     .dtype = x.dtype()};
  if (want_dx && x.numel() > 0) args.dx = sum ? sum->raw() : out.dx.raw();
  if (want_dweight && weight.numel() > 0) args.dweight = out.dweight.raw();
  if (args.dx || args.dweight) wide_linear_bwd(x.device(), args);
  if (sum) sum->bump_version();
  return out;
}

}  // namespace ops
}  // namespace proteus
