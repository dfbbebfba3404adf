// The KV bank of packed streams: which of the entries that have left a stream's window stay
// visible. A slot names an entry; an offer takes its place or does not, nothing is ever averaged.
// Offers come in time order, all that left the window at once at each refresh:
//   1. The first slot of the offer's gate whose key and value both point where the offer's do
//      (cos > delta and cos > delta_v) keeps the better score of the two, the older where equal.
//   2. Otherwise a free slot takes it.
//   3. Otherwise it takes the place of a victim: with BankEviction::score the smallest score (the
//      lower slot where equal), and only if its own is larger.
#pragma once

#include <cmath>

#include "tensor/rng.h"
#include "tensor/slot.h"
#include "tensor/tensor.h"

namespace proteus {

/// Who makes room in a full bank. fifo (the oldest entry) and random (any slot) always do, and are
/// there to be compared with.
enum class BankEviction : std::uint8_t { score, fifo, random };

struct BankRule {
  double delta = 0.9;    ///< two keys are alike above this cosine
  double delta_v = 0.9;  ///< two values
  BankEviction eviction = BankEviction::score;
  std::uint64_t seed = 0;  ///< of random eviction
};

/// What is judged of an entry. A is float or double.
template <class A>
struct BankEntry {
  std::int64_t entry = 0;  ///< its number within the stream
  std::int32_t gate = 0;
  A score = 0;
};

/// Whether a and b [D] have a cosine above `delta` >= 0; a zero is like nothing.
template <class T, class A>
PROTEUS_HOST_DEVICE inline bool points_alike(const T* a, const T* b, std::int64_t D, double delta) {
  A dot = 0;
  A square_a = 0;
  A square_b = 0;
#ifndef __CUDACC__
#pragma omp simd reduction(+ : dot, square_a, square_b)
#endif
  for (std::int64_t d = 0; d < D; ++d) {
    dot += A(a[d]) * A(b[d]);
    square_a += A(a[d]) * A(a[d]);
    square_b += A(b[d]) * A(b[d]);
  }
  return dot > static_cast<A>(delta) * std::sqrt(square_a * square_b);
}

/// The slot that an offer goes to, `held` if it is a new one, −1 if nowhere. `slots` are the `held`
/// slots in use of M; alike(m) compares the offer with slot m; `head` separates the random numbers
/// of heads.
template <class A, class Alike>
PROTEUS_HOST_DEVICE inline std::int64_t bank_slot(const BankRule& rule, std::int64_t M,
                                                  const BankEntry<A>* slots, std::int64_t held,
                                                  const BankEntry<A>& offer, std::int64_t head,
                                                  Alike&& alike) {
  for (std::int64_t m = 0; m < held; ++m) {
    if (slots[m].gate != offer.gate || !alike(m)) continue;
    return offer.score > slots[m].score ? m : -1;
  }
  if (held < M) return held;
  if (rule.eviction == BankEviction::random) {
    const Philox4 draw = philox(rule.seed, static_cast<std::uint64_t>(offer.entry),
                                static_cast<std::uint64_t>(head));
    return static_cast<std::int64_t>(std::uint64_t{draw.v[0]} * static_cast<std::uint64_t>(M) >>
                                     32);
  }
  const bool by_score = rule.eviction == BankEviction::score;
  std::int64_t victim = 0;
  for (std::int64_t m = 1; m < held; ++m) {
    const bool sooner =
        by_score ? slots[m].score < slots[victim].score : slots[m].entry < slots[victim].entry;
    if (sooner) victim = m;
  }
  return by_score && !(offer.score > slots[victim].score) ? -1 : victim;
}

/// slots i32 [streams, strides, M]: the rows that each stream's bank holds when each stride of raw
/// time begins, −1 for none (at the end). Row r of a stream is offsets[stream] + its entry; at
/// stride i its entries before first[stream, i] have left the window, of which those before
/// `anchors` are never offered. An entry's gate is the largest of share [rows, gates] (the lower
/// index where equal). Stream s belongs to head s / sequences.
struct BankSelect {
  const void* k = nullptr;  ///< [rows, D], before rotation
  const void* v = nullptr;
  const void* share = nullptr;  ///< accumulation type, like score
  const void* score = nullptr;  ///< [rows]
  const std::int32_t* offsets = nullptr;
  const std::int32_t* first = nullptr;
  std::int32_t* slots = nullptr;
  std::int64_t streams = 0, strides = 0, M = 0, D = 0, gates = 1, anchors = 0, sequences = 1;
  BankRule rule;
  DType dtype = DType::f32;
};
extern Slot<BankSelect> bank_select;

namespace ops {

/// What the bank judges packed rows by; k and v [rows, D], share [rows, gates], score [rows].
struct BankRows {
  Tensor k, v, share, score;
};

/// See BankSelect. offsets i32 [streams + 1], first i32 [streams, strides], not decreasing within a
/// stream. Throws ShapeError, DTypeError, ConfigError.
Tensor bank_select(const BankRows& rows, const Tensor& offsets, const Tensor& first, std::int64_t M,
                   std::int64_t anchors, std::int64_t sequences, const BankRule& rule);

}  // namespace ops
}  // namespace proteus
