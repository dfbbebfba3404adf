#include "tensor/ops/cache.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "tensor/ops/check.h"
#include "tensor/parallel.h"
#include "tensor/vmath.h"

namespace proteus {
namespace {

constexpr std::int64_t kAppendGrain = 16;  // items of a chunk
constexpr std::int64_t kAttendGrain = 1;
constexpr std::int64_t kAdvanceGrain = 1 << 12;

/// An item's stream, or −1, and where its vectors stand.
struct Item {
  std::int64_t stream = -1, head = 0, b = 0, row = 0, j = 0;

  Item(const CacheItems& items, std::int64_t H, std::int64_t i)
      : head(items.heads ? items.heads[i] : i % items.n), b(i / items.n), j(i % items.n) {
    if (head >= 0) stream = b * H + head;
    row = items.row_of ? items.row_of[i] : i;
  }
  std::int64_t at(const CacheItems& items, std::int64_t stride, std::int64_t D) const {
    return items.row_of ? row * D : b * stride + j * D;
  }
};

template <class T, class Code>
float encode(const T* x, std::int64_t D, Code* codes) {
  using A = accum_t<T>;
  A largest = 0;
  for (std::int64_t d = 0; d < D; ++d) largest = std::max(largest, std::abs(A(x[d])));
  const A factor = code_factor(largest);
  for (std::int64_t d = 0; d < D; ++d) codes[d] = static_cast<Code>(code_of(A(x[d]), factor));
  return code_scale(largest);
}

template <class T>
void append_typed(const CacheAppend& a) {
  using A = accum_t<T>;
  const CacheRows& c = a.cache;
  const auto put = [&](void* rows, float* scales, std::int64_t place, const T* x) {
    if (scales) {
      scales[place] = encode(x, c.D, static_cast<std::int8_t*>(rows) + place * c.D);
    } else {
      std::copy_n(x, c.D, static_cast<T*>(rows) + place * c.D);
    }
  };
  parallel_for(a.items.B * a.items.n, kAppendGrain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const Item item(a.items, c.H, i);
      if (item.stream < 0) continue;
      std::int32_t& entries = c.entries[item.stream];
      const std::int64_t place =
          item.stream * c.capacity + cache_row(entries, c.anchors, c.capacity);
      put(c.k, c.k_scale, place, static_cast<const T*>(a.k) + item.at(a.items, a.k_stride, c.D));
      put(c.v, c.v_scale, place, static_cast<const T*>(a.v) + item.at(a.items, a.v_stride, c.D));
      if (c.bias) static_cast<A*>(c.bias)[place] = static_cast<const A*>(a.bias)[item.row];
      ++entries;
    }
  });
}

/// q as it meets cached rows: itself, or its codes.
template <class T>
struct Query {
  using A = accum_t<T>;
  const T* values;
  std::vector<std::int8_t> codes;
  float scale = 0;

  Query(const T* q, const CacheRows& c) : values(q) {
    if (!c.k_scale) return;
    codes.resize(static_cast<std::size_t>(c.D));
    scale = encode(q, c.D, codes.data());
  }
  A dot(const CacheRows& c, std::int64_t place) const {
    if (!c.k_scale) {
      const T* k = static_cast<const T*>(c.k) + place * c.D;
      A sum = 0;
      for (std::int64_t d = 0; d < c.D; ++d) sum += A(values[d]) * A(k[d]);
      return sum;
    }
    const std::int8_t* k = static_cast<const std::int8_t*>(c.k) + place * c.D;
    std::int32_t sum = 0;
    for (std::int64_t d = 0; d < c.D; ++d) {
      sum += std::int32_t{codes[static_cast<std::size_t>(d)]} * std::int32_t{k[d]};
    }
    return A(scale) * A(c.k_scale[place]) * A(sum);
  }
};

template <class T>
void add_value(const CacheRows& c, std::int64_t place, accum_t<T> weight, accum_t<T>* out) {
  using A = accum_t<T>;
  if (c.v_scale) {
    const std::int8_t* v = static_cast<const std::int8_t*>(c.v) + place * c.D;
    const A w = weight * A(c.v_scale[place]);
    for (std::int64_t d = 0; d < c.D; ++d) out[d] += w * A(v[d]);
  } else {
    const T* v = static_cast<const T*>(c.v) + place * c.D;
    for (std::int64_t d = 0; d < c.D; ++d) out[d] += weight * A(v[d]);
  }
}

