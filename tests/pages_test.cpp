// train/pages: what becomes of texts, ticks, figures, and of run folders that are not as they
// should be.
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>

#include "tensor/error.h"
#include "tests/error_text.h"
#include "tests/markup_check.h"
#include "tests/temporary_folder.h"
#include "train/pages/chart.h"
#include "train/pages/markup.h"
#include "train/pages/page.h"

namespace proteus {
namespace {

namespace fs = std::filesystem;
using testing::MarkupCheck;
using testing::message_of;
using testing::TemporaryFolder;

constexpr const char* kNasty = "</script><img src=x onerror=\"alert('1')\">&amp;\x01\xFF\n";

std::vector<std::string> texts_of(const std::vector<Tick>& ticks) {
  std::vector<std::string> texts;
  for (const Tick& t : ticks) texts.push_back(t.text);
  return texts;
}

using Texts = std::vector<std::string>;

TEST(MarkupCheck, FindsFaults) {
  EXPECT_EQ(MarkupCheck::fault("<p a=\"1\">x &lt; y<br/></p>"), "");
  for (const char* bad :
       {"<p>", "<p></b>", "<b><p></b></p>", "<p a=1></p>", "<p a=\"1\" a=\"2\"></p>", "a & b",
        "<p id=\"a\"></p><p id=\"a\"></p>", "<img src=\"x\"/>", "<a href=\"https://x\">x</a>",
        "<p onclick=\"x\"></p>", "<style>a{background:url(x)}</style>", "<p title=\"<\"></p>"}) {
    EXPECT_NE(MarkupCheck::fault(bad), "") << bad;
  }
}

TEST(Markup, EscapesWhatHasAMeaning) {
  EXPECT_EQ(escaped("a<b>&\"'\n\t"), "a&lt;b&gt;&amp;&quot;&#39;\n\t");
  EXPECT_EQ(escaped("\x01|\x7F|\xFF|ü"), "\uFFFD|\uFFFD|\uFFFD|ü");
  EXPECT_EQ(escaped(kNasty).find('<'), std::string::npos);
}

TEST(Markup, NumbersAreShort) {
  EXPECT_EQ(coordinate(12.5), "12.5");
  EXPECT_EQ(coordinate(-0.001), "0");
  EXPECT_EQ(coordinate(1.0 / 3), "0.33");
  EXPECT_EQ(short_number(1234567), "1,234,567");
  EXPECT_EQ(short_number(-1000), "-1,000");
  EXPECT_EQ(short_number(0.0123456), "0.01235");
  EXPECT_EQ(short_number(std::nan("")), "–");
  EXPECT_EQ(bytes_text(1e300), "–");
}

TEST(Ticks, AreRoundNumbers) {
  EXPECT_EQ(texts_of(linear_ticks(0, 10, 6)), (Texts{"0", "2", "4", "6", "8", "10"}));
  EXPECT_EQ(texts_of(linear_ticks(-0.13, 0.26, 5)), (Texts{"-0.1", "0", "0.1", "0.2"}));
  EXPECT_EQ(texts_of(linear_ticks(0, 31000, 4)), (Texts{"0", "10k", "20k", "30k"}));
  EXPECT_EQ(texts_of(linear_ticks(0, 5e7, 3, true)), (Texts{"0", "20MB", "40MB"}));
  EXPECT_EQ(linear_ticks(3, 3, 6).size(), 1u);
  EXPECT_LE(linear_ticks(1e17, 1e17 + 64, 6).size(), 6u) << "where + 1 changes nothing";
}

TEST(Ticks, OfLogarithmicAxesArePowers) {
  EXPECT_EQ(texts_of(log_ticks(128, 1048576, 2, 20)),
            (Texts{"128", "256", "512", "1k", "2k", "4k", "8k", "16k", "32k", "64k", "128k", "256k",
                   "512k", "1M"}));
  EXPECT_EQ(texts_of(log_ticks(128, 1048576, 2, 6)), (Texts{"128", "1k", "8k", "64k", "512k"}));
  EXPECT_EQ(texts_of(log_ticks(0.1, 100, 10, 6)), (Texts{"0.1", "1", "10", "100"}));
  EXPECT_EQ(texts_of(log_ticks(0.9, 60, 10, 6)), (Texts{"1", "2", "5", "10", "20", "50"}));
  EXPECT_EQ(texts_of(log_ticks(1e-4, 1e4, 10, 5)), (Texts{"0.0001", "0.01", "1", "100", "10k"}));
  const auto narrow = log_ticks(31, 38, 10, 6);
  EXPECT_GE(narrow.size(), 2u) << "no power is in the range: round numbers are";
  for (const Tick& t : narrow) EXPECT_TRUE(t.value >= 31 && t.value <= 38) << t.value;
}

Chart small_chart() {
  return {.label = kNasty,
          .x = {.title = kNasty, .log_base = 2},
          .y = {.title = "ms", .log_base = 10},
          .series = {{kNasty, 0, Line::solid, Glyph::circle, 3, {{128, 1, "a"}, {256, 2, kNasty}}},
                     {"b", 1, Line::none, Glyph::cross, 3, {{0, 1, "left out"}, {128, -1, "too"}}}},
          .rules = {{200, 1, kNasty}}};
}

TEST(Chart, IsWellFormedWhateverItsTextsSay) {
  const std::string svg = chart_svg(small_chart());
  EXPECT_EQ(MarkupCheck::fault(svg), "");
  EXPECT_EQ(svg, chart_svg(small_chart()));
  EXPECT_EQ(svg.find("left out"), std::string::npos) << "there is no place for 0 on that axis";
  EXPECT_NE(svg.find("aria-label=\"a\""), std::string::npos);
  const std::string file = svg_file(svg);
  EXPECT_EQ(MarkupCheck::fault(file), "");
  EXPECT_EQ(file.find("var(--"), std::string::npos) << "colours are there";
}

TEST(Chart, OfNothingIsNothing) {
  EXPECT_EQ(chart_svg({"x", {}, {}, {{"a", 0}}}), "");
  EXPECT_EQ(
      chart_svg({"x", {}, {}, {{"a", 0, Line::solid, Glyph::circle, 3, {{1, std::nan("")}}}}}), "");
  EXPECT_EQ(heat_map_svg({}), "");
}

TEST(Chart, PutsLargerValuesHigherAndFurtherRight) {
  const std::string svg = chart_svg(
      {"x", {}, {}, {{"", 0, Line::solid, Glyph::circle, 3, {{1, 1, "first"}, {2, 5, "second"}}}}});
  const auto place = [&](const std::string& label, const char* which) {
    const std::size_t end = svg.find("aria-label=\"" + label);
    const std::size_t at = svg.rfind(which, end) + 4;
    return std::stod(svg.substr(at));
  };
  EXPECT_LT(place("first", "cx="), place("second", "cx="));
  EXPECT_GT(place("first", "cy="), place("second", "cy="));
}

TEST(HeatMap, StaysSmallHoweverManyHeadsAndSteps) {
  HeatMap map{"loads", "step", "head", "share", {}, {}};
  for (int step = 0; step < 1000; ++step) {
    map.x.push_back(step);
    map.values.emplace_back(2000, 0.001 * step);
  }
  map.values[10].resize(1990);  // heads that came later
  const std::string svg = heat_map_svg(map);
  EXPECT_EQ(MarkupCheck::fault(svg), "");
  EXPECT_LT(svg.size(), 100'000u);
  EXPECT_NE(svg.find("head 0 to 30: "), std::string::npos);
}

TEST(Projection, FindsTheDirectionsOfTheLargestVariance) {
  std::vector<double> rows;
  for (int i = -4; i <= 4; ++i) {
    for (const double minor : {-0.5, 0.5}) {
      rows.insert(rows.end(), {0.6 * i - 0.8 * minor, 3, 0.8 * i + 0.6 * minor});
    }
  }
  const Projection p = project_rows(rows, 3);
  ASSERT_EQ(p.points.size(), 18u);
  EXPECT_NEAR(p.points.front().x, -4, 1e-12) << "the largest weight of an axis is positive";
  EXPECT_NEAR(p.points.back().x, 4, 1e-12);
  EXPECT_NEAR(std::abs(p.points.front().y), 0.5, 1e-12);
  EXPECT_NEAR(p.explained[0] + p.explained[1], 1, 1e-12);
  EXPECT_THROW(project_rows(rows, 4), ShapeError);
  EXPECT_THROW(project_rows({}, 4), ShapeError);
  EXPECT_NEAR(project_rows(std::vector<double>{1, 3}, 1).points[1].x, 1, 1e-12);
}

using Files = std::vector<std::pair<const char*, std::string>>;

/// A run folder with these files, and a config.toml.
class Folder {
 public:
  explicit Folder(const Files& files) {
    fs::create_directory(path());
    write("config.toml", "steps = 1\n");
    for (const auto& [name, text] : files) write(name, text);
  }
  std::string path() const { return folder_.file("run"); }
  void write(const std::string& name, const std::string& text) const {
    folder_.write("run/" + name, text);
  }
  std::string refusal() const {
    return message_of<FileError>([&] { read_run(path()); });
  }

 private:
  TemporaryFolder folder_;
};

TEST(RunData, RefusesWhatIsNoRun) {
  const TemporaryFolder folder;
  const std::string absent = folder.file("absent");
  EXPECT_EQ(message_of<FileError>([&] { read_run(absent); }),
            absent +
                ": no such run folder; expected one that duel, train, recall, sweep or stream "
                "wrote");
  EXPECT_EQ(message_of<FileError>([&] { read_run(folder.path()); }),
            folder.path() + ": not a run folder: it has no config.toml");
  const Folder torn(Files{{"metrics.jsonl", "{\"step\":1}\n{\"step\":\n{\"step\":3}\n"}});
  EXPECT_EQ(torn.refusal(), torn.path() + "/metrics.jsonl: line 2: not JSON: byte 9");
  const Folder list(Files{{"metrics.jsonl", "[1]\n"}});
  EXPECT_EQ(list.refusal(), list.path() + "/metrics.jsonl: line 1: expected a JSON object");
  const Folder summary(Files{{"summary.json", "{\"command\":\"duel\""}});
  EXPECT_TRUE(summary.refusal().starts_with(summary.path() + "/summary.json: not JSON"));
}

TEST(RunData, ReadsAnUnfinishedRun) {
  const Folder folder(Files{
      {"metrics.jsonl",
       "{\"arm\":\"aspa\",\"seed\":7,\"step\":10,\"loss\":2.5,\"maxvio\":null}\n"
       "{\"arm\":\"aspa\",\"seed\":7,\"step\":10,\"routing\":[{\"layer\":1,\"part\":\"attention\","
       "\"query\":{\"load\":[0.25,0.75]},\"key\":null}]}\n"
       "{\"arm\":\"aspa\",\"seed\":7,\"step\":10,\"val_loss\":2.25}\n"
       "{\"arm\":\"aspa\",\"seed\":7,\"st"}});
  const proteus::Run run = read_run(folder.path() + "/");
  EXPECT_EQ(run.name, "run");
  EXPECT_FALSE(run.finished);
  ASSERT_EQ(run.arms.size(), 1u);
  const ArmRun& arm = run.arms[0];
  EXPECT_EQ(arm.title(), "aspa, seed 7");
  ASSERT_EQ(arm.steps.size(), 1u);
  EXPECT_EQ(arm.steps[0].loss, 2.5);
  EXPECT_TRUE(std::isnan(arm.steps[0].max_vio));
  ASSERT_EQ(arm.evals.size(), 1u);
  ASSERT_EQ(arm.loads.size(), 1u);
  EXPECT_EQ(arm.loads[0].role, "query");
  EXPECT_EQ(arm.loads[0].points[0].load, (std::vector<double>{0.25, 0.75}));
  const Page page = make_page({{run}});
  EXPECT_EQ(MarkupCheck::fault(page.html), "");
  EXPECT_NE(page.html.find("has not finished"), std::string::npos);
}

// Files are data: of other types than expected, they are as if they were not there.
TEST(RunData, TakesNoHarmFromOtherTypes) {
  const Folder folder(Files{
      {"commands.jsonl", "{\"command_line\":7,\"cores\":\"many\"}\n"},
      {"metrics.jsonl",
       "{\"arm\":1,\"step\":\"x\"}\n{\"arm\":\"a\",\"step\":1,\"loss\":\"x\",\"routing\":[1,{}]}\n"
       "{\"arm\":\"a\",\"step\":2,\"loss\":null,\"routing\":{\"x\":{\"layer\":-1}},"
       "\"gate_event\":[1]}\n"},
      {"summary.json",
       "{\"command\":\"stream\",\"arms\":[1,{\"name\":[],\"peak_memory_bytes\":1e300}],\"data\":3,"
       "\"rows\":{\"a\":{\"length\":-5},\"b\":{\"length\":1e300,\"fwd_ms\":1}},\"tokens\":10}"},
      {"kept.json",
       "{\"winners\":[1,{\"token\":\"x\"},{\"token\":1e300},{\"token\":3,\"score\":null}],"
       "\"spans\":[{\"begin\":5,\"end\":1},{\"begin\":2,\"end\":1e300}]}"}});
  const proteus::Run run = read_run(folder.path());
  EXPECT_EQ(run.stream->winners.size(), 1u);
  EXPECT_TRUE(run.stream->spans.empty());
  EXPECT_TRUE(run.sweep.empty());
  EXPECT_EQ(MarkupCheck::fault(make_page({{run}}).html), "");
}

Run nasty_run() {
  Run run;
  run.path = run.name = run.command = run.config = kNasty;
  run.finished = true;
  run.calls.push_back({kNasty, kNasty, kNasty, kNasty, kNasty, kNasty, kNasty});
  ArmRun& arm = run.arms.emplace_back();
  arm.name = arm.sample = kNasty;
  arm.steps = {{1, 2.0, 3.0}, {2, 1.5, 3.0}};
  arm.evals = {{1, 2.0, 0.5}, {2, 1.5, 0.75}};
  arm.loads = {{0, kNasty, "query", {{1, {0.5, 0.25}}, {2, {0.25, 0.5}}}}};
  arm.gates = {{1, 0, kNasty, kNasty, kNasty}};
  StreamRun& stream = run.stream.emplace();
  stream.tokens = 100;
  stream.storage = stream.file = stream.prompt = stream.answer = kNasty;
  stream.winners = {{7, 1.5, 0}};
  stream.spans = {{3, 12, kNasty}};
  run.needles = {{kNasty, kNasty, kNasty, 10, 10, 5, 5}};
  SweepRow row;
  row.length = 128;
  row.arm = row.error = kNasty;
  row.fwd_ms = 1.0;
  run.sweep = {row};
  return run;
}

TEST(Page, HoldsTextsThatLookLikeMarkup) {
  PrototypeMap map{kNasty, 0, {0.5, 0.25}, {{{0, 0}, 0, 1}}, {{{1, 1}, kNasty, 0, {0}, {}}}};
  const Page page = make_page({{nasty_run(), {map}}, {nasty_run()}});
  EXPECT_EQ(MarkupCheck::fault(page.html), "");
  EXPECT_EQ(page.html.find("<img"), std::string::npos);
  EXPECT_EQ(page.html.find("</script>"), page.html.rfind("</script>"));
  EXPECT_EQ(page.html, make_page({{nasty_run(), {map}}, {nasty_run()}}).html);
  for (const Figure& figure : page.figures) {
    EXPECT_EQ(MarkupCheck::fault(svg_file(figure.svg)), "") << figure.id;
  }
}

TEST(Page, SaysHowToMakeWhatIsNotThere) {
  proteus::Run run;
  run.name = "empty";
  const std::string html = make_page({{run}}).html;
  for (const char* how : {"proteus duel", "proteus sweep", "proteus stream", "proteus report"}) {
    EXPECT_NE(html.find(how), std::string::npos) << how;
  }
}

}  // namespace
}  // namespace proteus
