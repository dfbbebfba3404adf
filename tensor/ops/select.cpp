#include "tensor/ops/select.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>
#include <vector>

#include "tensor/ops/check.h"
#include "tensor/parallel.h"
#include "tensor/vmath.h"

namespace proteus {
namespace {

constexpr std::int64_t kRowGrain = 64;  // rows per chunk
constexpr std::int64_t kBlock = 16;     // values looked at together
constexpr std::int64_t kMostBest = 32;  // larger k: a partial sort instead of a list of the best
constexpr std::int64_t kLanes = 32;     // columns looked at together for a floor
constexpr std::int64_t kLongRow = 256;  // values from which a floor pays

template <class T>
struct Best {
  T value;
  std::int32_t index;
};

// values = scores − theta; whether none is NaN.
template <class T>
bool adjust(const T* scores, const T* theta, std::int64_t H, T* values) {
  int nan = 0;
#pragma omp simd reduction(| : nan)
  for (std::int64_t h = 0; h < H; ++h) {
    const T v = theta ? scores[h] - theta[h] : scores[h];
    values[h] = v;
    nan |= v != v ? 1 : 0;
  }
  return nan == 0;
}

// The k best so far, best first; equal values keep the order in which they came.
template <class T>
class BestList {
 public:
  explicit BestList(std::int64_t k) : k_(k) {}

  bool full() const { return size_ == k_; }
  T worst() const { return best_[static_cast<std::size_t>(size_ - 1)].value; }

  void offer(T value, std::int64_t index) {
    if (full() && !(value > worst())) return;
    std::int64_t at = full() ? size_ - 1 : size_++;
    for (; at > 0 && value > best_[static_cast<std::size_t>(at - 1)].value; --at) {
      best_[static_cast<std::size_t>(at)] = best_[static_cast<std::size_t>(at - 1)];
    }
    best_[static_cast<std::size_t>(at)] = {value, static_cast<std::int32_t>(index)};
  }

  void write(std::int32_t* heads) const {
    for (std::int64_t j = 0; j < size_; ++j) {
      heads[j] = best_[static_cast<std::size_t>(j)].index;
    }
    std::sort(heads, heads + size_);
  }

 private:
  std::int64_t k_;
  std::int64_t size_ = 0;
  std::array<Best<T>, kMostBest> best_;
};

// Whether a value of scores − theta is not at most `bound`: above it, or NaN.
template <class T>
bool any_not_below(const T* scores, const T* theta, std::int64_t n, T bound) {
  int found = 0;
  if (theta) {
#pragma omp simd reduction(| : found)
    for (std::int64_t i = 0; i < n; ++i) found |= scores[i] - theta[i] <= bound ? 0 : 1;
  } else {
#pragma omp simd reduction(| : found)
    for (std::int64_t i = 0; i < n; ++i) found |= scores[i] <= bound ? 0 : 1;
  }
  return found != 0;
}

// One pass over the row. Once the list is full, a block is entered only if one of its values
// belongs into the list: in random order that happens about k·ln(H/k) times. False for a NaN.
template <class T>
bool select_few(const T* scores, const T* theta, std::int64_t H, std::int64_t k,
                std::int32_t* heads) {
  BestList<T> list(k);
  T values[kBlock];
  for (std::int64_t begin = 0; begin < H; begin += kBlock) {
    const std::int64_t n = std::min(kBlock, H - begin);
    const T* block_theta = theta ? theta + begin : nullptr;
    if (list.full() && !any_not_below(scores + begin, block_theta, n, list.worst())) continue;
    if (!adjust(scores + begin, block_theta, n, values)) return false;
    for (std::int64_t i = 0; i < n; ++i) list.offer(values[i], begin + i);
  }
  list.write(heads);
  return true;
}

// A number that at least k values of scores − theta are above: every kLanes-th value makes a lane,
// and k lanes have a largest value that is not below the k-th of these.
template <class T>
T floor_of_best(const T* scores, const T* theta, std::int64_t H, std::int64_t k) {
  constexpr T kNothing = -std::numeric_limits<T>::infinity();
  static_assert(kLanes >= kMostBest);
  T top[kLanes];
  int not_below[kLanes] = {};  // lanes whose largest value is not below this one's
  std::fill_n(top, kLanes, kNothing);
  for (std::int64_t begin = 0; begin + kLanes <= H; begin += kLanes) {
#pragma omp simd
    for (std::int64_t i = 0; i < kLanes; ++i) {
      const T v = theta ? scores[begin + i] - theta[begin + i] : scores[begin + i];
      top[i] = v > top[i] ? v : top[i];
    }
  }
  for (std::int64_t j = 0; j < kLanes; ++j) {
#pragma omp simd
    for (std::int64_t i = 0; i < kLanes; ++i) not_below[i] += top[j] >= top[i] ? 1 : 0;
  }
  T floor = kNothing;
#pragma omp simd reduction(max : floor)
  for (std::int64_t i = 0; i < kLanes; ++i) {
    floor = not_below[i] >= k && top[i] > floor ? top[i] : floor;
  }
  return std::nextafter(floor, kNothing);
}

// Values above a floor that k or a few more of them pass, in the order of their columns.
template <class T>
class Candidates {
 public:
  std::int64_t size() const { return size_; }
  bool holds_block() const { return size_ + kBlock <= kMost; }

