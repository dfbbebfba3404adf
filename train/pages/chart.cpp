#include "train/pages/chart.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "train/pages/markup.h"
#include "train/pages/style.h"
#include "train/utf8.h"

namespace proteus {
namespace {

constexpr double kWidth = 480;
constexpr double kPlotHeight = 220;
constexpr double kLeft = 62, kRight = 16, kBottom = 50;
constexpr double kLegendRow = 22;
constexpr double kCharWidth = 8.4;  // of the legend's text on a small screen
constexpr double kLegendGap = 38;   // its stroke and the space behind an entry
constexpr double kRowHeight = 26;   // of named rows
constexpr double kLabelLine = 16;
constexpr int kMostX = 6, kMostY = 6;
constexpr double kHitRadius = 7;

struct Range {
  double low = std::numeric_limits<double>::infinity();
  double high = -std::numeric_limits<double>::infinity();

  void take(double value) {
    low = std::min(low, value);
    high = std::max(high, value);
  }
};

/// From values to pixels.
struct Scale {
  const Axis* axis = nullptr;
  Range range{};
  double begin = 0, end = 0;

  double map(double value) const { return axis->log_base > 0 ? std::log(value) : value; }
  double operator()(double value) const {
    const double low = map(range.low), high = map(range.high);
    const double share = high > low ? (map(value) - low) / (high - low) : 0.5;
    return begin + share * (end - begin);
  }
  std::vector<Tick> ticks(int most) const {
    if (axis->log_base > 0) {
      return log_ticks(range.low, range.high, axis->log_base, most, axis->bytes);
    }
    return linear_ticks(range.low, range.high, most, axis->bytes);
  }
};

bool shown(const Axis& axis, double value) {
  return std::isfinite(value) && (axis.log_base == 0 || value > 0);
}

bool shown(const Chart& c, const Mark& m) { return shown(c.x, m.x) && shown(c.y, m.y); }

// Space around the values; names have theirs.
Range roomy(const Axis& axis, Range range, double share) {
  if (!axis.names.empty()) return {-0.5, static_cast<double>(axis.names.size()) - 0.5};
  if (axis.log_base > 0) {
    const double factor = std::max(std::pow(range.high / range.low, share), 1.05);
    return {range.low / factor, range.high * factor};
  }
  if (axis.whole > 0) return {0, axis.whole};
  if (axis.from_zero) range.take(0);
  const double room = range.high > range.low ? (range.high - range.low) * share
                                             : std::max(std::abs(range.high) * 0.05, 1.0);
  return {axis.from_zero && range.low >= 0 ? 0 : range.low - room, range.high + room};
}

std::string text_at(double x, double y, std::string_view anchor, std::string_view text,
                    std::string_view kind = "tick") {
  return fmt::format("<text class=\"{}\" x=\"{}\" y=\"{}\" text-anchor=\"{}\">{}</text>\n", kind,
                     coordinate(x), coordinate(y), anchor, escaped(text));
}

std::string line_at(double x1, double y1, double x2, double y2, std::string_view kind) {
  return fmt::format("<line class=\"{}\" x1=\"{}\" y1=\"{}\" x2=\"{}\" y2=\"{}\"/>\n", kind,
                     coordinate(x1), coordinate(y1), coordinate(x2), coordinate(y2));
}

std::string glyph_path(Glyph glyph, double x, double y, double r) {
  const auto path = [&](std::string_view form) {
    return fmt::format(fmt::runtime(form), fmt::arg("x", coordinate(x)),
                       fmt::arg("y", coordinate(y)), fmt::arg("l", coordinate(x - r)),
                       fmt::arg("r", coordinate(x + r)), fmt::arg("t", coordinate(y - r)),
                       fmt::arg("b", coordinate(y + r)));
  };
  switch (glyph) {
    case Glyph::up:
      return path("M{x} {t}L{r} {b}L{l} {b}Z");
    case Glyph::diamond:
      return path("M{x} {t}L{r} {y}L{x} {b}L{l} {y}Z");
    case Glyph::cross:
      return path("M{l} {t}L{r} {b}M{l} {b}L{r} {t}");
    case Glyph::plus:
      return path("M{x} {t}L{x} {b}M{l} {y}L{r} {y}");
    default:
      return path("M{l} {t}L{r} {t}L{r} {b}L{l} {b}Z");
  }
}

std::string mark_svg(const Series& s, double x, double y, const Mark& m) {
  const std::string color = fmt::format("c{}", s.color % kSeriesColors);
  const std::string about = m.label.empty()
                                ? m.attributes
                                : fmt::format(" tabindex=\"-1\" role=\"img\" aria-label=\"{}\"{}",
                                              escaped(m.label), m.attributes);
  const std::string kind = m.label.empty() ? "dot" : (s.radius > 0 ? "mark" : "mark hit");
  const double r = s.radius > 0 ? s.radius : kHitRadius;
  if (s.glyph == Glyph::circle) {
    return fmt::format("<circle class=\"{} {}\" cx=\"{}\" cy=\"{}\" r=\"{}\"{}/>\n", kind, color,
                       coordinate(x), coordinate(y), coordinate(r), about);
  }
  const bool open = s.glyph == Glyph::cross || s.glyph == Glyph::plus;
  return fmt::format("<path class=\"{}{} {}\" d=\"{}\"{}/>\n", kind, open ? " open" : "", color,
                     glyph_path(s.glyph, x, y, r), about);
}

struct LegendEntry {
  const Series* series;
  double x, y;
};

class Drawing {
 public:
  explicit Drawing(const Chart& chart) : chart_(chart) {
    Range x, y;
    for (const Series& s : chart.series) {
      for (const Mark& m : s.marks) {
        if (!shown(chart, m)) continue;
        x.take(m.x);
        y.take(m.y);
        empty_ = false;
      }
    }
    if (empty_) return;
    const double height = chart.y.names.empty()
                              ? kPlotHeight
                              : kRowHeight * static_cast<double>(chart.y.names.size());
    lay_out_legend();
    if (!chart.rules.empty()) {
      top_ += kLabelLine * static_cast<double>(chart.rules.size());
    }
    top_ += kLegendRow;  // the title of y
    x_ = {&chart.x, roomy(chart.x, x, 0.03), left(), kWidth - kRight};
    y_ = {&chart.y, roomy(chart.y, y, 0.06), top_ + height, top_};
    if (!chart.y.names.empty()) std::swap(y_.begin, y_.end);
    bottom_ = top_ + height;
  }

