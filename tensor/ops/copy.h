// Kernels behind Tensor::contiguous, to, copy_, fill_ and add_.
#pragma once

#include "tensor/dtype.h"
#include "tensor/shape.h"
#include "tensor/slot.h"

namespace proteus {

/// dst[i] = src[i] over all indices of `dst_layout.shape` (both layouts have it), with conversion.
/// Offsets are in the layouts; src and dst are the storages' first bytes and do not overlap.
struct StridedCopy {
  void* dst = nullptr;
  Layout dst_layout;
  DType dst_dtype = DType::f32;
  const void* src = nullptr;
  Layout src_layout;
  DType src_dtype = DType::f32;
};
extern Slot<StridedCopy> strided_copy;

/// dst[i] = value.
struct Fill {
  void* dst = nullptr;
  Layout layout;
  DType dtype = DType::f32;
  double value = 0;
};
extern Slot<Fill> fill;

/// dst[i] += scale · src[i], computed in the accumulation type.
struct Accumulate {
  void* dst = nullptr;
  Layout dst_layout;
  const void* src = nullptr;
  Layout src_layout;
  DType dtype = DType::f32;
  double scale = 1;
};
extern Slot<Accumulate> accumulate;

}  // namespace proteus
