#include "tensor/ops/grouped_gemm.h"

#include <algorithm>
#include <memory>
#include <vector>

#include "tensor/ops/check.h"
#include "tensor/ops/tile_gemm.h"
#include "tensor/ops/transpose.h"
#include "tensor/parallel.h"
#include "tensor/storage.h"

namespace proteus {
namespace {

constexpr std::int64_t kBlockRows = 96;  // packed rows per task and per widened block

constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

/// Columns of a group's matrix: row-major with stride ld.
template <class A>
struct Columns {
  const A* data = nullptr;
  std::int64_t ld = 0;
};

/// The matrices of all groups as [K, N] in the accumulation type: as they are if that is how they
/// lie, otherwise copied (transposed, widened). Groups without rows are left out. Matrices that
/// are `seldom_read` are transposed where they are read: the copy would go through memory twice.
template <class T>
class Matrices {
 public:
  using A = accum_t<T>;

  Matrices(const void* w, std::int64_t groups, std::int64_t sequences, std::int64_t K,
           std::int64_t N, bool trans, const std::int32_t* offsets, bool seldom_read)
      : K_(K), N_(N) {
    const T* from = static_cast<const T*>(w);
    if constexpr (std::is_same_v<T, A>) {
      transposed_later_ = trans && seldom_read;
      if (!trans || seldom_read) {
        base_ = from;
        return;
      }
    }
    storage_ =
        std::make_unique<Storage>(static_cast<std::size_t>(groups * K * N) * sizeof(A), kCpu);
    A* to = static_cast<A*>(storage_->data());
    base_ = to;
    constexpr std::int64_t kRowsAtOnce = 16;
    const std::int64_t parts = ceil_div(K, kRowsAtOnce);
    parallel_for(groups * parts, ceil_div(32768, kRowsAtOnce * N + 1), [&](auto begin, auto end) {
      for (std::int64_t i = begin; i < end; ++i) {
        const std::int64_t g = i / parts;
        if (offsets[g * sequences] == offsets[(g + 1) * sequences]) continue;
        const std::int64_t k0 = i % parts * kRowsAtOnce;
        copy(from + g * K * N, to + g * K * N, k0, std::min(K, k0 + kRowsAtOnce), trans);
      }
    });
  }

  /// Columns [first, first + count) of group g; `buffer` may hold them.
  Columns<A> columns(std::int64_t g, std::int64_t first, std::int64_t count,
                     std::vector<A>& buffer) const {
    const A* group = base_ + g * K_ * N_;
    if constexpr (std::is_same_v<T, A>) {
      if (transposed_later_) {
        buffer.resize(static_cast<std::size_t>(K_ * count));
        transpose(group + first * K_, K_, buffer.data(), count, count, K_);
        return {buffer.data(), count};
      }
    }
    return {group + first, N_};
  }

 private:
  void copy(const T* from, A* to, std::int64_t k0, std::int64_t k1, bool trans) const {
    if (!trans) {
      for (std::int64_t i = k0 * N_; i < k1 * N_; ++i) to[i] = A(from[i]);
      return;
    }
    transpose(from + k0, K_, to + k0 * N_, N_, N_, k1 - k0);
  }

