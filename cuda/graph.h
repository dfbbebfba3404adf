// A CUDA graph of what this thread queues on the current stream: recorded once, replayed at the
// cost of one launch. While it is recorded nothing runs, memory comes from an arena of the graph,
// and copies to or from the host are errors: they would happen once, not in every replay.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "cuda/arena.h"

namespace proteus::cuda {

class Graph {
 public:
  /// Begins to record. Memory that the stream-ordered pool keeps goes back to the driver first.
  Graph();
  /// Ends a recording that was not finished. Memory of the graph that a tensor still has lives as
  /// long as that.
  ~Graph();
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;

  void finish();
  /// Queues the recorded work; the streams of its random numbers are those of the recording plus
  /// `streams`.
  void replay(std::uint64_t streams) const;

  /// The graph that this thread records, or null.
  static Graph* recording();
  void* allocate(std::size_t bytes) { return arena_->allocate(bytes); }
  /// Memory that is not the graph's is given back when the recording has ended.
  void free_later(void* p) { later_.push_back(p); }
  const std::uint64_t* streams() const { return streams_; }

 private:
  void end_capture(cudaGraph_t* graph);

  int device_;
  cudaStream_t stream_;
  std::shared_ptr<Arena> arena_;
  std::vector<void*> later_;
  std::uint64_t* streams_ = nullptr;  // on the device
  cudaGraphExec_t exec_ = nullptr;
};

/// Frees memory of a graph; false: `p` belongs to none.
bool free_recorded(void* p);

/// What kernels add to the streams of their random numbers: a number on the device while work is
/// recorded, else null.
const std::uint64_t* recorded_streams();

/// Throws DeviceError while this thread records: `what` cannot be replayed.
void check_not_recording(const char* what);

}  // namespace proteus::cuda
