// Sums, means and maxima over dimensions. Sums are blocked: runs in the accumulation type, the runs
// in f64, in an order that depends on the shape alone.
#pragma once

#include <span>
#include <vector>

#include "tensor/slot.h"
#include "tensor/tensor.h"

namespace proteus {

/// y[a, c] = scale · Σ_r x[a, r, c]·z[a, r, c] over contiguous [A, R, C]; z may be null (1). x and
/// z have x_dtype; y has y_dtype: that, or its accumulation type, or a type whose accumulation type
/// x_dtype is.
struct SumFwd {
  const void* x = nullptr;
  const void* z = nullptr;
  void* y = nullptr;
  std::int64_t A = 0;
  std::int64_t R = 0;
  std::int64_t C = 0;
  double scale = 1;
  DType x_dtype = DType::f32;
  DType y_dtype = DType::f32;
};
extern Slot<SumFwd> sum_fwd;

/// y[a] = max_r x[a, r] and its first position, over contiguous [A, R], R ≥ 1. NaN wins.
struct MaxFwd {
  const void* x = nullptr;
  void* y = nullptr;
  std::int32_t* index = nullptr;
  std::int64_t A = 0;
  std::int64_t R = 0;
  DType dtype = DType::f32;
};
extern Slot<MaxFwd> max_fwd;

/// dx[a, r] = dy[a] where r = index[a], else 0.
struct MaxBwd {
  const void* dy = nullptr;
  const std::int32_t* index = nullptr;
  void* dx = nullptr;
  std::int64_t A = 0;
  std::int64_t R = 0;
  DType dtype = DType::f32;
};
extern Slot<MaxBwd> max_bwd;

namespace ops {

/// Dimensions to reduce; negative ones count from the end. Empty means all of them.
using Dims = std::vector<int>;

/// scale · the sum over `dims`, which become 1 (keepdim) or disappear. A sum of nothing is 0. Any
/// strides. Throws ShapeError (dimension out of range or named twice), DTypeError.
Tensor sum(const Tensor& x, const Dims& dims = {}, bool keepdim = false, double scale = 1);
/// sum / number of elements summed; the mean of nothing is NaN.
Tensor mean(const Tensor& x, const Dims& dims = {}, bool keepdim = false);
/// The sum over the dimensions in which `shape` was broadcast to x.shape: the gradient of expand.
Tensor sum_to(const Tensor& x, const Shape& shape);
/// sum_to(x ⊙ z, shape) without storing the product; z broadcasts to x.shape.
Tensor sum_product_to(const Tensor& x, const Tensor& z, const Shape& shape);

struct MaxResult {
  Tensor y;      ///< the maxima
  Tensor index;  ///< i32, shape of y: position among the reduced elements in row-major order
};
/// Throws ShapeError if there is nothing to take a maximum of, and as sum does.
MaxResult max(const Tensor& x, const Dims& dims = {}, bool keepdim = false);
/// dx of shape `x_shape`.
Tensor max_backward(const Tensor& dy, const Tensor& index, const Shape& x_shape, const Dims& dims);

}  // namespace ops
}  // namespace proteus
