#include <algorithm>
#include <mutex>
#include <string>

#include "cuda/check.h"
#include "cuda/graph.h"
#include "cuda/stream.h"

namespace proteus::cuda {
namespace {

thread_local Graph* current = nullptr;

struct Arenas {
  std::mutex mutex;
  std::vector<std::shared_ptr<Arena>> all;
};

Arenas& arenas() {
  static auto* a = new Arenas;  // outlives every tensor in static objects
  return *a;
}

__global__ void set_streams_kernel(std::uint64_t* streams, std::uint64_t value) {
  *streams = value;
}

}  // namespace

Graph* Graph::recording() { return current; }

const std::uint64_t* recorded_streams() { return current ? current->streams() : nullptr; }

void check_not_recording(const char* what) {
  if (current) throw DeviceError(std::string("cuda: ") + what + " cannot be recorded in a graph");
}

Graph::Graph()
    : device_(current_device()), stream_(current_stream()), arena_(std::make_shared<Arena>()) {
  check_not_recording("another graph");
  check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
  cudaMemPool_t pool = nullptr;
  check(cudaDeviceGetDefaultMemPool(&pool, device_), "cudaDeviceGetDefaultMemPool");
  check(cudaMemPoolTrimTo(pool, 0), "cudaMemPoolTrimTo");
  streams_ = static_cast<std::uint64_t*>(arena_->allocate(sizeof(std::uint64_t)));
  check(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeRelaxed), "cudaStreamBeginCapture");
  {
    std::lock_guard lock(arenas().mutex);
    arenas().all.push_back(arena_);
  }
  current = this;
}

int Graph::open_branch() {
  std::size_t i = 0;
  while (i < sides_.size() && sides_[i]->open) ++i;
  if (i == sides_.size()) sides_.push_back(std::make_unique<Side>());
  sides_[i]->open.emplace(sides_[i]->stream);
  ++open_;
  return static_cast<int>(i);
}

void Graph::leave_branch(int branch) { sides_[static_cast<std::size_t>(branch)]->open->leave(); }

void Graph::join_branch(int branch) {
  Side& side = *sides_[static_cast<std::size_t>(branch)];
  side.open->join();
  side.open.reset();
  if (--open_ > 0) return;
  std::lock_guard lock(arenas().mutex);
  free_held();
}

void Graph::free(void* p) {
  if (open_ > 0) {
    held_.push_back(p);
  } else {
    arena_->free(p);
  }
}

void Graph::free_held() {
  for (void* p : held_) arena_->free(p);
  held_.clear();
}

void Graph::end_capture(cudaGraph_t* graph) {
  current = nullptr;
  const cudaError_t status = cudaStreamEndCapture(stream_, graph);
  for (void* p : later_) cudaFreeAsync(p, stream_);
  later_.clear();
  check(status, "cudaStreamEndCapture");
}

void Graph::finish() {
  cudaGraph_t graph = nullptr;
  end_capture(&graph);
  const cudaError_t status = cudaGraphInstantiate(&exec_, graph, 0);
  cudaGraphDestroy(graph);
  check(status, "cudaGraphInstantiate");
}

void Graph::replay(std::uint64_t streams) const {
  set_streams_kernel<<<1, 1, 0, current_stream()>>>(streams_, streams);
  check(cudaGetLastError(), "set_streams");
  check(cudaGraphLaunch(exec_, current_stream()), "cudaGraphLaunch");
}

Graph::~Graph() {
  if (current == this) {
    cudaGraph_t graph = nullptr;
    try {
      end_capture(&graph);
    } catch (const DeviceError&) {
      cudaGetLastError();  // what broke the recording is already on its way to the caller
    }
    if (graph) cudaGraphDestroy(graph);
  }
  cudaDeviceSynchronize();  // a replay may still run
  if (exec_) cudaGraphExecDestroy(exec_);
  std::lock_guard lock(arenas().mutex);
  free_held();
  arena_->free(streams_);
  if (arena_->live() == 0) std::erase(arenas().all, arena_);
  cudaGetLastError();
}

bool free_recorded(void* p) {
  std::lock_guard lock(arenas().mutex);
  auto& all = arenas().all;
  const auto found =
      std::find_if(all.begin(), all.end(), [&](const auto& arena) { return arena->owns(p); });
  if (found == all.end()) return false;
  if (current && current->owns(**found)) {
    current->free(p);
    return true;
  }
  (*found)->free(p);
  // The last block of a graph that is gone.
  if ((*found)->live() == 0 && found->use_count() == 1) all.erase(found);
  return true;
}

}  // namespace proteus::cuda
