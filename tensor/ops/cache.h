// Keys and values that decoding keeps on a device, and attention of one query per head over them.
// A stream is one head of one sequence: entries are appended one by one, and rows of the cache are
// a ring behind the first `anchors` ones, which stay. How many entries a stream has is a number
// where the cache is, so that a step of decoding is the same work at every length.
//   cache_append: entry n of a stream becomes (k, v, bias); n ← n + 1
//   cache_attend: out = softmax(q·k/√D + bias)·v over the entries that the newest query sees: the
//     last windows[n], and the first `anchors`; sink_weight·exp(sink) more in the denominator
// Rows may be kept as 8-bit codes with a scale each (see code_of); the query is then encoded alike
// and q·k is an exact integer sum.
#pragma once

#include <cmath>

#include "tensor/host_device.h"
#include "tensor/slot.h"
#include "tensor/tensor.h"

namespace proteus {

constexpr int kLargestCode = 127;

/// What codes of a row with this largest magnitude are multiplied by; 0 for a row of zeros.
template <class A>
PROTEUS_HOST_DEVICE A code_factor(A largest) {
  return largest > 0 ? A(kLargestCode) / largest : A(0);
}
/// x ≈ scale·code, |code| <= 127, to the nearest (ties to even).
template <class A>
PROTEUS_HOST_DEVICE int code_of(A x, A factor) {
  return static_cast<int>(std::rint(x * factor));
}
template <class A>
PROTEUS_HOST_DEVICE float code_scale(A largest) {
  return static_cast<float>(largest / A(kLargestCode));
}

/// Where entry `entry` of a stream stands.
PROTEUS_HOST_DEVICE inline std::int64_t cache_row(std::int64_t entry, std::int64_t anchors,
                                                  std::int64_t capacity) {
  return entry < anchors ? entry : anchors + (entry - anchors) % (capacity - anchors);
}

/// Streams = B·H of them, sequence by sequence.
struct CacheRows {
  void* k = nullptr;  ///< [streams, capacity, D] of the rows' dtype, or i8 codes
  void* v = nullptr;
  float* k_scale = nullptr;  ///< [streams, capacity] with codes, else null
  float* v_scale = nullptr;
  void* bias = nullptr;             ///< [streams, capacity] in the accumulation type, or null: 0
  std::int32_t* entries = nullptr;  ///< [streams]
  std::int64_t H = 0, capacity = 0, anchors = 0, D = 0;
};

/// Item (b, j) of B·n belongs to head heads[b, j] of sequence b (−1: to none; null: head j), and
/// its vector is row row_of[b, j] of [rows, D], or, where that is null, starts at b·stride + j·D.
struct CacheItems {
  const std::int32_t* heads = nullptr;
  const std::int32_t* row_of = nullptr;
  std::int64_t B = 0, n = 0;
};

/// Which entries the query behind `n` of them sees: [0, fixed) and [lo, n).
struct CacheSight {
  std::int64_t fixed = 0, lo = 0, n = 0;

  PROTEUS_HOST_DEVICE CacheSight(std::int64_t entries, const std::int32_t* windows,
                                 std::int64_t anchors)
      : n(entries) {
    if (windows) lo = n - windows[n];
    fixed = anchors < lo ? anchors : lo;
  }
  PROTEUS_HOST_DEVICE std::int64_t count() const { return fixed + n - lo; }
  PROTEUS_HOST_DEVICE std::int64_t entry(std::int64_t i) const {
    return i < fixed ? i : lo + i - fixed;
  }
};

/// bias [rows] like the vectors, or null. An item's head must not come twice in a sequence.
struct CacheAppend {
  CacheRows cache;
  CacheItems items;
  const void* k = nullptr;
  const void* v = nullptr;
  const void* bias = nullptr;
  std::int64_t k_stride = 0, v_stride = 0;
  DType dtype = DType::f32;
};
extern Slot<CacheAppend> cache_append;

/// windows [longest + 1]: entries that the newest query of so many sees, or null: all. sink [H] in
/// the accumulation type, or null. out: rows like q's, [B·n, D] without row_of. A stream without
/// entries gives zeros.
struct CacheAttend {
  CacheRows cache;
  CacheItems items;
  const void* q = nullptr;
  void* out = nullptr;
  const std::int32_t* windows = nullptr;
  const void* sink = nullptr;
  double sink_weight = 0;
  std::int64_t q_stride = 0;
  DType dtype = DType::f32;
};
extern Slot<CacheAttend> cache_attend;

/// counters [n] += 1.
struct Advance {
  std::int32_t* counters = nullptr;
  std::int64_t n = 0;
};
extern Slot<Advance> advance_counters;

namespace ops {

struct StreamCache {
  Tensor k, v;              ///< [B, H, capacity, D]
  Tensor k_scale, v_scale;  ///< f32 [B, H, capacity], undefined without codes
  Tensor bias;              ///< [B, H, capacity], or undefined
  Tensor entries;           ///< i32 [B, H]
  std::int64_t anchors = 0;

  bool defined() const { return k.defined(); }
  std::int64_t bytes() const;
  /// Forgets all entries.
  void clear() const { entries.zero_(); }
};

struct StreamCacheShape {
  std::int64_t B = 0, H = 0, capacity = 0, D = 0;
  std::int64_t anchors = 0;
  bool codes = false;   ///< rows as 8-bit codes
  bool biased = false;  ///< with a bias per entry
  DType dtype = DType::f32;
  Device device = kCpu;
};
/// Without entries. Throws ConfigError unless there is a row behind the anchors.
StreamCache make_stream_cache(const StreamCacheShape& shape);

/// Whose the vectors are: heads i32 [B, n] and row_of i32 [B, n] as in CacheItems, or both
/// undefined.
struct HeadRows {
  Tensor heads, row_of;
};

/// One entry more: k and v [B, H, D], or [rows, D] with `of`; bias [rows] where the cache has one.
/// Throws ShapeError, DTypeError, DeviceError.
void cache_append(const StreamCache& cache, const Tensor& k, const Tensor& v,
                  const Tensor& bias = {}, const HeadRows& of = {});

/// What a query sees, and what stands beside it in the denominator.
struct SightOptions {
  Tensor windows =
      {};            ///< i32 [longest + 1], undefined: all; no stream has more entries than longest
  Tensor sink = {};  ///< [H], undefined: none
  double sink_weight = 0;
};
/// q [B, H, D] → [B, H, D], or [rows, D] with `of`.
Tensor cache_attend(const StreamCache& cache, const Tensor& q, const SightOptions& options = {},
                    const HeadRows& of = {});

/// Adds 1 to every counter, i32, in place.
void advance(const Tensor& counters);

}  // namespace ops
}  // namespace proteus
