// Matrix products of a warpgroup (four warps; sm_90a) and barriers in shared memory, one function
// per instruction.
//
// Tiles are what tile.cuh describes at width 64: rows of 128 bytes with their chunks swizzled, at
// multiples of 1024 bytes. That is the layout «128-byte swizzle» of the matrix descriptors, read
// along the rows or, as a transposed B, across them. Warp w of the group has rows 16·w to 16·w + 15
// of A and of the sums, in the fragments of mma.cuh.
#pragma once

#include <cstdint>

#include "cuda/mma.cuh"

namespace proteus::cuda {

constexpr int kGroup = 128;         // threads of a warpgroup
constexpr int kSwizzledWidth = 64;  // bf16 numbers in a row of 128 bytes

/// Where an operand lies. Start, leading and stride offsets count 16 bytes; the leading offset
/// separates blocks of 64 columns of a transposed operand, the stride separates groups of 8 rows.
class Operand {
 public:
  __device__ Operand(const bf16* tile, int leading_bytes)
      : low_(static_cast<std::uint32_t>(leading_bytes >> 4) << 16 |
             (shared_address(tile) & 0x3ffffu) >> 4) {}
  /// So many elements further on, a multiple of 8. Start and leading offset share 32 bits, and
  /// shared memory ends before the sum could reach the leading offset.
  __device__ Operand operator+(int elements) const {
    Operand x = *this;
    x.low_ += elements * static_cast<int>(sizeof(bf16)) / 16;
    return x;
  }
  __device__ std::uint64_t descriptor() const {
    constexpr std::uint64_t kSwizzle128 = std::uint64_t{1} << 62;
    constexpr std::uint64_t kStride = 1024 >> 4;
    return kSwizzle128 | kStride << 32 | low_;
  }

 private:
  std::uint32_t low_;
};

/// Before the first product, and whenever registers of sums or of A were written by others.
__device__ inline void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
/// Closes the group of the products issued so far.
__device__ inline void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
/// Waits until at most kLeft groups are unfinished.
template <int kLeft>
__device__ inline void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kLeft) : "memory");
}

/// After a wait, before sums are used: the compiler does not know that they were not there yet.
template <int kBlocks>
__device__ inline void fence_sums(float (&c)[kBlocks][4]) {
#pragma unroll
  for (int n = 0; n < kBlocks; ++n) {
    asm volatile("" : "+f"(c[n][0]), "+f"(c[n][1]), "+f"(c[n][2]), "+f"(c[n][3])::"memory");
  }
}

#define PROTEUS_ACCUMULATORS_32                                             \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}"
#define PROTEUS_ACCUMULATORS_64                                                      \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "          \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}"
#define PROTEUS_BLOCK(c, n) "+f"(c[n][0]), "+f"(c[n][1]), "+f"(c[n][2]), "+f"(c[n][3])
#define PROTEUS_BLOCKS_8(c, n)                                                                    \
  PROTEUS_BLOCK(c, n), PROTEUS_BLOCK(c, n + 1), PROTEUS_BLOCK(c, n + 2), PROTEUS_BLOCK(c, n + 3), \
      PROTEUS_BLOCK(c, n + 4), PROTEUS_BLOCK(c, n + 5), PROTEUS_BLOCK(c, n + 6),                  \
      PROTEUS_BLOCK(c, n + 7)

/// c [64, 128] = or += A·B, both in shared memory with k along the rows.
__device__ inline void wgmma(float (&c)[16][4], const Operand& a, const Operand& b, bool add) {
  asm volatile(
      "{.reg .pred p; setp.ne.b32 p, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 " PROTEUS_ACCUMULATORS_64
      ", %64, %65, p, 1, 1, 0, 0;}"
      : PROTEUS_BLOCKS_8(c, 0), PROTEUS_BLOCKS_8(c, 8)
      : "l"(a.descriptor()), "l"(b.descriptor()), "r"(static_cast<int>(add)));
}

