// The HTML of a page, piece by piece. Texts are escaped here; figures come as SVG.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace proteus {

struct Figure {
  std::string id;  ///< of the page, and the name of its file: "duel-loss"
  std::string title;
  std::string note;  ///< a sentence beneath the title
  std::string svg;   ///< empty: there is nothing to show
};

class PageWriter {
 public:
  void heading(int level, std::string_view text, std::string_view id = {});
  void paragraph(std::string_view text);
  void code(std::string_view text);
  /// Columns of numbers are right of the first; `left` are those of texts.
  void table(const std::vector<std::string>& header,
             const std::vector<std::vector<std::string>>& rows, std::string_view label,
             const std::vector<std::size_t>& left = {});
  /// Figures beside each other. Those without SVG are left out.
  void figures(const std::vector<Figure>& figures);
  /// HTML of which one is shown at a time, chosen by its name.
  struct Choice {
    std::string name;
    std::string html;
    std::string_view kind = {};  ///< classes
  };
  void choices(const std::vector<Choice>& choices);
  /// HTML that is ready.
  void raw(std::string_view html) { html_ += html; }
  /// The HTML of figures beside each other, which then are among shown(); `more` stands behind
  /// them.
  std::string row(const std::vector<Figure>& figures, std::string_view more = {});

  const std::string& html() const { return html_; }
  /// All figures so far.
  const std::vector<Figure>& shown() const { return shown_; }

 private:
  std::string html_;
  std::vector<Figure> shown_;
};

/// Letters and digits of a text in small letters, with '-' for the rest: for ids and file names.
std::string id_text(std::string_view text);

}  // namespace proteus
