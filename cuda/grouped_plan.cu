#include <algorithm>
#include <cub/block/block_scan.cuh>

#include "cuda/grouped_plan.h"
#include "cuda/rows.cuh"

namespace proteus::cuda {
namespace {

constexpr int kPlanThreads = 1024;
constexpr std::int64_t kCacheBytes = 32 << 20;

__device__ std::int64_t parts_of_group(const std::int32_t* offsets, std::int64_t stride,
                                       std::int64_t g, std::int64_t rows_of_part) {
  const std::int64_t rows = offsets[(g + 1) * stride] - offsets[g * stride];
  return quotient(rows + rows_of_part - 1, rows_of_part);
}

// first_part [groups + 1]: parts of up to rows_of_part rows in the groups before. By one block.
__device__ void count_parts(const std::int32_t* offsets, std::int64_t stride, std::int64_t groups,
                            std::int64_t rows_of_part, std::int32_t* first_part) {
  using Scan = cub::BlockScan<std::int32_t, kPlanThreads>;
  __shared__ typename Scan::TempStorage space;
  std::int32_t before = 0;
  for (std::int64_t base = 0; base < groups; base += kPlanThreads) {
    const std::int64_t g = base + threadIdx.x;
    std::int32_t parts = 0;
    if (g < groups) {
      parts = static_cast<std::int32_t>(parts_of_group(offsets, stride, g, rows_of_part));
    }
    std::int32_t first = 0;
    std::int32_t all = 0;
    Scan(space).ExclusiveSum(parts, first, all);
    if (g < groups) first_part[g] = before + first;
    before += all;
    __syncthreads();
  }
  if (threadIdx.x == 0) first_part[groups] = before;
}

__global__ void count_tiles_kernel(const std::int32_t* offsets, std::int64_t stride,
                                   std::int64_t groups, std::int64_t rows_of_tile,
                                   std::int32_t* first_tile) {
  count_parts(offsets, stride, groups, rows_of_tile, first_tile);
}

// The rows of a block are the fewest for which there are enough blocks, to a part in kPrecision,
// but no fewer than `least`.
__global__ void share_blocks_kernel(const std::int32_t* offsets, std::int64_t stride,
                                    std::int64_t groups, std::int64_t blocks, std::int64_t least,
                                    std::int32_t* first_block, RowShare* shares) {
  constexpr std::int64_t kPrecision = 64;
  const std::int64_t rows = offsets[groups * stride];
  // No group adds more than one block whose rows are fewer.
  const std::int64_t sure = blocks > groups ? quotient(rows, blocks - groups) + 1 : rows;
  std::int64_t few = max(quotient(rows, blocks), least) - 1;
  std::int64_t enough = max(sure, least);
  while (enough - few > 1 + few / kPrecision) {
    const std::int64_t middle = few + (enough - few) / 2;
    std::int64_t parts = 0;
    for (std::int64_t g = threadIdx.x; g < groups; g += kPlanThreads) {
      parts += parts_of_group(offsets, stride, g, middle);
    }
    (group_sum<kPlanThreads>(parts) <= blocks ? enough : few) = middle;
  }
  count_parts(offsets, stride, groups, enough, first_block);
  __syncthreads();
  for (std::int64_t g = threadIdx.x; g < groups; g += kPlanThreads) {
    const std::int32_t first = first_block[g];
    const std::int32_t own = first_block[g + 1] - first;
    for (std::int32_t i = 0; i < own; ++i) {
      shares[first + i] = {static_cast<std::int32_t>(g), i, own};
    }
  }
}

// How many tiles come before one that has `before` of its group's `own` tiles before it.
__device__ std::int64_t place_by_time(const std::int32_t* first_tile, std::int64_t groups,
                                      std::int64_t g, std::int64_t before, std::int64_t own) {
  std::int64_t place = 0;
  for (std::int64_t other = 0; other < groups; ++other) {
    const std::int64_t scaled = before * (first_tile[other + 1] - first_tile[other]);
    const std::int64_t whole = quotient(scaled, own);
    // Tiles of the other group whose part is smaller, and the one of the same part.
    const bool even = whole * own == scaled;
    const bool earlier = other < g && first_tile[other + 1] > first_tile[other];
    place += whole + (!even || earlier ? 1 : 0);
  }
  return place;
}

__global__ void list_tiles_kernel(const std::int32_t* offsets, std::int64_t stride,
                                  std::int64_t groups, std::int64_t rows_of_tile, bool by_time,
                                  const std::int32_t* first_tile, RowTile* tiles) {
  const std::int64_t index = thread_unit();
  if (index >= first_tile[groups]) return;
  const std::int64_t g = part_of(first_tile, 1, groups, index);
  const std::int64_t before = index - first_tile[g];
  const std::int64_t begin = offsets[g * stride] + before * rows_of_tile;
  const std::int64_t count = min(rows_of_tile, offsets[(g + 1) * stride] - begin);
  const std::int64_t place =
      by_time ? place_by_time(first_tile, groups, g, before, first_tile[g + 1] - first_tile[g])
              : index;
  tiles[place] = {static_cast<std::int32_t>(g), static_cast<std::int32_t>(begin),
                  static_cast<std::int32_t>(count)};
}

__global__ void stretch_begins_kernel(GroupedScatter a, Stretches cut, std::int32_t* begins) {
  const std::int64_t i = thread_unit();
  if (i >= a.sequences * (cut.count + 1) * a.groups) return;
  const std::int64_t g = i % a.groups;
  const std::int64_t stretch = i / a.groups % (cut.count + 1);
  const std::int64_t s = i / a.groups / (cut.count + 1);
  const std::int64_t token = s * cut.length + min(cut.length, stretch * cut.size);
  std::int32_t low = a.offsets[g * a.sequences + s];
  std::int32_t high = a.offsets[g * a.sequences + s + 1];
  while (low < high) {
    const std::int32_t middle = low + (high - low) / 2;
    if (a.token[middle] < token) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  begins[i] = low;
}

}  // namespace

RowTiles::RowTiles(const char* name, const std::int32_t* offsets, std::int64_t groups,
                   std::int64_t sequences, std::int64_t rows, std::int64_t rows_of_tile,
                   std::int64_t row_bytes)
    : most_(ceil_div(rows, rows_of_tile) + groups),
      first_tile_(scratch(static_cast<std::size_t>(groups + 1) * sizeof(std::int32_t))),
      tiles_(scratch(static_cast<std::size_t>(most_) * sizeof(RowTile))) {
  auto* first_tile = static_cast<std::int32_t*>(first_tile_.data());
  launch(name, count_tiles_kernel, 1, kPlanThreads, 0, offsets, sequences, groups, rows_of_tile,
         first_tile);
  launch(name, list_tiles_kernel, thread_blocks(most_), kBlock, 0, offsets, sequences, groups,
         rows_of_tile, rows * row_bytes > kCacheBytes, static_cast<const std::int32_t*>(first_tile),
         static_cast<RowTile*>(tiles_.data()));
}

RowShares::RowShares(const char* name, const std::int32_t* offsets, std::int64_t groups,
                     std::int64_t sequences, std::int64_t blocks, std::int64_t least)
    : most_(std::max(blocks, groups)),
      first_block_(scratch(static_cast<std::size_t>(groups + 1) * sizeof(std::int32_t))),
      shares_(scratch(static_cast<std::size_t>(most_) * sizeof(RowShare))) {
  launch(name, share_blocks_kernel, 1, kPlanThreads, 0, offsets, sequences, groups, most_, least,
         static_cast<std::int32_t*>(first_block_.data()), static_cast<RowShare*>(shares_.data()));
}

StretchBegins::StretchBegins(const GroupedScatter& a, const Stretches& cut)
    : cells_(a.sequences * (cut.count + 1) * a.groups),
      memory_(scratch(static_cast<std::size_t>(cells_) * sizeof(std::int32_t))) {
  launch("grouped_scatter", stretch_begins_kernel, thread_blocks(cells_), kBlock, 0, a, cut,
         static_cast<std::int32_t*>(memory_.data()));
}

}  // namespace proteus::cuda
