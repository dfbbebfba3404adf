// A CUDA graph of what this thread queues on the current stream: recorded once, replayed at the
// cost of one launch. While it is recorded nothing runs, memory comes from an arena of the graph,
// and copies to or from the host are errors: they would happen once, not in every replay.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "cuda/arena.h"
#include "cuda/stream.h"

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

  /// What is queued between open_branch() and leave_branch() runs beside what comes next, until
  /// join_branch(). While a branch is not joined, memory that is freed is not given out again: the
  /// other side may still use it.
  int open_branch();
  void leave_branch(int branch);
  void join_branch(int branch);

  /// The graph that this thread records, or null.
  static Graph* recording();
  void* allocate(std::size_t bytes) { return arena_->allocate(bytes); }
  /// Memory that is not the graph's is given back when the recording has ended.
  void free_later(void* p) { later_.push_back(p); }
  const std::uint64_t* streams() const { return streams_; }

  bool owns(const Arena& arena) const { return arena_.get() == &arena; }
  /// Gives back a block of the graph's memory.
  void free(void* p);

 private:
  struct Side {
    Stream stream;
    std::optional<StreamBranch> open;
  };

  void end_capture(cudaGraph_t* graph);
  void free_held();

  int device_;
  cudaStream_t stream_;
  std::shared_ptr<Arena> arena_;
  std::vector<void*> later_;
  std::vector<std::unique_ptr<Side>> sides_;
  int open_ = 0;                      // branches that are not joined
  std::vector<void*> held_;           // freed while there were any
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