template <class T>
void attend_item(const CacheAttend& a, const Item& item, T* to) {
  using A = accum_t<T>;
  const CacheRows& c = a.cache;
  const CacheSight sight(c.entries[item.stream], a.windows, c.anchors);
  const Query<T> query(static_cast<const T*>(a.q) + item.at(a.items, a.q_stride, c.D), c);
  const A scale = A(1) / std::sqrt(static_cast<A>(c.D));
  const auto place_of = [&](std::int64_t i) {
    return item.stream * c.capacity + cache_row(sight.entry(i), c.anchors, c.capacity);
  };
  const bool with_sink = a.sink && a.sink_weight > 0;
  const A sink = with_sink ? static_cast<const A*>(a.sink)[item.head] : A(0);
  A top = with_sink ? sink : -std::numeric_limits<A>::infinity();
  std::vector<A> weights(static_cast<std::size_t>(sight.count()));
  for (std::int64_t i = 0; i < sight.count(); ++i) {
    const std::int64_t place = place_of(i);
    const A bias = c.bias ? static_cast<const A*>(c.bias)[place] : A(0);
    weights[static_cast<std::size_t>(i)] = scale * query.dot(c, place) + bias;
    top = std::max(top, weights[static_cast<std::size_t>(i)]);
  }
  A sum = with_sink ? static_cast<A>(a.sink_weight) * vmath::exp(sink - top) : A(0);
  std::vector<A> out(static_cast<std::size_t>(c.D));
  for (std::int64_t i = 0; i < sight.count(); ++i) {
    const A w = vmath::exp(weights[static_cast<std::size_t>(i)] - top);
    sum += w;
    add_value<T>(c, place_of(i), w, out.data());
  }
  for (std::int64_t d = 0; d < c.D; ++d) {
    to[d] = T(sum > 0 ? out[static_cast<std::size_t>(d)] / sum : A(0));
  }
}

template <class T>
void attend_typed(const CacheAttend& a) {
  const std::int64_t D = a.cache.D;
  parallel_for(a.items.B * a.items.n, kAttendGrain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const Item item(a.items, a.cache.H, i);
      if (item.stream < 0) continue;
      attend_item<T>(a, item, static_cast<T*>(a.out) + item.row * D);
    }
  });
}

void append_cpu(const CacheAppend& a) {
  dispatch_float(a.dtype, "cache_append",
                 [&](auto tag) { append_typed<typename decltype(tag)::type>(a); });
}

void attend_cpu(const CacheAttend& a) {
  dispatch_float(a.dtype, "cache_attend",
                 [&](auto tag) { attend_typed<typename decltype(tag)::type>(a); });
}

void advance_cpu(const Advance& a) {
  parallel_for(a.n, kAdvanceGrain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) ++a.counters[i];
  });
}

CacheRows rows_of(const ops::StreamCache& c) {
  const auto scales = [](const Tensor& t) { return t.defined() ? t.data<float>() : nullptr; };
  return {c.k.raw(),
          c.v.raw(),
          scales(c.k_scale),
          scales(c.v_scale),
          c.bias.defined() ? c.bias.raw() : nullptr,
          c.entries.data<std::int32_t>(),
          c.k.size(1),
          c.k.size(2),
          c.anchors,
          c.k.size(3)};
}

/// The items of a call on vectors like `x`, checked.
CacheItems items_of(const std::string& call, const char* name, const ops::StreamCache& cache,
                    const Tensor& x, const ops::HeadRows& of) {
  ops::check_floating(call, name, x);
  ops::check_device(call, name, x, cache.k);
  if (!cache.k_scale.defined()) ops::check_like(call, name, x, cache.k);
  const std::int64_t B = cache.k.size(0);
  const std::int64_t D = cache.k.size(3);
  if (!of.heads.defined()) {
    ops::check_shape(call, name, x, {B, cache.k.size(1), D}, "(= B, H, D of the cache)");
    return {nullptr, nullptr, B, cache.k.size(1)};
  }
  if (x.rank() != 2 || x.size(1) != D) {
    throw ShapeError(call + ": " + name + ": expected [rows, " + std::to_string(D) +
                     "] (= rows of the heads, D of the cache), got " + to_string(x.shape()));
  }
  for (const Tensor* t : {&of.heads, &of.row_of}) {
    if (t->dtype() != DType::i32) throw_dtype(call + ": heads, row_of", t->dtype(), "i32");
    ops::check_device(call, "heads, row_of", *t, cache.k);
    ops::check_shape(call, "heads, row_of", *t, {B, of.heads.size(-1)}, "(= B of the cache, n)");
  }
  return {of.heads.data<std::int32_t>(), of.row_of.data<std::int32_t>(), B, of.heads.size(1)};
}

/// Vectors whose last two dimensions are contiguous; sequences may be any distance apart.
Tensor with_whole_rows(const Tensor& x) {
  if (x.rank() != 3) return x.contiguous();
  const bool whole = x.stride(2) == 1 && x.stride(1) == x.size(2);
  return whole ? x : x.contiguous();
}

std::int64_t between(const Tensor& x) { return x.rank() == 3 ? x.stride(0) : 0; }

ops::HeadRows contiguous(const ops::HeadRows& of) {
  if (!of.heads.defined()) return of;
  return {of.heads.contiguous(), of.row_of.contiguous()};
}

}  // namespace

Slot<CacheAppend> cache_append{"cache_append", append_cpu};
Slot<CacheAttend> cache_attend{"cache_attend", attend_cpu};
Slot<Advance> advance_counters{"advance_counters", advance_cpu};

