#include "tensor/parallel.h"

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <exception>

namespace proteus {
namespace {
std::atomic<int> g_threads{0};
}

void set_num_threads(int n) {
  g_threads = n;
  omp_set_num_threads(num_threads());
}

int num_threads() {
  const int n = g_threads;
  return n > 0 ? n : std::max(1, omp_get_num_procs());
}

namespace detail {

void run_chunks(std::int64_t n, std::int64_t grain, ChunkFn fn, void* context) {
  if (n <= 0) return;
  grain = std::max<std::int64_t>(grain, 1);
  const std::int64_t chunks = (n + grain - 1) / grain;
  const int threads = static_cast<int>(std::min<std::int64_t>(num_threads(), chunks));
  if (threads == 1 || omp_in_parallel()) {
    for (std::int64_t c = 0; c < chunks; ++c) fn(context, c * grain, std::min(n, (c + 1) * grain));
    return;
  }
  std::exception_ptr error;
  std::atomic<bool> failed{false};
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
  for (std::int64_t c = 0; c < chunks; ++c) {
    if (failed.load(std::memory_order_relaxed)) continue;
    try {
      fn(context, c * grain, std::min(n, (c + 1) * grain));
    } catch (...) {
      if (!failed.exchange(true)) error = std::current_exception();
    }
  }
  if (error) std::rethrow_exception(error);
}

}  // namespace detail
}  // namespace proteus
