#include "tensor/ops/pack.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

#include "tensor/ops/check.h"
#include "tensor/ops/select.h"
#include "tensor/parallel.h"

namespace proteus {
namespace {

constexpr std::int64_t kSortTokens = 1024;       // tokens per chunk of the sort, at least
constexpr std::int64_t kCopyElements = 1 << 14;  // elements per chunk of a copy
constexpr std::int32_t kNone = -1;

// A sequence cut into chunks of time, each with at least as many tokens as there are groups (so
// that counters cost no more than tokens do). Chunk c of sequence s has the number
// s·per_sequence + c.
struct Chunks {
  std::int64_t length, size, per_sequence, count;

  Chunks(std::int64_t tokens, std::int64_t sequences, std::int64_t groups)
      : length(tokens / sequences),
        size(std::max(kSortTokens, groups)),
        per_sequence((length + size - 1) / size),
        count(per_sequence * sequences) {}
  std::int64_t begin(std::int64_t chunk) const {
    return chunk / per_sequence * length + chunk % per_sequence * size;
  }
  std::int64_t end(std::int64_t chunk) const {
    return std::min(begin(chunk) + size, (chunk / per_sequence + 1) * length);
  }
};

bool valid_heads(const std::int32_t* heads, std::int64_t slots, std::int64_t groups) {
  std::int32_t last = -1;
  bool ended = false;
  for (std::int64_t j = 0; j < slots; ++j) {
    if (heads[j] == kNone) {
      ended = true;
      continue;
    }
    if (ended || heads[j] <= last || heads[j] >= groups) return false;
    last = heads[j];
  }
  return true;
}

std::int32_t first_invalid(const PackSelection& a, std::int64_t groups, const Chunks& chunks) {
  std::vector<std::int32_t> found(static_cast<std::size_t>(chunks.count), kNone);
  parallel_for(chunks.count, 1, [&](std::int64_t c, std::int64_t) {
    for (std::int64_t n = chunks.begin(c); n < chunks.end(c); ++n) {
      if (valid_heads(a.heads + n * a.slots, a.slots, groups)) continue;
      found[static_cast<std::size_t>(c)] = static_cast<std::int32_t>(n);
      return;
    }
  });
  for (const std::int32_t n : found) {
    if (n != kNone) return n;
  }
  return kNone;
}

// Rows of each head in each chunk: [groups, chunks], the order in which rows are sorted.
std::vector<std::int32_t> count_rows(const std::int32_t* heads, std::int64_t slots,
                                     std::int64_t groups, const Chunks& chunks) {
  std::vector<std::int32_t> counts(static_cast<std::size_t>(groups * chunks.count));
  parallel_for(chunks.count, 1, [&](std::int64_t c, std::int64_t) {
    std::vector<std::int32_t> own(static_cast<std::size_t>(groups));
    for (std::int64_t i = chunks.begin(c) * slots; i < chunks.end(c) * slots; ++i) {
      if (heads[i] != kNone) ++own[static_cast<std::size_t>(heads[i])];
    }
    for (std::int64_t g = 0; g < groups; ++g) {
      counts[static_cast<std::size_t>(g * chunks.count + c)] = own[static_cast<std::size_t>(g)];
    }
  });
  return counts;
}

void pack_selection(const PackSelection& a, const PackRows& all) {
  const Chunks chunks(all.tokens, all.sequences, all.groups);
  if (a.invalid_token) {
    *a.kept = 0;
    for (std::int64_t n = 0; n < all.tokens; ++n) *a.kept += a.heads[n * a.slots] != kNone ? 1 : 0;
    *a.invalid_token = first_invalid(a, all.groups, chunks);
    if (*a.invalid_token != kNone) return;
  }
  auto starts = count_rows(a.heads, a.slots, all.groups, chunks);
  std::int32_t rows = 0;
  for (std::int32_t& start : starts) rows += std::exchange(start, rows);
  for (std::int64_t s = 0; s < all.groups * all.sequences; ++s) {
    a.offsets[s] = starts[static_cast<std::size_t>(s * chunks.per_sequence)];
  }
  a.offsets[all.groups * all.sequences] = rows;
  parallel_for(chunks.count, 1, [&](std::int64_t c, std::int64_t) {
    std::vector<std::int32_t> next(static_cast<std::size_t>(all.groups));
    for (std::int64_t g = 0; g < all.groups; ++g) {
      next[static_cast<std::size_t>(g)] = starts[static_cast<std::size_t>(g * chunks.count + c)];
    }
    for (std::int64_t n = chunks.begin(c); n < chunks.end(c); ++n) {
      for (std::int64_t i = n * a.slots; i < (n + 1) * a.slots; ++i) {
        a.row_of[i] = kNone;
        if (a.heads[i] == kNone) continue;
        const std::int32_t r = next[static_cast<std::size_t>(a.heads[i])]++;
        a.row_of[i] = r;
        a.token[r] = static_cast<std::int32_t>(n);
        a.time[r] = static_cast<std::int32_t>(n % chunks.length);
      }
    }
  });
}

void pack_rows_cpu(const PackRows& a) {
  for (int i = 0; i < a.count; ++i) pack_selection(a.selection[i], a);
}

std::int64_t row_grain(std::int64_t C) { return std::max<std::int64_t>(1, kCopyElements / C); }

void rows_gather_cpu(const RowsGather& a) {
  const auto width = static_cast<std::int64_t>(size_of(a.dtype)) * a.C;
  parallel_for(a.rows, row_grain(a.C), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r) {
      std::memcpy(static_cast<char*>(a.y) + r * width,
                  static_cast<const char*>(a.x) + a.token[r] * width,
                  static_cast<std::size_t>(width));
    }
  });
}

