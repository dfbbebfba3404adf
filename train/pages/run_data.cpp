#include "train/pages/run_data.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>

#include "tensor/error.h"
#include "train/json_file.h"
#include "train/mapped_file.h"
#include "train/safetensors.h"

namespace proteus {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

double number(const json& object, const char* key) {
  const auto it = object.find(key);
  return it != object.end() && it->is_number() ? it->get<double>() : kMissing;
}

/// Of a size or a place; −1 for what is no whole number from 0 up.
std::int64_t whole_number(const json& object, const char* key) {
  constexpr double kMost = 9007199254740992.0;  // up to it doubles hold every whole number
  const double value = number(object, key);
  return value >= 0 && value <= kMost ? static_cast<std::int64_t>(value) : -1;
}

std::string text(const json& object, const char* key) {
  const auto it = object.find(key);
  return it != object.end() && it->is_string() ? it->get<std::string>() : std::string();
}

const json& child(const json& object, const char* key) {
  static const json kNothing = json::object();
  const auto it = object.find(key);
  return it != object.end() ? *it : kNothing;
}

std::optional<double> optional_number(const json& object, const char* key) {
  const double value = number(object, key);
  return value == value ? std::optional(value) : std::nullopt;
}

// Every line of a file of JSON lines; a torn last one is left out.
void each_line(const std::string& path, const std::function<void(const json&)>& take) {
  if (!fs::exists(path)) return;
  const MappedFile file(path);
  std::string_view rest = file.view();
  for (std::int64_t n = 1; !rest.empty(); ++n) {
    const std::size_t end = rest.find('\n');
    if (end == std::string_view::npos) return;
    const std::string source = fmt::format("{}: line {}", path, n);
    const json line = parse_json_file(rest.substr(0, end), source);
    if (!line.is_object()) throw FileError(source + ": expected a JSON object");
    take(line);
    rest.remove_prefix(end + 1);
  }
}

ArmRun& arm_of(Run& run, const std::string& name, double seed) {
  const auto it = std::find_if(run.arms.begin(), run.arms.end(),
                               [&](const ArmRun& a) { return a.name == name && a.seed == seed; });
  if (it != run.arms.end()) return *it;
  ArmRun& arm = run.arms.emplace_back();
  arm.name = name;
  arm.seed = seed;
  return arm;
}

void take_loads(ArmRun& arm, double step, const json& part) {
  const std::int64_t layer = whole_number(part, "layer");
  if (layer < 0) return;
  for (const char* role : {"query", "key"}) {
    const json& load = child(child(part, role), "load");
    if (!load.is_array() || load.empty()) continue;
    LoadPoint point{step, {}};
    for (const json& value : load) {
      point.load.push_back(value.is_number() ? value.get<double>() : kMissing);
    }
    const std::string name = text(part, "part");
    auto it = std::find_if(arm.loads.begin(), arm.loads.end(), [&](const LoadSeries& s) {
      return s.layer == layer && s.part == name && s.role == role;
    });
    if (it == arm.loads.end()) {
      it = arm.loads.insert(it, {layer, name, role, {}});
    }
    it->points.push_back(std::move(point));
  }
}

void take_gate_event(ArmRun& arm, double step, const json& e) {
  arm.gates.push_back({.step = step,
                       .layer = std::max<std::int64_t>(whole_number(e, "layer"), 0),
                       .part = text(e, "part"),
                       .operation = text(e, "operation"),
                       .why = text(e, "why"),
                       .gate = number(e, "gate"),
                       .other = number(e, "other"),
                       .head = number(e, "head"),
                       .loss_before = number(e, "loss_before"),
                       .loss_after = number(e, "loss_after")});
}

void take_metrics(Run& run, const json& line) {
  const std::string name = text(line, "arm");
  const double step = number(line, "step");
  if (name.empty() || !(step >= 0)) return;  // rows of a sweep, chunks of a stream
  const double seed = number(line, "seed");
  ArmRun& arm = arm_of(run, name, seed == seed ? seed : 0);
  if (line.contains("loss")) {
    arm.steps.push_back({step, number(line, "loss"), number(line, "tokens_per_s"),
                         number(line, "seconds"), number(line, "peak_memory_bytes"),
                         number(line, "maxvio"), number(line, "entropy"),
                         number(line, "dead_gates"), number(line, "density")});
  }
  if (line.contains("val_loss")) {
    arm.evals.push_back(
        {step, number(line, "val_loss"), number(line, "accuracy"), number(line, "churn")});
  }
  for (const json& part : child(line, "routing")) {
    if (part.is_object()) take_loads(arm, step, part);
  }
  const json& event = child(line, "gate_event");
  if (!event.empty() && event.is_object()) take_gate_event(arm, step, event);
}

void take_arm(Run& run, const json& a) {
  if (!a.is_object()) return;
  const double seed = number(a, "seed");
  ArmRun& arm = arm_of(run, text(a, "name"), seed == seed ? seed : 0);
  arm.finished = true;
  arm.params = number(a, "params");
  arm.active_params = number(a, "active_params");
  arm.train_loss = number(a, "train_loss");
  arm.val_loss = number(a, "val_loss");
  arm.best_val_loss = number(a, "best_val_loss");
  arm.val_bpb = number(a, "val_bpb");
  arm.accuracy = number(a, "accuracy");
  arm.tokens_per_s = number(a, "tokens_per_s");
  arm.attention_flops = number(a, "attention_flops_per_token");
  arm.peak_memory = number(a, "peak_memory_bytes");
  arm.max_vio = number(child(a, "routing"), "maxvio_eval");
  arm.sample = text(a, "sample");
}

void take_row(Run& run, const json& r) {
  if (!r.is_object()) return;
  if (r.contains("kept_by")) {
    run.needles.push_back({text(r, "arm"), text(r, "kept_by"), text(r, "kind"), number(r, "trials"),
                           number(r, "kept_tokens"), number(r, "retained"), number(r, "answered")});
    return;
  }
  SweepRow row;
  row.length = whole_number(r, "length");
  row.batch = std::max<std::int64_t>(whole_number(r, "batch"), 1);
  if (row.length < 1) return;
  row.arm = text(r, "arm");
  row.alpha = optional_number(r, "alpha");
  row.fwd_ms = optional_number(r, "fwd_ms");
  row.fwdbwd_ms = optional_number(r, "fwdbwd_ms");
  const std::int64_t bytes = whole_number(r, "peak_memory_bytes");
  if (bytes >= 0) row.peak_memory_bytes = bytes;
  row.error = text(r, "error");
  run.sweep.push_back(std::move(row));
}

void read_kept_json(const std::string& path, StreamRun& stream) {
  const json kept = parse_json_file(MappedFile(path).view(), path);
  for (const json& w : child(kept, "winners")) {
    if (w.is_object()) {
      stream.winners.push_back({number(w, "token"), number(w, "score"), number(w, "head")});
    }
  }
  for (const json& s : child(kept, "spans")) {
    if (s.is_object()) {
      stream.spans.push_back({number(s, "begin"), number(s, "end"), text(s, "text")});
    }
  }
}

void read_kept_tensors(const std::string& path, StreamRun& stream) {
  const SafetensorsFile file(path);
  const auto token = file.read("token").to_vector();
  const auto score = file.read("score").to_vector();
  const auto head = file.read("head").to_vector();
  const auto span = file.read("span").to_vector();
  if (score.size() != token.size() || head.size() != token.size() || span.size() % 2 != 0) {
    throw FileError(fmt::format(
        "{}: expected a score and a head for each of {} tokens and spans [n, 2], got {}, {} and {}",
        path, token.size(), score.size(), head.size(), span.size()));
  }
  for (std::size_t i = 0; i < token.size(); ++i) {
    stream.winners.push_back({token[i], score[i], head[i]});
  }
  for (std::size_t i = 0; i + 1 < span.size(); i += 2) {
    stream.spans.push_back({span[i], span[i + 1], {}});
  }
}

void take_stream(Run& run, const json& s) {
  StreamRun stream;
  stream.tokens = number(s, "tokens");
  if (!(stream.tokens >= 1)) return;
  stream.retained = number(s, "retained");
  stream.chunks = number(s, "chunks");
  stream.stream_s = number(s, "stream_s");
  stream.tokens_per_s = number(s, "stream_tokens_per_s");
  stream.peak_rss = number(s, "peak_rss_bytes");
  stream.spilled = number(s, "spilled_bytes");
  stream.storage = text(s, "storage");
  stream.file = text(s, "file");
  stream.prompt = text(s, "prompt");
  stream.answer = text(s, "answer");
  const std::string kept = run.path + "/kept.json";
  const std::string tensors = run.path + "/kept.safetensors";
  if (fs::exists(kept)) {
    read_kept_json(kept, stream);
  } else if (fs::exists(tensors)) {
    read_kept_tensors(tensors, stream);
  }
  std::erase_if(stream.winners,
                [&](const KeptToken& w) { return !(w.token >= 0 && w.token < stream.tokens); });
  std::erase_if(stream.spans, [&](const KeptText& span) {
    return !(span.begin >= 0 && span.begin < span.end && span.end <= stream.tokens);
  });
  run.stream = std::move(stream);
}

void take_summary(Run& run, const json& summary) {
  run.finished = true;
  run.command = text(summary, "command");
  run.data = text(child(summary, "data"), "file");
  for (const json& a : child(summary, "arms")) take_arm(run, a);
  for (const json& r : child(summary, "rows")) take_row(run, r);
  if (run.command == "stream") take_stream(run, summary);
}

// The call says which command it was where summary.json is not there yet: "proteus duel …".
std::string command_of(const std::string& line) {
  const std::size_t begin = line.find(' ');
  if (begin == std::string::npos) return {};
  return line.substr(begin + 1, line.find(' ', begin + 1) - begin - 1);
}

}  // namespace

