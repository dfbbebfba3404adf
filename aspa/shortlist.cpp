#include "aspa/shortlist.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <unordered_set>

#include "tensor/error.h"
#include "tensor/parallel.h"

namespace proteus {
namespace {

bool before(const Winner& a, const Winner& b) { return a.before(b); }

void check_at_least(const char* name, std::int64_t value, std::int64_t least) {
  if (value >= least) return;
  throw ConfigError(fmt::format("shortlist: {}: expected at least {}, got {}", name, least, value));
}

void check_share(const char* name, double value) {
  if (value > 0 && value <= 1) return;
  throw ConfigError(fmt::format("shortlist: {}: expected a number in (0, 1], got {}", name, value));
}

void check_scores(const TokenScores& s) {
  const std::string call = "Shortlist::add(chunk)";
  if (s.best.dtype() != DType::f32) throw_dtype(call + ": best", s.best.dtype(), "f32");
  if (s.query.dtype() != DType::i32) throw_dtype(call + ": query", s.query.dtype(), "i32");
  if (s.best.rank() != 2 || s.best.size(1) < 1) {
    throw ShapeError(
        fmt::format("{}: best: expected [n, H], got {}", call, to_string(s.best.shape())));
  }
  if (s.query.shape() != s.best.shape()) {
    throw ShapeError(fmt::format("{}: query: expected {} (= best), got {}", call,
                                 to_string(s.best.shape()), to_string(s.query.shape())));
  }
  if (!s.salience.defined()) return;
  if (s.salience.dtype() != DType::f32) throw_dtype(call + ": salience", s.salience.dtype(), "f32");
  if (s.salience.shape() != Shape{s.best.size(0)}) {
    throw ShapeError(fmt::format("{}: salience: expected [{}] (= tokens of best), got {}", call,
                                 s.best.size(0), to_string(s.salience.shape())));
  }
}

// s_t of every token of a chunk, with the head and the query that decided.
std::vector<Winner> scored(const TokenScores& chunk, const ShortlistConfig& c,
                           std::int64_t first_token) {
  const std::int64_t n = chunk.best.size(0);
  const std::int64_t H = chunk.best.size(1);
  const auto* best = chunk.best.data<float>();
  const auto* query = chunk.query.data<std::int32_t>();
  std::vector<Winner> all(static_cast<std::size_t>(n));
  std::vector<float> most(static_cast<std::size_t>(n));
  for (std::int64_t t = 0; t < n; ++t) {
    const float* row = best + t * H;
    const std::int64_t head = std::max_element(row, row + H) - row;
    bool finite = true;
    for (std::int64_t h = 0; h < H; ++h) finite = finite && std::isfinite(row[h]);
    if (chunk.salience.defined()) finite = finite && std::isfinite(chunk.salience.data<float>()[t]);
    if (!finite) {
      throw NumericError(
          fmt::format("shortlist: the score of token {} is not a finite number; look at the "
                      "embeddings there",
                      first_token + t));
    }
    most[static_cast<std::size_t>(t)] = row[head];
    all[static_cast<std::size_t>(t)] = {.token = first_token + t,
                                        .head = static_cast<std::int32_t>(head),
                                        .query = query[t * H + head]};
  }
  for (std::int64_t t = 0; t < n; ++t) {
    const std::int64_t from = std::max<std::int64_t>(0, t - c.pool);
    const std::int64_t to = std::min(n, t + c.pool + 1);
    double sum = 0;
    for (std::int64_t j = from; j < to; ++j) sum += most[static_cast<std::size_t>(j)];
    double s = sum / static_cast<double>(to - from);
    if (chunk.salience.defined()) s += c.salience * chunk.salience.data<float>()[t];
    all[static_cast<std::size_t>(t)].score = static_cast<float>(s);
  }
  return all;
}

// How many of the tokens, best first, reach top_p of the softmax over all of them; `leaders` are
// the first in rank, in order. More than there are leaders where these do not reach it.
std::int64_t count_of_top_p(const std::vector<Winner>& all, const std::vector<Winner>& leaders,
                            double top_p) {
  const double most = leaders.front().score;
  double total = 0;
  for (const Winner& w : all) total += std::exp(w.score - most);
  double sum = 0;
  for (std::size_t i = 0; i < leaders.size(); ++i) {
    sum += std::exp(leaders[i].score - most);
    if (sum >= top_p * total) return static_cast<std::int64_t>(i) + 1;
  }
  return static_cast<std::int64_t>(leaders.size()) + 1;
}

// For every head the score that its `count`-th best token of the chunk has.
std::vector<float> agreement_bars(const Tensor& scores, std::int64_t count) {
  const std::int64_t n = scores.size(0);
  const std::int64_t H = scores.size(1);
  const auto* best = scores.data<float>();
  std::vector<float> bars(static_cast<std::size_t>(H));
  parallel_for(H, 1, [&](std::int64_t first, std::int64_t last) {
    std::vector<float> own(static_cast<std::size_t>(n));
    for (std::int64_t h = first; h < last; ++h) {
      for (std::int64_t t = 0; t < n; ++t) own[static_cast<std::size_t>(t)] = best[t * H + h];
      const auto bar = own.begin() + (count - 1);
      std::nth_element(own.begin(), bar, own.end(), std::greater<>());
      bars[static_cast<std::size_t>(h)] = *bar;
    }
  });
  return bars;
}

std::int32_t agreeing_heads(const float* row, const std::vector<float>& bars) {
  std::int32_t agree = 0;
  for (std::size_t h = 0; h < bars.size(); ++h) agree += row[h] >= bars[h] ? 1 : 0;
  return agree;
}

}  // namespace

void ShortlistConfig::validate() const {
  check_at_least("buffer", buffer, 1);
  check_at_least("per_chunk", per_chunk, 1);
  check_share("chunk_keep", chunk_keep);
  check_share("top_p", top_p);
  check_at_least("pool", pool, 0);
  if (!std::isfinite(salience)) {
    throw ConfigError(
        fmt::format("shortlist: salience: expected a finite number, got {}", salience));
  }
  check_at_least("top_a", top_a, 0);
  check_at_least("span", span, 0);
  check_at_least("anchors", anchors, 0);
  if (anchors > buffer) {
    throw ConfigError(
        fmt::format("shortlist: anchors: expected at most {} (= buffer), got {}", buffer, anchors));
  }
}

TokenScores joined_scores(const std::vector<TokenScores>& parts) {
  std::int64_t n = 0;
  for (const TokenScores& part : parts) n += part.best.size(0);
  const std::int64_t H = parts.front().best.size(1);
  TokenScores out{Tensor::empty({n, H}), Tensor::empty({n, H}, DType::i32), {}};
  if (parts.front().salience.defined()) out.salience = Tensor::empty({n});
  std::int64_t at = 0;
  for (const TokenScores& part : parts) {
    const std::int64_t end = at + part.best.size(0);
    out.best.slice(0, at, end).copy_(part.best);
    out.query.slice(0, at, end).copy_(part.query);
    if (out.salience.defined()) out.salience.slice(0, at, end).copy_(part.salience);
    at = end;
  }
  return out;
}

Shortlist::Shortlist(const ShortlistConfig& config) : config_(config) { config.validate(); }

ChunkReport Shortlist::add(const TokenScores& chunk) {
  check_scores(chunk);
  ChunkReport report;
  const std::int64_t n = chunk.best.size(0);
  const std::int64_t H = chunk.best.size(1);
  report.tokens = n;
  if (n == 0) return report;
  const std::vector<Winner> all = scored(chunk, config_, tokens_);
  const auto share = std::ceil(config_.chunk_keep * static_cast<double>(n));
  const std::int64_t budget = std::min(config_.per_chunk, static_cast<std::int64_t>(share));
  std::vector<Winner> leaders(static_cast<std::size_t>(std::min(budget, n)));
  std::partial_sort_copy(all.begin(), all.end(), leaders.begin(), leaders.end(), before);
  report.best = leaders.front().score;
  report.wanted = count_of_top_p(all, leaders, config_.top_p);
  report.chosen = std::min(report.wanted, static_cast<std::int64_t>(leaders.size()));
  leaders.resize(static_cast<std::size_t>(report.chosen));
  const auto bars = agreement_bars(chunk.best, std::min(budget, n));
  for (Winner& w : leaders) {
    w.agree = agreeing_heads(chunk.best.data<float>() + (w.token - tokens_) * H, bars);
    report.agreement += w.agree / static_cast<double>(H * report.chosen);
    if (w.agree < config_.top_a) {
      ++report.disagreed;
      continue;
    }
    const bool full = static_cast<std::int64_t>(heap_.size()) == config_.buffer;
    if (full && !w.before(heap_.front())) continue;
    if (full) {
      std::pop_heap(heap_.begin(), heap_.end(), before);
      heap_.pop_back();
    }
    heap_.push_back(w);
    std::push_heap(heap_.begin(), heap_.end(), before);
    ++report.entered;
  }
  if (!heap_.empty()) report.least = heap_.front().score;
  tokens_ += n;
  ++chunks_;
  return report;
}

void Shortlist::merge(const std::vector<Winner>& earlier) {
  heap_.insert(heap_.end(), earlier.begin(), earlier.end());
  std::sort(heap_.begin(), heap_.end(), [](const Winner& a, const Winner& b) {
    return a.token != b.token ? a.token < b.token : a.before(b);
  });
  const auto same = [](const Winner& a, const Winner& b) { return a.token == b.token; };
  heap_.erase(std::unique(heap_.begin(), heap_.end(), same), heap_.end());
  std::sort(heap_.begin(), heap_.end(), before);
  heap_.resize(std::min(heap_.size(), static_cast<std::size_t>(config_.buffer)));
  std::make_heap(heap_.begin(), heap_.end(), before);
}

std::vector<Winner> Shortlist::winners() const {
  std::vector<Winner> list = heap_;
  std::sort(list.begin(), list.end(),
            [](const Winner& a, const Winner& b) { return a.token < b.token; });
  return list;
}

std::vector<Span> Shortlist::spans() const {
  std::unordered_set<std::int64_t> kept;
  for (std::int64_t t = 0; t < std::min(config_.anchors, tokens_); ++t) kept.insert(t);
  std::vector<Winner> ranked = heap_;
  std::sort(ranked.begin(), ranked.end(), before);
  const auto buffer = static_cast<std::size_t>(config_.buffer);
  std::vector<std::int64_t> added;
  for (const Winner& w : ranked) {
    added.clear();
    const std::int64_t from = std::max<std::int64_t>(0, w.token - config_.span);
    const std::int64_t to = std::min(tokens_, w.token + config_.span + 1);
    for (std::int64_t t = from; t < to; ++t) {
      if (!kept.contains(t)) added.push_back(t);
    }
    if (kept.size() + added.size() > buffer) break;
    kept.insert(added.begin(), added.end());
  }
  std::vector<std::int64_t> order(kept.begin(), kept.end());
  std::sort(order.begin(), order.end());
  std::vector<Span> spans;
  for (const std::int64_t t : order) {
    if (!spans.empty() && spans.back().end == t) {
      ++spans.back().end;
    } else {
      spans.push_back({t, t + 1});
    }
  }
  return spans;
}

std::int64_t tokens_of(const std::vector<Span>& spans) {
  std::int64_t sum = 0;
  for (const Span& s : spans) sum += s.end - s.begin;
  return sum;
}

}  // namespace proteus