template <class T>
void combine_token(const RowsCombine& a, std::int64_t n, accum_t<T>* sum) {
  using A = accum_t<T>;
  std::fill_n(sum, a.C, A(0));
  for (std::int64_t i = n * a.slots; i < (n + 1) * a.slots; ++i) {
    if (a.row_of[i] == kNone) continue;
    const T* y = static_cast<const T*>(a.y) + a.row_of[i] * a.C;
#pragma omp simd
    for (std::int64_t c = 0; c < a.C; ++c) sum[c] += A(y[c]);
  }
}

template <class T>
void rows_combine_typed(const RowsCombine& a) {
  using A = accum_t<T>;
  T* out = static_cast<T*>(a.out);
  parallel_for(a.tokens, row_grain(a.C), [&](std::int64_t begin, std::int64_t end) {
    if constexpr (std::is_same_v<T, A>) {
      for (std::int64_t n = begin; n < end; ++n) combine_token<T>(a, n, out + n * a.C);
    } else {
      std::vector<A> sum(static_cast<std::size_t>(a.C));
      for (std::int64_t n = begin; n < end; ++n) {
        combine_token<T>(a, n, sum.data());
        std::transform(sum.begin(), sum.end(), out + n * a.C, [](A s) { return T(s); });
      }
    }
  });
}

template <class T, bool kScatter>
void row_slots_typed(const RowSlots& a) {
  T* v = static_cast<T*>(a.v);
  parallel_for(a.tokens, row_grain(a.groups), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t n = begin; n < end; ++n) {
      T* z = static_cast<T*>(a.z) + n * a.groups;
      if constexpr (kScatter) std::fill_n(z, a.groups, T(0));
      for (std::int64_t i = n * a.slots; i < (n + 1) * a.slots; ++i) {
        if (a.row_of[i] == kNone) continue;
        if constexpr (kScatter) {
          z[a.heads[i]] = v[a.row_of[i]];
        } else {
          v[a.row_of[i]] = z[a.heads[i]];
        }
      }
    }
  });
}

void rows_combine_cpu(const RowsCombine& a) {
  dispatch_float(a.dtype, "rows_combine",
                 [&](auto tag) { rows_combine_typed<typename decltype(tag)::type>(a); });
}

void slots_gather_cpu(const RowSlots& a) {
  dispatch_float(a.dtype, "slots_gather",
                 [&](auto tag) { row_slots_typed<typename decltype(tag)::type, false>(a); });
}

void slots_scatter_cpu(const RowSlots& a) {
  dispatch_float(a.dtype, "slots_scatter",
                 [&](auto tag) { row_slots_typed<typename decltype(tag)::type, true>(a); });
}

constexpr const char* kPackCall = "pack_rows(heads, groups, sequences)";

void check_heads(const Tensor& heads, std::int64_t groups, std::int64_t sequences) {
  const std::string call = kPackCall;
  if (heads.dtype() != DType::i32) throw_dtype(call + ": heads", heads.dtype(), "i32");
  if (groups < 1 || sequences < 1) {
    throw ShapeError(call + ": groups, sequences: expected at least 1, got " +
                     std::to_string(groups) + " and " + std::to_string(sequences));
  }
  if (heads.rank() != 2 || heads.size(0) % sequences != 0) {
    throw ShapeError(call + ": heads: expected [N, k] with N a multiple of " +
                     std::to_string(sequences) + " sequences, got " + to_string(heads.shape()));
  }
  constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max();
  if (heads.numel() > kMost || groups >= kMost / sequences) {
    throw ShapeError(call + ": heads: expected at most " + std::to_string(kMost) +
                     " rows and segments, got " + to_string(heads.shape()) + " and " +
                     std::to_string(groups) + " x " + std::to_string(sequences) +
                     "; use smaller batches");
  }
}

