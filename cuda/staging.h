// Copies between host memory and a device through pinned buffers: the host only waits for data that
// it is about to read, or for a buffer that is still on its way.
#pragma once

#include <cstddef>

namespace proteus::cuda {

/// Queues the copy of host memory to the selected device; `src` may change as soon as it returns.
void copy_to_device(void* dst, const void* src, std::size_t bytes);
/// Copies from the selected device and waits for the data.
void copy_to_host(void* dst, const void* src, std::size_t bytes);

}  // namespace proteus::cuda
