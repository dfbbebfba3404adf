#include "cuda/attention_draws.cuh"
#include "cuda/attention_drop_bits.cuh"
#include "cuda/graph.h"

namespace proteus::cuda {
namespace {

constexpr int kBits = 32;
constexpr int kThreads = 256;
constexpr int kTiles = 4;  // of 32 queries per block
/// Rows of bits begin at 16 bytes, and tiles of keys are at most as long.
constexpr std::int64_t kRounded = 128;
/// Beyond that a kernel draws for itself: 12 heads of 1,024 queries in 32 sequences take 100 MB.
constexpr std::int64_t kMostBytes = std::int64_t{256} << 20;

std::int64_t words_of(const AttentionProblem& p) {
  return (p.longest + kRounded - 1) / kRounded * (kRounded / kBits);
}
std::int64_t row_words(const AttentionProblem& p) { return p.queries * words_of(p); }
std::int64_t column_words(const AttentionProblem& p, bool columns) {
  return columns ? p.segment_count * kBits * words_of(p) * words_of(p) : 0;
}
std::size_t bytes_of(const AttentionProblem& p, bool columns) {
  if (p.dropout == 0) return 0;
  return static_cast<std::size_t>(row_words(p) + column_words(p, columns)) * sizeof(std::uint32_t);
}

// A block has kTiles times 32 queries of a segment; a warp draws for 32 of them and 32 keys, a lane
// for a query.
template <bool kColumns>
__global__ void __launch_bounds__(kThreads)
    draw_bits(const AttentionProblem p, const DropBits to, const std::uint64_t* later) {
  const int blocks = to.words / kTiles;
  const std::int64_t n = blockIdx.x / blocks;
  const int block = static_cast<int>(blockIdx.x) % blocks;
  const AttentionSegment s = p.segments[n];
  const Draws draws(p, later);
  const int anchors = anchors_of(p);
  const int lane = lane_id();
  for (int task = warp_id(); task < kTiles * to.words; task += kThreads / kWarp) {
    const int tile = block * kTiles + task % kTiles;
    const int first = tile * kBits;
    const int word = task / kTiles;
    const int key = word * kBits;
    if (first >= s.q_count || key >= s.k_count) continue;
    const int count = static_cast<int>(min(std::int64_t{kBits}, s.q_count - first));
    const std::int32_t* lo = p.lo + s.range + first;
    const std::int32_t* hi = p.hi + s.range + first;
    const Sight sight{lo[0], hi[0], lo[count - 1], hi[count - 1]};
    if (sight.nothing(key, key + kBits, anchors)) continue;
    const std::int64_t slot = s.slot + first + lane;
    std::uint32_t mine = 0;
#pragma unroll
    for (int first_bit = 0; first_bit < kBits; first_bit += Draws::kKeys) {
      const Philox4 r = draws.draw(slot, key + first_bit);
#pragma unroll
      for (int i = 0; i < Draws::kKeys; ++i) {
        mine |= static_cast<std::uint32_t>(draws.keeps(r.v[i / 2], i % 2)) << (first_bit + i);
      }
    }
    if (lane < count) to.rows[slot * to.words + word] = mine;
    if constexpr (kColumns) {
      std::uint32_t of_key = 0;
#pragma unroll
      for (int j = 0; j < kBits; ++j) {
        const std::uint32_t all = __ballot_sync(kAllLanes, mine >> j & 1u);
        if (lane == j) of_key = all;
      }
      to.columns[(n * kBits * to.words + key + lane) * to.words + tile] = of_key;
    }
  }
}

}  // namespace

bool drop_bits_fit(const AttentionProblem& p, bool columns) {
  return p.longest > 0 && bytes_of(p, columns) <= static_cast<std::size_t>(kMostBytes);
}

DrawnBits::DrawnBits(const AttentionProblem& p, bool columns)
    : memory_(scratch(bytes_of(p, columns))) {
  if (p.dropout == 0) return;
  auto* rows = static_cast<std::uint32_t*>(memory_.data());
  bits_ = {rows, columns ? rows + row_words(p) : nullptr, static_cast<int>(words_of(p)),
           static_cast<float>(AttentionDropout(p).factor)};
  launch("attention: draw_bits", columns ? draw_bits<true> : draw_bits<false>,
         static_cast<unsigned>(p.segment_count * bits_.words / kTiles), kThreads, 0, p, bits_,
         recorded_streams());
}

}  // namespace proteus::cuda
