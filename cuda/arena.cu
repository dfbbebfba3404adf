#include <algorithm>
#include <iterator>
#include <string>

#include "cuda/arena.h"
#include "cuda/check.h"

namespace proteus::cuda {
namespace {

constexpr std::size_t kAlign = 256;
constexpr std::size_t kSegmentBytes = std::size_t{1} << 28;  // or one block, if that is larger

std::size_t rounded(std::size_t bytes, std::size_t to) { return (bytes + to - 1) / to * to; }

}  // namespace

Arena::~Arena() {
  for (const Segment& s : segments_) cudaFree(s.base);
  cudaGetLastError();  // the process may be ending: nothing may be thrown
}

Arena::Segment& Arena::add_segment(std::size_t bytes) {
  Segment s;
  s.bytes = std::max(bytes, kSegmentBytes);
  void* base = nullptr;
  cudaError_t status = cudaMalloc(&base, s.bytes);
  if (status == cudaErrorMemoryAllocation && bytes < s.bytes) {
    cudaGetLastError();
    s.bytes = bytes;
    status = cudaMalloc(&base, s.bytes);
  }
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    throw OutOfMemory("allocate: cuda: wanted " + std::to_string(bytes) +
                      " bytes for recorded work; use a smaller batch or context");
  }
  check(status, "cudaMalloc");
  s.base = static_cast<char*>(base);
  s.blocks[s.base] = {s.bytes, true};
  segments_.push_back(std::move(s));
  return segments_.back();
}

void* Arena::allocate(std::size_t bytes) {
  bytes = rounded(std::max<std::size_t>(bytes, 1), kAlign);
  Segment* best_segment = nullptr;
  Blocks::iterator best;
  for (Segment& s : segments_) {
    for (auto it = s.blocks.begin(); it != s.blocks.end(); ++it) {
      if (!it->second.free || it->second.bytes < bytes) continue;
      if (best_segment && best->second.bytes <= it->second.bytes) continue;
      best_segment = &s;
      best = it;
    }
  }
  if (!best_segment) {
    best_segment = &add_segment(bytes);
    best = best_segment->blocks.begin();
  }
  if (best->second.bytes > bytes) {
    best_segment->blocks[best->first + bytes] = {best->second.bytes - bytes, true};
  }
  best->second = {bytes, false};
  ++live_;
  return best->first;
}

bool Arena::owns(const void* p) const {
  const char* at = static_cast<const char*>(p);
  return std::any_of(segments_.begin(), segments_.end(),
                     [&](const Segment& s) { return at >= s.base && at < s.base + s.bytes; });
}

void Arena::free(void* p) {
  char* at = static_cast<char*>(p);
  for (Segment& s : segments_) {
    const auto it = s.blocks.find(at);
    if (it == s.blocks.end()) continue;
    it->second.free = true;
    --live_;
    const auto next = std::next(it);
    if (next != s.blocks.end() && next->second.free) {
      it->second.bytes += next->second.bytes;
      s.blocks.erase(next);
    }
    if (it != s.blocks.begin() && std::prev(it)->second.free) {
      std::prev(it)->second.bytes += it->second.bytes;
      s.blocks.erase(it);
    }
    return;
  }
}

}  // namespace proteus::cuda
