// What the kernels of decoding caches share: whose an item is, and where entries stand.
#pragma once

#include "cuda/rows.cuh"
#include "tensor/ops/cache.h"

namespace proteus::cuda {

/// An item's stream (−1: none), and the row of its vectors.
struct CacheItem {
  std::int64_t stream = -1, head = 0, row = 0, b = 0, j = 0;

  __device__ CacheItem(const CacheItems& items, std::int64_t H, std::int64_t i) {
    b = quotient(i, items.n);
    j = i - b * items.n;
    head = items.heads ? items.heads[i] : j;
    if (head < 0) return;
    stream = b * H + head;
    row = items.row_of ? items.row_of[i] : i;
  }
  __device__ std::int64_t at(const CacheItems& items, std::int64_t stride, std::int64_t D) const {
    return items.row_of ? row * D : b * stride + j * D;
  }
};

/// The rows of the entries that a query sees, in order: CacheSight and cache_row() with one
/// division for all. What is seen fits into the ring.
struct SeenRows {
  std::int64_t base;  // of the stream
  int fixed, start, limit, ring, count;

  __device__ SeenRows(const CacheRows& c, std::int64_t stream, const std::int32_t* windows) {
    const CacheSight sight(c.entries[stream], windows, c.anchors);
    base = stream * c.capacity;
    fixed = static_cast<int>(sight.fixed);
    limit = static_cast<int>(c.capacity);
    ring = static_cast<int>(c.capacity - c.anchors);
    count = static_cast<int>(sight.count());
    start = static_cast<int>(cache_row(sight.lo, c.anchors, c.capacity));
  }
  __device__ std::int64_t operator()(int i) const {
    if (i < fixed) return base + i;
    const int at = start + i - fixed;
    return base + (at < limit ? at : at - ring);
  }
};

}  // namespace proteus::cuda
