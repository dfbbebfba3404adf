// Decoding token by token: what a layer remembers of a sequence. CPU only.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <vector>

#include "tensor/tensor.h"
#include "tensor/vmath.h"

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
  KeyStream(std::int64_t D, std::int64_t anchors) : D_(D), anchors_(anchors) {}

  /// k and v [D]; bias is added to the logit of the key.
  void append(const A* k, const A* v, A bias) {
    k_.insert(k_.end(), k, k + D_);
    v_.insert(v_.end(), v, v + D_);
    bias_.push_back(bias);
    ++size_;
  }

  /// Entries appended so far.
  std::int64_t size() const { return size_; }
  std::int64_t bytes() const {
    return static_cast<std::int64_t>((k_.capacity() + v_.capacity() + bias_.capacity()) *
                                     sizeof(A));
  }

  /// No later query sees entries before `lo`, other than anchors. They are dropped once they are as
  /// many as those that stay: the memory is at most twice what is needed.
  void forget(std::int64_t lo) {
    const std::int64_t begin = std::max(first_, anchors_);
    const std::int64_t drop = lo - begin;
    if (drop <= 0 || drop < size_ - lo) return;
    const std::int64_t at = std::min(anchors_, size_);
    const auto erase = [&](std::vector<A>& v, std::int64_t width) {
      v.erase(v.begin() + at * width, v.begin() + (at + drop) * width);
    };
    erase(k_, D_);
    erase(v_, D_);
    erase(bias_, 1);
    first_ = lo;
  }

  /// out [D] = softmax attention of q [D] over the entries [lo, size) and [0, min(anchors, lo)),
  /// without those that were dropped;
  /// sink_weight·exp(sink) more in the denominator. Without anything to see out is zero.
  void attend(const A* q, std::int64_t lo, A sink, A sink_weight, A* out) {
    const std::int64_t fixed = std::min(anchors_, lo);
    // Positions in the vectors: anchors, then what is kept from first_ on.
    const std::int64_t from = std::max({lo, fixed, first_}) - first_ + std::min(first_, anchors_);
    const auto kept = static_cast<std::int64_t>(bias_.size());
    const A scale = A(1) / std::sqrt(static_cast<A>(D_));
    A top = sink_weight > 0 ? sink : -std::numeric_limits<A>::infinity();
    logits_.clear();
    const auto each = [&](auto&& fn) {
      for (std::int64_t j = 0; j < fixed; ++j) fn(j);
      for (std::int64_t j = from; j < kept; ++j) fn(j);
    };
    each([&](std::int64_t j) {
      const A* key = k_.data() + j * D_;
      A dot = 0;
#pragma omp simd reduction(+ : dot)
      for (std::int64_t d = 0; d < D_; ++d) dot += q[d] * key[d];
      logits_.push_back(scale * dot + bias_[static_cast<std::size_t>(j)]);
      top = std::max(top, logits_.back());
    });
    std::fill_n(out, D_, A(0));
    A sum = sink_weight > 0 ? sink_weight * vmath::exp(sink - top) : A(0);
    std::size_t at = 0;
    each([&](std::int64_t j) {
      const A p = vmath::exp(logits_[at++] - top);
      const A* value = v_.data() + j * D_;
      sum += p;
      for (std::int64_t d = 0; d < D_; ++d) out[d] += p * value[d];
    });
    if (sum > 0) {
      for (std::int64_t d = 0; d < D_; ++d) out[d] /= sum;
    }
  }

 private:
  std::int64_t D_;
  std::int64_t anchors_;
  std::int64_t size_ = 0;
  // Oldest entry behind the anchors that is still here; 0: none was dropped.
  std::int64_t first_ = 0;
  std::vector<A> k_, v_, bias_, logits_;
};

/// Throws DeviceError or ShapeError unless x is [states, width] on the CPU.
void check_step(const char* layer, const Tensor& x, std::int64_t width, std::size_t states);

/// Calls fn(tag) with the type a layer of this dtype decodes in: double for f64, float otherwise.
template <class Fn>
auto dispatch_decode(DType dtype, Fn&& fn) {
  return dtype == DType::f64 ? fn(double{}) : fn(float{});
}

}  // namespace proteus
