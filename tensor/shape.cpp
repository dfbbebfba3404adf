#include "tensor/shape.h"

#include <algorithm>

#include "tensor/error.h"

namespace proteus {

Shape::Shape(std::initializer_list<std::int64_t> sizes)
    : Shape(std::span<const std::int64_t>(sizes.begin(), sizes.size())) {}

Shape::Shape(std::span<const std::int64_t> sizes) {
  for (const std::int64_t size : sizes) push_back(size);
}

std::size_t Shape::index(int i) const {
  const int j = i < 0 ? i + rank_ : i;
  if (j < 0 || j >= rank_) {
    throw ShapeError("shape: dimension " + std::to_string(i) + " asked of " + to_string(*this));
  }
  return static_cast<std::size_t>(j);
}

std::int64_t Shape::numel() const {
  std::int64_t n = 1;
  for (const std::int64_t size : *this) n *= size;
  return n;
}

void Shape::push_back(std::int64_t size) {
  if (rank_ == kMaxRank) {
    throw ShapeError("shape: more than " + std::to_string(kMaxRank) + " dimensions");
  }
  sizes_[static_cast<std::size_t>(rank_++)] = size;
}

Shape Shape::without(int i) const {
  const auto skip = index(i);
  Shape out;
  for (int d = 0; d < rank_; ++d) {
    if (static_cast<std::size_t>(d) != skip) out.push_back((*this)[d]);
  }
  return out;
}

Shape Shape::with(int i, std::int64_t size) const {
  Shape out;
  for (int d = 0; d <= rank_; ++d) {
    if (d == i) out.push_back(size);
    if (d < rank_) out.push_back((*this)[d]);
  }
  return out;
}

bool operator==(const Shape& a, const Shape& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end());
}

std::string to_string(const Shape& shape) {
  std::string out = "[";
  for (int d = 0; d < shape.rank(); ++d) {
    if (d) out += ", ";
    out += std::to_string(shape[d]);
  }
  return out + "]";
}

Layout Layout::contiguous(const Shape& shape) {
  Layout layout{shape, shape, 0};
  std::int64_t stride = 1;
  for (int d = shape.rank() - 1; d >= 0; --d) {
    layout.strides[d] = stride;
    stride *= std::max<std::int64_t>(shape[d], 1);
  }
  return layout;
}

bool Layout::is_contiguous() const {
  if (shape.numel() == 0) return true;
  std::int64_t stride = 1;
  for (int d = shape.rank() - 1; d >= 0; --d) {
    if (shape[d] != 1 && strides[d] != stride) return false;
    stride *= shape[d];
  }
  return true;
}

Shape broadcast_shapes(const std::string& function, const Shape& a, const Shape& b) {
  const int rank = std::max(a.rank(), b.rank());
  Shape out;
  for (int d = 0; d < rank; ++d) {
    const int da = d - (rank - a.rank());
    const int db = d - (rank - b.rank());
    const std::int64_t na = da < 0 ? 1 : a[da];
    const std::int64_t nb = db < 0 ? 1 : b[db];
    if (na != nb && na != 1 && nb != 1) {
      throw ShapeError(function + ": shapes " + to_string(a) + " and " + to_string(b) +
                       " do not broadcast: dimension " + std::to_string(d - rank) + " has " +
                       std::to_string(na) + " and " + std::to_string(nb));
    }
    out.push_back(na == 1 ? nb : na);
  }
  return out;
}

Layout broadcast_to(const std::string& function, const Layout& layout, const Shape& shape) {
  const int lead = shape.rank() - layout.shape.rank();
  Layout out{shape, shape, layout.offset};
  for (int d = 0; d < shape.rank(); ++d) {
    const std::int64_t n = d < lead ? 1 : layout.shape[d - lead];
    if (lead < 0 || (n != shape[d] && n != 1)) {
      throw ShapeError(function + ": " + to_string(layout.shape) + " does not broadcast to " +
                       to_string(shape));
    }
    out.strides[d] = d < lead || (n == 1 && shape[d] != 1) ? 0 : layout.strides[d - lead];
  }
  if (lead < 0) {
    throw ShapeError(function + ": " + to_string(layout.shape) + " does not broadcast to " +
                     to_string(shape));
  }
  return out;
}

int checked_dim(const std::string& function, int dim, int rank) {
  const int d = dim < 0 ? dim + rank : dim;
  if (d < 0 || d >= rank) {
    throw ShapeError(function + ": dim: expected -" + std::to_string(rank) + " to " +
                     std::to_string(rank - 1) + ", got " + std::to_string(dim));
  }
  return d;
}

}  // namespace proteus