namespace ops {

std::int64_t StreamCache::bytes() const {
  std::int64_t sum = 0;
  for (const Tensor* t : {&k, &v, &k_scale, &v_scale, &bias, &entries}) {
    if (t->defined()) sum += t->bytes();
  }
  return sum;
}

StreamCache make_stream_cache(const StreamCacheShape& s) {
  if (s.B < 1 || s.H < 1 || s.D < 1 || s.anchors < 0 || s.capacity <= s.anchors) {
    throw ConfigError("make_stream_cache: expected sequences, heads, D and rows behind the " +
                      std::to_string(s.anchors) + " anchors, got " + std::to_string(s.B) + ", " +
                      std::to_string(s.H) + ", " + std::to_string(s.D) + " and a capacity of " +
                      std::to_string(s.capacity));
  }
  const Shape rows{s.B, s.H, s.capacity};
  const Shape values{s.B, s.H, s.capacity, s.D};
  const auto numbers = [&](const Shape& shape, DType dtype) {
    return Tensor::zeros(shape, dtype, s.device);
  };
  StreamCache c;
  c.k = numbers(values, s.codes ? DType::i8 : s.dtype);
  c.v = numbers(values, s.codes ? DType::i8 : s.dtype);
  if (s.codes) {
    c.k_scale = numbers(rows, DType::f32);
    c.v_scale = numbers(rows, DType::f32);
  }
  if (s.biased) c.bias = numbers(rows, accum_dtype(s.dtype));
  c.entries = numbers({s.B, s.H}, DType::i32);
  c.anchors = s.anchors;
  return c;
}

void cache_append(const StreamCache& cache, const Tensor& k_any, const Tensor& v_any,
                  const Tensor& bias_any, const HeadRows& of_any) {
  const std::string call = "cache_append(cache, k, v)";
  const HeadRows of = contiguous(of_any);
  const CacheItems items = items_of(call, "k", cache, k_any, of);
  check_like(call, "v", v_any, k_any);
  check_shape(call, "v", v_any, k_any.shape(), "(= k.shape)");
  if (cache.bias.defined() != bias_any.defined()) {
    throw ShapeError(call + ": bias: expected " + (cache.bias.defined() ? "one" : "none") +
                     ", as the cache was made, got " + (bias_any.defined() ? "one" : "none"));
  }
  if (bias_any.defined()) {
    check_like(call, "bias", bias_any, cache.bias);
    check_shape(call, "bias", bias_any, {k_any.numel() / k_any.size(-1)}, "(= rows of k)");
  }
  const Tensor k = with_whole_rows(k_any);
  const Tensor v = with_whole_rows(v_any);
  const Tensor bias = bias_any.defined() ? bias_any.contiguous() : Tensor();
  proteus::cache_append(cache.k.device(), {.cache = rows_of(cache),
                                           .items = items,
                                           .k = k.raw(),
                                           .v = v.raw(),
                                           .bias = bias.defined() ? bias.raw() : nullptr,
                                           .k_stride = between(k),
                                           .v_stride = between(v),
                                           .dtype = k.dtype()});
}

Tensor cache_attend(const StreamCache& cache, const Tensor& q_any, const SightOptions& options,
                    const HeadRows& of_any) {
  const std::string call = "cache_attend(cache, q)";
  const HeadRows of = contiguous(of_any);
  const CacheItems items = items_of(call, "q", cache, q_any, of);
  if (options.sink.defined()) {
    if (options.sink.dtype() != accum_dtype(q_any.dtype())) {
      throw_dtype(call + ": sink", options.sink.dtype(), name_of(accum_dtype(q_any.dtype())));
    }
    check_device(call, "sink", options.sink, cache.k);
    check_shape(call, "sink", options.sink, {cache.k.size(1)}, "(= H of the cache)");
  }
  if (options.windows.defined()) {
    if (options.windows.rank() != 1) {
      throw ShapeError(call + ": windows: expected [longest + 1], got " +
                       to_string(options.windows.shape()));
    }
    if (options.windows.dtype() != DType::i32) {
      throw_dtype(call + ": windows", options.windows.dtype(), "i32");
    }
    check_device(call, "windows", options.windows, cache.k);
  }
  const Tensor q = with_whole_rows(q_any);
  const Tensor windows = options.windows.defined() ? options.windows.contiguous() : Tensor();
  const Tensor sink = options.sink.defined() ? options.sink.contiguous() : Tensor();
  const Tensor out = Tensor::empty(q.shape(), q.dtype(), q.device());
  proteus::cache_attend(cache.k.device(),
                        {.cache = rows_of(cache),
                         .items = items,
                         .q = q.raw(),
                         .out = out.raw(),
                         .windows = windows.defined() ? windows.data<std::int32_t>() : nullptr,
                         .sink = sink.defined() ? sink.raw() : nullptr,
                         .sink_weight = options.sink_weight,
                         .q_stride = between(q),
                         .dtype = q.dtype()});
  return out;
}

void advance(const Tensor& counters) {
  if (counters.dtype() != DType::i32) {
    throw_dtype("advance(counters): counters", counters.dtype(), "i32");
  }
  if (!counters.is_contiguous()) {
    throw ShapeError("advance(counters): counters: expected a contiguous tensor");
  }
  if (counters.numel() == 0) return;
  advance_counters(counters.device(), {counters.data<std::int32_t>(), counters.numel()});
}

}  // namespace ops
}  // namespace proteus
