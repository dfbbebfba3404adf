#include "train/pages/style.h"

#include <fmt/format.h>

#include <array>
#include <cmath>

#include "train/pages/chart.h"

namespace proteus {
namespace {

struct Color {
  int red = 0, green = 0, blue = 0;
};

struct Theme {
  std::string_view paper, ink, soft, grid, panel, accent;
  std::array<std::string_view, kSeriesColors> series;
  std::array<Color, 3> heat;  ///< nothing, the middle, the most
};

constexpr Theme kLight = {
    "#ffffff",
    "#1b1f24",
    "#57606a",
    "#e3e7eb",
    "#f5f7f9",
    "#0060a8",
    {"#0060a8", "#c04a12", "#007a5a", "#93397f", "#876200", "#3d6fd1", "#5b5b5b", "#b0172f"},
    {{{240, 244, 248}, {90, 160, 205}, {8, 40, 95}}}};
constexpr Theme kDark = {
    "#14181d",
    "#e8ebee",
    "#a5afb9",
    "#2b333c",
    "#1d232a",
    "#6cb4ff",
    {"#6cb4ff", "#ff9a6b", "#4fd1a5", "#e08fd0", "#e5c04f", "#a9b8ff", "#b8b8b8", "#ff7a8a"},
    {{{29, 37, 46}, {50, 112, 160}, {190, 232, 255}}}};

std::string hex(const Color& c) {
  return fmt::format("#{:02x}{:02x}{:02x}", c.red, c.green, c.blue);
}

std::string heat_color(const Theme& theme, int level) {
  const double at = 2.0 * level / (kHeatLevels - 1);
  const Color& a = theme.heat[at < 1 ? 0 : 1];
  const Color& b = theme.heat[at < 1 ? 1 : 2];
  const double share = at < 1 ? at : at - 1;
  const auto mix = [&](int x, int y) { return static_cast<int>(std::lround(x + share * (y - x))); };
  return hex({mix(a.red, b.red), mix(a.green, b.green), mix(a.blue, b.blue)});
}

std::string variables(const Theme& t) {
  std::string out = fmt::format("--paper:{};--ink:{};--soft:{};--grid:{};--panel:{};--accent:{};",
                                t.paper, t.ink, t.soft, t.grid, t.panel, t.accent);
  for (int i = 0; i < kSeriesColors; ++i) {
    out += fmt::format("--c{}:{};", i, t.series[static_cast<std::size_t>(i)]);
  }
  for (int i = 0; i < kHeatLevels; ++i) out += fmt::format("--h{}:{};", i, heat_color(t, i));
  return out;
}

std::string figure_rules() {
  std::string out = R"(
text{font-family:system-ui,"Segoe UI","DejaVu Sans",sans-serif;font-size:12px;fill:var(--soft)}
text.name{fill:var(--ink)}
.paper{fill:var(--paper)}
.grid{stroke:var(--grid);stroke-width:1}
.axis{stroke:var(--soft);stroke-width:1}
.line{fill:none;stroke-width:2;stroke-linejoin:round}
.thin{stroke-width:1.2;opacity:.55}
.dashed{stroke-dasharray:5 4}
.stems{stroke-width:1}
.rule{stroke-width:1.5;stroke-dasharray:2 3}
.mark,.dot{stroke:var(--paper);stroke-width:1}
.open{fill:none!important;stroke-width:2.5}
.hit{opacity:0}
.row{fill:transparent;stroke:none}
)";
  for (int i = 0; i < kSeriesColors; ++i) {
    out += fmt::format(
        ".line.c{0},.rule.c{0},.open.c{0}{{stroke:var(--c{0})}}\n"
        "circle.c{0},path.mark.c{0},path.dot.c{0}{{fill:var(--c{0})}}\n",
        i);
  }
  for (int i = 0; i < kHeatLevels; ++i) out += fmt::format(".h{0}{{fill:var(--h{0})}}\n", i);
  return out;
}

constexpr std::string_view kPageRules = R"(
*{box-sizing:border-box}
body{margin:0 auto;max-width:1240px;padding:16px;background:var(--paper);color:var(--ink);
font:16px/1.5 system-ui,"Segoe UI","DejaVu Sans",sans-serif}
h1{font-size:1.7rem;margin:.2em 0}
h2{font-size:1.35rem;margin:1.6em 0 .3em;padding-top:.6em;border-top:2px solid var(--grid);
overflow-wrap:anywhere}
h3{font-size:1.1rem;margin:1.4em 0 .3em}
h4{font-size:1rem;margin:.6em 0}
a{color:var(--accent)}
p{max-width:46em;margin:.5em 0}
.soft{color:var(--soft)}
.bar{display:flex;gap:1em;justify-content:space-between;align-items:start}
.bar nav ul{display:flex;flex-wrap:wrap;gap:.2em 1.2em;padding:0;margin:.4em 0;list-style:none}
button,select{font:inherit;color:var(--ink);background:var(--panel);border:1px solid var(--soft);
border-radius:6px;padding:.3em .7em;max-width:100%}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,440px),1fr));
gap:8px 24px}
figure{margin:.6em 0;min-width:0;max-width:640px}
figcaption{font-weight:600;margin-bottom:.2em}
figcaption span{display:block;font-weight:400;font-size:.9rem;color:var(--soft)}
svg{display:block;width:100%;height:auto;overflow:visible}
.scroll{overflow-x:auto;margin:.6em 0}
table{border-collapse:collapse;font-size:.92rem}
th,td{padding:.3em .7em;text-align:right;border-bottom:1px solid var(--grid);white-space:nowrap;
font-variant-numeric:tabular-nums}
th:first-child,td:first-child,.left{text-align:left}
td.left{white-space:normal;min-width:16em;overflow-wrap:anywhere}
th{color:var(--soft);font-weight:600}
pre{background:var(--panel);border-radius:6px;padding:.7em;margin:.4em 0;white-space:pre-wrap;
overflow-wrap:anywhere;font:.86rem/1.45 ui-monospace,"DejaVu Sans Mono",monospace}
.text{background:var(--panel);border-radius:6px;padding:.6em;white-space:pre-wrap;
overflow-wrap:anywhere;font:1rem/1.9 ui-monospace,"DejaVu Sans Mono",monospace}
.text span{border-bottom:3px solid transparent;padding:0 1px;border-radius:2px}
.mark,.text span{cursor:default}
.mark:focus,.text span:focus{outline:none}
.mark:focus,.mark:hover,.mark.on{stroke:var(--ink);stroke-width:2.5;opacity:1}
.dot.on{stroke:var(--c1);stroke-width:4}
.row:focus,.row:hover{stroke:var(--c1);stroke-width:1.5}
.text span:focus,.text span:hover,.text span.on{background:var(--grid);outline:2px solid var(--accent)}
a:focus-visible,button:focus-visible,select:focus-visible,.scroll:focus-visible{
outline:2px solid var(--accent);outline-offset:2px}
#tip{position:fixed;z-index:1;max-width:min(26em,calc(100vw - 24px));padding:.35em .6em;
border-radius:6px;background:var(--ink);color:var(--paper);font-size:.88rem;pointer-events:none;
white-space:pre-wrap;overflow-wrap:anywhere}
[hidden]{display:none!important}
@media (max-width:600px){body{padding:12px}text{font-size:15px}.bar{flex-direction:column-reverse;
gap:.2em}}
@media print{button,select,#tip{display:none}}
)";