std::string ArmRun::title() const { return fmt::format("{}, seed {}", name, seed); }

Run read_run(const std::string& path) {
  std::error_code error;
  if (!fs::is_directory(path, error)) {
    throw FileError(fmt::format(
        "{}: no such run folder; expected one that duel, train, recall, sweep or stream wrote",
        path));
  }
  const auto file = [&](const char* name) { return (fs::path(path) / name).string(); };
  if (!fs::exists(file("config.toml"), error)) {
    throw FileError(fmt::format("{}: not a run folder: it has no config.toml", path));
  }
  Run run;
  run.path = path;
  const fs::path whole = fs::path(path).lexically_normal();
  run.name = (whole.has_filename() ? whole.filename() : whole.parent_path().filename()).string();
  run.config = std::string(MappedFile(file("config.toml")).view());
  each_line(file("commands.jsonl"), [&](const json& c) {
    run.calls.push_back({text(c, "command_line"), text(c, "started"), text(c, "version"),
                         text(c, "compiler"), text(c, "system"), text(c, "cpu"), text(c, "device"),
                         number(c, "cores"), number(c, "threads"), number(c, "memory_bytes")});
    run.command = command_of(run.calls.back().command_line);
  });
  each_line(file("metrics.jsonl"), [&](const json& line) { take_metrics(run, line); });
  const std::string summary = file("summary.json");
  if (fs::exists(summary, error)) {
    const json whole_summary = parse_json_file(MappedFile(summary).view(), summary);
    if (!whole_summary.is_object()) throw FileError(summary + ": expected a JSON object");
    take_summary(run, whole_summary);
  } else {
    each_line(file("metrics.jsonl"), [&](const json& line) { take_row(run, line); });
  }
  return run;
}

}  // namespace proteus
