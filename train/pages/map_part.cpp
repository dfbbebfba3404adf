// Prototypes and tokens (train/pages/parts.h).
#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "train/pages/chart.h"
#include "train/pages/markup.h"
#include "train/pages/parts.h"

namespace proteus {
namespace {

constexpr std::size_t kNamedTokens = 8;  // of what a prototype attracts

std::string visible(const std::string& token) {
  if (token == " ") return "space";
  if (token == "\n") return "newline";
  return "'" + token + "'";
}

std::string heads_text(const std::vector<std::int32_t>& heads) {
  return heads.empty() ? "none" : fmt::format("{}", fmt::join(heads, ", "));
}

std::string token_label(const PrototypeMap& map, const MappedToken& t) {
  return fmt::format(
      "{}: as a query in heads {}; as a key in heads {}; nearest prototype: gate {} of head {}",
      visible(t.text), heads_text(t.query), heads_text(t.key), t.gate,
      map.gates[static_cast<std::size_t>(t.gate)].head);
}

std::string gate_label(const PrototypeMap& map, std::size_t gate) {
  std::map<std::string, int> counts;
  int tokens = 0;
  for (const MappedToken& t : map.tokens) {
    if (t.gate != static_cast<std::int64_t>(gate)) continue;
    ++counts[t.text];
    ++tokens;
  }
  std::vector<std::pair<std::string, int>> ranked(counts.begin(), counts.end());
  std::stable_sort(ranked.begin(), ranked.end(),
                   [](const auto& a, const auto& b) { return a.second > b.second; });
  std::string label = fmt::format("gate {} of head {} (mass {}): nearest to {} of {} tokens", gate,
                                  map.gates[gate].head, short_number(map.gates[gate].mass), tokens,
                                  map.tokens.size());
  for (std::size_t i = 0; i < std::min(kNamedTokens, ranked.size()); ++i) {
    label +=
        fmt::format("{} {} {}×", i == 0 ? ":" : ",", visible(ranked[i].first), ranked[i].second);
  }
  return label;
}

std::string map_chart(const PrototypeMap& map) {
  const auto axis = [&](int c) {
    return Axis{.title = fmt::format("component {} ({:.0f}% of the variance)", c + 1,
                                     100 * map.explained[c])};
  };
  Chart chart{fmt::format("Prototypes and tokens of {}, layer {}, on two principal components. "
                          "Arrow keys go from prototype to prototype.",
                          map.arm, map.layer),
              axis(0),
              axis(1),
              {{"token", 6, Line::none, Glyph::circle, 2.2},
               {"prototype", 1, Line::none, Glyph::diamond, 6}}};
  for (std::size_t i = 0; i < map.tokens.size(); ++i) {
    const MappedToken& t = map.tokens[i];
    chart.series[0].marks.push_back(
        {t.at.x, t.at.y, {}, fmt::format(" data-token=\"{}\" data-gate=\"{}\"", i, t.gate)});
  }
  for (std::size_t g = 0; g < map.gates.size(); ++g) {
    chart.series[1].marks.push_back({map.gates[g].at.x, map.gates[g].at.y, gate_label(map, g),
                                     fmt::format(" data-gate=\"{}\"", g)});
  }
  return chart_svg(chart);
}

std::string token_text(const PrototypeMap& map) {
  std::string out = fmt::format(
      "<div class=\"text\" role=\"group\" aria-label=\"The text, layer {}: arrow keys go from "
      "token "
      "to token\">",
      map.layer);
  for (std::size_t i = 0; i < map.tokens.size(); ++i) {
    const MappedToken& t = map.tokens[i];
    const int color = t.query.empty() ? 6 : t.query.front() % kSeriesColors;
    out += fmt::format(
        "<span tabindex=\"-1\" role=\"img\" style=\"border-color:var(--c{})\" data-token=\"{}\" "
        "data-gate=\"{}\" aria-label=\"{}\">{}</span>",
        color, i, t.gate, escaped(token_label(map, t)),
        t.text == "\n" ? "↵</span>\n<span>" : escaped(t.text));
  }
  return out + "</div>\n";
}

}  // namespace

bool write_prototypes(PageWriter& page, const std::vector<PrototypeMap>& maps,
                      const std::string& id) {
  if (maps.empty()) return false;
  page.heading(3, "Prototypes and the tokens that they attract");
  page.paragraph(
      "Directions of prototypes and of the text's tokens as queries, on the two components in "
      "which "
      "they differ most. Move the pointer or the focus to a prototype to see its tokens, or to a "
      "token of the text to see the heads that it enters; the lines under the tokens have a colour "
      "per first head.");
  std::vector<PageWriter::Choice> choices;
  for (const PrototypeMap& map : maps) {
    const std::string name = fmt::format("{}: layer {}", map.arm, map.layer);
    const Figure figure{id + "-prototypes-" + id_text(name), "Prototypes, " + name, "",
                        map_chart(map)};
    choices.push_back({name, page.row({figure}, token_text(map)), "map"});
  }
  page.choices(choices);
  return true;
}

}  // namespace proteus
