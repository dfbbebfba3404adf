// proteus stream: a text of any length goes by one ASPA layer in chunks; what its prompt asks for
// is kept, and a final pass of the layer reads that before the prompt (docs/streaming.md).
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <numeric>

#include "autograd/tape.h"
#include "tensor/error.h"
#include "train/commands.h"
#include "train/commands/stream_text.h"
#include "train/commands/text.h"
#include "train/device.h"
#include "train/memory.h"
#include "train/safetensors.h"
#include "train/signals.h"
#include "train/stream_pass.h"

namespace proteus {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;
using Json = nlohmann::ordered_json;

constexpr std::int64_t kRandomTokens = std::int64_t{1} << 20;
constexpr const char* kKept = "kept.safetensors";
constexpr double kOutputStd = 0.02;
// Streams of the seed: the layer's weights have the first ones.
constexpr std::uint64_t kTextStream = 1'000'000;
constexpr std::uint64_t kPromptStream = 1'000'001;

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

AspaConfig layer_config(const Options& o) {
  AspaConfig c;
  c.width = o.model.width;
  c.head_width = o.model.head_width;
  c.shared_heads = o.aspa.shared_heads;
  c.shared_window = o.aspa.shared_window;
  c.routed_heads = o.model.heads;
  c.k = o.aspa.k;
  c.window = o.aspa.window;
  c.anchors = o.aspa.anchors;
  c.alpha = o.aspa.alpha;
  c.telemetry = false;
  c.seed = static_cast<std::uint64_t>(o.common.seed);
  // Any share below 1 gives the layer token salience; which tokens skip routed heads is said by
  // --final-keep, since a layer as drawn has no threshold yet.
  c.salience.keep = o.stream.final_keep < 1 ? o.stream.final_keep : 0.5;
  return c;
}

RowSource open_source(const Options& o) {
  const StreamOptions& s = o.stream;
  if (s.embeddings.empty()) {
    const std::int64_t rows = s.length > 0 ? s.length : kRandomTokens;
    const RngKey key{static_cast<std::uint64_t>(o.common.seed), kTextStream};
    return random_source(key, rows, o.model.width);
  }
  RowSource source = embedding_source(s.embeddings, o.model.width);
  return s.length > 0 ? first_rows(std::move(source), s.length, s.embeddings) : source;
}

Tensor prompt_rows(const Options& o) {
  const StreamOptions& s = o.stream;
  if (s.prompt_embeddings.empty()) {
    const RngKey key{static_cast<std::uint64_t>(o.common.seed), kPromptStream};
    return Tensor::randn({s.prompt_tokens, o.model.width}, key);
  }
  const RowSource source = embedding_source(s.prompt_embeddings, o.model.width);
  if (source.rows < 0) {
    throw ConfigError("--prompt-embeddings: expected a file, got '-'; a pipe may be --embeddings");
  }
  if (source.rows > s.buffer) {
    throw ConfigError(
        fmt::format("--prompt-embeddings: expected at most {} rows (= --buffer), {} has {}",
                    s.buffer, s.prompt_embeddings, source.rows));
  }
  const Tensor raw = Tensor::empty({source.rows, source.row_bytes()}, DType::i8);
  source.read(raw.raw(), source.rows);
  const Tensor rows = rows_of(raw, source.rows, source.width, source.format).clone();
  for (std::int64_t i = 0; i < rows.numel(); ++i) {
    if (!std::isfinite(rows.data<float>()[i])) {
      throw NumericError(fmt::format("{}: row {} has a number that is not finite",
                                     s.prompt_embeddings, i / source.width));
    }
  }
  return rows;
}

StagingConfig staging_config(const StreamOptions& o, const RowSource& source) {
  StagingConfig c;
  c.row_bytes = source.row_bytes();
  c.block_rows = stream_block(source.width);
  c.rows = source.rows;
  c.ram_limit =
      o.ram_limit.empty() ? machine_memory().available_bytes / 2 : parse_bytes(o.ram_limit);
  c.spill_dir = o.spill_dir.empty() ? fs::temp_directory_path().string() : o.spill_dir;
  return c;
}

std::unique_ptr<Staging> open_staging(const StagingConfig& c, const RowSource& source) {
  const bool fits = source.rows >= 0 && source.rows * c.row_bytes <= c.ram_limit;
  if (source.file && !fits) return std::make_unique<Staging>(c, source.file);
  return std::make_unique<Staging>(c);
}

// chunk 3/16  2048 of 4096 chosen  32768 kept  512 MB  1.2M tokens/s  5 s left
class ChunkProgress {
 public:
  ChunkProgress(std::int64_t tokens, std::int64_t chunk, ProgressMode mode)
      : tokens_(tokens), chunk_(chunk), mode_(mode) {}