  std::string svg() const {
    if (empty_) return {};
    std::string out = fmt::format(
        "<svg viewBox=\"0 0 {} {}\" role=\"group\" aria-label=\"{}\">\n", coordinate(kWidth),
        coordinate(bottom_ + (chart_.x.hidden ? 12 : kBottom)), escaped(chart_.label));
    out += legend() + axes();
    for (const Series& s : chart_.series) out += path(s);
    out += rules();
    for (const Series& s : chart_.series) {
      for (const Mark& m : s.marks) {
        const bool drawn = !m.label.empty() || s.line == Line::none;
        if (drawn && shown(chart_, m)) out += mark_svg(s, x_(m.x), y_(m.y), m);
      }
    }
    return out + "</svg>\n";
  }

 private:
  /// Names of rows need more room than numbers.
  double left() const {
    std::size_t longest = 0;
    for (const std::string& name : chart_.y.names) longest = std::max(longest, utf8_length(name));
    if (chart_.y.hidden) return kRight;
    return std::max(kLeft, 14 + kCharWidth * static_cast<double>(longest));
  }

  void lay_out_legend() {
    double x = 8;
    top_ = 4;
    for (const Series& s : chart_.series) {
      if (s.name.empty()) continue;
      const double width = kLegendGap + kCharWidth * static_cast<double>(utf8_length(s.name));
      if (x > 8 && x + width > kWidth) {
        x = 8;
        top_ += kLegendRow;
      }
      entries_.push_back({&s, x, top_ + kLegendRow / 2});
      x += width;
    }
    if (!entries_.empty()) top_ += kLegendRow;
  }

