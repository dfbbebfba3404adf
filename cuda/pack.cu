// Packed rows on a GPU (tensor/ops/pack.h). The sort is a stable counting sort: sequences are cut
// into chunks of time, the rows of every (head, chunk) are counted and summed up in that order, and
// one warp per chunk then deals out the places, 32 slots at a time, in the order of the tokens.
// blockIdx.y, and in the sums blockIdx.x, is the selection.
#include <algorithm>

#include "cuda/kernels.h"
#include "cuda/rows.cuh"
#include "tensor/ops/pack.h"

namespace proteus::cuda {
namespace {

constexpr std::int32_t kNone = -1;
constexpr std::int64_t kWindow = 8192;  // heads whose counters fit into shared memory together

// As on the CPU, a chunk has at least as many tokens as there are groups, so that counters cost no
// more than tokens do. Chunk c of sequence s has the number s·per_sequence + c.
struct Chunks {
  static constexpr std::int64_t kFewestTokens = 128;
  std::int64_t length, size, per_sequence, count;

  explicit Chunks(const PackRows& a)
      : length(a.tokens / a.sequences),
        size(std::max(kFewestTokens, a.groups)),
        per_sequence(ceil_div(length, size)),
        count(per_sequence * a.sequences) {}
  __device__ std::int64_t begin(std::int64_t chunk) const {
    return chunk / per_sequence * length + chunk % per_sequence * size;
  }
  __device__ std::int64_t end(std::int64_t chunk) const {
    return min(begin(chunk) + size, (chunk / per_sequence + 1) * length);
  }
};

__global__ void check_heads_kernel(PackSelection a, std::int64_t tokens, std::int64_t groups) {
  const std::int64_t n = thread_unit();
  const bool kept = n < tokens && a.heads[n * a.slots] != kNone;
  const unsigned all = __ballot_sync(kAllLanes, kept);
  if (lane() == 0 && all != 0) atomicAdd(a.kept, __popc(all));
  if (n >= tokens) return;
  std::int32_t last = -1;
  bool ended = false;
  bool valid = true;
  for (std::int64_t j = n * a.slots; j < (n + 1) * a.slots; ++j) {
    const std::int32_t h = a.heads[j];
    if (h == kNone) {
      ended = true;
      continue;
    }
    valid = valid && !ended && h > last && h < groups;
    last = h;
  }
  // As unsigned numbers −1, "none", is the largest.
  if (!valid) atomicMin(reinterpret_cast<unsigned*>(a.invalid_token), static_cast<unsigned>(n));
}

void check_heads(const PackSelection& a, std::int64_t tokens, std::int64_t groups) {
  check(cudaMemsetAsync(a.invalid_token, 0xFF, sizeof(std::int32_t), current_stream()),
        "cudaMemsetAsync");
  check(cudaMemsetAsync(a.kept, 0, sizeof(std::int32_t), current_stream()), "cudaMemsetAsync");
  launch("pack_rows", check_heads_kernel, thread_blocks(tokens), kBlock, 0, a, tokens, groups);
}

/// Per selection [groups·chunks + 1]: the place of the first row of every (head, chunk), then all
/// rows.
__device__ std::int32_t* starts_of(const PackRows& a, const Chunks& chunks, std::int32_t* starts,
                                   int selection) {
  return starts + selection * (a.groups * chunks.count + 1);
}

// Rows of each head in each chunk. A block to a chunk.
__global__ void count_kernel(PackRows a, Chunks chunks, std::int32_t* starts) {
  extern __shared__ std::int32_t own[];
  const PackSelection& s = a.selection[blockIdx.y];
  std::int32_t* counts = starts_of(a, chunks, starts, static_cast<int>(blockIdx.y));
  const std::int64_t chunk = blockIdx.x;
  const std::int64_t stop = chunks.end(chunk) * s.slots;
  for (std::int64_t first = 0; first < a.groups; first += kWindow) {
    const std::int64_t width = min(kWindow, a.groups - first);
    for (std::int64_t g = threadIdx.x; g < width; g += kBlock) own[g] = 0;
    __syncthreads();
    for (std::int64_t i = chunks.begin(chunk) * s.slots + threadIdx.x; i < stop; i += kBlock) {
      const std::int64_t g = s.heads[i] - first;
      if (s.heads[i] != kNone && g >= 0 && g < width) atomicAdd(&own[g], 1);
    }
    __syncthreads();
    for (std::int64_t g = threadIdx.x; g < width; g += kBlock) {
      counts[(first + g) * chunks.count + chunk] = own[g];
    }
    __syncthreads();
  }
}

constexpr int kSumThreads = 1024;

// Counts → starts. A warp sums a run of cells, then knows where the run begins and does it again.
__global__ void __launch_bounds__(kSumThreads)
    start_kernel(PackRows a, Chunks chunks, std::int32_t* starts) {
  constexpr int kWarps = kSumThreads / kWarp;
  constexpr int kAtOnce = 8;  // reads on their way
  __shared__ std::int32_t sums[kWarps];
  std::int32_t* own = starts_of(a, chunks, starts, static_cast<int>(blockIdx.x));
  const std::int64_t cells = a.groups * chunks.count;
  const std::int64_t run = ceil_div(cells, std::int64_t{kSumThreads}) * kWarp;
  const std::int64_t begin = min(cells, warp_of_block() * run);
  const std::int64_t end = min(cells, begin + run);
  std::int32_t sum = 0;
#pragma unroll kAtOnce
  for (std::int64_t i = begin + lane(); i < end; i += kWarp) sum += own[i];
  sum = warp_sum(sum);
  if (lane() == 0) sums[warp_of_block()] = sum;
  __syncthreads();
  std::int32_t at = warp_sum(lane() < warp_of_block() ? sums[lane()] : 0);
  for (std::int64_t first = begin + lane(); first - lane() < end; first += kAtOnce * kWarp) {
    std::int32_t count[kAtOnce];
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      count[j] = first + j * kWarp < end ? own[first + j * kWarp] : 0;
    }
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      const std::int32_t with_own = sum_up_to_lane(count[j]);
      if (first + j * kWarp < end) own[first + j * kWarp] = at + with_own - count[j];
      at += __shfl_sync(kAllLanes, with_own, kWarp - 1);
    }
  }
  if (threadIdx.x == kSumThreads - 1) own[cells] = at;
}

