// The ladder of CUDA kernels for attention over a cache (tensor/ops/cache.h): a warp per query,
// kept as the reference, and blocks that share a query's entries. The slot takes the highest rung
// that fits the problem. No CUDA header is needed to use this one.
#pragma once

#include <span>

#include "tensor/ops/cache.h"

namespace proteus::cuda {

struct CacheAttendRung {
  const char* name;
  bool (*fits)(const CacheAttend&);  ///< dtype, width, alignment
  void (*run)(const CacheAttend&);
};

std::span<const CacheAttendRung> cache_attend_rungs();

bool cache_plain_fits(const CacheAttend& a);
void cache_attend_plain(const CacheAttend& a);
bool cache_split_fits(const CacheAttend& a);
void cache_attend_split(const CacheAttend& a);

}  // namespace proteus::cuda
