#include "train/pages/page.h"

#include <fmt/format.h>

#include <set>

#include "train/pages/markup.h"
#include "train/pages/parts.h"
#include "train/pages/style.h"

namespace proteus {
namespace {

/// A part that a page can have.
struct PartKind {
  std::string_view name;
  std::string_view how;  ///< to make its data
};
constexpr PartKind kTraining = {"losses, speed and memory",
                                "proteus duel --data TEXT --arms dense,aspa --out runs/duel"};
constexpr PartKind kSamples = {"samples", "proteus duel --sample-tokens 300 --out runs/duel"};
constexpr PartKind kRouting = {"loads of heads", "proteus duel --arms dense,aspa --out runs/duel"};
constexpr PartKind kMaps = {"prototypes and their tokens",
                            "proteus report runs/duel --text FILE (runs/duel with an aspa arm, its "
                            "checkpoint beside it)"};
constexpr PartKind kSweep = {"a layer against the length",
                             "proteus sweep --lengths 128..65536 --backward --out runs/sweep"};
constexpr PartKind kStream = {
    "what a stream keeps",
    "proteus stream --checkpoint runs/duel/aspa --file TEXT --prompt WORDS --out runs/stream"};
constexpr const PartKind* kParts[] = {&kTraining, &kSamples, &kRouting, &kMaps, &kSweep, &kStream};

std::string title_of(const Run& run) {
  return run.command.empty() ? run.name : fmt::format("{} ({})", run.name, run.command);
}

std::string head(const std::string& title) {
  return fmt::format(
      "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n"
      "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n"
      "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src "
      "'unsafe-inline'; script-src 'unsafe-inline'\"/>\n<title>{}</title>\n"
      "<style>{}</style>\n</head>\n<body>\n",
      escaped(title), page_style());
}

void write_run(PageWriter& page, const ReportedRun& reported, const std::string& id,
               std::set<const PartKind*>& had) {
  const Run& run = reported.run;
  page.raw(fmt::format("<section aria-labelledby=\"{}\">\n", id));
  page.heading(2, title_of(run), id);
  if (!run.finished) {
    page.paragraph("This run has not finished: it has no summary.json.");
  }
  const auto note = [&](const PartKind& part, bool written) {
    if (written) had.insert(&part);
  };
  note(kTraining, write_training(page, run, id));
  note(kRouting, write_routing(page, run, id));
  note(kMaps, write_prototypes(page, reported.maps, id));
  write_needles(page, run);
  note(kSweep, write_sweep(page, run, id));
  note(kStream, write_stream(page, run, id));
  note(kSamples, write_samples(page, run));
  write_calls(page, run);
  page.raw("</section>\n");
}

void write_absent(PageWriter& page, const std::set<const PartKind*>& had) {
  std::vector<std::vector<std::string>> rows;
  for (const PartKind* part : kParts) {
    if (!had.contains(part)) rows.push_back({std::string(part->name), std::string(part->how)});
  }
  if (rows.empty()) return;
  page.raw("<section aria-labelledby=\"absent\">\n");
  page.heading(2, "Not in these runs", "absent");
  page.table({"part", "how to make it"}, rows, "What is not in these runs", {1});
  page.raw("</section>\n");
}

}  // namespace

Page make_page(const std::vector<ReportedRun>& runs) {
  PageWriter page;
  std::set<const PartKind*> had;
  std::set<std::string> ids = {"absent", "tip", "theme"};
  std::string title = "Proteus:";
  std::string links;
  for (const ReportedRun& r : runs) {
    const std::string base = id_text(r.run.name);
    std::string id = base;
    for (int i = 2; !ids.insert(id).second; ++i) id = fmt::format("{}-{}", base, i);
    title += (links.empty() ? " " : ", ") + r.run.name;
    links += fmt::format("<li><a href=\"#{}\">{}</a></li>", id, escaped(title_of(r.run)));
    write_run(page, r, id, had);
  }
  write_absent(page, had);
  Page out;
  out.figures = page.shown();
  out.html =
      head(title) +
      fmt::format(
          "<header class=\"bar\"><div><h1>Proteus report</h1>\n<nav "
          "aria-label=\"Runs\"><ul>{}</ul></nav>"
          "</div>\n<button id=\"theme\" type=\"button\" hidden=\"\">Colours</button></header>\n"
          "<main>\n",
          links) +
      page.html() +
      fmt::format(
          "</main>\n<div id=\"tip\" role=\"status\" hidden=\"\"></div>\n"
          "<script>{}</script>\n</body>\n</html>\n",
          page_script());
  return out;
}

}  // namespace proteus
