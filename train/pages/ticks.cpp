// Where the ticks of an axis are (train/pages/chart.h).
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "train/memory.h"
#include "train/pages/chart.h"
#include "train/pages/markup.h"

namespace proteus {
namespace {

constexpr double kRounding = 1e-9;  // of a range: what may be outside it

std::string count_text(double value) {
  constexpr std::string_view kUnits[] = {"", "k", "M", "G", "T"};
  std::size_t unit = 0;
  while (std::abs(value) >= 1000 && unit + 1 < std::size(kUnits)) {
    value /= 1000;
    ++unit;
  }
  return fmt::format("{:.3g}{}", value, kUnits[unit]);
}

// Powers of two as one calls them: 64k is 65,536.
std::string binary_text(double value) {
  constexpr std::string_view kUnits[] = {"", "k", "M", "G"};
  std::size_t unit = 0;
  while (value >= 1024 && unit + 1 < std::size(kUnits)) {
    value /= 1024;
    ++unit;
  }
  return fmt::format("{:.4g}{}", value, kUnits[unit]);
}

Tick tick(double value, bool bytes) {
  if (bytes && value != 0) return {value, count_text(value) + "B"};
  return {value, std::abs(value) < 1000 ? short_number(value) : count_text(value)};
}

std::vector<Tick> every(const std::vector<Tick>& ticks, int most) {
  const auto stride =
      (ticks.size() + static_cast<std::size_t>(most) - 1) / static_cast<std::size_t>(most);
  std::vector<Tick> kept;
  for (std::size_t i = 0; i < ticks.size(); i += std::max<std::size_t>(stride, 1)) {
    kept.push_back(ticks[i]);
  }
  return kept;
}

std::vector<Tick> powers(double low, double high, int base, const std::vector<double>& factors,
                         bool bytes) {
  std::vector<Tick> ticks;
  const double room = 1 + kRounding;
  const auto first = static_cast<int>(std::floor(std::log(low) / std::log(base))) - 1;
  for (int i = first; std::pow(base, i) <= high * room; ++i) {
    for (const double factor : factors) {
      const double value = factor * std::pow(base, i);
      if (value * room < low || value > high * room) continue;
      ticks.push_back(base == 2 && value >= 1 ? Tick{value, binary_text(value)}
                                              : tick(value, bytes));
    }
  }
  return ticks;
}

}  // namespace

std::vector<Tick> linear_ticks(double low, double high, int most, bool bytes) {
  if (!(high > low)) return {tick(low, bytes)};
  const double raw = (high - low) / most;
  const double power = std::pow(10, std::floor(std::log10(raw)));
  double step = 10 * power;
  for (const double factor : {1.0, 2.0, 5.0}) {
    if (factor * power >= raw * (1 - kRounding)) {
      step = factor * power;
      break;
    }
  }
  std::vector<Tick> ticks;
  const double slack = step * 1e-6;
  const double first = std::ceil((low - slack) / step);
  for (int i = 0; i <= 2 * most; ++i) {  // a bound: of huge numbers the next may be the same
    const double value = (first + i) * step;
    if (!(value <= high + slack)) break;
    ticks.push_back(tick(std::abs(value) < slack ? 0.0 : value, bytes));
  }
  return every(ticks, most);
}

std::vector<Tick> log_ticks(double low, double high, int base, int most, bool bytes) {
  if (base == 2) {
    const auto ticks = powers(low, high, base, {1}, bytes);
    if (ticks.size() >= 2) return every(ticks, most);
  } else {
    const auto fine = powers(low, high, base, {1, 2, 5}, bytes);
    if (fine.size() >= 2 && fine.size() <= static_cast<std::size_t>(most)) return fine;
    const auto coarse = powers(low, high, base, {1}, bytes);
    if (coarse.size() >= 2) return every(coarse, most);
  }
  return linear_ticks(low, high, most, bytes);
}

std::vector<Mark> thinned(const std::vector<Mark>& marks, std::size_t most) {
  if (marks.size() <= most) return marks;
  std::vector<Mark> kept;
  for (std::size_t i = 0; i < most; ++i) {
    const std::size_t begin = i * marks.size() / most;
    const std::size_t end = (i + 1) * marks.size() / most;
    Mark mean;
    for (std::size_t j = begin; j < end; ++j) {
      mean.x += marks[j].x / static_cast<double>(end - begin);
      mean.y += marks[j].y / static_cast<double>(end - begin);
    }
    kept.push_back(mean);
  }
  return kept;
}

void name_some(Series& series, const std::string& name, const std::string& unit) {
  constexpr std::size_t kNamed = 20;
  const std::size_t every = std::max<std::size_t>(series.marks.size() / kNamed, 1);
  series.radius = 0;
  for (std::size_t i = 0; i < series.marks.size(); ++i) {
    Mark& m = series.marks[i];
    if (i % every != 0 && i + 1 != series.marks.size()) continue;
    m.label = fmt::format("{}, step {}: {} {}", name, short_number(std::round(m.x)),
                          short_number(m.y), unit);
  }
}

}  // namespace proteus
