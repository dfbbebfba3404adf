// g++ 12 takes the _mm512_undefined_pd() of its own headers for a mistake (GCC bug 105593).
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

#include "train/pages/projection.h"

#include <fmt/format.h>

#include <Eigen/Eigenvalues>
#include <algorithm>

#include "tensor/error.h"

namespace proteus {
namespace {

constexpr double kTiny = 1e-12;

}  // namespace

Projection project_rows(std::span<const double> values, std::int64_t d) {
  if (d < 1 || values.empty() || static_cast<std::int64_t>(values.size()) % d != 0) {
    throw ShapeError(fmt::format("project_rows(values, d): values: expected rows of {}, got {}", d,
                                 values.size()));
  }
  using Matrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  Matrix x =
      Eigen::Map<const Matrix>(values.data(), static_cast<std::int64_t>(values.size()) / d, d);
  x.rowwise() -= x.colwise().mean().eval();
  const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> solver(x.transpose() * x);
  const double total = std::max(solver.eigenvalues().sum(), kTiny);
  Projection projection;
  projection.points.resize(static_cast<std::size_t>(x.rows()));
  for (int c = 0; c < std::min<std::int64_t>(2, d); ++c) {
    const auto column = d - 1 - c;  // eigenvalues rise
    Eigen::VectorXd axis = solver.eigenvectors().col(column);
    Eigen::Index largest = 0;
    axis.cwiseAbs().maxCoeff(&largest);
    if (axis(largest) < 0) axis = -axis;
    projection.explained[c] = std::max(solver.eigenvalues()(column), 0.0) / total;
    const Eigen::VectorXd at = x * axis;
    for (Eigen::Index i = 0; i < x.rows(); ++i) {
      Point2& point = projection.points[static_cast<std::size_t>(i)];
      (c == 0 ? point.x : point.y) = at(i);
    }
  }
  return projection;
}

}  // namespace proteus
