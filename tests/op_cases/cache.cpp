#include "tensor/ops/cache.h"

#include <algorithm>

#include "autograd/variable.h"
#include "tests/op_cases/families.h"

namespace proteus::testing {
namespace {

struct Sizes {
  std::string name;
  std::int64_t B, H, D, entries;
  std::int64_t anchors = 0;
  std::int64_t window = 0;  // 0: all
  bool codes = false;
  bool routed = false;  // two heads of a sequence at a time, with biases and sinks
};

Tensor windows_of(const Sizes& s, Device device) {
  if (s.window == 0) return {};
  Tensor windows = Tensor::empty({s.entries + 1}, DType::i32);
  for (std::int64_t n = 0; n <= s.entries; ++n) {
    windows.data<std::int32_t>()[n] = static_cast<std::int32_t>(std::min(n, s.window));
  }
  return windows.to(device);
}

// Heads that change from entry to entry, the second of a sequence missing at every third one, and
// rows in another order than items.
ops::HeadRows heads_at(const Sizes& s, std::int64_t entry, bool all, Device device) {
  Tensor heads = Tensor::empty({s.B, 2}, DType::i32);
  Tensor row_of = Tensor::empty({s.B, 2}, DType::i32);
  for (std::int64_t b = 0; b < s.B; ++b) {
    const std::int64_t first = (entry + b) % (s.H - 1);
    const bool none = !all && (entry + b) % 3 == 2;
    const std::int32_t both[] = {static_cast<std::int32_t>(first),
                                 none ? -1 : static_cast<std::int32_t>(s.H - 1)};
    for (std::int64_t j = 0; j < 2; ++j) {
      heads.data<std::int32_t>()[2 * b + j] = both[j];
      row_of.data<std::int32_t>()[2 * b + j] = static_cast<std::int32_t>(2 * s.B - 1 - 2 * b - j);
    }
  }
  return {heads.to(device), row_of.to(device)};
}

constexpr std::int64_t kSteps = 125;

// Rows whose codes are exact but for a quarter: index i of [0, kSteps) is (i − 62 + 1/4) / 8, and
// the largest of a row 127/8, so that no rounding falls the other way in another float type.
Tensor far_from_ties(const Tensor& index, DType dtype, Device device) {
  const Tensor host = index.to(kCpu).contiguous();
  const Tensor out = Tensor::empty(host.shape(), DType::f64);
  const std::int64_t D = host.size(-1);
  for (std::int64_t i = 0; i < host.numel(); ++i) {
    const double step = host.data<std::int32_t>()[i] - (kSteps - 1) / 2;
    out.data<double>()[i] = (i % D == 0 ? kLargestCode : step + 0.25) / 8;
  }
  return out.to(dtype).to(device);
}

Variable decoded(const Sizes& s, const std::vector<Variable>& v) {
  const Device device = v[0].device();
  const DType dtype = v[5].dtype();
  const auto rows = [&](std::size_t i) {
    return s.codes ? far_from_ties(v[i].value(), dtype, device) : v[i].value();
  };
  const Tensor q = rows(0);
  const Tensor all_k = rows(1);
  const Tensor all_v = rows(2);
  const ops::StreamCache cache =
      ops::make_stream_cache({.B = s.B,
                              .H = s.H,
                              .capacity = s.anchors + (s.window > 0 ? s.window : s.entries),
                              .D = s.D,
                              .anchors = s.anchors,
                              .codes = s.codes,
                              .biased = s.routed,
                              .dtype = dtype,
                              .device = device});
  for (std::int64_t e = 0; e < s.entries; ++e) {
    const Tensor k = all_k.select(0, e);
    const Tensor values = all_v.select(0, e);
    if (s.routed) {
      ops::cache_append(cache, k, values, v[3].value().select(0, e), heads_at(s, e, false, device));
    } else {
      ops::cache_append(cache, k, values);
    }
  }
  ops::SightOptions sight{.windows = windows_of(s, device)};
  if (!s.routed) return Variable(ops::cache_attend(cache, q, sight));
  sight.sink = v[4].value();
  sight.sink_weight = 0.5;
  return Variable(ops::cache_attend(cache, q, sight, heads_at(s, 0, true, device)));
}

OpCase cache_case(const Sizes& s) {
  const Shape rows = s.routed ? Shape{2 * s.B, s.D} : Shape{s.B, s.H, s.D};
  Shape all{s.entries};
  for (int d = 0; d < rows.rank(); ++d) all.push_back(rows[d]);
  const auto fixed = [](const Shape& shape, bool accumulation = false) {
    return OpInput{.shape = shape, .differentiable = false, .accumulation = accumulation};
  };
  const auto vectors = [&](const Shape& shape) {
    return s.codes ? OpInput{shape, Fill::index, false, kSteps} : fixed(shape);
  };
  const std::int64_t read = std::min(s.entries, s.anchors + (s.window > 0 ? s.window : s.entries));
  const auto elements = static_cast<double>(2 * s.B * s.H * read * s.D);
  std::vector<std::string> slots{"cache_attend"};
  if (s.entries > 0) slots.emplace_back("cache_append");
  return {.op = "cache_attend",
          .variant = s.name,
          .slots = slots,
          .inputs = {vectors(rows), vectors(all), vectors(all), fixed({s.entries, 2 * s.B}, true),
                     fixed({s.H}, true), fixed({1})},
          .run = [s](const auto& v) { return decoded(s, v); },
          .flops = 2 * elements,
          .bytes = elements * (s.codes ? 1 : 4)};
}

// The counters as numbers, after two steps.
OpCase advance_case(std::int64_t n) {
  return {.op = "advance",
          .variant = std::to_string(n),
          .slots = {"advance_counters"},
          .inputs = {{{n}, Fill::index, false, 50}, {{1}, Fill::normal, false}},
          .run = [](const auto& v) {
            const Tensor counters = v[0].value().clone();
            ops::advance(counters);
            ops::advance(counters);
            return Variable(counters.to(kCpu).to(v[1].dtype()).to(v[1].device()));
          }};
}

ops::StreamCache small_cache() {
  return ops::make_stream_cache({.B = 2, .H = 3, .capacity = 4, .D = 8, .anchors = 1});
}

}  // namespace

OpFamily cache_family() {
  OpFamily family{"cache", {}, {}};
  for (const Sizes& s :
       std::vector<Sizes>{{"one entry", 1, 1, 1, 1},
                          {"3 wide", 2, 3, 3, 7},
                          {"8 wide", 3, 2, 8, 20},
                          {"64 wide", 2, 3, 64, 150},
                          {"128 wide", 1, 2, 128, 70},
                          {"256 wide", 1, 1, 256, 33},
                          {"ring", 2, 2, 16, 41, 0, 6},
                          {"ring and anchors", 2, 2, 32, 41, 3, 7},
                          {"anchors that the window reaches", 1, 2, 64, 9, 4, 6},
                          {"codes", 2, 3, 64, 150, 0, 0, true},
                          {"codes 5 wide", 2, 3, 5, 9, 0, 0, true},
                          {"codes 16 wide ring", 1, 2, 16, 40, 2, 9, true},
                          {"codes 128 wide", 1, 2, 128, 70, 0, 0, true},
                          {"routed", 3, 4, 64, 50, 2, 10, false, true},
                          {"routed 6 wide", 2, 3, 6, 30, 0, 4, false, true},
                          {"routed codes", 3, 4, 64, 50, 2, 10, true, true},
                          {"several stretches", 1, 2, 64, 700},
                          {"several stretches of codes", 1, 2, 64, 700, 0, 0, true},
                          {"several stretches of a ring", 2, 2, 32, 300, 5, 200}}) {
    family.cases.push_back(cache_case(s));
  }
  for (const std::int64_t n : {1, 7, 300}) family.cases.push_back(advance_case(n));
  family.errors = {
      {"no row behind the anchors",
       [] { ops::make_stream_cache({.B = 2, .H = 3, .capacity = 4, .D = 8, .anchors = 4}); },
       "ConfigError", "rows behind the 4 anchors, got 2, 3, 8 and a capacity of 4"},
      {"q of other heads",
       [] {
         ops::cache_attend(small_cache(), Tensor::zeros({2, 4, 8}));
       },
       "ShapeError",
       "cache_attend(cache, q): q: expected [2, 3, 8] (= B, H, D of the cache), got [2, 4, 8]"},
      {"k of another dtype",
       [] {
         const Tensor k = Tensor::zeros({2, 3, 8}, DType::f64);
         ops::cache_append(small_cache(), k, k);
       },
       "DTypeError", "cache_append(cache, k, v): k: expected dtype f32, got f64"},
      {"v of another shape",
       [] {
         ops::cache_append(small_cache(), Tensor::zeros({2, 3, 8}), Tensor::zeros({2, 3, 4}));
       },
       "ShapeError", "cache_append(cache, k, v): v: expected [2, 3, 8] (= k.shape), got [2, 3, 4]"},
      {"a bias that the cache has no place for",
       [] {
         const Tensor k = Tensor::zeros({2, 3, 8});
         ops::cache_append(small_cache(), k, k, Tensor::zeros({6}));
       },
       "ShapeError", "bias: expected none, as the cache was made, got one"},
      {"heads that are not i32",
       [] {
         const Tensor heads = Tensor::zeros({2, 1}, DType::i64);
         ops::cache_attend(small_cache(), Tensor::zeros({2, 8}), {}, {heads, heads});
       },
       "DTypeError", "cache_attend(cache, q): heads, row_of: expected dtype i32, got i64"},
      {"a sink of other heads",
       [] {
         ops::cache_attend(small_cache(), Tensor::zeros({2, 3, 8}), {.sink = Tensor::zeros({2})});
       },
       "ShapeError", "sink: expected [3] (= H of the cache), got [2]"},
      {"counters that are not i32", [] { ops::advance(Tensor::zeros({2}, DType::i64)); },
       "DTypeError", "advance(counters): counters: expected dtype i32, got i64"},
  };
  return family;
}

}  // namespace proteus::testing
