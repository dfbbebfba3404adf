// Figures as SVG. Colours are classes (c0 … c7 for series, h0 … h9 for heat), which
// train/pages/style.h gives a meaning; nothing in a figure depends on anything but its data. A mark
// with a label can be reached by pointer and keyboard, and says its label.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace proteus {

constexpr int kSeriesColors = 8;
constexpr int kHeatLevels = 10;

enum class Glyph : std::uint8_t { circle, up, diamond, cross, plus, square };

struct Mark {
  double x = 0;
  double y = 0;
  std::string label{};       ///< of a mark that can be focused; empty: the line goes through it
  std::string attributes{};  ///< more of them, as in ` data-gate="3"`
};

enum class Line : std::uint8_t { solid, thin, dashed, none, stems };

struct Series {
  std::string name;  ///< in the legend, once; empty: not there
  int color = 0;     ///< taken modulo kSeriesColors
  Line line = Line::solid;
  Glyph glyph = Glyph::circle;
  double radius = 3;  ///< of labelled marks; 0: seen only where the pointer is
  std::vector<Mark> marks{};
};

struct Axis {
  std::string title;
  int log_base = 0;                  ///< 2 or 10; 0: linear
  bool from_zero = false;            ///< linear: the range begins at 0
  double whole = 0;                  ///< linear: the range is [0, whole] where that is above 0
  bool bytes = false;                ///< tick labels as sizes
  bool hidden = false;               ///< neither ticks nor grid
  std::vector<std::string> names{};  ///< at 0, 1, 2, … instead of ticks
};

/// A vertical line across the figure.
struct Rule {
  double x = 0;
  int color = 0;
  std::string label;
};

struct Chart {
  std::string label;  ///< what the figure is, for those who do not see it
  Axis x, y;
  std::vector<Series> series;
  std::vector<Rule> rules{};
};

/// Points that are not finite, or not above zero on a logarithmic axis, are left out; without any
/// point left the text is empty.
std::string chart_svg(const Chart& chart);

/// Rows of values against steps, darker for more. Neighbouring columns and rows of a large map are
/// averaged, so that a figure stays small.
struct HeatMap {
  std::string label;
  std::string x_title, row_title, value_title;
  std::vector<double> x;                    ///< of the columns, rising
  std::vector<std::vector<double>> values;  ///< [columns][rows]
};
std::string heat_map_svg(const HeatMap& map);

struct Tick {
  double value = 0;
  std::string text;
};
/// Round numbers in [low, high], at most `most`.
std::vector<Tick> linear_ticks(double low, double high, int most, bool bytes = false);
/// Powers of the base in [low, high], thinned to at most `most`; of base 10 also twice and five
/// times them where there is room. At least two, if any range holds two round numbers.
std::vector<Tick> log_ticks(double low, double high, int base, int most, bool bytes = false);

/// At most `most` marks: means of neighbours. They have no labels.
std::vector<Mark> thinned(const std::vector<Mark>& marks, std::size_t most);

/// Labels some marks of a line, and the last: they are seen where the pointer or the focus is.
void name_some(Series& series, const std::string& name, const std::string& unit);

/// The same figure as a file of its own.
std::string svg_file(std::string_view svg);

}  // namespace proteus
