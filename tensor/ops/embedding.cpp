#include "tensor/ops/embedding.h"

#include <algorithm>
#include <limits>
#include <string>
#include <vector>

#include "tensor/ops/check.h"
#include "tensor/parallel.h"

namespace proteus {
namespace {

constexpr const char* kCall = "embedding(weight, ids)";
constexpr std::int64_t kCopyElements = 1 << 14;  // elements per chunk of the forward pass
constexpr std::int64_t kRowsPerChunk = 64;  // table rows per chunk of the backward pass, at most
constexpr std::int64_t kChunks = 256;       // … and chunks that there should be
constexpr std::int64_t kColumns = 256;      // columns summed together

template <class F>
void dispatch_ids(DType dtype, const void* ids, F&& fn) {
  if (dtype == DType::i32) {
    fn(static_cast<const std::int32_t*>(ids));
  } else {
    fn(static_cast<const std::int64_t*>(ids));
  }
}

template <class Id>
bool inside(Id id, std::int64_t V) {
  return id >= 0 && id < V;
}

template <class T, class Id>
void embedding_fwd_typed(const EmbeddingFwd& a, const Id* ids) {
  const std::int64_t grain =
      std::max<std::int64_t>(1, kCopyElements / std::max<std::int64_t>(1, a.C));
  parallel_for(a.n, grain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      T* y = static_cast<T*>(a.y) + i * a.C;
      if (!inside(ids[i], a.V)) {
        std::fill_n(y, a.C, T(std::numeric_limits<float>::quiet_NaN()));
        continue;
      }
      const T* row = static_cast<const T*>(a.weight) + ids[i] * a.C;
      std::copy(row, row + a.C, y);
    }
  });
}

// The places of every id, by a stable counting sort: those of id v are
// places[begin[v]] … places[begin[v + 1] − 1], ascending.
struct Places {
  std::vector<std::int64_t> begin;
  std::vector<std::int64_t> places;

  template <class Id>
  Places(const Id* ids, std::int64_t n, std::int64_t V)
      : begin(static_cast<std::size_t>(V + 2)), places(static_cast<std::size_t>(n)) {
    // Counted two entries further on, so that placing leaves begin[v] where v's places begin.
    for (std::int64_t i = 0; i < n; ++i) {
      if (inside(ids[i], V)) ++begin[static_cast<std::size_t>(ids[i]) + 2];
    }
    for (std::size_t v = 2; v < begin.size(); ++v) begin[v] += begin[v - 1];
    for (std::int64_t i = 0; i < n; ++i) {
      if (!inside(ids[i], V)) continue;
      places[static_cast<std::size_t>(begin[static_cast<std::size_t>(ids[i]) + 1]++)] = i;
    }
  }
};

template <class T>
void sum_rows(const EmbeddingBwd& a, const Places& p, std::int64_t v, std::int64_t column,
              std::int64_t width, accum_t<T>* sum) {
  using A = accum_t<T>;
  std::fill_n(sum, width, A(0));
  const auto at = static_cast<std::size_t>(v);
  for (std::int64_t i = p.begin[at]; i < p.begin[at + 1]; ++i) {
    const T* dy =
        static_cast<const T*>(a.dy) + p.places[static_cast<std::size_t>(i)] * a.C + column;
#pragma omp simd
    for (std::int64_t c = 0; c < width; ++c) sum[c] += A(dy[c]);
  }
}

template <class T>
void embedding_bwd_typed(const EmbeddingBwd& a, const Places& places) {
  const std::int64_t blocks = (a.C + kColumns - 1) / kColumns;
  const std::int64_t grain = std::clamp<std::int64_t>(a.V / kChunks, 1, kRowsPerChunk);
  parallel_for(a.V * blocks, grain, [&](std::int64_t begin, std::int64_t end) {
    accum_t<T> sum[kColumns];
    for (std::int64_t unit = begin; unit < end; ++unit) {
      const std::int64_t column = unit % blocks * kColumns;
      const std::int64_t width = std::min(kColumns, a.C - column);
      sum_rows<T>(a, places, unit / blocks, column, width, sum);
      T* dweight = static_cast<T*>(a.dweight) + unit / blocks * a.C + column;
      for (std::int64_t c = 0; c < width; ++c) dweight[c] = T(sum[c]);
    }
  });
}

void embedding_fwd_cpu(const EmbeddingFwd& a) {
  dispatch_float(a.dtype, "embedding_fwd", [&](auto tag) {
    using T = typename decltype(tag)::type;
    dispatch_ids(a.id_dtype, a.ids, [&](const auto* ids) { embedding_fwd_typed<T>(a, ids); });
  });
}