[[noreturn]] void throw_invalid(const Tensor& heads, std::int64_t token, std::int64_t groups) {
  if (heads.size(1) > 0 && heads.select(0, token).select(0, 0).item() == kNanHead) {
    throw NumericError(std::string(kPackCall) + ": heads: the scores of token " +
                       std::to_string(token) + " had a NaN (topk_heads)");
  }
  std::string got;
  for (const double h : heads.select(0, token).to_vector()) {
    got += (got.empty() ? "" : ", ") + std::to_string(static_cast<std::int64_t>(h));
  }
  throw ConfigError(std::string(kPackCall) + ": heads: expected ascending heads in [0, " +
                    std::to_string(groups) + ") and then only -1, got [" + got + "] at token " +
                    std::to_string(token));
}

// `t` is [size, C], or [size] where `rank` is 1.
void check_values(const std::string& call, const char* name, const Tensor& t, int rank,
                  std::int64_t size, const char* what, const PackedRows& rows) {
  ops::check_floating(call, name, t);
  ops::check_device(call, name, t, rows.token);
  if (t.rank() == rank && t.size(0) == size) return;
  throw ShapeError(call + ": " + name + ": expected [" + std::to_string(size) +
                   (rank == 2 ? ", C]" : "]") + " (= " + what + "), got " + to_string(t.shape()));
}

}  // namespace

Slot<PackRows> pack_rows{"pack_rows", pack_rows_cpu};
Slot<RowsGather> rows_gather{"rows_gather", rows_gather_cpu};
Slot<RowsCombine> rows_combine{"rows_combine", rows_combine_cpu};
Slot<RowSlots> slots_gather{"slots_gather", slots_gather_cpu};
Slot<RowSlots> slots_scatter{"slots_scatter", slots_scatter_cpu};

