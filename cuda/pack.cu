// Packed rows on a GPU (tensor/ops/pack.h). The sort is a stable counting sort: sequences are cut
// into chunks of time, the rows of every (head, chunk) are counted and summed up in that order, and
// one warp per chunk then deals out the places, 32 slots at a time, in the order of the tokens.
#include <algorithm>
#include <cub/device/device_scan.cuh>

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
  static constexpr std::int64_t kFewestTokens = 256;
  std::int64_t length, size, per_sequence, count;

  Chunks(std::int64_t tokens, std::int64_t sequences, std::int64_t groups)
      : length(tokens / sequences),
        size(std::max(kFewestTokens, groups)),
        per_sequence(ceil_div(length, size)),
        count(per_sequence * sequences) {}
  __device__ std::int64_t begin(std::int64_t chunk) const {
    return chunk / per_sequence * length + chunk % per_sequence * size;
  }
  __device__ std::int64_t end(std::int64_t chunk) const {
    return min(begin(chunk) + size, (chunk / per_sequence + 1) * length);
  }
};

__global__ void check_heads_kernel(PackRows a) {
  const std::int64_t n = thread_unit();
  const bool kept = n < a.tokens && a.heads[n * a.slots] != kNone;
  const unsigned all = __ballot_sync(kAllLanes, kept);
  if (lane() == 0 && all != 0) atomicAdd(a.kept, __popc(all));
  if (n >= a.tokens) return;
  std::int32_t last = -1;
  bool ended = false;
  bool valid = true;
  for (std::int64_t j = n * a.slots; j < (n + 1) * a.slots; ++j) {
    const std::int32_t h = a.heads[j];
    if (h == kNone) {
      ended = true;
      continue;
    }
    valid = valid && !ended && h > last && h < a.groups;
    last = h;
  }
  // As unsigned numbers −1, "none", is the largest.
  if (!valid) atomicMin(reinterpret_cast<unsigned*>(a.invalid_token), static_cast<unsigned>(n));
}

// counts [groups, chunks]: rows of each head in each chunk. A block to a chunk.
__global__ void count_kernel(const std::int32_t* heads, std::int64_t slots, std::int64_t groups,
                             Chunks chunks, std::int32_t* counts) {
  extern __shared__ std::int32_t own[];
  const std::int64_t chunk = blockIdx.x;
  for (std::int64_t first = 0; first < groups; first += kWindow) {
    const std::int64_t width = min(kWindow, groups - first);
    for (std::int64_t g = threadIdx.x; g < width; g += kBlock) own[g] = 0;
    __syncthreads();
    const std::int64_t stop = chunks.end(chunk) * slots;
    for (std::int64_t i = chunks.begin(chunk) * slots + threadIdx.x; i < stop; i += kBlock) {
      const std::int64_t g = heads[i] - first;
      if (heads[i] != kNone && g >= 0 && g < width) atomicAdd(&own[g], 1);
    }
    __syncthreads();
    for (std::int64_t g = threadIdx.x; g < width; g += kBlock) {
      counts[(first + g) * chunks.count + chunk] = own[g];
    }
    __syncthreads();
  }
}

std::size_t starts_bytes(std::int64_t groups, const Chunks& chunks) {
  return static_cast<std::size_t>(groups * chunks.count + 1) * sizeof(std::int32_t);
}

// starts [groups·chunks + 1]: the place of the first row of every (head, chunk), then all rows.
void row_starts(const std::int32_t* heads, std::int64_t slots, std::int64_t groups,
                const Chunks& chunks, std::int32_t* starts) {
  const std::int64_t cells = groups * chunks.count;
  check(cudaMemsetAsync(starts + cells, 0, sizeof(std::int32_t), current_stream()),
        "cudaMemsetAsync");
  const auto shared = static_cast<std::size_t>(std::min(groups, kWindow)) * sizeof(std::int32_t);
  launch("pack_rows", count_kernel, static_cast<unsigned>(chunks.count), kBlock, shared, heads,
         slots, groups, chunks, starts);
  std::size_t bytes = 0;
  check(cub::DeviceScan::ExclusiveSum(nullptr, bytes, starts, starts, cells + 1, current_stream()),
        "cub::DeviceScan::ExclusiveSum");
  const Storage space = scratch(bytes);
  check(cub::DeviceScan::ExclusiveSum(space.data(), bytes, starts, starts, cells + 1,
                                      current_stream()),
        "cub::DeviceScan::ExclusiveSum");
}

// One warp per chunk. Slots of one head among the 32 that are looked at together get neighbouring
// places, in their order. The first chunk of a sequence writes its offsets, too.
__global__ void fill_kernel(PackRows a, Chunks chunks, const std::int32_t* starts) {
  extern __shared__ std::int32_t next[];
  const std::int64_t chunk = blockIdx.x;
  const std::int64_t sequence = chunk / chunks.per_sequence;
  const bool first_of_sequence = chunk % chunks.per_sequence == 0;
  if (chunk == 0 && lane() == 0) {
    a.offsets[a.groups * a.sequences] = starts[a.groups * chunks.count];
  }
  const std::int64_t stop = chunks.end(chunk) * a.slots;
  for (std::int64_t first = 0; first < a.groups; first += kWindow) {
    const std::int64_t width = min(kWindow, a.groups - first);
    for (std::int64_t g = lane(); g < width; g += kWarp) {
      next[g] = starts[(first + g) * chunks.count + chunk];
      if (first_of_sequence) a.offsets[(first + g) * a.sequences + sequence] = next[g];
    }
    __syncwarp();
    for (std::int64_t base = chunks.begin(chunk) * a.slots; base < stop; base += kWarp) {
      const std::int64_t i = base + lane();
      const std::int32_t head = i < stop ? a.heads[i] : kNone;
      if (i < stop && head < 0) a.row_of[i] = kNone;
      const bool here = head != kNone && head >= first && head < first + width;
      const int key = here ? static_cast<int>(head - first) : -1;
      const unsigned same = __match_any_sync(kAllLanes, key);
      const int before = __popc(same & ((1u << lane()) - 1));
      const std::int32_t row = here ? next[key] + before : kNone;
      __syncwarp();
      if (here && before == 0) next[key] += __popc(same);
      __syncwarp();
      if (!here) continue;
      const std::int64_t n = i / a.slots;
      a.row_of[i] = row;
      a.token[row] = static_cast<std::int32_t>(n);
      a.time[row] = static_cast<std::int32_t>(n % chunks.length);
    }
  }
}

void pack(const PackRows& a) {
  if (a.invalid_token) {
    check(cudaMemsetAsync(a.invalid_token, 0xFF, sizeof(std::int32_t), current_stream()),
          "cudaMemsetAsync");
    check(cudaMemsetAsync(a.kept, 0, sizeof(std::int32_t), current_stream()), "cudaMemsetAsync");
    launch("pack_rows", check_heads_kernel, thread_blocks(a.tokens), kBlock, 0, a);
  }
  const Chunks chunks(a.tokens, a.sequences, a.groups);
  const Storage space = scratch(starts_bytes(a.groups, chunks));
  auto* starts = static_cast<std::int32_t*>(space.data());
  row_starts(a.heads, a.slots, a.groups, chunks, starts);
  const auto shared = static_cast<std::size_t>(std::min(a.groups, kWindow)) * sizeof(std::int32_t);
  launch("pack_rows", fill_kernel, static_cast<unsigned>(chunks.count), kWarp, shared, a, chunks,
         starts);
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