  const A* base_ = nullptr;
  std::unique_ptr<Storage> storage_;
  std::int64_t K_ = 0, N_ = 0;
  bool transposed_later_ = false;
};

/// Rows [begin, end) of x (row r is x[token[r]], or x[r] without a list), columns [first, first +
/// count), in the accumulation type.
template <class T, class A>
void copy_rows(const void* x, const std::int32_t* token, std::int64_t width, std::int64_t begin,
               std::int64_t end, std::int64_t first, std::int64_t count, std::vector<A>& out) {
  out.resize(static_cast<std::size_t>((end - begin) * count));
  for (std::int64_t r = begin; r < end; ++r) {
    const T* from = static_cast<const T*>(x) + (token ? token[r] : r) * width + first;
    A* to = out.data() + (r - begin) * count;
    for (std::int64_t j = 0; j < count; ++j) to[j] = A(from[j]);
  }
}

/// The same rows as the left factor of a product: read where they are, or widened into `buffer`.
template <class T>
tile::MatrixA<accum_t<T>> left_factor(const void* x, const std::int32_t* token, std::int64_t width,
                                      std::int64_t begin, std::int64_t end,
                                      std::vector<accum_t<T>>& buffer) {
  if constexpr (std::is_same_v<T, accum_t<T>>) {
    const T* base = static_cast<const T*>(x);
    if (token) return {base, width, 1, token + begin};
    return {base + begin * width, width, 1, nullptr};
  } else {
    copy_rows<T>(x, token, width, begin, end, 0, width, buffer);
    return {buffer.data(), width, 1, nullptr};
  }
}

/// A stretch of rows of one group.
struct RowBlock {
  std::int64_t g = 0, begin = 0, end = 0;
};

std::vector<RowBlock> row_blocks(const GroupedGather& a) {
  std::vector<RowBlock> blocks;
  for (std::int64_t g = 0; g < a.groups; ++g) {
    const std::int64_t end = a.offsets[(g + 1) * a.sequences];
    for (std::int64_t r = a.offsets[g * a.sequences]; r < end; r += kBlockRows) {
      blocks.push_back({g, r, std::min(end, r + kBlockRows)});
    }
  }
  return blocks;
}

template <class T>
void gather_typed(const GroupedGather& a) {
  using A = accum_t<T>;
  const auto blocks = row_blocks(a);
  const bool seldom_read = static_cast<std::int64_t>(blocks.size()) <= a.groups;
  const Matrices<T> w(a.w, a.groups, a.sequences, a.K, a.N, a.trans_w, a.offsets, seldom_read);
  parallel_for(static_cast<std::int64_t>(blocks.size()), 1, [&](auto from, auto to) {
    thread_local std::vector<A> turned;
    thread_local std::vector<A> wide;
    thread_local std::vector<A> sums;
    for (std::int64_t i = from; i < to; ++i) {
      const auto [g, begin, end] = blocks[static_cast<std::size_t>(i)];
      const auto x = left_factor<T>(a.x, a.token, a.K, begin, end, wide);
      const Columns<A> m = w.columns(g, 0, a.N, turned);
      T* y = static_cast<T*>(a.y) + begin * a.N;
      if constexpr (std::is_same_v<T, A>) {
        tile::gemm<A>(end - begin, a.N, a.K, x, m.data, m.ld, {y, a.N, nullptr}, false);
      } else {
        sums.resize(static_cast<std::size_t>((end - begin) * a.N));
        tile::gemm<A>(end - begin, a.N, a.K, x, m.data, m.ld, {sums.data(), a.N, nullptr}, false);
        for (std::size_t j = 0; j < sums.size(); ++j) y[j] = T(sums[j]);
      }
    }
  });
}

// Passes over the weights, each for as many sequences as give a group some rows on average. With
// many groups a sequence has hardly a row of each, and every weight would be read for every row;
// those that do not stay in a cache want more rows to share a read.
std::int64_t passes_over_weights(const GroupedScatter& a) {
  constexpr std::int64_t kCached = std::int64_t{1} << 20;  // elements
  const std::int64_t rows = a.groups * a.K * a.N > kCached ? 96 : 24;
  return std::clamp<std::int64_t>(a.rows / (rows * a.groups), 1, a.sequences);
}

// One task owns some columns of some sequences and goes through the groups in order: nobody else
// writes there, and every token gets its heads in ascending order, however the work is cut.
template <class T>
void scatter_sums(const GroupedScatter& a, accum_t<T>* sums) {
  using A = accum_t<T>;
  constexpr std::int64_t kTasks = 32;
  constexpr std::int64_t kColumns = 128;  // pieces of a matrix that are worth going to
  constexpr std::int64_t kTurns = 2;      // passes that transpose for themselves
  const std::int64_t strips = ceil_div(a.N, kColumns);
  const std::int64_t runs = passes_over_weights(a);
  const Matrices<T> w(a.w, a.groups, a.sequences, a.K, a.N, a.trans_w, a.offsets, runs <= kTurns);
  const std::int64_t parts = std::clamp<std::int64_t>(ceil_div(kTasks, runs), 1, strips);
  const std::int64_t width = ceil_div(strips, parts) * kColumns;
  parallel_for(runs * parts, 1, [&](auto from, auto to) {
    thread_local std::vector<A> turned;
    thread_local std::vector<A> wide;
    for (std::int64_t t = from; t < to; ++t) {
      const std::int64_t first = t / parts * a.sequences / runs;
      const std::int64_t last = (t / parts + 1) * a.sequences / runs;
      const std::int64_t column = t % parts * width;
      const std::int64_t n = std::min(width, a.N - column);
      for (std::int64_t g = 0; g < a.groups && n > 0; ++g) {
        const std::int64_t begin = a.offsets[g * a.sequences + first];
        const std::int64_t end = a.offsets[g * a.sequences + last];
        if (begin == end) continue;
        const auto y = left_factor<T>(a.y, nullptr, a.K, begin, end, wide);
        const Columns<A> m = w.columns(g, column, n, turned);
        tile::gemm<A>(end - begin, n, a.K, y, m.data, m.ld, {sums + column, a.N, a.token + begin},
                      true);
      }
    }
  });
}

template <class T>
void scatter_typed(const GroupedScatter& a) {
  using A = accum_t<T>;
  constexpr std::int64_t kGrain = 1 << 16;  // elements of a chunk that is cleared or rounded
  const std::int64_t size = a.tokens * a.N;
  const bool wide = std::is_same_v<T, A>;
  const Storage space(wide ? 0 : static_cast<std::size_t>(size) * sizeof(A), kCpu);
  A* sums = static_cast<A*>(wide ? a.out : space.data());
  const T* base = static_cast<const T*>(a.base);
  parallel_for(size, kGrain, [&](std::int64_t from, std::int64_t to) {
    if (base == a.out && wide) return;
    for (std::int64_t i = from; i < to; ++i) sums[i] = base ? A(base[i]) : A(0);
  });
  if (a.rows > 0) scatter_sums<T>(a, sums);
  if (wide) return;
  T* out = static_cast<T*>(a.out);
  parallel_for(size, kGrain, [&](std::int64_t from, std::int64_t to) {
    for (std::int64_t i = from; i < to; ++i) out[i] = T(sums[i]);
  });
}

// Rows [p0, p0 + p_count) of the gradient of one group, a block of packed rows at a time: always in
// ascending order of the row, so that the cut into blocks leaves no trace.
template <class T>
void weight_block(const GroupedWeight& a, std::int64_t g, std::int64_t p0, std::int64_t p_count) {
  using A = accum_t<T>;
  thread_local std::vector<A> rows_a;
  thread_local std::vector<A> rows_b;
  thread_local std::vector<A> sums;
  const auto size = static_cast<std::size_t>(p_count * a.Q);
  if (sums.size() < size) sums.resize(size);
  const std::int64_t start = a.offsets[g * a.sequences];
  const std::int64_t stop = a.offsets[(g + 1) * a.sequences];
  if (start == stop) std::fill_n(sums.begin(), size, A(0));
  for (std::int64_t r = start; r < stop; r += kBlockRows) {
    const std::int64_t end = std::min(stop, r + kBlockRows);
    copy_rows<T>(a.a, a.a_token, a.P, r, end, p0, p_count, rows_a);
    copy_rows<T>(a.b, a.b_token, a.Q, r, end, 0, a.Q, rows_b);
    tile::gemm<A>(p_count, a.Q, end - r, {rows_a.data(), 1, p_count, nullptr}, rows_b.data(), a.Q,
                  {sums.data(), a.Q, nullptr}, r > start);
  }
  T* out = static_cast<T*>(a.dw) + (g * a.P + p0) * a.Q;
  for (std::size_t i = 0; i < size; ++i) out[i] = T(sums[i]);
}

template <class T>
void weight_typed(const GroupedWeight& a) {
  constexpr std::int64_t kRows = 96;  // rows of dw per task
  const std::int64_t blocks = ceil_div(a.P, kRows);
  parallel_for(a.groups * blocks, 1, [&](auto begin, auto end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t p0 = i % blocks * kRows;
      weight_block<T>(a, i / blocks, p0, std::min(kRows, a.P - p0));
    }
  });
}

void gather_cpu(const GroupedGather& a) {
  dispatch_float(a.dtype, "grouped_gather",
                 [&](auto tag) { gather_typed<typename decltype(tag)::type>(a); });
}

void scatter_cpu(const GroupedScatter& a) {
  if (a.sequences == 0) return;
  dispatch_float(a.dtype, "grouped_scatter",
                 [&](auto tag) { scatter_typed<typename decltype(tag)::type>(a); });
}

void weight_cpu(const GroupedWeight& a) {
  dispatch_float(a.dtype, "grouped_weight",
                 [&](auto tag) { weight_typed<typename decltype(tag)::type>(a); });
}

void check_rows(const std::string& call, const char* name, const Tensor& t,
                const PackedRows& packed, std::int64_t rows, const char* what) {
  if (!is_floating(t.dtype())) throw_dtype(call + ": " + name, t.dtype(), "f64, f32 or bf16");
  ops::check_device(call, name, t, packed.token);
  if (t.rank() == 2 && t.size(0) == rows) return;
  throw ShapeError(call + ": " + name + ": expected [" + std::to_string(rows) + ", width] (" +
                   what + "), got " + to_string(t.shape()));
}

// Returns N, the width of the result.
std::int64_t check_weight(const std::string& call, const Tensor& w, const Tensor& x,
                          const PackedRows& rows, bool trans) {
  ops::check_like(call, "w", w, x);
  if (w.rank() == 3 && w.size(0) == rows.groups() && w.size(trans ? 2 : 1) == x.size(1)) {
    return w.size(trans ? 1 : 2);
  }
  const std::string K = std::to_string(x.size(1));
  throw ShapeError(call + ": w: expected [" + std::to_string(rows.groups()) + ", " +
                   (trans ? "N, " + K : K + ", N") +
                   "] (groups of the rows, width of the rows), got " + to_string(w.shape()));
}

}  // namespace

