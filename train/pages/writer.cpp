#include "train/pages/writer.h"

#include <fmt/format.h>

#include <algorithm>

#include "train/pages/markup.h"

namespace proteus {

void PageWriter::heading(int level, std::string_view text, std::string_view id) {
  html_ += fmt::format("<h{0}{1}>{2}</h{0}>\n", level,
                       id.empty() ? "" : fmt::format(" id=\"{}\"", escaped(id)), escaped(text));
}

void PageWriter::paragraph(std::string_view text) {
  html_ += fmt::format("<p>{}</p>\n", escaped(text));
}

void PageWriter::code(std::string_view text) {
  html_ += fmt::format("<pre>{}</pre>\n", escaped(text));
}

void PageWriter::table(const std::vector<std::string>& header,
                       const std::vector<std::vector<std::string>>& rows, std::string_view label,
                       const std::vector<std::size_t>& left) {
  const auto kind = [&](std::size_t column) {
    return std::find(left.begin(), left.end(), column) == left.end() ? "" : " class=\"left\"";
  };
  // A table that is wider than the screen scrolls, by keyboard too.
  html_ += fmt::format(
      "<div class=\"scroll\" role=\"region\" tabindex=\"0\" aria-label=\"{}\"><table>\n<thead><tr>",
      escaped(label));
  for (std::size_t c = 0; c < header.size(); ++c) {
    html_ += fmt::format("<th scope=\"col\"{}>{}</th>", kind(c), escaped(header[c]));
  }
  html_ += "</tr></thead>\n<tbody>\n";
  for (const auto& row : rows) {
    html_ += "<tr>";
    for (std::size_t c = 0; c < row.size(); ++c) {
      html_ += fmt::format("<td{}>{}</td>", kind(c), escaped(row[c]));
    }
    html_ += "</tr>\n";
  }
  html_ += "</tbody></table></div>\n";
}

std::string PageWriter::row(const std::vector<Figure>& figures, std::string_view more) {
  std::string inside;
  for (const Figure& f : figures) {
    if (f.svg.empty()) continue;
    shown_.push_back(f);
    inside +=
        fmt::format("<figure id=\"{}\"><figcaption>{}{}</figcaption>\n{}</figure>\n", escaped(f.id),
                    escaped(f.title),
                    f.note.empty() ? "" : fmt::format("<span>{}</span>", escaped(f.note)), f.svg);
  }
  inside += more;
  return inside.empty() ? inside : "<div class=\"figures\">\n" + inside + "</div>\n";
}

void PageWriter::figures(const std::vector<Figure>& figures) { html_ += row(figures); }

void PageWriter::choices(const std::vector<Choice>& choices) {
  html_ += "<div class=\"choices\">\n<label hidden=\"\">Show <select>";
  for (const Choice& c : choices) html_ += fmt::format("<option>{}</option>", escaped(c.name));
  html_ += "</select></label>\n";
  for (const Choice& c : choices) {
    html_ += fmt::format("<div class=\"choice{}{}\">{}</div>\n", c.kind.empty() ? "" : " ", c.kind,
                         c.html);
  }
  html_ += "</div>\n";
}

std::string id_text(std::string_view text) {
  std::string id;
  for (const char c : text) {
    const bool upper = c >= 'A' && c <= 'Z';
    const bool plain = (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9');
    if (upper) {
      id += static_cast<char>(c - 'A' + 'a');
    } else if (plain) {
      id += c;
    } else if (!id.empty() && id.back() != '-') {
      id += '-';
    }
  }
  while (id.ends_with('-')) id.pop_back();
  return id.empty() ? "run" : id;
}

}  // namespace proteus