namespace ops {

namespace {

// counted [3 + groups·sequences]: the first invalid token, tokens kept, offsets. All slots have
// room.
PackedRows room_for(const Tensor& heads_any, const Tensor& counted, std::int64_t sequences) {
  PackedRows out;
  out.heads = heads_any.contiguous();
  out.sequence_count = sequences;
  out.offsets = counted.slice(0, 2, counted.numel());
  out.kept = out.heads.size(0);
  const Device device = out.heads.device();
  out.row_of = Tensor::empty(out.heads.shape(), DType::i32, device);
  out.token = Tensor::empty({out.heads.numel()}, DType::i32, device);
  out.time = Tensor::empty({out.heads.numel()}, DType::i32, device);
  return out;
}

PackSelection selection_of(const PackedRows& rows, const Tensor& counted, bool known) {
  return {.heads = rows.heads.data<std::int32_t>(),
          .offsets = rows.offsets.data<std::int32_t>(),
          .invalid_token = known ? nullptr : counted.slice(0, 0, 1).data<std::int32_t>(),
          .kept = known ? nullptr : counted.slice(0, 1, 2).data<std::int32_t>(),
          .token = rows.token.data<std::int32_t>(),
          .time = rows.time.data<std::int32_t>(),
          .row_of = rows.row_of.data<std::int32_t>(),
          .slots = rows.slots()};
}

// Those that have a slot, kMostSelections at a time.
void pack_all(const std::vector<PackedRows>& all, const Tensor& counted, std::int64_t groups,
              bool known) {
  const Device device = counted.device();
  PackRows args;
  args.count = 0;
  args.tokens = all[0].tokens();
  args.groups = groups;
  args.sequences = all[0].sequences();
  for (std::size_t i = 0; i < all.size(); ++i) {
    if (all[i].heads.numel() > 0) {
      args.selection[args.count++] =
          selection_of(all[i], counted.select(0, static_cast<std::int64_t>(i)), known);
    }
    const bool last = i + 1 == all.size();
    if (args.count == 0 || (args.count < kMostSelections && !last)) continue;
    proteus::pack_rows(device, args);
    args.count = 0;
  }
}

// What the host had to know: are the heads valid, and how many rows are there?
void settle(PackedRows& rows, const Tensor& host, std::int64_t groups) {
  const auto* numbers = host.data<std::int32_t>();
  if (rows.heads.numel() > 0 && numbers[0] >= 0) throw_invalid(rows.heads, numbers[0], groups);
  const std::int64_t count = numbers[host.numel() - 1];
  rows.kept = numbers[1];
  rows.token = rows.token.slice(0, 0, count);
  rows.time = rows.time.slice(0, 0, count);
}

}  // namespace

PackedRows pack_rows(const Tensor& heads, std::int64_t groups, std::int64_t sequences,
                     Slots slots) {
  return pack_rows(std::span(&heads, 1), groups, sequences, slots)[0];
}

std::vector<PackedRows> pack_rows(std::span<const Tensor> heads, std::int64_t groups,
                                  std::int64_t sequences, Slots slots) {
  if (heads.empty()) return {};
  for (const Tensor& h : heads) {
    check_heads(h, groups, sequences);
    check_device(kPackCall, "heads", h, heads[0]);
  }
  const Device device = heads[0].device();
  const bool known = slots == Slots::filled && device != kCpu;
  // What the host has to know lies together: reading it back is the one wait.
  const auto count = static_cast<std::int64_t>(heads.size());
  // An empty selection has its offsets from here.
  const bool whole = known && std::all_of(heads.begin(), heads.end(),
                                          [](const Tensor& h) { return h.numel() > 0; });
  const Shape shape{count, groups * sequences + 3};
  const Tensor counted =
      whole ? Tensor::empty(shape, DType::i32, device) : Tensor::zeros(shape, DType::i32, device);
  std::vector<PackedRows> out;
  for (std::int64_t i = 0; i < count; ++i) {
    out.push_back(room_for(heads[static_cast<std::size_t>(i)], counted.select(0, i), sequences));
  }
  pack_all(out, counted, groups, known);
  if (known) return out;
  const Tensor host = counted.to(kCpu);
  for (std::int64_t i = 0; i < count; ++i) {
    settle(out[static_cast<std::size_t>(i)], host.select(0, i), groups);
  }
  return out;
}

Tensor gather_rows(const Tensor& x_any, const PackedRows& rows) {
  check_values("gather_rows(x, rows)", "x", x_any, 2, rows.tokens(), "tokens of the rows", rows);
  const Tensor x = x_any.contiguous();
  Tensor y = Tensor::empty({rows.rows(), x.size(1)}, x.dtype(), x.device());
  if (y.numel() == 0) return y;
  rows_gather(x.device(), {.x = x.raw(),
                           .y = y.raw(),
                           .token = rows.token.data<std::int32_t>(),
                           .rows = rows.rows(),
                           .C = x.size(1),
                           .dtype = x.dtype()});
  return y;
}

Tensor combine_rows(const Tensor& y_any, const PackedRows& rows) {
  check_values("combine_rows(y, rows)", "y", y_any, 2, rows.rows(), "packed rows", rows);
  const Tensor y = y_any.contiguous();
  Tensor out = Tensor::empty({rows.tokens(), y.size(1)}, y.dtype(), y.device());
  if (out.numel() == 0) return out;
  rows_combine(y.device(), {.y = y.raw(),
                            .out = out.raw(),
                            .row_of = rows.row_of.data<std::int32_t>(),
                            .tokens = rows.tokens(),
                            .slots = rows.slots(),
                            .C = y.size(1),
                            .dtype = y.dtype()});
  return out;
}

Tensor gather_slots(const Tensor& z_any, const PackedRows& rows) {
  const std::string call = "gather_slots(z, rows)";
  check_values(call, "z", z_any, 2, rows.tokens(), "tokens of the rows", rows);
  check_shape(call, "z", z_any, {rows.tokens(), rows.groups()}, "(= tokens and heads of the rows)");
  const Tensor z = z_any.contiguous();
  Tensor v = Tensor::empty({rows.rows()}, z.dtype(), z.device());
  if (v.numel() == 0) return v;
  slots_gather(z.device(), {.z = z.raw(),
                            .v = v.raw(),
                            .heads = rows.heads.data<std::int32_t>(),
                            .row_of = rows.row_of.data<std::int32_t>(),
                            .tokens = rows.tokens(),
                            .slots = rows.slots(),
                            .groups = rows.groups(),
                            .dtype = z.dtype()});
  return v;
}

Tensor scatter_slots(const Tensor& v_any, const PackedRows& rows) {
  check_values("scatter_slots(v, rows)", "v", v_any, 1, rows.rows(), "packed rows", rows);
  const Tensor v = v_any.contiguous();
  Tensor z = Tensor::empty({rows.tokens(), rows.groups()}, v.dtype(), v.device());
  if (z.numel() == 0) return z;
  slots_scatter(v.device(), {.z = z.raw(),
                             .v = v.raw(),
                             .heads = rows.heads.data<std::int32_t>(),
                             .row_of = rows.row_of.data<std::int32_t>(),
                             .tokens = rows.tokens(),
                             .slots = rows.slots(),
                             .groups = rows.groups(),
                             .dtype = v.dtype()});
  return z;
}

}  // namespace ops
}  // namespace proteus
