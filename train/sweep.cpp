#include "train/sweep.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cmath>
#include <map>
#include <new>

#include "aspa/attention.h"
#include "autograd/tape.h"
#include "tensor/error.h"
#include "tensor/storage.h"
#include "train/device.h"
#include "train/memory.h"
#include "train/models.h"

namespace proteus {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::int64_t kLongest = std::int64_t{1} << 30;
constexpr double kEnoughMs = 2000;  // of one point: the median of more repeats says no more
constexpr double kOutputStd = 0.02;

[[noreturn]] void refuse_lengths(std::string_view text) {
  throw ConfigError(
      fmt::format("--lengths: expected rising lengths from 1 to {}, as in 128..1048576 (doubling) "
                  "or 1000,3000, "
                  "got '{}'",
                  kLongest, text));
}

std::int64_t length_of(std::string_view part, std::string_view text) {
  std::int64_t value = 0;
  const auto [stop, error] = std::from_chars(part.data(), part.data() + part.size(), value);
  if (error != std::errc() || stop != part.data() + part.size() || value < 1 || value > kLongest) {
    refuse_lengths(text);
  }
  return value;
}

struct Measured {
  double ms = 0;
  std::int64_t peak_bytes = 0;
};

// The median of warm calls. A call that is long by itself is not repeated: the first one counts.
Measured measure(Device device, std::int64_t repeats, const std::function<void()>& call) {
  const auto timed = [&] {
    const auto begin = Clock::now();
    call();
    synchronize(device);
    return std::chrono::duration<double, std::milli>(Clock::now() - begin).count();
  };
  reset_peak_memory(device.type);
  const double first = timed();
  std::vector<double> times;
  double spent = first;
  while (spent < kEnoughMs && static_cast<std::int64_t>(times.size()) < repeats) {
    times.push_back(timed());
    spent += times.back();
  }
  const std::int64_t peak = memory_stats(device.type).peak_bytes;
  if (times.empty()) return {first, peak};
  std::nth_element(times.begin(), times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2),
                   times.end());
  return {times[times.size() / 2], peak};
}

// Random numbers are drawn for so many tokens at most, and repeated.
Tensor random_tokens(std::int64_t B, std::int64_t T, std::int64_t C, DType dtype, Device device,
                     std::uint64_t seed, std::uint64_t stream) {
  constexpr std::int64_t kDrawn = 65536;
  const std::int64_t rows = B * T;
  const Tensor drawn = Tensor::randn({std::min(rows, kDrawn), C}, {seed, stream}, dtype).to(device);
  Tensor x = Tensor::empty({rows, C}, dtype, device);
  for (std::int64_t at = 0; at < rows; at += kDrawn) {
    const std::int64_t end = std::min(rows, at + kDrawn);
    x.slice(0, at, end).copy_(drawn.slice(0, 0, end - at));
  }
  return x.reshape({B, T, C});
}

// Moves prototypes, thresholds and salience to where training would have them, on random tokens:
// the loads of the heads, and so the times, are those of a layer in use.
void settle(AspaAttention& layer, const Options& o, Device device) {
  constexpr std::uint64_t kSteps = 300;
  constexpr std::int64_t kTokens = 1024;
  const NoGradGuard no_grad;
  layer.set_training(true);
  layer.set_alpha(1);
  for (std::uint64_t i = 0; i < kSteps; ++i) {
    layer.forward(Variable(random_tokens(1, kTokens, o.model.width, DType::f32, device,
                                         static_cast<std::uint64_t>(o.common.seed), 2 + i)));
    layer.after_step(1);
  }
}

// What an arm's last length took: what its next one will.
struct Forecast {
  std::int64_t length = 0;
  double ms = 0;  // of one call of everything that is measured
  double slope = 1;
  double bytes = 0;

  double seconds_at(std::int64_t T) const {
    return ms / 1000 * std::pow(static_cast<double>(T) / static_cast<double>(length), slope);
  }
  double bytes_at(std::int64_t T) const {
    return bytes * static_cast<double>(T) / static_cast<double>(length);
  }
  void learn(std::int64_t T, double took_ms, double took_bytes) {
    // Short lengths are all launches and waits: no arm grows faster than the square.
    if (length > 0) {
      slope = std::clamp(
          std::log(took_ms / ms) / std::log(static_cast<double>(T) / static_cast<double>(length)),
          1.0, 2.0);
    }
    length = T;
    ms = took_ms;
    bytes = took_bytes;
  }
};

struct Contender {
  std::string arm;
  std::optional<double> alpha;
  Attention* layer = nullptr;
  AspaAttention* aspa = nullptr;
  Forecast forecast{};
  std::string given_up{};  // why longer ones are not tried
};

