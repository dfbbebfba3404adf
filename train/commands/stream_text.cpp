#include "train/commands/stream_text.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "tensor/error.h"
#include "train/commands.h"
#include "train/commands/model_file.h"
#include "train/commands/text.h"
#include "train/file_ops.h"
#include "train/memory.h"
#include "train/signals.h"
#include "train/staging.h"
#include "train/stream_model.h"
#include "train/text_reader.h"
#include "train/utf8.h"

namespace proteus {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::int64_t kBlockIds = std::int64_t{1} << 16;
constexpr std::int64_t kIdBytes = sizeof(std::int32_t);
constexpr std::size_t kShownSpans = 10;
constexpr std::size_t kShownBytes = 48;
/// Winners of a round, best first, whose spans the next round asks for beside the prompt.
constexpr std::size_t kHopWinners = 4;

/// The ids of the whole file, in memory or on disk.
std::unique_ptr<Staging> stage_ids(TextReader& reader, const StreamOptions& o) {
  StagingConfig c;
  c.row_bytes = kIdBytes;
  c.block_rows = kBlockIds;
  c.ram_limit =
      o.ram_limit.empty() ? machine_memory().available_bytes / 2 : parse_bytes(o.ram_limit);
  c.spill_dir = o.spill_dir.empty() ? std::filesystem::temp_directory_path().string() : o.spill_dir;
  auto staging = std::make_unique<Staging>(c);
  std::vector<std::int32_t> waiting;
  const auto stage = [&](std::int64_t n) {
    std::memcpy(staging->room().raw(), waiting.data(), static_cast<std::size_t>(n * kIdBytes));
    staging->commit(n);
    waiting.erase(waiting.begin(), waiting.begin() + n);
  };
  for (auto ids = reader.next(); !ids.empty() && !interrupted(); ids = reader.next()) {
    waiting.insert(waiting.end(), ids.begin(), ids.end());
    while (static_cast<std::int64_t>(waiting.size()) >= kBlockIds) stage(kBlockIds);
  }
  if (!waiting.empty()) stage(static_cast<std::int64_t>(waiting.size()));
  return staging;
}

TokenText staged_text(Staging& staging) {
  return {staging.rows(), [&staging](std::int64_t begin, std::span<std::int32_t> out) {
            staging.read(begin, static_cast<std::int64_t>(out.size()), out.data());
          }};
}

// What a round found, best first, spans and all.
std::vector<std::int32_t> found_ids(const TokenText& text, const Retrieved& kept,
                                    std::int64_t span) {
  std::vector<Winner> ranked = kept.winners;
  std::sort(ranked.begin(), ranked.end(),
            [](const Winner& a, const Winner& b) { return a.before(b); });
  std::vector<std::int32_t> ids;
  for (std::size_t i = 0; i < std::min(kHopWinners, ranked.size()); ++i) {
    const auto part = text.ids(std::max<std::int64_t>(0, ranked[i].token - span),
                               std::min(text.tokens, ranked[i].token + span + 1));
    ids.insert(ids.end(), part.begin(), part.end());
  }
  return ids;
}

/// A span, and the best winner in it: why it is there. Anchors have none.
struct KeptSpan {
  Span span;
  const Winner* why = nullptr;
  std::int64_t winners = 0;
};

std::vector<KeptSpan> explained(const Retrieved& kept) {
  std::vector<KeptSpan> list;
  auto winner = kept.winners.begin();
  for (const Span& span : kept.spans) {
    KeptSpan entry{span};
    for (; winner != kept.winners.end() && winner->token < span.end; ++winner) {
      if (winner->token < span.begin) continue;
      ++entry.winners;
      if (!entry.why || winner->before(*entry.why)) entry.why = &*winner;
    }
    list.push_back(entry);
  }
  return list;
}

std::string shown(const Tokenizer& tokenizer, std::span<const std::int32_t> ids) {
  std::string text = repaired_utf8(tokenizer.decode(ids));
  for (char& c : text) {
    if (static_cast<unsigned char>(c) < 0x20) c = ' ';
  }
  if (text.size() <= kShownBytes) return text;
  text.resize(kShownBytes);
  return repaired_utf8(text) + "…";
}

void print_spans(const std::vector<KeptSpan>& spans, const TokenText& text,
                 const Tokenizer& tokenizer, const Retrieved& kept) {
  std::vector<const KeptSpan*> ranked;
  for (const KeptSpan& s : spans) ranked.push_back(&s);
  std::stable_sort(ranked.begin(), ranked.end(), [](const KeptSpan* a, const KeptSpan* b) {
    return a->why && (!b->why || a->why->before(*b->why));
  });
  Table table({"text", "from token", "tokens", "winners", "score", "head", "asked by"});
  for (std::size_t i = 0; i < std::min(kShownSpans, ranked.size()); ++i) {
    const KeptSpan& s = *ranked[i];
    const auto ids = text.ids(s.span.begin, s.span.end);
    const auto query = [&] {
      return std::span(kept.prompt).subspan(static_cast<std::size_t>(s.why->query), 1);
    };
    table.add_row({shown(tokenizer, ids), fmt::to_string(s.span.begin),
                   fmt::to_string(s.span.end - s.span.begin), fmt::to_string(s.winners),
                   s.why ? format_number(s.why->score, 2) : "anchor",
                   s.why ? fmt::to_string(s.why->head) : "–",
                   s.why ? "'" + shown(tokenizer, query()) + "'" : "–"});
  }
  fmt::print("{}", table.text());
  if (ranked.size() > kShownSpans) {
    fmt::print("… and {} spans more, in the output file\n", ranked.size() - kShownSpans);
  }
}

Json kept_json(const std::vector<KeptSpan>& spans, const TokenText& text,
               const Tokenizer& tokenizer, const Retrieved& kept) {
  Json json;
  json["prompt_ids"] = kept.prompt;
  json["spans"] = Json::array();
  for (const KeptSpan& s : spans) {
    Json entry{{"begin", s.span.begin}, {"end", s.span.end}, {"winners", s.winners}};
    const auto ids = text.ids(s.span.begin, s.span.end);
    entry["ids"] = ids;
    entry["text"] = repaired_utf8(tokenizer.decode(ids));
    json["spans"].push_back(entry);
  }
  json["winners"] = Json::array();
  for (const Winner& w : kept.winners) {
    json["winners"].push_back({{"token", w.token},
                               {"score", w.score},
                               {"head", w.head},
                               {"query", w.query},
                               {"agree", w.agree}});
  }
  return json;
}

Json summary_of(const Options& options, const Retrieved& kept, const Staging& staging,
                std::int64_t tokens, std::size_t final_tokens, const std::string& answer,
                const RunFolder& folder) {
  const StreamOptions& o = options.stream;
  Json json = summary_head(options);
  json["checkpoint"] = options.checkpoint.checkpoint;
  json["file"] = o.file;
  json["prompt"] = options.sampling.prompt;
  json["answer"] = answer;
  json["tokens"] = tokens;
  json["retained"] = tokens_of(kept.spans);
  json["winners"] = kept.winners.size();
  json["chunks"] = kept.chunks;
  json["rounds"] = o.rounds;
  json["stream_s"] = kept.seconds;
  json["stream_tokens_per_s"] = static_cast<double>(tokens * o.rounds) / kept.seconds;
  json["final_tokens"] = final_tokens;
  json["peak_rss_bytes"] = peak_rss_bytes();
  json["storage"] = staging.on_disk() ? "disk" : "memory";
  json["spilled_bytes"] = staging.spilled_bytes();
  json["indices_file"] = folder.file("kept.json");
  return json;
}

}  // namespace

