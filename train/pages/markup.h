// Text and numbers on their way into HTML and SVG. Nothing that comes from a file gets there
// without escaped().
#pragma once

#include <string>
#include <string_view>

namespace proteus {

/// For text and quoted attributes: & < > " ' become entities. What is not UTF-8, and characters
/// that XML has no place for, become U+FFFD.
std::string escaped(std::string_view text);

/// A coordinate: at most two digits behind the point, none that say nothing, never "-0".
std::string coordinate(double value);
/// For people: "0.0123", "1.75", "12,345"; "–" for what is not a finite number.
std::string short_number(double value);
/// "55 MB"; "–" for what is no size.
std::string bytes_text(double value);

}  // namespace proteus