Slot<GroupedGather> grouped_gather{"grouped_gather", gather_cpu};
Slot<GroupedScatter> grouped_scatter{"grouped_scatter", scatter_cpu};
Slot<GroupedWeight> grouped_weight{"grouped_weight", weight_cpu};

namespace ops {

Tensor grouped_gather(const Tensor& x_any, const Tensor& w_any, const PackedRows& rows,
                      bool trans_w) {
  const std::string call = "grouped_gather(x, w, rows)";
  check_rows(call, "x", x_any, rows, rows.tokens(), "tokens of the rows");
  const std::int64_t N = check_weight(call, w_any, x_any, rows, trans_w);
  const Tensor x = x_any.contiguous();
  const Tensor w = w_any.contiguous();
  Tensor y = Tensor::empty({rows.rows(), N}, x.dtype(), x.device());
  if (y.numel() == 0) return y;
  proteus::grouped_gather(x.device(), {.x = x.raw(),
                                       .w = w.raw(),
                                       .y = y.raw(),
                                       .token = rows.token.data<std::int32_t>(),
                                       .offsets = rows.offsets.data<std::int32_t>(),
                                       .groups = rows.groups(),
                                       .sequences = rows.sequences(),
                                       .rows = rows.rows(),
                                       .K = x.size(1),
                                       .N = N,
                                       .trans_w = trans_w,
                                       .dtype = x.dtype()});
  return y;
}

namespace {

/// Writes out [tokens, N], which is contiguous; `base` as in GroupedScatter.
void scatter_to(const Tensor& out, const Tensor& y_any, const Tensor& w_any, const PackedRows& rows,
                bool trans_w, const void* base) {
  const Tensor y = y_any.contiguous();
  const Tensor w = w_any.contiguous();
  if (out.numel() == 0) return;
  proteus::grouped_scatter(y.device(), {.y = y.raw(),
                                        .w = w.raw(),
                                        .base = base,
                                        .out = out.raw(),
                                        .token = rows.token.data<std::int32_t>(),
                                        .offsets = rows.offsets.data<std::int32_t>(),
                                        .groups = rows.groups(),
                                        .sequences = rows.sequences(),
                                        .rows = rows.rows(),
                                        .tokens = rows.tokens(),
                                        .K = y.size(1),
                                        .N = out.size(1),
                                        .trans_w = trans_w,
                                        .dtype = y.dtype()});
}

}  // namespace

Tensor grouped_scatter(const Tensor& y, const Tensor& w, const PackedRows& rows, bool trans_w,
                       const Tensor& base_any) {
  const std::string call = "grouped_scatter(y, w, rows)";
  check_rows(call, "y", y, rows, rows.rows(), "packed rows");
  const std::int64_t N = check_weight(call, w, y, rows, trans_w);
  Tensor base;
  if (base_any.defined()) {
    check_like(call, "base", base_any, y);
    check_shape(call, "base", base_any, {rows.tokens(), N}, "(= tokens of the rows, width of w)");
    base = base_any.contiguous();
  }
  Tensor out = Tensor::empty({rows.tokens(), N}, y.dtype(), y.device());
  scatter_to(out, y, w, rows, trans_w, base.defined() ? base.raw() : nullptr);
  return out;
}

void grouped_scatter_add(const Tensor& sum, const Tensor& y, const Tensor& w,
                         const PackedRows& rows, bool trans_w) {
  const std::string call = "grouped_scatter_add(sum, y, w, rows)";
  check_rows(call, "y", y, rows, rows.rows(), "packed rows");
  const std::int64_t N = check_weight(call, w, y, rows, trans_w);
  check_like(call, "sum", sum, y);
  check_shape(call, "sum", sum, {rows.tokens(), N}, "(= tokens of the rows, width of w)");
  if (!sum.is_contiguous()) throw ShapeError(call + ": sum: expected contiguous rows");
  scatter_to(sum, y, w, rows, trans_w, sum.raw());
  sum.bump_version();
}

Tensor grouped_weight(const Tensor& a_any, bool gather_a, const Tensor& b_any, bool gather_b,
                      const PackedRows& rows) {
  const std::string call = "grouped_weight(a, b, rows)";
  const auto expected = [&](bool gather) { return gather ? rows.tokens() : rows.rows(); };
  const auto what = [](bool gather) { return gather ? "tokens of the rows" : "packed rows"; };
  check_rows(call, "a", a_any, rows, expected(gather_a), what(gather_a));
  check_rows(call, "b", b_any, rows, expected(gather_b), what(gather_b));
  if (b_any.dtype() != a_any.dtype())
    throw_dtype(call + ": b", b_any.dtype(), name_of(a_any.dtype()));
  const Tensor a = a_any.contiguous();
  const Tensor b = b_any.contiguous();
  Tensor dw = Tensor::empty({rows.groups(), a.size(1), b.size(1)}, a.dtype(), a.device());
  if (dw.numel() == 0) return dw;
  proteus::grouped_weight(a.device(),
                          {.a = a.raw(),
                           .b = b.raw(),
                           .dw = dw.raw(),
                           .a_token = gather_a ? rows.token.data<std::int32_t>() : nullptr,
                           .b_token = gather_b ? rows.token.data<std::int32_t>() : nullptr,
                           .offsets = rows.offsets.data<std::int32_t>(),
                           .groups = rows.groups(),
                           .sequences = rows.sequences(),
                           .rows = rows.rows(),
                           .P = a.size(1),
                           .Q = b.size(1),
                           .dtype = a.dtype()});
  return dw;
}

}  // namespace ops
}  // namespace proteus
