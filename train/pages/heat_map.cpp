// Heat maps (train/pages/chart.h). All cells of a level are one path, so that a theme can colour
// them and a map of thousands of cells stays small.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "train/pages/chart.h"
#include "train/pages/markup.h"

namespace proteus {
namespace {

constexpr double kWidth = 480, kLeft = 62, kRight = 16, kTop = 50, kBottom = 50;
constexpr double kLeastHeight = 96, kMostHeight = 260, kCellHeight = 14;
constexpr std::size_t kMostColumns = 120, kMostRows = 64;
constexpr int kMostLabels = 8, kMostTicks = 6;

/// Parts of n things, at most `most`, each [begin, end).
std::vector<std::pair<std::size_t, std::size_t>> parts_of(std::size_t n, std::size_t most) {
  const std::size_t count = std::min(n, most);
  std::vector<std::pair<std::size_t, std::size_t>> parts;
  for (std::size_t i = 0; i < count; ++i) parts.emplace_back(i * n / count, (i + 1) * n / count);
  return parts;
}

/// A map of at most kMostColumns × kMostRows means.
struct Grid {
  std::vector<std::pair<std::size_t, std::size_t>> columns, rows;
  std::vector<std::vector<double>> cells;  // [rows][columns]
  double most = 0;
};

std::size_t rows_in(const HeatMap& map) {
  std::size_t rows = 0;
  for (const auto& column : map.values) rows = std::max(rows, column.size());
  return rows;
}

// Heads that came later have no cells before: they count as nothing there.
Grid grid_of(const HeatMap& map) {
  Grid g{parts_of(map.values.size(), kMostColumns), parts_of(rows_in(map), kMostRows), {}};
  for (const auto& [r0, r1] : g.rows) {
    std::vector<double> row;
    for (const auto& [c0, c1] : g.columns) {
      double sum = 0;
      for (std::size_t c = c0; c < c1; ++c) {
        for (std::size_t r = r0; r < std::min(r1, map.values[c].size()); ++r) {
          if (std::isfinite(map.values[c][r])) sum += map.values[c][r];
        }
      }
      row.push_back(sum / static_cast<double>((c1 - c0) * (r1 - r0)));
      g.most = std::max(g.most, row.back());
    }
    g.cells.push_back(std::move(row));
  }
  return g;
}

int level_of(double value, double most) {
  if (!(most > 0)) return 0;
  return std::clamp(static_cast<int>(value / most * kHeatLevels), 0, kHeatLevels - 1);
}

std::string row_name(const HeatMap& map, const std::pair<std::size_t, std::size_t>& rows) {
  if (rows.second - rows.first == 1) return fmt::format("{} {}", map.row_title, rows.first);
  return fmt::format("{} {} to {}", map.row_title, rows.first, rows.second - 1);
}

class HeatDrawing {
 public:
  explicit HeatDrawing(const HeatMap& map) : map_(map), grid_(grid_of(map)) {
    height_ =
        std::clamp(kCellHeight * static_cast<double>(grid_.rows.size()), kLeastHeight, kMostHeight);
    cell_h_ = height_ / static_cast<double>(std::max<std::size_t>(grid_.rows.size(), 1));
    cell_w_ = (kWidth - kLeft - kRight) /
              static_cast<double>(std::max<std::size_t>(grid_.columns.size(), 1));
  }

  std::string svg() const {
    if (grid_.cells.empty()) return {};
    return fmt::format("<svg viewBox=\"0 0 {} {}\" role=\"group\" aria-label=\"{}\">\n",
                       coordinate(kWidth), coordinate(kTop + height_ + kBottom),
                       escaped(map_.label)) +
           scale() + cells() + labels() + rows() + "</svg>\n";
  }

 private:
  std::string cells() const {
    std::array<std::string, kHeatLevels> paths;
    for (std::size_t r = 0; r < grid_.cells.size(); ++r) {
      const auto& row = grid_.cells[r];
      for (std::size_t c = 0; c < row.size();) {
        const int level = level_of(row[c], grid_.most);
        std::size_t end = c + 1;
        while (end < row.size() && level_of(row[end], grid_.most) == level) ++end;
        paths[static_cast<std::size_t>(level)] +=
            fmt::format("M{} {}h{}v{}h-{}z", coordinate(kLeft + cell_w_ * static_cast<double>(c)),
                        coordinate(kTop + cell_h_ * static_cast<double>(r)),
                        coordinate(cell_w_ * static_cast<double>(end - c)), coordinate(cell_h_),
                        coordinate(cell_w_ * static_cast<double>(end - c)));
        c = end;
      }
    }
    std::string out;
    for (std::size_t level = 0; level < paths.size(); ++level) {
      if (!paths[level].empty()) {
        out += fmt::format("<path class=\"heat h{}\" d=\"{}\"/>\n", level, paths[level]);
      }
    }
    return out;
  }