  void offer(T value, std::int64_t index, T floor) {
    found_[static_cast<std::size_t>(size_)] = {value, static_cast<std::int32_t>(index)};
    size_ += value > floor ? 1 : 0;
  }
  // Of equal values the later goes first.
  void drop_least() {
    const auto end = found_.begin() + size_;
    const auto least = std::min_element(found_.begin(), end, [](const auto& a, const auto& b) {
      return a.value < b.value || (a.value == b.value && a.index > b.index);
    });
    std::copy(least + 1, end, least);
    --size_;
  }
  void write(std::int32_t* heads) const {
    for (std::int64_t j = 0; j < size_; ++j) heads[j] = found_[static_cast<std::size_t>(j)].index;
  }

 private:
  static constexpr std::int64_t kMost = 2 * kMostBest;
  std::int64_t size_ = 0;
  std::array<Best<T>, kMost> found_;
};

// The same as select_few() for long rows: their best are about k of many, and all the others are
// passed over by comparisons alone.
template <class T>
bool select_few_of_many(const T* scores, const T* theta, std::int64_t H, std::int64_t k,
                        std::int32_t* heads) {
  constexpr std::int64_t kStretch = 4 * kBlock;
  const T floor = floor_of_best(scores, theta, H, k);
  if (!std::isfinite(floor)) return select_few(scores, theta, H, k, heads);
  Candidates<T> best;
  T values[kBlock];
  const auto none_in = [&](std::int64_t begin, std::int64_t n) {
    return !any_not_below(scores + begin, theta ? theta + begin : nullptr, n, floor);
  };
  for (std::int64_t start = 0; start < H; start += kStretch) {
    const std::int64_t stop = std::min(H, start + kStretch);
    if (none_in(start, stop - start)) continue;
    for (std::int64_t begin = start; begin < stop; begin += kBlock) {
      const std::int64_t n = std::min(kBlock, stop - begin);
      if (none_in(begin, n)) continue;
      if (!adjust(scores + begin, theta ? theta + begin : nullptr, n, values)) return false;
      if (!best.holds_block()) return select_few(scores, theta, H, k, heads);
      for (std::int64_t i = 0; i < n; ++i) best.offer(values[i], begin + i, floor);
    }
  }
  while (best.size() > k) best.drop_least();
  best.write(heads);
  return true;
}

template <class T>
void select_many(const T* values, std::int64_t H, std::int64_t k, std::vector<std::int32_t>& order,
                 std::int32_t* heads) {
  order.resize(static_cast<std::size_t>(H));
  std::iota(order.begin(), order.end(), 0);
  if (k < H) {
    std::nth_element(order.begin(), order.begin() + k, order.end(),
                     [values](std::int32_t a, std::int32_t b) {
                       return values[a] > values[b] || (values[a] == values[b] && a < b);
                     });
    std::sort(order.begin(), order.begin() + k);
  }
  std::copy_n(order.begin(), k, heads);
}

// The columns that compete for the k places.
std::vector<std::int32_t> competitors(const TopkFwd& a) {
  std::vector<std::int32_t> columns;
  if (!a.extra) return columns;
  for (std::int64_t h = 0; h < a.H; ++h) {
    if (!a.extra[h]) columns.push_back(static_cast<std::int32_t>(h));
  }
  return columns;
}

// heads [k], places among the competitors, become columns; the extra columns that would have won a
// place join them.
template <class T>
void add_extras(const TopkFwd& a, const std::vector<T>& values,
                const std::vector<std::int32_t>& columns, std::int64_t k, std::int32_t* heads) {
  T least = std::numeric_limits<T>::infinity();
  for (std::int64_t j = 0; j < k; ++j) {
    heads[j] = columns[static_cast<std::size_t>(heads[j])];
    least = std::min(least, values[static_cast<std::size_t>(heads[j])]);
  }
  std::int64_t size = k;
  for (std::int64_t h = 0; h < a.H; ++h) {
    if (a.extra[h] && values[static_cast<std::size_t>(h)] > least) {
      heads[size++] = static_cast<std::int32_t>(h);
    }
  }
  std::sort(heads, heads + size);
}

template <class T>
void topk_typed(const TopkFwd& a) {
  constexpr std::int32_t kNone = -1;
  const std::int64_t chunks = (a.N + kRowGrain - 1) / kRowGrain;
  std::vector<std::int32_t> invalid(static_cast<std::size_t>(chunks), kNone);
  const std::vector<std::int32_t> columns = competitors(a);
  parallel_for(a.N, kRowGrain, [&](std::int64_t begin, std::int64_t end) {
    std::vector<T> values(static_cast<std::size_t>(a.H));
    std::vector<std::int32_t> order;
    std::vector<T> competing(columns.size());
    for (std::int64_t n = begin; n < end; ++n) {
      const T* scores = static_cast<const T*>(a.scores) + n * a.H;
      const T* theta = static_cast<const T*>(a.theta);
      std::int32_t* heads = a.heads + n * (a.k + a.extras);
      const std::int64_t k = a.count ? std::clamp<std::int64_t>(a.count[n], 0, a.k) : a.k;
      std::fill(heads + k, heads + a.k + a.extras, kNone);
      const bool one_pass = !a.extra && k > 0 && k <= kMostBest;
      const auto select = a.H < kLongRow ? select_few<T> : select_few_of_many<T>;
      if (one_pass ? !select(scores, theta, a.H, k, heads)
                   : !adjust(scores, theta, a.H, values.data())) {
        if (a.nan_takes_first) {
          std::iota(heads, heads + a.k, 0);
        } else {
          std::fill(heads, heads + a.k + a.extras, kNanHead);
        }
        auto& first = invalid[static_cast<std::size_t>(begin / kRowGrain)];
        if (first == kNone) first = static_cast<std::int32_t>(n);
        continue;
      }
      if (k == 0 || one_pass) continue;
      for (std::size_t i = 0; i < columns.size(); ++i) {
        competing[i] = values[static_cast<std::size_t>(columns[i])];
      }
      const std::vector<T>& from = a.extra ? competing : values;
      const auto count = static_cast<std::int64_t>(from.size());
      if (k <= kMostBest) {
        select_few<T>(from.data(), nullptr, count, k, heads);
      } else {
        select_many(from.data(), count, k, order, heads);
      }
      if (a.extra) add_extras(a, values, columns, k, heads);
    }
  });
  const auto bad = std::find_if(invalid.begin(), invalid.end(), [](auto n) { return n != kNone; });
  if (a.invalid_row) *a.invalid_row = bad == invalid.end() ? kNone : *bad;
}

void topk_cpu(const TopkFwd& a) {
  if (a.dtype == DType::f64) {
    topk_typed<double>(a);
  } else {
    topk_typed<float>(a);
  }
}

// How many of the values, largest first, reach the share p of the sum of their exponentials.
template <class T>
std::int64_t nucleus_size(std::vector<T>& values, const NucleusFwd& a) {
  T top = values[0];
  for (const T v : values) top = std::max(top, v);
  T sum = 0;
  for (T& v : values) {
    v = vmath::exp(v - top);
    sum += v;
  }
  std::partial_sort(values.begin(), values.begin() + a.k_max, values.end(), std::greater<T>());
  const T wanted = static_cast<T>(a.p) * sum;
  T mass = 0;
  for (std::int64_t k = 0; k < a.k_max; ++k) {
    mass += values[static_cast<std::size_t>(k)];
    if (mass >= wanted) return std::max(a.k_min, k + 1);
  }
  return a.k_max;
}

template <class T>
void nucleus_typed(const NucleusFwd& a) {
  parallel_for(a.N, kRowGrain, [&](std::int64_t begin, std::int64_t end) {
    std::vector<T> values(static_cast<std::size_t>(a.H));
    for (std::int64_t n = begin; n < end; ++n) {
      const bool numbers = adjust(static_cast<const T*>(a.scores) + n * a.H,
                                  static_cast<const T*>(a.theta), a.H, values.data());
      a.count[n] = static_cast<std::int32_t>(numbers ? nucleus_size(values, a) : a.k_max);
    }
  });
}

void nucleus_cpu(const NucleusFwd& a) {
  if (a.dtype == DType::f64) {
    nucleus_typed<double>(a);
  } else {
    nucleus_typed<float>(a);
  }
}

// What both selections ask of scores and theta.
void check_scores(const std::string& call, const Tensor& scores, const Tensor& theta) {
  if (scores.dtype() != DType::f32 && scores.dtype() != DType::f64) {
    throw_dtype(call + ": scores", scores.dtype(), "f32 or f64");
  }
  if (scores.rank() != 2) {
    throw ShapeError(call + ": scores: expected [N, H], got " + to_string(scores.shape()));
  }
  if (!theta.defined()) return;
  ops::check_like(call, "theta", theta, scores);
  ops::check_shape(call, "theta", theta, {scores.size(1)}, "(= scores.shape[1])");
}

}  // namespace

Slot<NucleusFwd> nucleus_fwd{"nucleus_fwd", nucleus_cpu};
Slot<TopkFwd> topk_fwd{"topk_fwd", topk_cpu};

namespace ops {

Tensor topk_heads(const Tensor& scores_any, std::int64_t k, const Tensor& theta_any,
                  const Tensor& count_any, const Tensor& extra_any, NanRows nan_rows) {
  const std::string call = "topk_heads(scores, k, theta, count)";
  check_scores(call, scores_any, theta_any);
  const std::int64_t N = scores_any.size(0);
  const std::int64_t H = scores_any.size(1);
  const Tensor extra = extra_any.defined() ? extra_any.to(kCpu).contiguous() : extra_any;
  std::int64_t extras = 0;
  if (extra.defined()) {
    if (extra.dtype() != DType::i32) throw_dtype(call + ": extra", extra.dtype(), "i32");
    check_shape(call, "extra", extra, {H}, "(= scores.shape[1])");
    for (std::int64_t h = 0; h < H; ++h) extras += extra.data<std::int32_t>()[h] ? 1 : 0;
  }
  if (k < 1 || k > H - extras) {
    throw ConfigError(call + ": k: expected 1 to " + std::to_string(H - extras) +
                      (extras ? " (columns that are not extra)" : " (= scores.shape[1])") +
                      ", got " + std::to_string(k));
  }
  if (count_any.defined()) {
    if (count_any.dtype() != DType::i32) throw_dtype(call + ": count", count_any.dtype(), "i32");
    check_device(call, "count", count_any, scores_any);
    check_shape(call, "count", count_any, {N}, "(= scores.shape[0])");
  }
  const Device device = scores_any.device();
  Tensor heads = Tensor::empty({N, k + extras}, DType::i32, device);
  const Tensor marks = extras ? extra.to(device) : Tensor();
  if (N == 0) return heads;
  const Tensor scores = scores_any.contiguous();
  const Tensor theta = theta_any.defined() ? theta_any.contiguous() : theta_any;
  const Tensor count = count_any.defined() ? count_any.contiguous() : count_any;
  const bool refuse = nan_rows == NanRows::refuse;
  const Tensor invalid = refuse ? Tensor::empty({1}, DType::i32, device) : Tensor();
  topk_fwd(device, {.scores = scores.raw(),
                    .theta = theta.defined() ? theta.raw() : nullptr,
                    .count = count.defined() ? count.data<std::int32_t>() : nullptr,
                    .extra = marks.defined() ? marks.data<std::int32_t>() : nullptr,
                    .heads = heads.data<std::int32_t>(),
                    .invalid_row = refuse ? invalid.data<std::int32_t>() : nullptr,
                    .N = N,
                    .H = H,
                    .k = k,
                    .extras = extras,
                    .nan_takes_first = nan_rows == NanRows::take_first,
                    .dtype = scores.dtype()});
  if (!refuse) return heads;
  const auto row = static_cast<std::int64_t>(invalid.item());
  if (row >= 0) {
    throw NumericError(call + ": scores: row " + std::to_string(row) + " has a NaN" +
                       (theta.defined() ? " after theta was subtracted" : "") + "; scores are " +
                       to_string(scores.shape()));
  }
  return heads;
}

Tensor nucleus_counts(const Tensor& scores_any, double p, std::int64_t k_min, std::int64_t k_max,
                      const Tensor& theta_any) {
  const std::string call = "nucleus_counts(scores, p, k_min, k_max, theta)";
  check_scores(call, scores_any, theta_any);
  const std::int64_t N = scores_any.size(0);
  const std::int64_t H = scores_any.size(1);
  if (!(p > 0 && p <= 1)) {
    throw ConfigError(call + ": p: expected a number in (0, 1], got " + std::to_string(p));
  }
  if (k_min < 0 || k_max < k_min || k_max < 1 || k_max > H) {
    throw ConfigError(call + ": k_min, k_max: expected 0 <= k_min <= k_max and 1 <= k_max <= " +
                      std::to_string(H) + " (= scores.shape[1]), got " + std::to_string(k_min) +
                      " and " + std::to_string(k_max));
  }
  Tensor count = Tensor::empty({N}, DType::i32, scores_any.device());
  if (N == 0) return count;
  const Tensor scores = scores_any.contiguous();
  const Tensor theta = theta_any.defined() ? theta_any.contiguous() : theta_any;
  nucleus_fwd(scores.device(), {.scores = scores.raw(),
                                .theta = theta.defined() ? theta.raw() : nullptr,
                                .count = count.data<std::int32_t>(),
                                .N = N,
                                .H = H,
                                .k_min = k_min,
                                .k_max = k_max,
                                .p = p,
                                .dtype = scores.dtype()});
  return count;
}

}  // namespace ops
}  // namespace proteus
