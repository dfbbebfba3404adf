#include "cuda/copy_transposed.h"
#include "cuda/strided.cuh"

namespace proteus::cuda {
namespace {

constexpr int kTile = 32;
constexpr int kTileRows = 8;  // rows of a tile that a block moves at once

// The two dimensions that change places: the source steps by 1 along `across`, the destination
// along `along`.
struct Plane {
  std::int64_t across = 0, along = 0;          ///< sizes
  std::int64_t dst_across = 0, src_along = 0;  ///< steps
  std::int64_t tiles_along = 0, tiles = 0;     ///< of 32 × 32, in one plane
};

// A block has one tile of one plane; `planes` walks the other dimensions.
template <class T>
__global__ void transpose_kernel(T* dst, const T* src, const Plane p,
                                 const __grid_constant__ Units<2> planes) {
  __shared__ T tile[kTile][kTile + 1];
  const std::int64_t plane = quotient(blockIdx.x, p.tiles);
  const std::int64_t t = blockIdx.x - plane * p.tiles;
  const std::int64_t across0 = quotient(t, p.tiles_along) * kTile;
  const std::int64_t along0 = (t - quotient(t, p.tiles_along) * p.tiles_along) * kTile;
  const auto at = planes.template at<1>(plane);
  const int x = static_cast<int>(threadIdx.x);
  for (int y = static_cast<int>(threadIdx.y); y < kTile; y += kTileRows) {
    if (across0 + x < p.across && along0 + y < p.along) {
      tile[y][x] = src[at[1] + across0 + x + (along0 + y) * p.src_along];
    }
  }
  __syncthreads();
  for (int y = static_cast<int>(threadIdx.y); y < kTile; y += kTileRows) {
    if (across0 + y < p.across && along0 + x < p.along) {
      dst[at[0] + (across0 + y) * p.dst_across + along0 + x] = tile[x][y];
    }
  }
}

template <class T>
void run(void* dst, const void* src, const Plane& p, const Units<2>& planes) {
  launch("strided_copy", transpose_kernel<T>, static_cast<unsigned>(planes.count * p.tiles),
         dim3(kTile, kTileRows), 0, static_cast<T*>(dst), static_cast<const T*>(src), p, planes);
}

}  // namespace

bool copy_transposed(void* dst, const void* src, const Walk<2>& walk, std::size_t element_bytes) {
  constexpr std::int64_t kLeast = 8;  // elements along either dimension
  const int inner = walk.rank - 1;
  if (inner < 1 || walk.inner_stride(0) != 1 || walk.inner_stride(1) == 1) return false;
  Plane p;
  Walk<2> others;
  bool found = false;
  for (int d = 0; d < inner; ++d) {
    if (!found && walk.stride[1][d] == 1) {
      found = true;
      p.across = walk.size[d];
      p.dst_across = walk.stride[0][d];
      continue;
    }
    others.size[others.rank] = walk.size[d];
    for (int n = 0; n < 2; ++n) others.stride[n][others.rank] = walk.stride[n][d];
    ++others.rank;
  }
  p.along = walk.size[inner];
  p.src_along = walk.stride[1][inner];
  if (!found || p.across < kLeast || p.along < kLeast) return false;
  p.tiles_along = ceil_div(p.along, kTile);
  p.tiles = ceil_div(p.across, kTile) * p.tiles_along;
  const Units<2> planes(others, 1);
  if (planes.count * p.tiles > INT32_MAX) return false;
  switch (element_bytes) {
    case 2:
      run<std::uint16_t>(dst, src, p, planes);
      return true;
    case 4:
      run<std::uint32_t>(dst, src, p, planes);
      return true;
    case 8:
      run<std::uint64_t>(dst, src, p, planes);
      return true;
    default:
      return false;
  }
}

}  // namespace proteus::cuda