ShortlistConfig shortlist_config(const Options& o) {
  const StreamOptions& s = o.stream;
  return {.buffer = s.buffer,
          .per_chunk = s.per_chunk,
          .chunk_keep = s.chunk_keep,
          .top_p = s.top_p,
          .pool = s.pool,
          .salience = s.salience_weight,
          .top_a = s.top_a,
          .span = s.span,
          .anchors = o.aspa.anchors};
}

StreamModelConfig stream_config(const Options& o) {
  StreamModelConfig c;
  c.shortlist = shortlist_config(o);
  c.chunk = o.stream.chunk;
  c.layer = o.stream.score_layer;
  return c;
}

int run_stream_text(const Options& options) {
  const StreamOptions& o = options.stream;
  const LoadedModel loaded = load_model(options.checkpoint.checkpoint);
  Transformer& model = *loaded.model;
  const auto prompt = loaded.tokenizer.encode_option(options.sampling.prompt, "--prompt");
  const auto asked = static_cast<std::int64_t>(prompt.size());
  if (asked > o.buffer) {
    throw ConfigError(
        fmt::format("--prompt: expected at most {} tokens (= --buffer), got {}", o.buffer, asked));
  }
  const StreamModel stream(model, stream_config(options));
  TextReader reader(loaded.tokenizer, o.file);
  RunFolder folder(options);
  const auto staging = stage_ids(reader, o);
  const TokenText text = staged_text(*staging);
  if (text.tokens == 0) throw FileError(o.file + ": is empty; expected a text");
  const Retrieved kept = stream.retrieve(
      text, prompt, o.rounds, [&](const Retrieved& last) { return found_ids(text, last, o.span); });
  const auto spans = explained(kept);
  const auto read = final_text(text, kept.spans, prompt);
  const auto answer = continue_text(model, read, options.sampling.sample_tokens,
                                    {.temperature = options.sampling.temperature},
                                    static_cast<std::uint64_t>(options.common.seed));
  if (interrupted()) return kInterrupted;
  const std::string shown_answer = repaired_utf8(loaded.tokenizer.decode(answer));

  Json details = kept_json(spans, text, loaded.tokenizer, kept);
  details["answer_ids"] = answer;
  write_file_atomically(folder.file("kept.json"), json_text(details) + "\n");
  folder.write_summary(
      summary_of(options, kept, *staging, text.tokens, read.size(), shown_answer, folder));
  if (!options.common.quiet) {
    fmt::print("Kept {} of {} tokens in {} spans; the best of them:\n", tokens_of(kept.spans),
               text.tokens, kept.spans.size());
    print_spans(spans, text, loaded.tokenizer, kept);
    const std::int64_t context = model.config().context;
    if (static_cast<std::int64_t>(read.size()) > context) {
      fmt::print(
          "The final pass reads {} tokens, the model was trained on {}: it may answer better "
          "with a smaller --buffer\n",
          read.size(), context);
    }
  }
  fmt::print("{}{}\n", options.sampling.prompt, shown_answer);
  if (!options.common.quiet) fmt::print("Written to {}\n", folder.path());
  return 0;
}

}  // namespace proteus
