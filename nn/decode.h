// Decoding token by token: what a layer remembers of a sequence. CPU only.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>
#include <span>

#include "nn/key_cache.h"
#include "tensor/tensor.h"

namespace proteus {

/// What one attention layer remembers of one sequence.
class AttentionState {
 public:
  virtual ~AttentionState() = default;
  /// Memory held by what is remembered.
  virtual std::int64_t bytes() const = 0;
};

/// Keys and values of one head of one sequence, as far as later queries can see them: the first
/// `anchors` entries, and those from the last query's window on. A is float or double.
template <class A>
class KeyStream {
 public:
  KeyStream(std::int64_t D, std::int64_t anchors, CacheType type)
      : D_(D), anchors_(anchors), kept_(D, type) {}

  /// k and v [D]; bias is added to the logit of the key.
  void append(const A* k, const A* v, A bias) {
    kept_.append(k, v, bias);
    ++size_;
  }

  /// Entries appended so far.
  std::int64_t size() const { return size_; }
  std::int64_t bytes() const { return kept_.bytes(); }
  const KeyCache<A>& kept() const { return kept_; }
  /// The oldest entry behind the anchors that is still here; 0: none was dropped.
  std::int64_t first() const { return first_; }
  /// Where an entry that is still here stands in kept().
  std::int64_t row_of(std::int64_t entry) const {
    return entry < std::min(first_, anchors_) ? entry : entry - first_ + std::min(first_, anchors_);
  }

  /// No later query sees entries before `lo`, other than anchors. They are dropped once they are as
  /// many as those that stay: the memory is at most twice what is needed.
  void forget(std::int64_t lo) {
    const std::int64_t drop = lo - std::max(first_, anchors_);
    if (drop <= 0 || drop < size_ - lo) return;
    kept_.erase(std::min(anchors_, size_), drop);
    first_ = lo;
  }

  /// The rows of kept() that a query sees: the entries [0, min(anchors, lo)) and [lo, size),
  /// without those that were dropped.
  std::array<CacheRange<A>, 2> seen(std::int64_t lo) const {
    const std::int64_t fixed = std::min(anchors_, lo);
    return {CacheRange<A>{&kept_, 0, fixed},
            CacheRange<A>{&kept_, row_of(std::max({lo, fixed, first_})), kept_.rows()}};
  }
  /// attend() to them.
  void attend(const A* q, std::int64_t lo, A sink, A sink_weight, A* out) const {
    proteus::attend<A>(q, D_, seen(lo), sink, sink_weight, out);
  }

 private:
  std::int64_t D_;
  std::int64_t anchors_;
  std::int64_t size_ = 0;
  std::int64_t first_ = 0;
  KeyCache<A> kept_;
};

/// Throws DeviceError or ShapeError unless x is [states, width] on the CPU.
void check_step(const char* layer, const Tensor& x, std::int64_t width, std::size_t states);

/// Calls fn(tag) with the type a layer of this dtype decodes in: double for f64, float otherwise.
template <class Fn>
auto dispatch_decode(DType dtype, Fn&& fn) {
  return dtype == DType::f64 ? fn(double{}) : fn(float{});
}

}  // namespace proteus
