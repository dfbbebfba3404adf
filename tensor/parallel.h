// CPU threads. Work is cut into chunks by size alone, never by the number of threads, so that any
// number of threads gives the same bits.
#pragma once

#include <cstdint>
#include <type_traits>
#include <utility>

namespace proteus {

/// Threads that the following parallel_for calls may use; n < 1 means one per core.
void set_num_threads(int n);
int num_threads();

namespace detail {
using ChunkFn = void (*)(void* context, std::int64_t begin, std::int64_t end);
void run_chunks(std::int64_t n, std::int64_t grain, ChunkFn fn, void* context);
}  // namespace detail

/// Calls `fn(begin, end)` for the chunks [0, grain), [grain, 2·grain), … of [0, n), in parallel and
/// in no order. Chunk borders depend on n and grain only: a reduction that keeps one partial result
/// per chunk and adds them in order is reproducible. Nested calls run serially. The first exception
/// is rethrown in the caller.
template <class F>
void parallel_for(std::int64_t n, std::int64_t grain, F&& fn) {
  using Fn = std::remove_reference_t<F>;
  detail::run_chunks(
      n, grain,
      [](void* context, std::int64_t begin, std::int64_t end) {
        (*static_cast<Fn*>(context))(begin, end);
      },
      const_cast<void*>(static_cast<const void*>(&fn)));
}

}  // namespace proteus