  void show(const ChunkReport& report, const Shortlist& list) {
    if (mode_ == ProgressMode::quiet) return;
    const double rate = static_cast<double>(list.tokens()) / seconds_since(begin_);
    std::string of;
    std::string left;
    if (tokens_ >= 0) {
      of = fmt::format("/{}", (tokens_ + chunk_ - 1) / chunk_);
      left = fmt::format("  {} left",
                         format_seconds(static_cast<double>(tokens_ - list.tokens()) / rate));
    }
    const std::string line =
        fmt::format("chunk {}{}  {} chosen  {} entered  {} kept  {:.0f}% agree  {}  {} tokens/s{}",
                    list.chunks(), of, report.chosen, report.entered, list.kept(),
                    100 * report.agreement, format_bytes(rss_bytes()), format_count(rate), left);
    fmt::print("{}{}", mode_ == ProgressMode::live ? "\r\x1b[K" : "", line);
    if (mode_ == ProgressMode::plain || list.tokens() == tokens_) fmt::print("\n");
    std::fflush(stdout);
  }

 private:
  std::int64_t tokens_;
  std::int64_t chunk_;
  ProgressMode mode_;
  Clock::time_point begin_ = Clock::now();
};

Json chunk_json(const ChunkReport& r, const Shortlist& list) {
  return {{"step", list.chunks()},    {"tokens", list.tokens()},  {"wanted", r.wanted},
          {"chosen", r.chosen},       {"disagreed", r.disagreed}, {"entered", r.entered},
          {"agreement", r.agreement}, {"best", r.best},           {"least", r.least},
          {"kept", list.kept()},      {"rss_bytes", rss_bytes()}};
}

// S_t of rows on the CPU, a block at a time: all of them at once would take as much memory again.
std::vector<float> salience_of(const TokenScorer& scorer, const Tensor& rows) {
  std::vector<float> all;
  Tensor before;
  const std::int64_t block = stream_block(rows.size(1));
  for (std::int64_t at = 0; at < rows.size(0); at += block) {
    const std::int64_t end = std::min(rows.size(0), at + block);
    const Tensor s = scorer.score(rows.slice(0, at, end), before).salience;
    all.insert(all.end(), s.data<float>(), s.data<float>() + s.numel());
    before = rows.select(0, end - 1);
  }
  return all;
}

// The heads that the rows of the final pass enter: none for kept tokens outside the share `keep`
// with the largest salience (of equal ones the earlier). The prompt's always enter theirs.
Selection final_selection(AspaAttention& layer, const Tensor& x, const std::vector<float>& salience,
                          double keep) {
  std::vector<std::size_t> order(salience.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return salience[a] > salience[b]; });
  const auto kept = static_cast<std::size_t>(std::ceil(keep * static_cast<double>(order.size())));
  Selection selection = layer.select(Variable(x));
  for (Tensor* role : {&selection.query, &selection.key}) {
    const Tensor heads = role->to(kCpu).clone();
    const std::int64_t k = heads.size(1);
    for (std::size_t i = kept; i < order.size(); ++i) {
      std::fill_n(heads.data<std::int32_t>() + static_cast<std::int64_t>(order[i]) * k, k, -1);
    }
    *role = heads.to(x.device());
  }
  return selection;
}

