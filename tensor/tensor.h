// Tensor: a value handle on a storage with a dtype and a layout. Copying a handle shares the data;
// views share it too. Arithmetic lives in tensor/ops/, gradients in autograd/.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "tensor/device.h"
#include "tensor/dtype.h"
#include "tensor/rng.h"
#include "tensor/shape.h"
#include "tensor/storage.h"

namespace proteus {

class Tensor {
 public:
  /// An undefined tensor: no data, no shape; `defined()` is false.
  Tensor() = default;
  /// A tensor over existing storage; the layout must fit into it.
  Tensor(std::shared_ptr<Storage> storage, DType dtype, const Layout& layout);

  bool defined() const { return storage_ != nullptr; }
  const Shape& shape() const { return layout_.shape; }
  std::int64_t size(int dim) const { return layout_.shape[dim]; }
  int rank() const { return layout_.shape.rank(); }
  std::int64_t numel() const { return layout_.shape.numel(); }
  std::int64_t bytes() const { return numel() * static_cast<std::int64_t>(size_of(dtype_)); }
  DType dtype() const { return dtype_; }
  Device device() const;
  const Layout& layout() const { return layout_; }
  std::int64_t stride(int dim) const { return layout_.strides[dim]; }
  bool is_contiguous() const { return layout_.is_contiguous(); }
  const std::shared_ptr<Storage>& storage() const { return storage_; }

  /// Address of the first element. The pointer may be written through: a tensor is a handle.
  void* raw() const;
  /// The same, typed; throws DTypeError when T is not the dtype.
  template <class T>
  T* data() const {
    check_dtype(dtype_of<T>());
    return static_cast<T*>(raw());
  }
  /// The only element, as a double, from any device. Throws ShapeError unless numel() == 1.
  double item() const;
  /// All elements in row-major order, converted; from any device.
  std::vector<double> to_vector() const;
  /// Counts in-place changes of the storage (see Storage).
  std::uint64_t version() const { return storage_ ? storage_->version() : 0; }
  void bump_version() const { storage_->bump_version(); }

  /// Views: no data is copied; each throws ShapeError when it does not fit.
  /// `reshape` accepts one -1 and falls back to a contiguous copy where strides do not allow a
  /// view.
  Tensor reshape(const Shape& shape) const;
  Tensor transpose(int a, int b) const;
  Tensor permute(std::span<const int> order) const;
  Tensor permute(std::initializer_list<int> order) const {
    return permute(std::span<const int>(order.begin(), order.size()));
  }
  /// Elements [begin, end) of a dimension.
  Tensor slice(int dim, std::int64_t begin, std::int64_t end) const;
  /// Index i of a dimension, which disappears.
  Tensor select(int dim, std::int64_t i) const;
  Tensor unsqueeze(int dim) const;
  Tensor squeeze(int dim) const;
  /// Broadcast view with stride 0 in repeated dimensions.
  Tensor expand(const Shape& shape) const;

  /// This tensor if already so, otherwise a copy.
  Tensor contiguous() const;
  Tensor to(DType dtype) const;
  Tensor to(Device device) const;
  /// A contiguous copy, always.
  Tensor clone() const;
  /// Overwrites the elements in place (and bumps the version). Shapes must be equal; dtypes
  /// convert.
  void copy_(const Tensor& source) const;
  void fill_(double value) const;
  /// this += scale · source in place (and bumps the version); shapes and dtypes must be equal.
  void add_(const Tensor& source, double scale = 1) const;
  void zero_() const { fill_(0); }

  static Tensor empty(const Shape& shape, DType dtype = DType::f32, Device device = kCpu);
  static Tensor zeros(const Shape& shape, DType dtype = DType::f32, Device device = kCpu);
  static Tensor full(const Shape& shape, double value, DType dtype = DType::f32,
                     Device device = kCpu);
  static Tensor scalar(double value, DType dtype = DType::f32, Device device = kCpu) {
    return full({}, value, dtype, device);
  }
  /// 0, 1, …, n−1.
  static Tensor arange(std::int64_t n, DType dtype = DType::i64, Device device = kCpu);
  /// Row-major values, converted to `dtype`.
  static Tensor from(std::span<const double> values, const Shape& shape, DType dtype = DType::f32,
                     Device device = kCpu);
  static Tensor from(std::initializer_list<double> values, const Shape& shape,
                     DType dtype = DType::f32, Device device = kCpu) {
    return from(std::span<const double>(values.begin(), values.size()), shape, dtype, device);
  }
  template <class T>
  static Tensor from_data(std::span<const T> values, const Shape& shape, Device device = kCpu) {
    return from_bytes(values.data(), values.size_bytes(), shape, dtype_of<T>(), device);
  }
  /// Normal (mean, std) or uniform [low, high) numbers: element i is a pure function of (key, i),
  /// computed in f64 and rounded to `dtype` once (which may reach `high`).
  static Tensor randn(const Shape& shape, RngKey key, DType dtype = DType::f32, double mean = 0,
                      double std = 1, Device device = kCpu);
  static Tensor rand(const Shape& shape, RngKey key, DType dtype = DType::f32, double low = 0,
                     double high = 1, Device device = kCpu);

 private:
  void check_dtype(DType wanted) const;
  Tensor with_layout(const Layout& layout) const { return Tensor(storage_, dtype_, layout); }
  static Tensor from_bytes(const void* data, std::size_t bytes, const Shape& shape, DType dtype,
                           Device device);

  std::shared_ptr<Storage> storage_;
  DType dtype_ = DType::f32;
  Layout layout_;
};

/// "f32 [8, 1024, 768]", for messages.
std::string describe(const Tensor& tensor);

}  // namespace proteus
