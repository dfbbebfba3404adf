// What a run leaves behind and shows: the run folder (config.toml, commands.jsonl, metrics.jsonl,
// summary.json), tables, and the progress of training. JSON never has NaN or infinity: they become
// null.
#pragma once

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "train/options.h"

namespace proteus {

/// JSON text in one line; NaN and infinity become null, bytes that are not UTF-8 become U+FFFD.
std::string json_text(const nlohmann::ordered_json& json);

/// The folder of one run.
class RunFolder {
 public:
  /// Makes options.common.out (parents too), by default runs/<command>-<time>, and writes
  /// config.toml. A new run begins metrics.jsonl and commands.jsonl anew and removes an old
  /// summary.json; a resumed one adds its call to commands.jsonl and keeps the lines of
  /// metrics.jsonl whose "step" is at most `resumed_step`. Throws FileError
  /// when the folder cannot be made or written to, OutOfMemory when the disk is full.
  explicit RunFolder(const Options& options, std::int64_t resumed_step = -1);
  ~RunFolder();
  RunFolder(const RunFolder&) = delete;
  RunFolder& operator=(const RunFolder&) = delete;

  const std::string& path() const { return path_; }
  /// path()/name.
  std::string file(std::string_view name) const;
  /// Adds a line to metrics.jsonl; it is on disk's way at once (a killed run keeps it). Throws
  /// FileError, OutOfMemory.
  void log(const nlohmann::ordered_json& line);
  /// Writes summary.json atomically, indented. Throws FileError, OutOfMemory.
  void write_summary(const nlohmann::ordered_json& summary);

 private:
  std::string path_;
  std::FILE* metrics_ = nullptr;
};

/// A table for a terminal: columns as wide as they need to be, numbers to the right.
class Table {
 public:
  explicit Table(std::vector<std::string> header) : header_(std::move(header)) {}

  /// As many cells as the header has; throws ShapeError otherwise.
  void add_row(std::vector<std::string> cells);
  /// Lines that end in '\n'.
  std::string text() const;

 private:
  std::vector<std::string> header_;
  std::vector<std::vector<std::string>> rows_;
};

/// "1.4697", or "–" for NaN and infinity.
std::string format_number(double value, int digits = 4);
/// The same for a figure that is negative while nobody has measured it.
std::string format_routing(double value, int digits);
/// "950", "12.3k", "1.22M".
std::string format_count(double value);
/// "42 s", "3:05", "1:02:07".
std::string format_seconds(double seconds);

/// live: one line that is rewritten (a terminal); plain: a line per logged step (a pipe); quiet:
/// nothing.
enum class ProgressMode : std::uint8_t { live, plain, quiet };
/// What suits `out`.
ProgressMode progress_mode(std::FILE* out, bool quiet);

/// Shows how far a training run is: step, loss, tokens/s, time left, memory.
class Progress {
 public:
  /// `label` names the run ("aspa"); it has `steps` steps of which `done` are done.
  Progress(std::string label, std::int64_t steps, std::int64_t log_every, ProgressMode mode,
           std::FILE* out, std::int64_t done = 0);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  /// To be called after every step. `tokens` are the step's. A terminal's line is rewritten ten
  /// times a second at most; a pipe gets a line when `step` is a multiple of log_every, or the
  /// last.
  void step(std::int64_t step, double loss, std::int64_t tokens);
  /// A line that stays (an evaluation, a notice).
  void note(std::string_view text);
  /// Ends the live line; time between pause and resume (an evaluation) is not counted.
  void pause();
  void resume();
  /// Tokens per second of training time so far, evaluations left out; 0 before the first step.
  double tokens_per_second() const;
  /// Seconds of training time so far, evaluations left out.
  double seconds() const;

 private:
  using Clock = std::chrono::steady_clock;

  void clear_line();

  std::string label_;
  std::int64_t steps_;
  std::int64_t log_every_;
  ProgressMode mode_;
  std::FILE* out_;
  std::int64_t first_step_;
  std::int64_t tokens_ = 0;
  Clock::time_point begin_;
  Clock::duration counted_{};
  Clock::time_point shown_{};
  bool running_ = true;
  bool on_line_ = false;
};

}  // namespace proteus
