// Embedding of tensor/ops/embedding.h on a GPU. The gradient sorts the places by their ids (a
// stable radix sort), so that a table row walks its own places in ascending order: the sums of the
// CPU.
#include <bit>
#include <cmath>
#include <cub/device/device_radix_sort.cuh>

#include "cuda/kernel.cuh"
#include "cuda/kernels.h"
#include "tensor/ops/embedding.h"

namespace proteus::cuda {
namespace {

using Key = std::uint32_t;
using Place = std::uint32_t;

template <class F>
void dispatch_ids(DType dtype, const void* ids, F&& fn) {
  if (dtype == DType::i32) {
    fn(static_cast<const std::int32_t*>(ids));
  } else {
    fn(static_cast<const std::int64_t*>(ids));
  }
}

template <class T, class Id, int V>
__global__ void embedding_fwd_kernel(const T* weight, const Id* ids, T* y, std::int64_t n,
                                     std::int64_t rows, std::int64_t per_row) {
  for (std::int64_t u = first_unit(); u < n * per_row; u += unit_step()) {
    const std::int64_t i = quotient(u, per_row);
    const std::int64_t id = ids[i];
    Pack<T, V> row;
    if (id >= 0 && id < rows) {
      row = load_pack<V>(weight + (id * per_row + u - i * per_row) * V);
    } else {
#pragma unroll
      for (int j = 0; j < V; ++j) row[j] = T(NAN);
    }
    store_pack(y + u * V, row);
  }
}

void embedding_fwd_cuda(const EmbeddingFwd& e) {
  if (e.n * e.C == 0) return;
  dispatch_ids(e.id_dtype, e.ids, [&](const auto* ids) {
    using Id = std::remove_cv_t<std::remove_pointer_t<decltype(ids)>>;
    dispatch_float(e.dtype, "embedding_fwd", [&](auto tag) {
      using T = typename decltype(tag)::type;
      constexpr int V = kPackOf<T>;
      const T* weight = static_cast<const T*>(e.weight);
      T* y = static_cast<T*>(e.y);
      if (e.C % V == 0 && can_pack<T, V>(weight, y)) {
        launch("embedding_fwd", embedding_fwd_kernel<T, Id, V>, blocks_for(e.n * (e.C / V)), kBlock,
               0, weight, ids, y, e.n, e.V, e.C / V);
      } else {
        launch("embedding_fwd", embedding_fwd_kernel<T, Id, 1>, blocks_for(e.n * e.C), kBlock, 0,
               weight, ids, y, e.n, e.V, e.C);
      }
    });
  });
}

template <class Id>
__global__ void number_places_kernel(const Id* ids, Key* keys, Place* places, std::int64_t n,
                                     std::int64_t V) {
  for (std::int64_t i = first_unit(); i < n; i += unit_step()) {
    const std::int64_t id = ids[i];
    keys[i] = static_cast<Key>(id >= 0 && id < V ? id : V);  // behind all rows
    places[i] = static_cast<Place>(i);
  }
}

// begin[v] = how many keys are below v, for v in [0, V].
__global__ void find_rows_kernel(const Key* keys, std::int64_t n, std::int64_t V,
                                 std::int64_t* begin) {
  for (std::int64_t v = first_unit(); v <= V; v += unit_step()) {
    std::int64_t low = 0;
    std::int64_t high = n;
    while (low < high) {
      const std::int64_t middle = (low + high) / 2;
      if (static_cast<std::int64_t>(keys[middle]) < v) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    begin[v] = low;
  }
}

template <class T, int V>
__global__ void sum_places_kernel(const T* dy, const Place* places, const std::int64_t* begin,
                                  T* dweight, std::int64_t rows, std::int64_t per_row) {
  using A = accum_t<T>;
  for (std::int64_t u = first_unit(); u < rows * per_row; u += unit_step()) {
    const std::int64_t v = quotient(u, per_row);
    const std::int64_t at = u - v * per_row;
    const std::int64_t end = begin[v + 1];
    A sum[V] = {};
#pragma unroll 4
    for (std::int64_t i = begin[v]; i < end; ++i) {
      const auto p = load_pack<V>(dy + (static_cast<std::int64_t>(places[i]) * per_row + at) * V);
#pragma unroll
      for (int j = 0; j < V; ++j) sum[j] += A(p[j]);
    }
    Pack<T, V> out;
#pragma unroll
    for (int j = 0; j < V; ++j) out[j] = T(sum[j]);
    store_pack(dweight + u * V, out);
  }
}

// The places of every id, ascending: those of id v are places[begin[v]] … places[begin[v + 1] − 1].
struct SortedPlaces {
  Storage keys, places, sorted_keys, sorted_places, begin;

  SortedPlaces(std::int64_t n, std::int64_t V)
      : keys(scratch(static_cast<std::size_t>(n) * sizeof(Key))),
        places(scratch(static_cast<std::size_t>(n) * sizeof(Place))),
        sorted_keys(scratch(static_cast<std::size_t>(n) * sizeof(Key))),
        sorted_places(scratch(static_cast<std::size_t>(n) * sizeof(Place))),
        begin(scratch(static_cast<std::size_t>(V + 1) * sizeof(std::int64_t))) {}
};

void sort_places(const EmbeddingBwd& e, const SortedPlaces& s) {
  Key* keys = static_cast<Key*>(s.keys.data());
  Place* places = static_cast<Place*>(s.places.data());
  Key* sorted_keys = static_cast<Key*>(s.sorted_keys.data());
  Place* sorted_places = static_cast<Place*>(s.sorted_places.data());
  dispatch_ids(e.id_dtype, e.ids, [&](const auto* ids) {
    using Id = std::remove_cv_t<std::remove_pointer_t<decltype(ids)>>;
    launch("embedding_bwd", number_places_kernel<Id>, blocks_for(e.n), kBlock, 0, ids, keys, places,
           e.n, e.V);
  });
  const int bits = std::max(1, static_cast<int>(std::bit_width(static_cast<Key>(e.V))));
  std::size_t bytes = 0;
  check(cub::DeviceRadixSort::SortPairs(nullptr, bytes, keys, sorted_keys, places, sorted_places,
                                        e.n, 0, bits, current_stream()),
        "cub::DeviceRadixSort::SortPairs");
  const Storage memory = scratch(bytes);
  check(cub::DeviceRadixSort::SortPairs(memory.data(), bytes, keys, sorted_keys, places,
                                        sorted_places, e.n, 0, bits, current_stream()),
        "cub::DeviceRadixSort::SortPairs");
  launch("embedding_bwd", find_rows_kernel, blocks_for(e.V + 1), kBlock, 0, sorted_keys, e.n, e.V,
         static_cast<std::int64_t*>(s.begin.data()));
}

void embedding_bwd_cuda(const EmbeddingBwd& e) {
  if (e.V * e.C == 0) return;
  if (e.n > UINT32_MAX || e.V >= UINT32_MAX) {
    throw DeviceError("embedding_bwd: cuda: more than 2^32 ids or table rows");
  }
  const SortedPlaces s(e.n, e.V);
  sort_places(e, s);
  const Place* places = static_cast<const Place*>(s.sorted_places.data());
  const std::int64_t* begin = static_cast<const std::int64_t*>(s.begin.data());
  dispatch_float(e.dtype, "embedding_bwd", [&](auto tag) {
    using T = typename decltype(tag)::type;
    constexpr int V = kPackOf<T>;
    const T* dy = static_cast<const T*>(e.dy);
    T* dweight = static_cast<T*>(e.dweight);
    if (e.C % V == 0 && can_pack<T, V>(dy, dweight)) {
      launch("embedding_bwd", sum_places_kernel<T, V>, blocks_for(e.V * (e.C / V)), kBlock, 0, dy,
             places, begin, dweight, e.V, e.C / V);
    } else {
      launch("embedding_bwd", sum_places_kernel<T, 1>, blocks_for(e.V * e.C), kBlock, 0, dy, places,
             begin, dweight, e.V, e.C);
    }
  });
}

}  // namespace

void install_embedding_kernels() {
  embedding_fwd.install(DeviceType::cuda, embedding_fwd_cuda);
  embedding_bwd.install(DeviceType::cuda, embedding_bwd_cuda);
}

}  // namespace proteus::cuda