// Why a length is not tried, or nothing.
std::string refusal(const Contender& c, const SweepRow& row, const Options& o, Device device) {
  if (!c.given_up.empty()) return c.given_up;
  if (c.forecast.length == 0) return {};
  const double seconds = c.forecast.seconds_at(row.length);
  if (seconds > o.sweep.point_seconds) {
    return fmt::format("about {:.0f} s a call, more than --point-seconds {}", seconds,
                       o.sweep.point_seconds);
  }
  const double bytes = c.forecast.bytes_at(row.length);
  const std::int64_t available = machine_memory().available_bytes;
  if (device == kCpu && available > 0 && bytes > static_cast<double>(available)) {
    return fmt::format("out of memory: about {} needed, {} available",
                       format_bytes(static_cast<std::int64_t>(bytes)), format_bytes(available));
  }
  return {};
}

void read_routing(const Contender& c, SweepRow& row) {
  const Gating* gates = c.aspa ? c.aspa->gates() : nullptr;
  if (!gates || !gates->telemetry().tally) return;
  const LoadTally& tally = *gates->telemetry().tally;
  row.active_heads = static_cast<double>(c.aspa->config().shared_heads) + tally.query.heads;
  row.kept_tokens = std::llround(tally.query.kept * static_cast<double>(row.length * row.batch));
  row.max_vio = std::max(tally.query.max_vio, tally.key.max_vio);
}

void measure_row(Contender& c, const Options& o, Device device, SweepRow& row) {
  const DType dtype = o.common.dtype == "bf16" ? DType::bf16 : DType::f32;
  const auto seed = static_cast<std::uint64_t>(o.common.seed);
  const auto draw = [&](std::uint64_t stream) {
    return random_tokens(row.batch, row.length, o.model.width, dtype, device, seed, stream);
  };
  const Variable x(draw(0), o.sweep.backward);
  double total_ms = 0;
  c.layer->set_training(false);
  {
    const NoGradGuard no_grad;
    Gating* gates = c.aspa ? c.aspa->gates() : nullptr;
    if (gates) gates->begin_tally();
    c.layer->forward(x);
    if (gates) gates->end_tally();
    read_routing(c, row);
    const Measured forward = measure(device, o.sweep.repeats, [&] { c.layer->forward(x); });
    row.fwd_ms = forward.ms;
    row.peak_memory_bytes = forward.peak_bytes;
    total_ms = forward.ms;
  }
  if (o.sweep.backward) {
    c.layer->set_training(true);
    const Tensor dy = draw(1);
    const Measured both = measure(device, o.sweep.repeats, [&] {
      c.layer->zero_grad();
      x.zero_grad();
      c.layer->forward(x).backward(dy);
    });
    row.fwdbwd_ms = both.ms;
    row.peak_memory_bytes = std::max(*row.peak_memory_bytes, both.peak_bytes);
    total_ms = both.ms;
  }
  c.forecast.learn(row.length, total_ms, static_cast<double>(*row.peak_memory_bytes));
}

// A row with everything that can be had, or the reason why not.
void fill_row(Contender& c, const Options& o, Device device, SweepRow& row) {
  row.error = refusal(c, row, o, device);
  if (!row.error.empty()) {
    c.given_up = row.error;
    return;
  }
  const SweepRow blank = row;
  try {
    measure_row(c, o, device, row);
  } catch (const OutOfMemory& error) {
    row = blank;
    row.error = error.what();
  } catch (const std::bad_alloc&) {
    row = blank;
    row.error = "out of memory";
  }
  c.layer->zero_grad();
  if (row.error.empty()) return;
  c.given_up = "out of memory at a shorter length";
  release_cached_memory();
}

struct Points {
  std::vector<double> lengths, times;
};

Points points_of(const std::vector<SweepRow>& rows, const std::string& name,
                 const SweepTime& time) {
  Points p;
  for (const SweepRow& row : rows) {
    const auto ms = time(row);
    if (row.name() != name || !ms) continue;
    p.lengths.push_back(std::log(static_cast<double>(row.length)));
    p.times.push_back(std::log(*ms));
  }
  return p;
}

}  // namespace

