#include "tensor/tensor.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "tensor/error.h"
#include "tensor/ops/copy.h"
#include "tensor/parallel.h"

namespace proteus {
namespace {

std::size_t checked_bytes(const Shape& shape, DType dtype) {
  const auto limit =
      std::numeric_limits<std::int64_t>::max() / static_cast<std::int64_t>(size_of(dtype));
  std::int64_t n = 1;
  for (const std::int64_t size : shape) {
    if (size < 0) throw ShapeError("tensor: negative size in " + to_string(shape));
    if (size > 0 && n > limit / size) {
      throw OutOfMemory("tensor: " + to_string(shape) + " has more bytes than an address space");
    }
    n *= size;
  }
  return static_cast<std::size_t>(n) * size_of(dtype);
}

// Strides that make `shape` a view of `layout`, if there are any (merging and splitting runs).
bool view_strides(const Layout& layout, const Shape& shape, Shape& strides) {
  strides = Layout::contiguous(shape).strides;
  if (layout.is_contiguous()) return true;
  int d = layout.shape.rank() - 1;
  int e = shape.rank() - 1;
  while (d >= 0 && e >= 0) {
    // A run of source dimensions that lie contiguously to each other.
    std::int64_t run = layout.shape[d];
    const std::int64_t step = layout.strides[d];
    while (d > 0 && layout.strides[d - 1] == layout.strides[d] * layout.shape[d]) {
      run *= layout.shape[--d];
    }
    std::int64_t taken = 1;
    while (e >= 0 && taken < run) {
      strides[e] = step * taken;
      taken *= shape[e--];
    }
    while (e >= 0 && shape[e] == 1) strides[e--] = step * taken;
    if (taken != run) return false;
    --d;
  }
  return true;
}

}  // namespace

Tensor::Tensor(std::shared_ptr<Storage> storage, DType dtype, const Layout& layout)
    : storage_(std::move(storage)), dtype_(dtype), layout_(layout) {}

Device Tensor::device() const { return storage_ ? storage_->device() : kCpu; }

void* Tensor::raw() const {
  if (!storage_) throw Error("tensor: data asked of an undefined tensor");
  return static_cast<char*>(storage_->data()) +
         layout_.offset * static_cast<std::int64_t>(size_of(dtype_));
}

void Tensor::check_dtype(DType wanted) const {
  if (wanted != dtype_) throw_dtype("tensor.data", dtype_, name_of(wanted));
}

double Tensor::item() const {
  if (numel() != 1) {
    throw ShapeError("item(x): x: expected one element, got " + to_string(shape()));
  }
  return to_vector()[0];
}

std::vector<double> Tensor::to_vector() const {
  const Tensor host = to(kCpu).to(DType::f64).contiguous();
  const double* p = host.data<double>();
  return {p, p + host.numel()};
}

Tensor Tensor::reshape(const Shape& wanted) const {
  Shape shape = wanted;
  std::int64_t known = 1;
  int hole = -1;
  bool fits = true;
  for (int d = 0; d < shape.rank(); ++d) {
    if (shape[d] == -1 && hole < 0) {
      hole = d;
    } else {
      fits = fits && shape[d] >= 0;
      known *= shape[d];
    }
  }
  if (hole >= 0 && known > 0) shape[hole] = numel() / known;
  if (!fits || (hole >= 0 && known == 0) || shape.numel() != numel()) {
    throw ShapeError("reshape(x, shape): shape: " + to_string(wanted) + " does not have the " +
                     std::to_string(numel()) + " elements of x " + to_string(this->shape()));
  }
  Layout layout{shape, {}, layout_.offset};
  if (!view_strides(layout_, shape, layout.strides)) return contiguous().reshape(shape);
  return with_layout(layout);
}

Tensor Tensor::transpose(int a, int b) const {
  a = checked_dim("transpose", a, rank());
  b = checked_dim("transpose", b, rank());
  Layout layout = layout_;
  std::swap(layout.shape[a], layout.shape[b]);
  std::swap(layout.strides[a], layout.strides[b]);
  return with_layout(layout);
}

Tensor Tensor::permute(std::span<const int> order) const {
  if (static_cast<int>(order.size()) != rank()) {
    throw ShapeError("permute(x, order): order: expected " + std::to_string(rank()) +
                     " dimensions, got " + std::to_string(order.size()));
  }
  Layout layout{{}, {}, layout_.offset};
  unsigned seen = 0;
  for (const int o : order) {
    const int d = checked_dim("permute", o, rank());
    if (seen >> d & 1u) throw ShapeError("permute: dimension " + std::to_string(o) + " twice");
    seen |= 1u << d;
    layout.shape.push_back(layout_.shape[d]);
    layout.strides.push_back(layout_.strides[d]);
  }
  return with_layout(layout);
}

Tensor Tensor::slice(int dim, std::int64_t begin, std::int64_t end) const {
  dim = checked_dim("slice", dim, rank());
  if (begin < 0 || end < begin || end > size(dim)) {
    throw ShapeError("slice(x, dim, begin, end): [" + std::to_string(begin) + ", " +
                     std::to_string(end) + ") is not within dimension " + std::to_string(dim) +
                     " of " + to_string(shape()));
  }
  Layout layout = layout_;
  layout.offset += begin * layout.strides[dim];
  layout.shape[dim] = end - begin;
  return with_layout(layout);
}

Tensor Tensor::select(int dim, std::int64_t i) const {
  dim = checked_dim("select", dim, rank());
  return slice(dim, i, i + 1).squeeze(dim);
}

Tensor Tensor::unsqueeze(int dim) const {
  const int d = checked_dim("unsqueeze", dim, rank() + 1);
  Layout layout = layout_;
  layout.shape = layout_.shape.with(d, 1);
  layout.strides = layout_.strides.with(d, 1);
  return with_layout(layout);
}

Tensor Tensor::squeeze(int dim) const {
  const int d = checked_dim("squeeze", dim, rank());
  if (size(d) != 1) {
    throw ShapeError("squeeze(x, dim): dimension " + std::to_string(dim) + " of " +
                     to_string(shape()) + " is not 1");
  }
  Layout layout = layout_;
  layout.shape = layout_.shape.without(d);
  layout.strides = layout_.strides.without(d);
  return with_layout(layout);
}

Tensor Tensor::expand(const Shape& shape) const {
  return with_layout(broadcast_to("expand", layout_, shape));
}

Tensor Tensor::contiguous() const { return is_contiguous() ? *this : clone(); }

Tensor Tensor::to(DType dtype) const {
  if (dtype == dtype_) return *this;
  Tensor out = empty(shape(), dtype, device());
  out.copy_(*this);
  return out;
}

Tensor Tensor::to(Device target) const {
  if (target == device()) return *this;
  const Tensor source = contiguous();
  Tensor out = empty(shape(), dtype_, target);
  copy_bytes(out.raw(), target, source.raw(), device(), static_cast<std::size_t>(bytes()));
  return out;
}

Tensor Tensor::clone() const {
  Tensor out = empty(shape(), dtype_, device());
  out.copy_(*this);
  return out;
}

void Tensor::copy_(const Tensor& source) const {
  if (source.shape() != shape()) {
    throw ShapeError("copy_(x, source): source: expected " + to_string(shape()) + ", got " +
                     to_string(source.shape()));
  }
  // Views of one storage may overlap: what is read must not be overwritten before.
  const bool aliases = source.storage() == storage_ && numel() > 0;
  const Tensor local = aliases ? source.clone() : source.to(device());
  bump_version();
  if (numel() == 0) return;
  strided_copy(device(), {storage_->data(), layout_, dtype_, local.storage()->data(),
                          local.layout(), local.dtype()});
}

void Tensor::fill_(double value) const {
  bump_version();
  if (numel() == 0) return;
  fill(device(), {storage_->data(), layout_, dtype_, value});
}

void Tensor::add_(const Tensor& source, double scale) const {
  if (source.shape() != shape() || source.dtype() != dtype_ || source.device() != device()) {
    throw ShapeError("add_(x, source): source: expected " + describe(*this) + " on " +
                     to_string(device()) + ", got " + describe(source) + " on " +
                     to_string(source.device()));
  }
  bump_version();
  if (numel() == 0) return;
  accumulate(device(),
             {storage_->data(), layout_, source.storage()->data(), source.layout(), dtype_, scale});
}

Tensor Tensor::empty(const Shape& shape, DType dtype, Device device) {
  const std::size_t bytes = checked_bytes(shape, dtype);
  return Tensor(std::make_shared<Storage>(bytes, device), dtype, Layout::contiguous(shape));
}

Tensor Tensor::zeros(const Shape& shape, DType dtype, Device device) {
  return full(shape, 0, dtype, device);
}

Tensor Tensor::full(const Shape& shape, double value, DType dtype, Device device) {
  Tensor out = empty(shape, dtype, device);
  out.fill_(value);
  return out;
}

Tensor Tensor::arange(std::int64_t n, DType dtype, Device device) {
  Tensor out = empty({n}, DType::i64);
  std::int64_t* p = out.data<std::int64_t>();
  for (std::int64_t i = 0; i < n; ++i) p[i] = i;
  return out.to(dtype).to(device);
}

Tensor Tensor::from(std::span<const double> values, const Shape& shape, DType dtype,
                    Device device) {
  return from_bytes(values.data(), values.size_bytes(), shape, DType::f64, kCpu)
      .to(dtype)
      .to(device);
}

Tensor Tensor::from_bytes(const void* data, std::size_t bytes, const Shape& shape, DType dtype,
                          Device device) {
  const std::size_t wanted = checked_bytes(shape, dtype);
  if (bytes != wanted) {
    throw ShapeError("tensor.from(values, shape): values: expected " +
                     std::to_string(shape.numel()) + " for " + to_string(shape) + ", got " +
                     std::to_string(bytes / size_of(dtype)));
  }
  Tensor out = empty(shape, dtype);
  if (bytes) std::memcpy(out.raw(), data, bytes);
  return out.to(device);
}

Tensor Tensor::randn(const Shape& shape, RngKey key, DType dtype, double mean, double std,
                     Device device) {
  Tensor out = empty(shape, DType::f64);
  double* p = out.data<double>();
  constexpr std::int64_t kGrain = 4096;  // a multiple of the four numbers of one counter
  parallel_for(out.numel(), kGrain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; i += 4) {
      const Philox4 r = philox(key.seed, static_cast<std::uint64_t>(i / 4), key.stream);
      const auto a = normal_pair(r.v[0], r.v[1]);
      const auto b = normal_pair(r.v[2], r.v[3]);
      const double values[4] = {a[0], a[1], b[0], b[1]};
      for (std::int64_t j = i; j < std::min(end, i + 4); ++j) p[j] = mean + std * values[j - i];
    }
  });
  return out.to(dtype).to(device);
}

Tensor Tensor::rand(const Shape& shape, RngKey key, DType dtype, double low, double high,
                    Device device) {
  Tensor out = empty(shape, DType::f64);
  double* p = out.data<double>();
  constexpr std::int64_t kGrain = 4096;
  parallel_for(out.numel(), kGrain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const std::uint32_t u = random_u32(key, static_cast<std::uint64_t>(i));
      p[i] = low + (high - low) * static_cast<double>(unit_float(u));
    }
  });
  return out.to(dtype).to(device);
}

std::string describe(const Tensor& tensor) {
  if (!tensor.defined()) return "undefined";
  return std::string(name_of(tensor.dtype())) + " " + to_string(tensor.shape());
}

}  // namespace proteus