  std::string legend() const {
    std::string out;
    for (const LegendEntry& e : entries_) {
      if (e.series->line != Line::none) {
        out += line_at(e.x, e.y, e.x + 18, e.y, stroke(*e.series));
      }
      if (e.series->line == Line::none) {
        Series sample = *e.series;
        sample.radius = std::clamp(sample.radius, 4.0, 5.0);
        out += mark_svg(sample, e.x + 9, e.y, {});
      }
      out += text_at(e.x + 23, e.y + 4, "start", e.series->name, "name");
    }
    return out;
  }

  std::string stroke(const Series& s) const {
    constexpr std::string_view kKinds[] = {"line", "line thin", "line dashed", "none",
                                           "line stems"};
    return fmt::format("{} c{}", kKinds[static_cast<std::size_t>(s.line)], s.color % kSeriesColors);
  }

  std::string axes() const {
    std::string out;
    const double l = x_.begin, r = x_.end;
    if (!chart_.x.hidden) {
      for (const Tick& t : x_.ticks(kMostX)) {
        out += line_at(x_(t.value), top_, x_(t.value), bottom_, "grid");
        out += text_at(x_(t.value), bottom_ + 18, "middle", t.text);
      }
      out += text_at((l + r) / 2, bottom_ + 40, "middle", chart_.x.title, "title");
    }
    for (std::size_t i = 0; i < chart_.y.names.size(); ++i) {
      const double y = y_(static_cast<double>(i));
      out += line_at(l, y, r, y, "grid") + text_at(l - 8, y + 4, "end", chart_.y.names[i]);
    }
    if (chart_.y.names.empty() && !chart_.y.hidden) {
      for (const Tick& t : y_.ticks(kMostY)) {
        const double y = y_(t.value);
        out += line_at(l, y, r, y, "grid") + text_at(l - 6, y + 4, "end", t.text);
      }
    }
    out += text_at(8, top_ - 7, "start", chart_.y.title, "title");
    if (!chart_.x.hidden) out += line_at(l, bottom_, r, bottom_, "axis");
    return out;
  }

  std::string path(const Series& s) const {
    if (s.line == Line::none) return {};
    std::string d;
    bool begun = false;
    for (const Mark& m : s.marks) {
      if (!shown(chart_, m)) {
        begun = false;
        continue;
      }
      const std::string x = coordinate(x_(m.x)), y = coordinate(y_(m.y));
      if (s.line == Line::stems) {
        d += fmt::format("M{} {}V{}", x, coordinate(bottom_), y);
      } else {
        d += fmt::format("{}{} {}", begun ? 'L' : 'M', x, y);
      }
      begun = true;
    }
    if (d.empty()) return {};
    return fmt::format("<path class=\"{}\" d=\"{}\"/>\n", stroke(s), d);
  }

  std::string rules() const {
    std::string out;
    double y = top_ - kLegendRow - kLabelLine * static_cast<double>(chart_.rules.size()) + 12;
    for (const Rule& rule : chart_.rules) {
      if (shown(chart_.x, rule.x) && rule.x >= x_.range.low && rule.x <= x_.range.high) {
        const double x = x_(rule.x);
        out += line_at(x, y + 3, x, bottom_, fmt::format("rule c{}", rule.color % kSeriesColors));
        const bool right = x > (x_.begin + x_.end) / 2;
        out += text_at(x + (right ? -5 : 5), y + 2, right ? "end" : "start", rule.label, "name");
      }
      y += kLabelLine;
    }
    return out;
  }

  const Chart& chart_;
  bool empty_ = true;
  Scale x_, y_;
  double top_ = 0, bottom_ = 0;
  std::vector<LegendEntry> entries_;
};

}  // namespace

std::string chart_svg(const Chart& chart) { return Drawing(chart).svg(); }

std::string svg_file(std::string_view svg) {
  constexpr std::string_view kOpen = "<svg ";
  const std::string text(svg);
  const std::size_t behind = text.find(">\n") + 2;
  return fmt::format(
      "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n"
      "<svg xmlns=\"http://www.w3.org/2000/svg\" {}<style>{}</style>\n"
      "<rect width=\"100%\" height=\"100%\" class=\"paper\"/>\n{}",
      text.substr(kOpen.size(), behind - kOpen.size()), figure_rules_in_light(),
      text.substr(behind));
}

}  // namespace proteus
