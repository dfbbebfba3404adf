// Views and copies with gradients. Results of slice, reshape, transpose, permute and expand share
// memory with x where strides allow; what they save is shapes only. All throw ShapeError where they
// do not fit.
#pragma once

#include <vector>

#include "autograd/variable.h"

namespace proteus {

/// Elements [begin, end) of a dimension.
Variable slice(const Variable& x, int dim, std::int64_t begin, std::int64_t end);
/// Equal parts along a dimension, without a copy; their gradients are written side by side.
std::vector<Variable> split(const Variable& x, int dim, int parts);
/// The parts one after the other along a dimension; their other sizes must be equal. Copies.
Variable concat(const std::vector<Variable>& parts, int dim);
/// One size may be -1.
Variable reshape(const Variable& x, const Shape& shape);
Variable transpose(const Variable& x, int a, int b);
Variable permute(const Variable& x, const std::vector<int>& order);
/// NumPy broadcasting to a larger shape, with stride 0.
Variable expand(const Variable& x, const Shape& shape);
/// A contiguous copy.
Variable clone(const Variable& x);
/// x converted; the gradient is converted back. Throws DTypeError unless both are floating.
Variable cast(const Variable& x, DType dtype);
/// A parameter kept in f32 beside an x of bf16, rounded to bf16; its gradient comes back in f32.
/// Any other pair stays as it is.
Variable beside(const Variable& parameter, const Variable& x);

}  // namespace proteus
