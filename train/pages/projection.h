// Points of many dimensions in two: principal components.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace proteus {

struct Point2 {
  double x = 0, y = 0;
};

/// Rows [n, d], one after another, on their first two principal components; each component's sign
/// is such that its largest weight is positive. `explained` are the shares of the variance.
struct Projection {
  std::vector<Point2> points;
  double explained[2] = {0, 0};
};
/// Throws ShapeError unless the values are whole rows.
Projection project_rows(std::span<const double> values, std::int64_t d);

}  // namespace proteus
