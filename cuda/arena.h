// Memory of recorded work: blocks cut on the host out of segments that stay where they are. The
// work is one queue, so that a block may be given out again as soon as it was given back.
#pragma once

#include <cstddef>
#include <map>
#include <vector>

namespace proteus::cuda {

class Arena {
 public:
  Arena() = default;
  /// Gives the segments back; nothing of them may be in use.
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  /// The smallest free block that holds `bytes`, aligned to 256. Throws OutOfMemory.
  void* allocate(std::size_t bytes);
  bool owns(const void* p) const;
  void free(void* p);
  /// Blocks that are given out.
  std::size_t live() const { return live_; }

 private:
  struct Block {
    std::size_t bytes = 0;
    bool free = true;
  };
  using Blocks = std::map<char*, Block>;  // neighbours of one segment are never both free
  struct Segment {
    char* base = nullptr;
    std::size_t bytes = 0;
    Blocks blocks;
  };

  Segment& add_segment(std::size_t bytes);

  std::vector<Segment> segments_;
  std::size_t live_ = 0;
};

}  // namespace proteus::cuda
