// Copies of boxes of a matrix by the tensor memory accelerator (sm_90a), and clusters of two
// blocks: one function per instruction. A box comes into shared memory as a tile of wgmma.cuh: rows
// of 128 bytes, swizzled; what lies beyond the matrix comes as zeros and is not written.
#pragma once

#include <cuda.h>

#include "cuda/wgmma.cuh"

namespace proteus::cuda {

/// Arrives at a barrier that waits for `bytes` more before its phase is over.
__device__ inline void arrive_expecting(Barrier* b, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(b)),
               "r"(bytes)
               : "memory");
}

/// The box whose first element is (row, column) → a tile; its bytes count at the barrier.
__device__ inline void load_box(bf16* tile, const CUtensorMap& matrix, int row, int column,
                                Barrier* full) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, "
      "%3}], [%4];" ::"r"(shared_address(tile)),
      "l"(&matrix), "r"(column), "r"(row), "r"(shared_address(full))
      : "memory");
}
/// The same into every block of `mask`, at the same place, each with its own barrier.
__device__ inline void load_box_for(std::uint16_t mask, bf16* tile, const CUtensorMap& matrix,
                                    int row, int column, Barrier* full) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(shared_address(tile)),
      "l"(&matrix), "r"(column), "r"(row), "r"(shared_address(full)), "h"(mask)
      : "memory");
}

/// A tile → the box at (row, column). Writes to the tile must have been fenced (fence_for_wgmma).
__device__ inline void store_box(const CUtensorMap& matrix, int row, int column, const bf16* tile) {
  asm volatile(
      "cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%1, %2}], [%3];" ::"l"(&matrix),
      "r"(column), "r"(row), "r"(shared_address(tile))
      : "memory");
}
/// Closes the group of this thread's stores.
__device__ inline void commit_stores() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
/// Waits until this thread's stores have read their tiles.
__device__ inline void wait_stores_read() {
  asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
}

__device__ inline unsigned block_in_cluster() {
  unsigned rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
/// All threads of the cluster meet.
__device__ inline void meet_cluster() {
  asm volatile("barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
}
/// Arrives at the barrier that another block of the cluster has at the same place.
__device__ inline void arrive_at_block(Barrier* b, unsigned rank) {
  asm volatile(
      "{.reg .b32 there;\n"
      "mapa.shared::cluster.u32 there, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [there];}" ::"r"(shared_address(b)),
      "r"(rank)
      : "memory");
}

/// Four 8×8 blocks of bf16 to shared memory; lane l passes where row l % 8 of block l / 8 lies.
__device__ inline void store_blocks(bf16* row, const std::uint32_t (&r)[4]) {
  asm volatile(
      "stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared_address(row)),
      "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
      : "memory");
}

/// The barrier of one warpgroup among its own threads.
__device__ inline void meet_group(int id) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "n"(kGroup) : "memory");
}

}  // namespace proteus::cuda