constexpr std::string_view kScript = R"(
'use strict';
const root = document.documentElement;
const tip = document.getElementById('tip');

const theme = document.getElementById('theme');
const dark = matchMedia('(prefers-color-scheme: dark)');
function isDark() { return root.dataset.theme ? root.dataset.theme === 'dark' : dark.matches; }
function nameTheme() { theme.textContent = isDark() ? 'Light colours' : 'Dark colours'; }
theme.hidden = false;
theme.addEventListener('click', () => {
  root.dataset.theme = isDark() ? 'light' : 'dark';
  nameTheme();
});
dark.addEventListener('change', nameTheme);
nameTheme();

function say(mark) {
  tip.textContent = mark.getAttribute('aria-label');
  tip.hidden = false;
  const box = mark.getBoundingClientRect();
  const below = box.bottom + 8 + tip.offsetHeight < innerHeight;
  const middle = Math.min(Math.max(box.left, 0), innerWidth) + Math.min(box.width, 60) / 2;
  const left = Math.min(middle - tip.offsetWidth / 2, innerWidth - tip.offsetWidth - 12);
  tip.style.left = Math.max(12, left) + 'px';
  tip.style.top = (below ? box.bottom + 8 : Math.max(4, box.top - tip.offsetHeight - 8)) + 'px';
}