// A_h at the prompt's end. Positions are those of the rows that are left: distances within a span
// are as they were. `x` [kept + prompt, C] is on the CPU.
std::vector<double> final_pass(AspaAttention& layer, const TokenScorer& scorer, const Tensor& x,
                               std::int64_t kept, double keep) {
  const NoGradGuard no_grad;
  const Tensor rows = x.to(layer.router().device()).unsqueeze(0);
  if (keep < 1) {
    const std::vector<float> salience = salience_of(scorer, x.slice(0, 0, kept));
    layer.force_selection(final_selection(layer, rows, salience, keep));
  }
  release_cached_memory();  // the first pass's blocks are of other sizes than the layer's
  layer.watch_consensus(true);
  const Tensor y = layer.forward(Variable(rows)).value();
  const Tensor answer = y.select(0, 0).slice(0, kept, x.size(0)).to(kCpu).contiguous();
  for (std::int64_t i = 0; i < answer.numel(); ++i) {
    if (std::isfinite(answer.data<float>()[i])) continue;
    throw NumericError(
        "stream: the final pass gave a number that is not finite; look at the embeddings and the "
        "prompt");
  }
  return layer.consensus().agreement[0];
}

// Which tokens were kept and why: a row for every winner, and the spans that the final pass read.
void write_indices(const std::string& path, const Shortlist& list, const std::vector<Span>& spans) {
  const std::vector<Winner> winners = list.winners();
  const auto n = static_cast<std::int64_t>(winners.size());
  const Tensor token = Tensor::empty({n}, DType::i64);
  const Tensor score = Tensor::empty({n});
  const Tensor why = Tensor::empty({n, 3}, DType::i32);
  for (std::int64_t i = 0; i < n; ++i) {
    const Winner& w = winners[static_cast<std::size_t>(i)];
    token.data<std::int64_t>()[i] = w.token;
    score.data<float>()[i] = w.score;
    std::int32_t* row = why.data<std::int32_t>() + 3 * i;
    row[0] = w.head;
    row[1] = w.query;
    row[2] = w.agree;
  }
  const Tensor span = Tensor::empty({static_cast<std::int64_t>(spans.size()), 2}, DType::i64);
  for (std::size_t i = 0; i < spans.size(); ++i) {
    span.data<std::int64_t>()[2 * i] = spans[i].begin;
    span.data<std::int64_t>()[2 * i + 1] = spans[i].end;
  }
  write_safetensors(path, NamedTensors{{"token", token},
                                       {"score", score},
                                       {"head", why.select(1, 0)},
                                       {"query", why.select(1, 1)},
                                       {"agree", why.select(1, 2)},
                                       {"span", span}});
}

// Until it is finished, a run leaves nothing behind: what it wrote means nothing without the rest.
class Unfinished {
 public:
  explicit Unfinished(const RunFolder& folder) : folder_(folder) { remove({kKept}); }
  ~Unfinished() {
    if (finished_) return;
    remove({"config.toml", "commands.jsonl", "metrics.jsonl", kKept});
    std::error_code ignored;
    fs::remove(folder_.path(), ignored);  // unless there is something else in it
  }
  Unfinished(const Unfinished&) = delete;
  Unfinished& operator=(const Unfinished&) = delete;

  void finish() { finished_ = true; }

 private:
  void remove(std::initializer_list<const char*> names) const {
    std::error_code ignored;
    for (const char* name : names) fs::remove(folder_.file(name), ignored);
  }

  const RunFolder& folder_;
  bool finished_ = false;
};

int say_interrupted() {
  fmt::print(stderr, "proteus: interrupted; nothing is kept\n");
  return kInterrupted;
}

void say_where(const Staging& staging, const RowSource& source, const StagingConfig& c) {
  const std::string limit = format_bytes(c.ram_limit);
  if (source.rows < 0) {
    fmt::print("Rows wait in memory up to {}, then in a file in {}\n", limit, c.spill_dir);
    return;
  }
  const std::string size = format_bytes(source.rows * c.row_bytes);
  const char* where = !staging.on_disk() ? "in memory"
                      : source.file      ? "in their file"
                                         : "in a file";
  fmt::print("{} of rows wait {}; the limit in memory is {}\n", size, where, limit);
}