void embedding_bwd_cpu(const EmbeddingBwd& a) {
  dispatch_ids(a.id_dtype, a.ids, [&](const auto* ids) {
    const Places places(ids, a.n, a.V);
    dispatch_float(a.dtype, "embedding_bwd",
                   [&](auto tag) { embedding_bwd_typed<typename decltype(tag)::type>(a, places); });
  });
}

[[noreturn]] void throw_id(const Tensor& ids, std::int64_t at, std::int64_t V) {
  std::string place;
  std::int64_t rest = at;
  for (int d = ids.rank() - 1; d >= 0; --d) {
    place = std::to_string(rest % ids.size(d)) + (place.empty() ? "" : ", ") + place;
    rest /= ids.size(d);
  }
  const double id = ids.reshape({-1}).select(0, at).item();
  throw ConfigError(std::string(kCall) + ": ids: expected 0 to " + std::to_string(V - 1) +
                    " (weight has " + std::to_string(V) + " rows), got " +
                    std::to_string(static_cast<std::int64_t>(id)) + " at [" + place + "]");
}

}  // namespace

Slot<EmbeddingFwd> embedding_fwd{"embedding_fwd", embedding_fwd_cpu};
Slot<EmbeddingBwd> embedding_bwd{"embedding_bwd", embedding_bwd_cpu};

namespace ops {

void check_ids(const Tensor& any, std::int64_t V) {
  if (any.dtype() != DType::i32 && any.dtype() != DType::i64) {
    throw_dtype(std::string(kCall) + ": ids", any.dtype(), "i32 or i64");
  }
  const Tensor ids = any.contiguous();
  dispatch_ids(ids.dtype(), ids.raw(), [&](const auto* id) {
    for (std::int64_t i = 0; i < ids.numel(); ++i) {
      if (!inside(id[i], V)) throw_id(any, i, V);
    }
  });
}

Tensor embedding(const Tensor& weight_any, const Tensor& ids_any) {
  const std::string call = kCall;
  check_floating(call, "weight", weight_any);
  if (weight_any.rank() != 2) {
    throw ShapeError(call + ": weight: expected [V, C], got " + to_string(weight_any.shape()));
  }
  if (ids_any.dtype() != DType::i32 && ids_any.dtype() != DType::i64) {
    throw_dtype(call + ": ids", ids_any.dtype(), "i32 or i64");
  }
  check_device(call, "ids", ids_any, weight_any);
  const Device device = weight_any.device();
  const std::int64_t V = weight_any.size(0);
  const std::int64_t C = weight_any.size(1);
  Tensor y = Tensor::empty(ids_any.shape().with(ids_any.rank(), C), weight_any.dtype(), device);
  if (ids_any.numel() == 0) return y;
  if (device == kCpu) check_ids(ids_any, V);
  const Tensor weight = weight_any.contiguous();
  const Tensor ids = ids_any.contiguous();
  embedding_fwd(device, {.weight = weight.raw(),
                         .ids = ids.raw(),
                         .y = y.raw(),
                         .n = ids.numel(),
                         .V = V,
                         .C = C,
                         .dtype = weight.dtype(),
                         .id_dtype = ids.dtype()});
  return y;
}

Tensor embedding_backward(const Tensor& ids_any, const Tensor& dy_any, std::int64_t V) {
  const std::string call = "embedding_backward(ids, dy, V)";
  check_floating(call, "dy", dy_any);
  check_device(call, "dy", dy_any, ids_any);
  if (dy_any.rank() != ids_any.rank() + 1 || dy_any.shape().without(-1) != ids_any.shape()) {
    throw ShapeError(call + ": dy: expected ids.shape and C, got " + to_string(dy_any.shape()) +
                     "; ids are " + to_string(ids_any.shape()));
  }
  const Tensor ids = ids_any.contiguous();
  const Tensor dy = dy_any.contiguous();
  const std::int64_t C = dy.size(-1);
  if (dy.numel() == 0) return Tensor::zeros({V, C}, dy.dtype(), dy.device());
  Tensor dweight = Tensor::empty({V, C}, dy.dtype(), dy.device());
  embedding_bwd(dy.device(), {.ids = ids.raw(),
                              .dy = dy.raw(),
                              .dweight = dweight.raw(),
                              .n = ids.numel(),
                              .V = V,
                              .C = C,
                              .dtype = dy.dtype(),
                              .id_dtype = ids.dtype()});
  return dweight;
}

}  // namespace ops
}  // namespace proteus
