// Progress (train/report.h).
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>

#include "train/memory.h"
#include "train/report.h"

namespace proteus {
namespace {

constexpr std::chrono::milliseconds kRedraw{100};

}  // namespace

ProgressMode progress_mode(std::FILE* out, bool quiet) {
  if (quiet) return ProgressMode::quiet;
  return ::isatty(::fileno(out)) == 1 ? ProgressMode::live : ProgressMode::plain;
}

Progress::Progress(std::string label, std::int64_t steps, std::int64_t log_every, ProgressMode mode,
                   std::FILE* out, std::int64_t done)
    : label_(std::move(label)),
      steps_(steps),
      log_every_(std::max<std::int64_t>(log_every, 1)),
      mode_(mode),
      out_(out),
      first_step_(done),
      begin_(Clock::now()) {}

Progress::~Progress() { pause(); }

void Progress::clear_line() {
  if (!on_line_) return;
  std::fputs("\r\x1b[K", out_);
  on_line_ = false;
}

double Progress::seconds() const {
  const Clock::duration now = running_ ? Clock::now() - begin_ : Clock::duration::zero();
  return std::chrono::duration<double>(counted_ + now).count();
}

double Progress::tokens_per_second() const {
  const double time = seconds();
  return tokens_ > 0 && time > 0 ? static_cast<double>(tokens_) / time : 0;
}

void Progress::step(std::int64_t step, double loss, std::int64_t tokens) {
  tokens_ += tokens;
  if (mode_ == ProgressMode::quiet) return;
  const auto now = Clock::now();
  const bool last = step >= steps_;
  const bool due = mode_ == ProgressMode::live ? now - shown_ >= kRedraw : step % log_every_ == 0;
  if (!due && !last) return;
  shown_ = now;
  const std::int64_t made = std::max<std::int64_t>(step - first_step_, 1);
  const double left = seconds() / static_cast<double>(made) *
                      static_cast<double>(std::max<std::int64_t>(steps_ - step, 0));
  const std::string line =
      fmt::format("{}  step {}/{}  loss {}  {} tokens/s  {} left  {}", label_, step, steps_,
                  format_number(loss), format_count(tokens_per_second()), format_seconds(left),
                  format_bytes(rss_bytes()));
  if (mode_ == ProgressMode::live) {
    clear_line();
    fmt::print(out_, "{}", line);
    on_line_ = true;
  } else {
    fmt::print(out_, "{}\n", line);
  }
  std::fflush(out_);
}

void Progress::note(std::string_view text) {
  if (mode_ == ProgressMode::quiet) return;
  clear_line();
  fmt::print(out_, "{}\n", text);
  std::fflush(out_);
}

void Progress::pause() {
  if (on_line_) {
    std::fputc('\n', out_);
    std::fflush(out_);
    on_line_ = false;
  }
  if (running_) counted_ += Clock::now() - begin_;
  running_ = false;
}

void Progress::resume() {
  if (!running_) begin_ = Clock::now();
  running_ = true;
}

}  // namespace proteus
