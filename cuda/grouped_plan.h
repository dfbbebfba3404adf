// What the blocks of products of packed rows work on, found on the device: the host never waits.
#pragma once

#include <cstdint>

#include "cuda/kernel.cuh"
#include "tensor/ops/grouped_gemm.h"

namespace proteus::cuda {

/// Rows [begin, begin + count) of a group.
struct alignas(16) RowTile {
  std::int32_t group, begin, count;
};

/// The rows of every group in tiles of up to `rows_of_tile`.
class RowTiles {
 public:
  /// In order of the groups; or, where rows of `row_bytes` do not all stay in the cache, sorted by
  /// the part of their group that lies before them, then by group. Groups are sorted by time, so
  /// that blocks which run together read the same stretch of tokens, each row of which several
  /// groups have: all but the first find it in the cache.
  RowTiles(const char* name, const std::int32_t* offsets, std::int64_t groups,
           std::int64_t sequences, std::int64_t rows, std::int64_t rows_of_tile,
           std::int64_t row_bytes);

  /// Tiles that there is room for: no group adds more than one that is not full.
  std::int64_t most() const { return most_; }
  const RowTile* tiles() const { return static_cast<const RowTile*>(tiles_.data()); }
  /// [groups + 1]: tiles of the groups before; the last is their number.
  const std::int32_t* first_tile() const {
    return static_cast<const std::int32_t*>(first_tile_.data());
  }

 private:
  std::int64_t most_;
  Storage first_tile_, tiles_;
};

/// What one of `blocks` blocks of a group does, the number `block` of them.
struct RowShare {
  std::int32_t group, block, blocks;
};

/// Blocks shared out among groups by their rows: the most rows of a block are about as few as can
/// be, but at least `least`.
class RowShares {
 public:
  /// For `blocks` blocks, or as many as there are groups, if those are more.
  RowShares(const char* name, const std::int32_t* offsets, std::int64_t groups,
            std::int64_t sequences, std::int64_t blocks, std::int64_t least);

  std::int64_t most() const { return most_; }
  /// By group.
  const RowShare* shares() const { return static_cast<const RowShare*>(shares_.data()); }
  /// [groups + 1]: blocks of the groups before; the last is their number.
  const std::int32_t* first_block() const {
    return static_cast<const std::int32_t*>(first_block_.data());
  }

 private:
  std::int64_t most_;
  Storage first_block_, shares_;
};

/// How the tokens of a sequence are cut for scatter.
struct Stretches {
  std::int64_t length;  // tokens of a sequence
  std::int64_t size;    // of a stretch
  std::int64_t count;   // in a sequence
};

/// begins [sequences, stretches + 1, groups], on the device: the first row of a group in each
/// stretch of a sequence, and the row after its last.
class StretchBegins {
 public:
  StretchBegins(const GroupedScatter& a, const Stretches& cut);
  const std::int32_t* data() const { return static_cast<const std::int32_t*>(memory_.data()); }

 private:
  std::int64_t cells_;
  Storage memory_;
};

}  // namespace proteus::cuda
