// Shapes and layouts: sizes, strides and the arithmetic on them. No data here.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>
#include <vector>

namespace proteus {

constexpr int kMaxRank = 8;

/// Up to kMaxRank sizes, held inline. Rank 0 is a scalar with one element.
class Shape {
 public:
  Shape() = default;
  Shape(std::initializer_list<std::int64_t> sizes);
  explicit Shape(std::span<const std::int64_t> sizes);

  int rank() const { return rank_; }
  /// Negative indices count from the end: shape[-1] is the last size.
  std::int64_t operator[](int i) const { return sizes_[index(i)]; }
  std::int64_t& operator[](int i) { return sizes_[index(i)]; }
  /// Product of the sizes; checked against overflow when a tensor is made.
  std::int64_t numel() const;
  const std::int64_t* begin() const { return sizes_.data(); }
  const std::int64_t* end() const { return sizes_.data() + rank_; }
  void push_back(std::int64_t size);
  /// Sizes without dimension i.
  Shape without(int i) const;
  /// Sizes with `size` inserted before dimension i (i in 0..rank).
  Shape with(int i, std::int64_t size) const;

  friend bool operator==(const Shape& a, const Shape& b);

 private:
  std::size_t index(int i) const;

  std::array<std::int64_t, kMaxRank> sizes_{};
  int rank_ = 0;
};

/// "[8, 1024, 768]".
std::string to_string(const Shape& shape);

/// A shape with a stride per dimension and an offset, all in elements.
struct Layout {
  Shape shape;
  Shape strides;
  std::int64_t offset = 0;

  static Layout contiguous(const Shape& shape);
  bool is_contiguous() const;
};

/// The shape that `a` and `b` broadcast to (NumPy's rule); throws ShapeError naming `function`.
Shape broadcast_shapes(const std::string& function, const Shape& a, const Shape& b);
/// `layout` seen with the larger `shape`: repeated dimensions get stride 0.
Layout broadcast_to(const std::string& function, const Layout& layout, const Shape& shape);
/// A dimension in [-rank, rank) as one in [0, rank); throws ShapeError naming `function`.
int checked_dim(const std::string& function, int dim, int rank);

}  // namespace proteus
