// proteus report: one page from run folders, and its figures as files where they are asked for.
#include <fmt/format.h>

#include <filesystem>

#include "tensor/error.h"
#include "train/commands.h"
#include "train/commands/model_file.h"
#include "train/corpus.h"
#include "train/file_ops.h"
#include "train/pages/chart.h"
#include "train/pages/page.h"
#include "train/shard.h"
#include "train/text_reader.h"

namespace proteus {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kMappedTokens = 256;

/// The checkpoint that an arm left in its run folder; empty where there is none.
std::string checkpoint_of(const Run& run, const ArmRun& arm) {
  const std::string folder = run.path + "/";
  for (const std::string& name : {run.command == "train" ? std::string("checkpoint") : arm.name,
                                  fmt::format("{}-seed{}", arm.name, arm.seed)}) {
    std::error_code error;
    if (fs::exists(folder + name + "/config.json", error)) return folder + name;
  }
  return {};
}

/// The text whose tokens are mapped: --text, or what the run was trained on if it is still there.
std::vector<std::int32_t> mapped_ids(const Options& options, const Run& run,
                                     const Tokenizer& tokenizer) {
  std::string file = options.report.text;
  std::error_code error;
  if (file.empty() && run.data == kBuiltInText) {
    return tokenizer.encode(synthetic_corpus(), run.data);
  }
  if (file.empty() && fs::is_regular_file(run.data, error) && !is_shard_path(run.data)) {
    file = run.data;
  }
  if (file.empty()) return {};
  return TextReader(tokenizer, file).next();
}

/// Of the first seed of every ASPA arm that left a checkpoint.
std::vector<PrototypeMap> maps_of(const Options& options, const Run& run) {
  std::vector<PrototypeMap> maps;
  if (run.command != "duel" && run.command != "train") return maps;
  std::string last;
  for (const ArmRun& arm : run.arms) {
    if (arm.loads.empty() || arm.name == last) continue;
    const std::string path = checkpoint_of(run, arm);
    if (path.empty()) continue;
    last = arm.name;
    const LoadedModel loaded = load_model(path);
    const auto ids = mapped_ids(options, run, loaded.tokenizer);
    for (PrototypeMap& map : prototype_maps(*loaded.model, loaded.tokenizer, ids, kMappedTokens)) {
      map.arm = arm.title();
      maps.push_back(std::move(map));
    }
  }
  return maps;
}

}  // namespace

int run_report(const Options& options) {
  const ReportOptions& o = options.report;
  std::vector<ReportedRun> runs;
  for (const std::string& path : o.runs) {
    ReportedRun reported{read_run(path)};
    reported.maps = maps_of(options, reported.run);
    runs.push_back(std::move(reported));
  }
  const Page page = make_page(runs);
  const std::string file =
      o.page.empty() ? (fs::path(o.runs.front()) / "report.html").string() : o.page;
  write_file_atomically(file, page.html);
  fmt::print("Written to {}\n", file);
  if (o.svg.empty()) return 0;
  make_folders(o.svg);
  for (const Figure& figure : page.figures) {
    write_file_atomically((fs::path(o.svg) / (figure.id + ".svg")).string(), svg_file(figure.svg));
  }
  fmt::print("{} figures written to {}\n", page.figures.size(), o.svg);
  return 0;
}

}  // namespace proteus