  // What the colours mean.
  std::string scale() const {
    constexpr double kSwatch = 16;
    const double begin = kWidth - kRight - kSwatch * kHeatLevels - 44;
    std::string out = fmt::format("<text class=\"title\" x=\"8\" y=\"18\">{}</text>\n",
                                  escaped(map_.value_title));
    for (int level = 0; level < kHeatLevels; ++level) {
      out += fmt::format("<rect class=\"heat h{}\" x=\"{}\" y=\"8\" width=\"{}\" height=\"12\"/>\n",
                         level, coordinate(begin + kSwatch * level), coordinate(kSwatch));
    }
    out += fmt::format("<text class=\"tick\" x=\"{}\" y=\"18\" text-anchor=\"end\">0</text>\n",
                       coordinate(begin - 5));
    out += fmt::format("<text class=\"tick\" x=\"{}\" y=\"18\">{}</text>\n",
                       coordinate(begin + kSwatch * kHeatLevels + 5),
                       fmt::format("{:.2g}", grid_.most));
    return out;
  }

  std::string labels() const {
    std::string out;
    const std::size_t every = (grid_.rows.size() + kMostLabels - 1) / kMostLabels;
    for (std::size_t r = 0; r < grid_.rows.size(); r += every) {
      out += fmt::format("<text class=\"tick\" x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>\n",
                         coordinate(kLeft - 6),
                         coordinate(kTop + cell_h_ * (static_cast<double>(r) + 0.5) + 4),
                         grid_.rows[r].first);
    }
    out += fmt::format("<text class=\"title\" x=\"8\" y=\"{}\">{}</text>\n", coordinate(kTop - 8),
                       escaped(map_.row_title));
    if (map_.x.empty()) return out;
    for (const Tick& t : linear_ticks(map_.x.front(), map_.x.back(), kMostTicks)) {
      out +=
          fmt::format("<text class=\"tick\" x=\"{}\" y=\"{}\" text-anchor=\"middle\">{}</text>\n",
                      coordinate(x_of(t.value)), coordinate(kTop + height_ + 18), t.text);
    }
    return out +
           fmt::format("<text class=\"title\" x=\"{}\" y=\"{}\" text-anchor=\"middle\">{}</text>\n",
                       coordinate((kLeft + kWidth - kRight) / 2), coordinate(kTop + height_ + 40),
                       escaped(map_.x_title));
  }

  // Columns are as wide as each other; a tick is between the two columns that it is between.
  double x_of(double value) const {
    const auto above = std::lower_bound(map_.x.begin(), map_.x.end(), value);
    const auto i = static_cast<std::size_t>(above - map_.x.begin());
    double at = static_cast<double>(i);
    if (i > 0 && i < map_.x.size()) {
      at -= (map_.x[i] - value) / (map_.x[i] - map_.x[i - 1]);
    }
    const double share = (at + 0.5) / static_cast<double>(map_.x.size());
    return kLeft + std::min(share, 1.0) * (kWidth - kLeft - kRight);
  }

  std::string rows() const {
    std::string out;
    for (std::size_t r = 0; r < grid_.cells.size(); ++r) {
      const auto& row = grid_.cells[r];
      double sum = 0;
      for (const double value : row) sum += value;
      const auto [least, most] = std::minmax_element(row.begin(), row.end());
      const std::string label =
          fmt::format("{}: {} {} at the end, mean {}, from {} to {}", row_name(map_, grid_.rows[r]),
                      map_.value_title, short_number(row.back()),
                      short_number(sum / static_cast<double>(row.size())), short_number(*least),
                      short_number(*most));
      out += fmt::format(
          "<rect class=\"mark row\" x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\" tabindex=\"-1\" "
          "role=\"img\" aria-label=\"{}\"/>\n",
          coordinate(kLeft), coordinate(kTop + cell_h_ * static_cast<double>(r)),
          coordinate(kWidth - kLeft - kRight), coordinate(cell_h_), escaped(label));
    }
    return out;
  }

  const HeatMap& map_;
  Grid grid_;
  double height_ = 0, cell_h_ = 0, cell_w_ = 0;
};

}  // namespace

std::string heat_map_svg(const HeatMap& map) { return HeatDrawing(map).svg(); }

}  // namespace proteus