std::vector<std::int64_t> sweep_lengths(std::string_view text) {
  std::vector<std::int64_t> lengths;
  std::string_view rest = text;
  for (bool more = true; more;) {
    const std::size_t comma = rest.find(',');
    more = comma != std::string_view::npos;
    const std::string_view part = rest.substr(0, comma);
    if (more) rest.remove_prefix(comma + 1);
    const std::size_t dots = part.find("..");
    if (dots == std::string_view::npos) {
      lengths.push_back(length_of(part, text));
      continue;
    }
    const std::int64_t last = length_of(part.substr(dots + 2), text);
    std::int64_t length = length_of(part.substr(0, dots), text);
    if (length > last) refuse_lengths(text);
    for (; length <= last; length *= 2) lengths.push_back(length);
  }
  for (std::size_t i = 1; i < lengths.size(); ++i) {
    if (lengths[i] <= lengths[i - 1]) refuse_lengths(text);
  }
  return lengths;
}

std::vector<double> sweep_alphas(const std::vector<std::string>& texts) {
  std::vector<double> alphas;
  for (const std::string& text : texts) {
    double value = -1;
    const auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    const bool number = error == std::errc() && stop == text.data() + text.size();
    if (!number || !(value >= 0 && value <= 1)) {
      throw ConfigError(
          fmt::format("--alphas: expected numbers in [0, 1] with commas, got '{}'", text));
    }
    alphas.push_back(value);
  }
  return alphas;
}

std::string SweepRow::name() const { return alpha ? fmt::format("{} {}", arm, *alpha) : arm; }

void sweep(const Options& options, const std::function<bool(const SweepRow&)>& done) {
  const Device device = open_device(options.common.device);
  const auto seed = static_cast<std::uint64_t>(options.common.seed);
  Generator init(seed);
  Generator generator(seed + 1);
  const AttentionSite site{
      .layer = 0, .output_std = kOutputStd, .init = init, .generator = generator};
  const auto dense = make_attention(options, arm_named("dense", "--arms"), site, seed);
  const auto layer = make_attention(options, arm_named("aspa", "--arms"), site, seed);
  auto* aspa = dynamic_cast<AspaAttention*>(layer.get());
  for (Attention* each : {dense.get(), layer.get()}) each->to(device);
  std::vector<Contender> contenders;
  contenders.push_back({.arm = "dense", .alpha = {}, .layer = dense.get(), .aspa = nullptr});
  for (const double alpha : sweep_alphas(options.sweep.alphas)) {
    contenders.push_back({.arm = "aspa", .alpha = alpha, .layer = layer.get(), .aspa = aspa});
  }
  if (aspa) settle(*aspa, options, device);
  for (const std::int64_t length : sweep_lengths(options.sweep.lengths)) {
    for (Contender& c : contenders) {
      SweepRow row;
      row.length = length;
      row.batch = options.training.batch;
      row.arm = c.arm;
      row.alpha = c.alpha;
      if (c.aspa) c.aspa->set_alpha(0);
      const double everything = c.layer->attention_flops_per_token(length);
      if (c.aspa) c.aspa->set_alpha(*c.alpha);
      row.attention_flops_per_token = c.layer->attention_flops_per_token(length);
      row.dense = row.attention_flops_per_token == everything;
      fill_row(c, options, device, row);
      if (!done(row)) return;
    }
  }
}

std::optional<double> sweep_slope(const std::vector<SweepRow>& rows, const std::string& name,
                                  const SweepTime& time) {
  const double kSpan = std::log(16.0);
  const Points p = points_of(rows, name, time);
  double n = 0, x = 0, y = 0, xx = 0, xy = 0;
  for (std::size_t i = 0; i < p.lengths.size(); ++i) {
    const double u = p.lengths[i] - p.lengths.back();
    if (u < -kSpan - 1e-9) continue;
    n += 1;
    x += u;
    y += p.times[i];
    xx += u * u;
    xy += u * p.times[i];
  }
  if (n < 2) return {};
  return (n * xy - x * y) / (n * xx - x * x);
}

std::optional<double> sweep_crossover(const std::vector<SweepRow>& rows, const std::string& name,
                                      const SweepTime& time) {
  const Points a = points_of(rows, name, time);
  const Points dense = points_of(rows, "dense", time);
  std::optional<double> from;
  double later_length = 0, later_gap = 0;  // of the length above
  for (std::size_t i = a.lengths.size(); i-- > 0;) {
    const auto at = std::find(dense.lengths.begin(), dense.lengths.end(), a.lengths[i]);
    if (at == dense.lengths.end()) continue;
    const double gap =
        a.times[i] - dense.times[static_cast<std::size_t>(at - dense.lengths.begin())];
    if (gap >= 0) {
      if (!from) return {};
      const double share = gap / (gap - later_gap);
      return std::exp(a.lengths[i] + share * (later_length - a.lengths[i]));
    }
    later_length = a.lengths[i];
    later_gap = gap;
    from = std::exp(later_length);
  }
  return from;
}

}  // namespace proteus
