// Keys and values of one head of one sequence, as decoding keeps them, and attention over them.
// CacheType::int8 keeps a row as 8-bit codes with one scale: a quarter of the memory. Its dot
// products are exact integer sums, the same bits with and without the instructions for them.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <type_traits>
#include <vector>

#include "tensor/vmath.h"

namespace proteus {

/// How keys and values are kept: as they are computed, or as 8-bit codes.
enum class CacheType : std::uint8_t { full, int8 };

namespace detail {

constexpr std::int32_t kCodeZero = 128;  // codes are stored from 1 to 255, zero in the middle
constexpr std::int64_t kLargestCode = 127;

/// Codes of x [D] and their scale: x ≈ scale·code, |code| <= 127; a zero has scale 0.
template <class A, class Code>
float encode(const A* x, std::int64_t D, std::int64_t zero, Code* codes) {
  A top = 0;
  for (std::int64_t d = 0; d < D; ++d) top = std::max(top, std::abs(x[d]));
  const A inverse = top > 0 ? A(kLargestCode) / top : A(0);
  for (std::int64_t d = 0; d < D; ++d) {
    codes[d] = static_cast<Code>(static_cast<std::int64_t>(std::nearbyint(x[d] * inverse)) + zero);
  }
  return static_cast<float>(top / A(kLargestCode));
}

/// out[i] = Σ_d keys[i·D + d]·q[d] of unsigned and signed codes, exactly.
void dot_codes(const std::uint8_t* keys, const std::int8_t* q, std::int64_t rows, std::int64_t D,
               std::int32_t* out);

}  // namespace detail

/// A query as it meets cached rows: itself, and its codes where these are codes.
template <class A>
struct CacheQuery {
  const A* values = nullptr;
  std::vector<std::int8_t> codes;
  float scale = 0;
  std::int32_t offset = 0;  // what the zero of the cached codes adds to every dot product

  CacheQuery(const A* q, std::int64_t D, CacheType type) : values(q) {
    if (type == CacheType::full) return;
    codes.resize(static_cast<std::size_t>(D));
    scale = detail::encode(q, D, 0, codes.data());
    for (const std::int8_t c : codes) offset += detail::kCodeZero * c;
  }
};

/// Rows of width D. A is float or double.
template <class A>
class CachedRows {
 public:
  CachedRows(std::int64_t D, CacheType type) : D_(D), type_(type) {}

  CacheType type() const { return type_; }
  std::int64_t bytes() const {
    return static_cast<std::int64_t>(values_.capacity() * sizeof(A) + codes_.capacity() +
                                     scales_.capacity() * sizeof(float));
  }

  /// Row i becomes `row`; i may be one past the end.
  void set(std::int64_t i, const A* row) {
    const auto end = static_cast<std::size_t>((i + 1) * D_);
    if (type_ == CacheType::full) {
      if (values_.size() < end) values_.resize(end);
      std::copy_n(row, D_, values_.begin() + i * D_);
      return;
    }
    if (codes_.size() < end) codes_.resize(end);
    if (scales_.size() <= static_cast<std::size_t>(i)) scales_.emplace_back();
    scales_[static_cast<std::size_t>(i)] =
        detail::encode(row, D_, detail::kCodeZero, codes_.data() + i * D_);
  }
  /// The same of row `from` of `other`.
  void copy_row(std::int64_t i, const CachedRows& other, std::int64_t from) {
    copy(values_, other.values_, i, from, D_);
    copy(codes_, other.codes_, i, from, D_);
    copy(scales_, other.scales_, i, from, 1);
  }
  void erase(std::int64_t begin, std::int64_t count) {
    const auto cut = [&](auto& v, std::int64_t width) {
      if (!v.empty()) v.erase(v.begin() + begin * width, v.begin() + (begin + count) * width);
    };
    cut(values_, D_);
    cut(codes_, D_);
    cut(scales_, 1);
  }
  void read(std::int64_t i, A* row) const {
    if (type_ == CacheType::full) {
      std::copy_n(values_.begin() + i * D_, D_, row);
      return;
    }
    const std::uint8_t* code = codes_.data() + i * D_;
    const A scale = scales_[static_cast<std::size_t>(i)];
    for (std::int64_t d = 0; d < D_; ++d) row[d] = scale * A(code[d] - detail::kCodeZero);
  }

  /// out[i − begin] = q·row i over [begin, end).
  void dots(const CacheQuery<A>& q, std::int64_t begin, std::int64_t end, A* out) const {
    if (type_ == CacheType::full) {
      for (std::int64_t i = begin; i < end; ++i) {
        const A* row = values_.data() + i * D_;
        A sum = 0;
#pragma omp simd reduction(+ : sum)
        for (std::int64_t d = 0; d < D_; ++d) sum += q.values[d] * row[d];
        out[i - begin] = sum;
      }
      return;
    }
    thread_local std::vector<std::int32_t> sums;
    sums.resize(static_cast<std::size_t>(end - begin));
    detail::dot_codes(codes_.data() + begin * D_, q.codes.data(), end - begin, D_, sums.data());
    for (std::int64_t i = begin; i < end; ++i) {
      out[i - begin] = A(q.scale) * A(scales_[static_cast<std::size_t>(i)]) *
                       A(sums[static_cast<std::size_t>(i - begin)] - q.offset);
    }
  }