/// The same for c [64, 64]; of an operand that is transposed k runs across the rows.
template <bool kTransA = false, bool kTransB = false>
__device__ inline void wgmma(float (&c)[8][4], const Operand& a, const Operand& b, bool add) {
  asm volatile(
      "{.reg .pred p; setp.ne.b32 p, %34, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 " PROTEUS_ACCUMULATORS_32
      ", %32, %33, p, 1, 1, %35, %36;}"
      : PROTEUS_BLOCKS_8(c, 0)
      : "l"(a.descriptor()), "l"(b.descriptor()), "r"(static_cast<int>(add)), "n"(kTransA ? 1 : 0),
        "n"(kTransB ? 1 : 0));
}

/// c [64, 128] += A·B; A in registers, B transposed: k across its rows.
__device__ inline void wgmma(float (&c)[16][4], const std::uint32_t (&a)[4], const Operand& b) {
  asm volatile(
      "{.reg .pred p; setp.ne.b32 p, 1, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 " PROTEUS_ACCUMULATORS_64
      ", {%64, %65, %66, %67}, %68, p, 1, 1, 1;}"
      : PROTEUS_BLOCKS_8(c, 0), PROTEUS_BLOCKS_8(c, 8)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b.descriptor()));
}
/// The same for c [64, 64].
__device__ inline void wgmma(float (&c)[8][4], const std::uint32_t (&a)[4], const Operand& b) {
  asm volatile(
      "{.reg .pred p; setp.ne.b32 p, 1, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 " PROTEUS_ACCUMULATORS_32
      ", {%32, %33, %34, %35}, %36, p, 1, 1, 1;}"
      : PROTEUS_BLOCKS_8(c, 0)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b.descriptor()));
}

#undef PROTEUS_BLOCKS_8
#undef PROTEUS_BLOCK
#undef PROTEUS_ACCUMULATORS_64
#undef PROTEUS_ACCUMULATORS_32

/// A barrier for `arrivals` arrivals, again and again: phases 0, 1, 2, … of which the parity is
/// told apart. One thread makes it; then fence_barriers() and __syncthreads().
using Barrier = std::uint64_t;
__device__ inline void make_barrier(Barrier* b, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(b)), "r"(arrivals)
               : "memory");
}
__device__ inline void fence_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ inline void arrive_at(Barrier* b) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(b)) : "memory");
}
/// Arrives when what this thread has begun to copy (cp.async) is there, without waiting for it.
__device__ inline void arrive_with_copies(Barrier* b) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(shared_address(b))
               : "memory");
}
/// Whether the phase of this parity is over.
__device__ inline bool is_over(Barrier* b, int parity) {
  int over;
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "mbarrier.test_wait.parity.shared::cta.b64 done, [%1], %2;\n"
      "selp.b32 %0, 1, 0, done;\n"
      "}"
      : "=r"(over)
      : "r"(shared_address(b)), "r"(parity)
      : "memory");
  return over != 0;
}
/// Waits until the phase of this parity is over.
__device__ inline void wait_at(Barrier* b, int parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}" ::"r"(shared_address(b)),
      "r"(parity)
      : "memory");
}

/// Makes this thread's writes to shared memory visible to the matrix units.
__device__ inline void fence_for_wgmma() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/// True for one lane of a warp that is together, always the same.
__device__ inline bool elected() {
  int mine;
  asm volatile(
      "{\n"
      ".reg .pred mine;\n"
      "elect.sync _|mine, 0xffffffff;\n"
      "selp.b32 %0, 1, 0, mine;\n"
      "}"
      : "=r"(mine));
  return mine != 0;
}

/// Registers of a warpgroup's threads, from here on.
template <int kCount>
__device__ inline void fewer_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
}
template <int kCount>
__device__ inline void more_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
}

}  // namespace proteus::cuda
