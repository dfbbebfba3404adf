// Argument checks that the functions in ops/ share. `call` is how the message begins, like
// "mul(a, b)".
#pragma once

#include <string>

#include "tensor/error.h"
#include "tensor/tensor.h"

namespace proteus::ops {

/// Throws ShapeError for an undefined tensor, DTypeError unless `t` is f64, f32 or bf16.
inline void check_floating(const std::string& call, const char* name, const Tensor& t) {
  if (!t.defined()) throw ShapeError(call + ": " + name + ": undefined tensor");
  if (!is_floating(t.dtype())) throw_dtype(call + ": " + name, t.dtype(), "f64, f32 or bf16");
}

/// Throws DeviceError unless `t` is where `like` is.
inline void check_device(const std::string& call, const char* name, const Tensor& t,
                         const Tensor& like) {
  if (t.device() == like.device()) return;
  throw DeviceError(call + ": " + name + ": expected on " + to_string(like.device()) + ", got on " +
                    to_string(t.device()) + "; move it with to(device)");
}

/// Throws ShapeError for an undefined tensor, DTypeError or DeviceError unless `t` has the dtype
/// and the device of `like`.
inline void check_like(const std::string& call, const char* name, const Tensor& t,
                       const Tensor& like) {
  if (!t.defined()) throw ShapeError(call + ": " + name + ": undefined tensor");
  if (t.dtype() != like.dtype()) throw_dtype(call + ": " + name, t.dtype(), name_of(like.dtype()));
  check_device(call, name, t, like);
}

/// Throws ShapeError unless `t` has `shape`; `because` says where that comes from, like
/// "(= x.shape)".
inline void check_shape(const std::string& call, const char* name, const Tensor& t,
                        const Shape& shape, const std::string& because) {
  if (t.shape() == shape) return;
  throw ShapeError(call + ": " + name + ": expected " + to_string(shape) + " " + because +
                   ", got " + to_string(t.shape()));
}

/// The dtype that sums over `dtype` are kept in.
constexpr DType accum_dtype(DType dtype) { return dtype == DType::f64 ? DType::f64 : DType::f32; }

}  // namespace proteus::ops