  /// out [D] += Σ weight[i − begin]·row i over [begin, end).
  void add(const A* weight, std::int64_t begin, std::int64_t end, A* out) const {
    for (std::int64_t d = 0; d < D_; d += kBlock) {
      const std::int64_t width = std::min(kBlock, D_ - d);
      if (width == kBlock) {
        add_block<true>(weight, begin, end, d, kBlock, out + d);
      } else {
        add_block<false>(weight, begin, end, d, width, out + d);
      }
    }
  }

 private:
  static constexpr std::int64_t kBlock = 64;  // elements whose sums stay in registers

  template <class T>
  static void copy(std::vector<T>& to, const std::vector<T>& from, std::int64_t i, std::int64_t j,
                   std::int64_t width) {
    if (from.empty()) return;
    const auto end = static_cast<std::size_t>((i + 1) * width);
    if (to.size() < end) to.resize(end);
    std::copy_n(from.begin() + j * width, width, to.begin() + i * width);
  }

  template <bool kWhole>
  void add_block(const A* weight, std::int64_t begin, std::int64_t end, std::int64_t d,
                 std::int64_t width, A* out) const {
    const std::int64_t n = kWhole ? kBlock : width;
    A sum[kBlock] = {};
    std::copy_n(out, n, sum);
    if (type_ == CacheType::full) {
      for (std::int64_t i = begin; i < end; ++i) {
        const A* row = values_.data() + i * D_ + d;
        const A w = weight[i - begin];
        for (std::int64_t c = 0; c < n; ++c) sum[c] += w * row[c];
      }
    } else {
      for (std::int64_t i = begin; i < end; ++i) {
        const std::uint8_t* code = codes_.data() + i * D_ + d;
        const A w = weight[i - begin] * A(scales_[static_cast<std::size_t>(i)]);
        for (std::int64_t c = 0; c < n; ++c) {
          sum[c] += w * A(std::int32_t{code[c]} - detail::kCodeZero);
        }
      }
    }
    std::copy_n(sum, n, out);
  }

  std::int64_t D_;
  CacheType type_;
  std::vector<A> values_;
  std::vector<std::uint8_t> codes_;
  std::vector<float> scales_;
};

/// Keys, values, and what is added to the logit of each.
template <class A>
struct KeyCache {
  CachedRows<A> k, v;
  std::vector<A> bias;

  KeyCache(std::int64_t D, CacheType type) : k(D, type), v(D, type) {}

  std::int64_t rows() const { return static_cast<std::int64_t>(bias.size()); }
  std::int64_t bytes() const {
    return k.bytes() + v.bytes() + static_cast<std::int64_t>(bias.capacity() * sizeof(A));
  }
  void append(const A* key, const A* value, A key_bias) {
    k.set(rows(), key);
    v.set(rows(), value);
    bias.push_back(key_bias);
  }
  void copy_row(std::int64_t i, const KeyCache& other, std::int64_t from) {
    k.copy_row(i, other.k, from);
    v.copy_row(i, other.v, from);
    if (i == rows()) bias.emplace_back();
    bias[static_cast<std::size_t>(i)] = other.bias[static_cast<std::size_t>(from)];
  }
  void erase(std::int64_t begin, std::int64_t count) {
    k.erase(begin, count);
    v.erase(begin, count);
    bias.erase(bias.begin() + begin, bias.begin() + begin + count);
  }
};

/// Rows [begin, end) of a cache.
template <class A>
struct CacheRange {
  const KeyCache<A>* cache = nullptr;
  std::int64_t begin = 0;
  std::int64_t end = 0;
};

/// out [D] = softmax attention of q [D] over all rows of the ranges, sink_weight·exp(sink) more in
/// the denominator. Without anything to see out is zero.
template <class A>
void attend(const A* q, std::int64_t D, std::span<const CacheRange<A>> ranges, A sink,
            A sink_weight, A* out) {
  std::int64_t seen = 0;
  for (const CacheRange<A>& r : ranges) seen += r.end - r.begin;
  thread_local std::vector<A> weights;
  weights.resize(static_cast<std::size_t>(seen));
  const CacheQuery<A> query(q, D, ranges.front().cache->k.type());
  const A scale = A(1) / std::sqrt(static_cast<A>(D));
  A top = sink_weight > 0 ? sink : -std::numeric_limits<A>::infinity();
  A* weight = weights.data();
  for (const CacheRange<A>& r : ranges) {
    r.cache->k.dots(query, r.begin, r.end, weight);
    for (std::int64_t j = r.begin; j < r.end; ++j, ++weight) {
      *weight = scale * *weight + r.cache->bias[static_cast<std::size_t>(j)];
      top = std::max(top, *weight);
    }
  }
  A sum = sink_weight > 0 ? sink_weight * vmath::exp(sink - top) : A(0);
  for (A& w : weights) {
    w = vmath::exp(w - top);
    sum += w;
  }
  std::fill_n(out, D, A(0));
  weight = weights.data();
  for (const CacheRange<A>& r : ranges) {
    r.cache->v.add(weight, r.begin, r.end, out);
    weight += r.end - r.begin;
  }
  if (sum > 0) {
    for (std::int64_t d = 0; d < D; ++d) out[d] /= sum;
  }
}

}  // namespace proteus