constexpr int kAhead = 8;  // turns whose heads are read together

/// Gives the slots of 32 lanes that have a head of this window their rows: those of one head
/// neighbouring ones, in their order. next: the next row of every head.
__device__ void deal(const PackSelection& s, std::int64_t i, bool here, int key,
                     std::int64_t sequence_begin, std::int32_t* next) {
  const unsigned same = __match_any_sync(kAllLanes, here ? key : -1);
  const int before = __popc(same & ((1u << lane()) - 1));
  const std::int32_t row = here ? next[key] + before : kNone;
  __syncwarp();
  if (here && before == 0) next[key] += __popc(same);
  __syncwarp();
  if (!here) return;
  const std::int64_t n = quotient(i, s.slots);
  s.row_of[i] = row;
  s.token[row] = static_cast<std::int32_t>(n);
  s.time[row] = static_cast<std::int32_t>(n - sequence_begin);
}

// One warp per chunk. The first chunk of a sequence writes its offsets, too.
__global__ void fill_kernel(PackRows a, Chunks chunks, std::int32_t* all_starts) {
  extern __shared__ std::int32_t next[];
  const PackSelection& s = a.selection[blockIdx.y];
  const std::int32_t* starts = starts_of(a, chunks, all_starts, static_cast<int>(blockIdx.y));
  const std::int64_t chunk = blockIdx.x;
  const std::int64_t sequence = chunk / chunks.per_sequence;
  const bool first_of_sequence = chunk % chunks.per_sequence == 0;
  if (chunk == 0 && lane() == 0) {
    s.offsets[a.groups * a.sequences] = starts[a.groups * chunks.count];
  }
  const std::int64_t stop = chunks.end(chunk) * s.slots;
  for (std::int64_t first = 0; first < a.groups; first += kWindow) {
    const std::int64_t width = min(kWindow, a.groups - first);
    for (std::int64_t g = lane(); g < width; g += kWarp) {
      next[g] = starts[(first + g) * chunks.count + chunk];
      if (first_of_sequence) s.offsets[(first + g) * a.sequences + sequence] = next[g];
    }
    __syncwarp();
    for (std::int64_t i = chunks.begin(chunk) * s.slots + lane(); i - lane() < stop;
         i += kAhead * kWarp) {
      std::int32_t heads[kAhead];
#pragma unroll
      for (int j = 0; j < kAhead; ++j) {
        heads[j] = i + j * kWarp < stop ? s.heads[i + j * kWarp] : kNone;
      }
#pragma unroll
      for (int j = 0; j < kAhead; ++j) {
        const std::int64_t at = i + j * kWarp;
        if (at < stop && heads[j] < 0) s.row_of[at] = kNone;
        const bool here = heads[j] != kNone && heads[j] >= first && heads[j] < first + width;
        deal(s, at, here, static_cast<int>(heads[j] - first), sequence * chunks.length, next);
      }
    }
  }
}

void pack(const PackRows& a) {
  for (int i = 0; i < a.count; ++i) {
    if (a.selection[i].invalid_token) check_heads(a.selection[i], a.tokens, a.groups);
  }
  const Chunks chunks(a);
  const Storage space =
      scratch(static_cast<std::size_t>(a.count) *
              static_cast<std::size_t>(a.groups * chunks.count + 1) * sizeof(std::int32_t));
  auto* starts = static_cast<std::int32_t*>(space.data());
  const auto shared = static_cast<std::size_t>(std::min(a.groups, kWindow)) * sizeof(std::int32_t);
  const auto selections = static_cast<unsigned>(a.count);
  const dim3 grid(static_cast<unsigned>(chunks.count), selections);
  launch("pack_rows", count_kernel, grid, kBlock, shared, a, chunks, starts);
  launch("pack_rows", start_kernel, selections, kSumThreads, 0, a, chunks, starts);
  launch("pack_rows", fill_kernel, grid, kWarp, shared, a, chunks, starts);
}