void print_table(const Json& s, bool quiet, const RunFolder& folder) {
  Table table({"tokens", "retained", "chunks", "stream s", "tokens/s", "final s",
               "overall tokens/s", "peak memory", "storage"});
  table.add_row({format_count(s["tokens"]), fmt::to_string(s["retained"].get<std::int64_t>()),
                 fmt::to_string(s["chunks"].get<std::int64_t>()), format_number(s["stream_s"], 2),
                 format_count(s["stream_tokens_per_s"]), format_number(s["final_s"], 2),
                 format_count(s["tokens_per_s"]), format_bytes(s["peak_rss_bytes"]),
                 s["storage"].get<std::string>()});
  fmt::print("{}", table.text());
  if (!quiet) fmt::print("Written to {}\n", folder.path());
}

}  // namespace

int run_stream(const Options& options) {
  if (!options.checkpoint.checkpoint.empty()) return run_stream_text(options);
  const StreamOptions& o = options.stream;
  const Device device = open_device(options.common.device);
  const RowSource source = open_source(options);
  if (source.rows >= 0 && o.chunk > source.rows) {
    throw ConfigError(fmt::format("--chunk: expected at most {} (= rows of {}), got {}",
                                  source.rows, o.embeddings, o.chunk));
  }
  const Tensor prompt = prompt_rows(options);
  Generator init(static_cast<std::uint64_t>(options.common.seed));
  Generator dropout(0);
  AspaAttention layer(layer_config(options), kOutputStd, init, dropout);
  layer.set_training(false);
  layer.to(device);
  const TokenScorer scorer(layer, prompt, o.salience_weight != 0 || o.final_keep < 1);
  Shortlist list(shortlist_config(options));
  const StagingConfig where = staging_config(o, source);
  std::unique_ptr<Staging> staging = open_staging(where, source);
  RunFolder folder(options);
  Unfinished unfinished(folder);
  if (!options.common.quiet) say_where(*staging, source, where);
  ChunkProgress progress(source.rows, o.chunk, progress_mode(stdout, options.common.quiet));
  const StreamTimes times =
      stream_chunks(source, *staging, scorer, o.chunk, list, [&](const ChunkReport& report) {
        folder.log(chunk_json(report, list));
        progress.show(report, list);
      });
  if (interrupted()) return say_interrupted();
  if (list.tokens() == 0) throw FileError(o.embeddings + ": has no rows");

  const auto begin = Clock::now();
  const std::vector<Span> spans = list.spans();
  const std::int64_t kept = tokens_of(spans);
  const Tensor x = Tensor::empty({kept + prompt.size(0), source.width});
  read_spans(*staging, source, spans, x.slice(0, 0, kept));
  const bool on_disk = staging->on_disk();
  const std::int64_t spilled = staging->spilled_bytes();
  staging.reset();
  x.slice(0, kept, x.size(0)).copy_(prompt);
  AgreementSummary agreement;
  agreement.add(final_pass(layer, scorer, x, kept, o.final_keep));
  const double final_s = seconds_since(begin);
  if (interrupted()) return say_interrupted();
  write_indices(folder.file(kKept), list, spans);

  const auto tokens = static_cast<double>(list.tokens());
  Json json = summary_head(options);
  json["tokens"] = list.tokens();
  json["retained"] = kept;
  json["winners"] = list.kept();
  json["chunks"] = list.chunks();
  json["stream_s"] = times.total;
  json["source_s"] = times.source;
  json["stream_tokens_per_s"] = tokens / times.total;
  json["final_s"] = final_s;
  json["final_tokens"] = x.size(0);
  json["final_tokens_per_s"] = static_cast<double>(x.size(0)) / final_s;
  json["tokens_per_s"] = tokens / (times.total + final_s);
  json["flops_per_token"] = scorer.flops_per_token();
  json["peak_rss_bytes"] = peak_rss_bytes();
  json["storage"] = on_disk ? "disk" : "memory";
  json["spilled_bytes"] = spilled;
  json["agreement"] = agreement.count() > 0 ? Json(agreement.mean()) : Json(nullptr);
  json["indices_file"] = folder.file(kKept);
  folder.write_summary(json);
  unfinished.finish();
  print_table(json, options.common.quiet, folder);
  return 0;
}

}  // namespace proteus