// Marks of one map belong together: a token and its dot, a prototype and what it attracts.
function light(mark, on) {
  const map = mark.closest('.map');
  if (!map) return;
  const key = mark.dataset.token === undefined ? 'gate' : 'token';
  const value = mark.dataset[key];
  for (const other of map.querySelectorAll('[data-' + key + '="' + value + '"]')) {
    other.classList.toggle('on', on);
  }
}

const kMarks = '[aria-label][tabindex]:not(.scroll)';
for (const group of document.querySelectorAll('svg, .text')) {
  const marks = [...group.querySelectorAll(kMarks)];
  if (!marks.length) continue;
  let at = 0;
  marks[0].tabIndex = 0;
  const go = (to) => {
    marks[at].tabIndex = -1;
    at = Math.min(Math.max(to, 0), marks.length - 1);
    marks[at].tabIndex = 0;
    marks[at].focus();
  };
  group.addEventListener('keydown', (event) => {
    const moves = { ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1,
                    Home: 0, End: marks.length - 1 };
    if (event.key in moves) {
      go(moves[event.key]);
      event.preventDefault();
    }
    if (event.key === 'Escape') tip.hidden = true;
  });
  for (const kind of ['pointerover', 'focusin']) {
    group.addEventListener(kind, (event) => {
      const mark = event.target.closest(kMarks);
      if (!mark) return;
      light(mark, true);
      say(mark);
    });
  }
  for (const kind of ['pointerout', 'focusout']) {
    group.addEventListener(kind, (event) => {
      const mark = event.target.closest(kMarks);
      if (mark) light(mark, false);
      tip.hidden = true;
    });
  }
}
addEventListener('scroll', () => { tip.hidden = true; }, { passive: true });

for (const choices of document.querySelectorAll('.choices')) {
  const select = choices.querySelector('select');
  const parts = [...choices.querySelectorAll('.choice')];
  const show = () => parts.forEach((part, i) => { part.hidden = i !== select.selectedIndex; });
  select.addEventListener('change', show);
  select.closest('label').hidden = false;
  show();
}
)";

}  // namespace

std::string page_style() {
  return fmt::format(
      ":root{{color-scheme:light dark;{}}}\n"
      "@media (prefers-color-scheme: dark){{:root:not([data-theme=light]){{{}}}}}\n"
      ":root[data-theme=dark]{{{}color-scheme:dark}}\n:root[data-theme=light]{{color-scheme:light}}"
      "\n"
      "{}{}",
      variables(kLight), variables(kDark), variables(kDark), figure_rules(), kPageRules);
}

std::string_view page_script() { return kScript; }

std::string figure_rules_in_light() {
  std::string rules = figure_rules();
  const std::string colors = variables(kLight);
  for (std::size_t at = 0; (at = rules.find("var(--", at)) != std::string::npos;) {
    const std::size_t end = rules.find(')', at);
    const std::string name = rules.substr(at + 4, end - at - 4) + ":";
    const std::size_t value = colors.find(name) + name.size();
    rules.replace(at, end + 1 - at, colors.substr(value, colors.find(';', value) - value));
  }
  return rules;
}

}  // namespace proteus
