// What a stream kept (train/pages/parts.h).
#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "train/pages/chart.h"
#include "train/pages/markup.h"
#include "train/pages/parts.h"
#include "train/report.h"

namespace proteus {
namespace {

constexpr double kColumns = 400;  // of the figure: more tokens than that share one
constexpr std::size_t kShownSpans = 20;

struct Column {
  double kept = 0;
  const KeptToken* best = nullptr;
};

double tokens_in(const KeptText& span) { return span.end - span.begin; }

std::map<int, Column> columns_of(const StreamRun& s) {
  std::map<int, Column> columns;
  const double width = std::max(s.tokens / kColumns, 1.0);
  const auto column = [&](double token) { return static_cast<int>(token / width); };
  for (const KeptToken& w : s.winners) {
    Column& c = columns[column(w.token)];
    if (!c.best || w.score > c.best->score) c.best = &w;
  }
  for (const KeptText& span : s.spans) {
    for (int i = column(span.begin); i <= column(span.end - 1); ++i) {
      const double begin = std::max(span.begin, i * width);
      columns[i].kept += std::min(span.end, (i + 1) * width) - begin;
    }
  }
  return columns;
}

std::string score_chart(const StreamRun& s) {
  Chart chart{"Best score of the kept tokens against their place in the text.",
              {.title = "token of the text", .whole = s.tokens},
              {.title = "score"},
              {{"", 0, Line::none, Glyph::circle, 2.5}}};
  const double width = std::max(s.tokens / kColumns, 1.0);
  for (const auto& [i, column] : columns_of(s)) {
    if (!column.best) continue;
    std::string label =
        fmt::format("token {}: score {}, head {}", short_number(column.best->token),
                    short_number(column.best->score), short_number(column.best->head));
    if (width > 1) {
      label += fmt::format("; {} of {} tokens here kept", short_number(std::round(column.kept)),
                           short_number(std::round(width)));
    }
    chart.series[0].marks.push_back({column.best->token, column.best->score, std::move(label)});
  }
  return chart_svg(chart);
}

std::string kept_chart(const StreamRun& s) {
  Chart chart{"Tokens kept against the place in the text.",
              {.title = "token of the text", .whole = s.tokens},
              {.title = "tokens kept of each part", .from_zero = true},
              {{"", 0, Line::stems}}};
  const double width = std::max(s.tokens / kColumns, 1.0);
  for (const auto& [i, column] : columns_of(s)) {
    chart.series[0].marks.push_back({(i + 0.5) * width, column.kept});
  }
  return chart_svg(chart);
}

void write_spans(PageWriter& page, const StreamRun& s) {
  struct Ranked {
    const KeptText* span;
    const KeptToken* best;
    int winners;
  };
  std::vector<Ranked> ranked;
  auto w = s.winners.begin();
  for (const KeptText& span : s.spans) {
    Ranked r{&span, nullptr, 0};
    for (; w != s.winners.end() && w->token < span.end; ++w) {
      if (w->token < span.begin) continue;
      ++r.winners;
      if (!r.best || w->score > r.best->score) r.best = &*w;
    }
    ranked.push_back(r);
  }
  std::stable_sort(ranked.begin(), ranked.end(), [](const Ranked& a, const Ranked& b) {
    return a.best && (!b.best || a.best->score > b.best->score);
  });
  const bool texts = std::any_of(s.spans.begin(), s.spans.end(),
                                 [](const KeptText& span) { return !span.text.empty(); });
  std::vector<std::vector<std::string>> rows;
  for (std::size_t i = 0; i < std::min(kShownSpans, ranked.size()); ++i) {
    const Ranked& r = ranked[i];
    rows.push_back({short_number(r.span->begin), short_number(tokens_in(*r.span)),
                    fmt::to_string(r.winners), r.best ? format_number(r.best->score, 2) : "anchor",
                    r.best ? short_number(r.best->head) : "–"});
    if (texts) rows.back().push_back(r.span->text);
  }
  std::vector<std::string> header = {"from token", "tokens", "winners", "score", "head"};
  if (texts) header.emplace_back("text");
  page.paragraph(fmt::format("The best of {} spans:", s.spans.size()));
  page.table(header, rows, "The best spans", {5});
}

}  // namespace

bool write_stream(PageWriter& page, const Run& run, const std::string& id) {
  if (!run.stream) return false;
  const StreamRun& s = *run.stream;
  page.heading(3, "What the stream kept");
  page.table({"text", "tokens", "kept", "share", "chunks", "stream s", "tokens/s", "peak memory",
              "rows wait in", "spilled"},
             {{s.file.empty() ? "embeddings" : s.file, short_number(s.tokens),
               short_number(s.retained), fmt::format("{:.2f}%", 100 * s.retained / s.tokens),
               short_number(s.chunks), format_number(s.stream_s, 2), format_count(s.tokens_per_s),
               bytes_text(s.peak_rss), s.storage, bytes_text(s.spilled)}},
             "The stream");
  if (!s.prompt.empty()) {
    page.heading(4, "Prompt and answer");
    page.code(s.prompt + s.answer);
  }
  page.figures({{id + "-scores", "Scores of what was kept",
                 fmt::format("The best winner of every {} tokens.",
                             short_number(std::ceil(std::max(s.tokens / kColumns, 1.0)))),
                 s.winners.empty() ? std::string() : score_chart(s)},
                {id + "-kept", "Where it lies in the text",
                 fmt::format("Tokens kept of every {}.",
                             short_number(std::ceil(std::max(s.tokens / kColumns, 1.0)))),
                 s.spans.empty() ? std::string() : kept_chart(s)}});
  if (!s.spans.empty()) write_spans(page, s);
  return true;
}

}  // namespace proteus