// Rows as `units` words each, a warp to a row.
template <class Word>
__global__ void gather_kernel(RowsGather a, std::int64_t units) {
  const std::int64_t r = warp_unit();
  if (r >= a.rows) return;
  const Word* from = static_cast<const Word*>(a.x) + a.token[r] * units;
  Word* to = static_cast<Word*>(a.y) + r * units;
  for (std::int64_t i = lane(); i < units; i += kWarp) to[i] = from[i];
}

void gather(const RowsGather& a) {
  const auto width = static_cast<std::int64_t>(size_of(a.dtype)) * a.C;
  const auto run = [&](auto word) {
    launch("rows_gather", gather_kernel<decltype(word)>, warp_blocks(a.rows), kBlock, 0, a,
           width / static_cast<std::int64_t>(sizeof(word)));
  };
  const auto both = reinterpret_cast<std::uintptr_t>(a.x) | reinterpret_cast<std::uintptr_t>(a.y) |
                    static_cast<std::uintptr_t>(width);
  if (both % 16 == 0) {
    run(uint4{});
  } else if (both % 4 == 0) {
    run(std::uint32_t{});
  } else {
    run(std::uint16_t{});  // no float type is smaller
  }
}

template <class T, int kPack>
__global__ void combine_kernel(RowsCombine a) {
  using A = accum_t<T>;
  const std::int64_t n = warp_unit();
  if (n >= a.tokens) return;
  for (std::int64_t c = std::int64_t{kPack} * lane(); c < a.C; c += kPack * kWarp) {
    A sum[kPack] = {};
    for (std::int64_t j = n * a.slots; j < (n + 1) * a.slots; ++j) {
      const std::int64_t row = a.row_of[j];
      if (row < 0) continue;
      const auto y = load_pack<kPack>(static_cast<const T*>(a.y) + row * a.C + c);
      for (int i = 0; i < kPack; ++i) sum[i] += A(y[i]);
    }
    Pack<T, kPack> out;
    for (int i = 0; i < kPack; ++i) out[i] = T(sum[i]);
    store_pack(static_cast<T*>(a.out) + n * a.C + c, out);
  }
}

template <class T>
void combine_typed(const RowsCombine& a) {
  constexpr int kPack = kPackOf<T>;
  const bool packs = a.C % kPack == 0 && can_pack<T, kPack>(a.y, a.out);
  launch("rows_combine", packs ? combine_kernel<T, kPack> : combine_kernel<T, 1>,
         warp_blocks(a.tokens), kBlock, 0, a);
}

template <class T, bool kScatter>
__global__ void slots_kernel(RowSlots a) {
  const std::int64_t i = thread_unit();
  if (i >= a.tokens * a.slots || a.row_of[i] == kNone) return;
  T* z = static_cast<T*>(a.z) + i / a.slots * a.groups + a.heads[i];
  T* v = static_cast<T*>(a.v) + a.row_of[i];
  if constexpr (kScatter) {
    *z = *v;
  } else {
    *v = *z;
  }
}

template <class T>
void slots_scatter_typed(const RowSlots& a) {
  check(cudaMemsetAsync(a.z, 0, static_cast<std::size_t>(a.tokens * a.groups) * sizeof(T),
                        current_stream()),
        "cudaMemsetAsync");
  if (a.slots == 0) return;
  launch("slots_scatter", slots_kernel<T, true>, thread_blocks(a.tokens * a.slots), kBlock, 0, a);
}

template <class T>
void slots_gather_typed(const RowSlots& a) {
  launch("slots_gather", slots_kernel<T, false>, thread_blocks(a.tokens * a.slots), kBlock, 0, a);
}

}  // namespace

void install_pack_kernels() {
  pack_rows.install(DeviceType::cuda, pack);
  rows_gather.install(DeviceType::cuda, gather);
  rows_combine.install(DeviceType::cuda, [](const RowsCombine& a) {
    dispatch_float(a.dtype, "rows_combine",
                   [&](auto tag) { combine_typed<typename decltype(tag)::type>(a); });
  });
  slots_gather.install(DeviceType::cuda, [](const RowSlots& a) {
    dispatch_float(a.dtype, "slots_gather",
                   [&](auto tag) { slots_gather_typed<typename decltype(tag)::type>(a); });
  });
  slots_scatter.install(DeviceType::cuda, [](const RowSlots& a) {
    dispatch_float(a.dtype, "slots_scatter",
                   [&](auto tag) { slots_scatter_typed<typename decltype(tag)::type>(a); });
  });
}

}  // namespace proteus::cuda
