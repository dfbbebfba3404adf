#include "train/stream_pass.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <future>

#include "train/signals.h"

namespace proteus {
namespace {

using Clock = std::chrono::steady_clock;

// Large enough that threads have work and a disk long writes; three blocks are held at once.
constexpr std::int64_t kMostBlockRows = 4096;
constexpr std::int64_t kLeastBlockRows = 64;
constexpr std::int64_t kBlockElements = std::int64_t{4} << 20;

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

// Scores come in blocks and leave in chunks.
class Chunks {
 public:
  Chunks(std::int64_t chunk, Shortlist& shortlist,
         const std::function<void(const ChunkReport&)>& on_chunk)
      : chunk_(chunk), shortlist_(shortlist), on_chunk_(on_chunk) {}

  void add(const TokenScores& block) {
    const std::int64_t n = block.best.size(0);
    for (std::int64_t at = 0; at < n;) {
      const std::int64_t end = std::min(n, at + chunk_ - held_);
      parts_.push_back({block.best.slice(0, at, end), block.query.slice(0, at, end),
                        block.salience.defined() ? block.salience.slice(0, at, end) : Tensor()});
      held_ += end - at;
      at = end;
      if (held_ == chunk_) finish();
    }
  }

  void finish() {
    if (held_ == 0) return;
    const ChunkReport report = shortlist_.add(joined_scores(parts_));
    parts_.clear();
    held_ = 0;
    on_chunk_(report);
  }

 private:
  std::int64_t chunk_;
  Shortlist& shortlist_;
  const std::function<void(const ChunkReport&)>& on_chunk_;
  std::vector<TokenScores> parts_;
  std::int64_t held_ = 0;
};

}  // namespace

std::int64_t stream_block(std::int64_t width) {
  return std::clamp(kBlockElements / width, kLeastBlockRows, kMostBlockRows);
}

StreamTimes stream_chunks(const RowSource& source, Staging& staging, const TokenScorer& scorer,
                          std::int64_t chunk, Shortlist& shortlist,
                          const std::function<void(const ChunkReport&)>& on_chunk) {
  const auto begin = Clock::now();
  StreamTimes times;
  Chunks chunks(chunk, shortlist, on_chunk);
  // Numbers that are made use the same threads as the scores and are made when they are asked for.
  const auto policy = source.waits ? std::launch::async : std::launch::deferred;
  const auto fill = [&](const Tensor& room) {
    return std::async(policy, [&source, room] { return source.read(room.raw(), room.size(0)); });
  };
  Tensor room = staging.room();
  std::future<std::int64_t> filling = fill(room);
  Tensor before;
  bool more = true;
  while (more && !interrupted()) {
    const auto asked = Clock::now();
    const std::int64_t n = filling.get();
    times.source += seconds_since(asked);
    staging.commit(n);
    const Tensor block = room;
    more = n == block.size(0) && staging.rows() != source.rows;
    if (more) {
      room = staging.room();
      filling = fill(room);
    }
    if (n == 0) break;
    const Tensor x = rows_of(block, n, source.width, source.format);
    chunks.add(scorer.score(x, before));
    before = x.select(0, n - 1).clone();
  }
  if (!interrupted()) chunks.finish();
  times.total = seconds_since(begin);
  return times;
}

void read_spans(Staging& staging, const RowSource& source, const std::vector<Span>& spans,
                const Tensor& out) {
  const std::int64_t most = stream_block(source.width);
  const Tensor block = Tensor::empty({most, source.row_bytes()}, DType::i8);
  std::int64_t held = 0;
  std::int64_t done = 0;
  const auto flush = [&] {
    out.slice(0, done, done + held).copy_(rows_of(block, held, source.width, source.format));
    done += held;
    held = 0;
  };
  for (const Span& span : spans) {
    for (std::int64_t at = span.begin; at < span.end;) {
      const std::int64_t n = std::min(span.end - at, most - held);
      staging.read(at, n, static_cast<char*>(block.raw()) + held * source.row_bytes());
      at += n;
      held += n;
      if (held == most) flush();
    }
  }
  flush();
}

}  // namespace proteus
