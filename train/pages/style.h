// How pages look and what their script does. Everything is in the page: it loads nothing.
#pragma once

#include <string>
#include <string_view>

namespace proteus {

/// The contents of the page's <style>.
std::string page_style();
/// The contents of its <script>: the switch of the theme, what a mark says when the pointer or the
/// keyboard is on it, arrow keys from mark to mark, choices of figures. Without it all figures are
/// there.
std::string_view page_script();
/// The rules of figures with the light colours in place of variables, for SVG in files of its own.
std::string figure_rules_in_light();

}  // namespace proteus
