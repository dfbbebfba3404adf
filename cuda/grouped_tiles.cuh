// Products of tiles by one block, for matrices whose rows may be given by a list:
//   C[m, n] = Σ_k A(m, k)·B(k, n), in ascending order of k
// Each of the two is a matrix in memory whose rows run along k (element (m, k) is row k, column m)
// or along m or n (row m, column k). FmaTile works for every type and shape; MmaTile needs bf16 in
// whole words of 16 bytes, and multiplies on the tensor cores.
#pragma once

#include "cuda/kernel.cuh"
#include "cuda/mma.cuh"
#include "cuda/rows.cuh"

namespace proteus::cuda {

/// [rows, columns]; row i lies at base + width·(list ? list[i] : i). Zero outside.
template <class T>
struct RowMatrix {
  const T* base = nullptr;
  const std::int32_t* list = nullptr;
  std::int64_t width = 0;
  std::int64_t rows = 0;
  std::int64_t columns = 0;

  __device__ const T* row(std::int64_t i) const { return base + (list ? list[i] : i) * width; }
};

/// kRowsOf16·16 × 64 by 256 threads, kRowsOf16 × 4 numbers each.
template <class T, int kRowsOf16>
struct FmaTile {
  using Element = T;
  using A = accum_t<T>;
  static constexpr int kRows = 16 * kRowsOf16;
  static constexpr int kColumns = 64;
  static constexpr int kThreads = 256;
  static constexpr int kDepth = 16;
  static constexpr int kRun = 4;  // neighbouring columns of one thread

  struct Shared {
    A a[kDepth][kRows + 4];
    A b[kDepth][kColumns + 4];
  };
  struct Sums {
    A v[kRowsOf16][kRun];
  };

  /// This thread's part of the numbers (outer, k0 + k) of a matrix, kOuter of them from `first` on.
  template <bool kRowsAlongK, int kOuter>
  struct Loader {
    static constexpr int kCount = kOuter * kDepth / kThreads;
    static constexpr int kWide = kRowsAlongK ? kOuter : kDepth;  // neighbours in memory
    const RowMatrix<T>& matrix;
    const T* row[kRowsAlongK ? 1 : kCount];
    std::int64_t first;

    __device__ Loader(const RowMatrix<T>& m, std::int64_t begin) : matrix(m), first(begin) {
      if constexpr (!kRowsAlongK) {
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
          row[i] = first + outer(i) < m.rows ? m.row(first + outer(i)) : nullptr;
        }
      }
    }
    __device__ static int across(int i) {
      return (static_cast<int>(threadIdx.x) + i * kThreads) / kWide;
    }
    __device__ static int along() { return static_cast<int>(threadIdx.x) % kWide; }
    __device__ static int outer(int i) { return kRowsAlongK ? along() : across(i); }
    __device__ static int depth(int i) { return kRowsAlongK ? across(i) : along(); }

    __device__ void fetch(std::int64_t k0, A (&v)[kCount]) const {
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const std::int64_t k = k0 + depth(i);
        if constexpr (kRowsAlongK) {
          const std::int64_t column = first + outer(i);
          v[i] = k < matrix.rows && column < matrix.columns ? A(matrix.row(k)[column]) : A(0);
        } else {
          v[i] = row[i] && k < matrix.columns ? A(row[i][k]) : A(0);
        }
      }
    }
    __device__ void store(const A (&v)[kCount], A (&tile)[kDepth][kOuter + 4]) const {
#pragma unroll
      for (int i = 0; i < kCount; ++i) tile[depth(i)][outer(i)] = v[i];
    }
  };

  template <bool kAlongA, bool kAlongB>
  __device__ static void multiply(const RowMatrix<T>& a, std::int64_t m0, const RowMatrix<T>& b,
                                  std::int64_t n0, std::int64_t K, Shared& shared, Sums& sums) {
    using LoaderA = Loader<kAlongA, kRows>;
    using LoaderB = Loader<kAlongB, kColumns>;
    const LoaderA load_a(a, m0);
    const LoaderB load_b(b, n0);
    A next_a[LoaderA::kCount];
    A next_b[LoaderB::kCount];
    load_a.fetch(0, next_a);
    load_b.fetch(0, next_b);
    for (auto& row : sums.v) {
      for (A& v : row) v = A(0);
    }
    for (std::int64_t k0 = 0; k0 < K; k0 += kDepth) {
      __syncthreads();
      load_a.store(next_a, shared.a);
      load_b.store(next_b, shared.b);
      __syncthreads();
      if (k0 + kDepth < K) {
        load_a.fetch(k0 + kDepth, next_a);
        load_b.fetch(k0 + kDepth, next_b);
      }
      add_product(shared, sums);
    }
  }

  /// fn(m, n, pack of kRun neighbours), m and n within the tile.
  template <class F>
  __device__ static void each(const Sums& sums, F&& fn) {
    const int m = static_cast<int>(threadIdx.x) / 16 * kRowsOf16;
    const int n = static_cast<int>(threadIdx.x) % 16 * kRun;
#pragma unroll
    for (int i = 0; i < kRowsOf16; ++i) {
      Pack<A, kRun> pack;
      for (int j = 0; j < kRun; ++j) pack[j] = sums.v[i][j];
      fn(m + i, n, pack);
    }
  }

 private:
  __device__ static void add_product(const Shared& shared, Sums& sums) {
    const int m = static_cast<int>(threadIdx.x) / 16 * kRowsOf16;
    const int n = static_cast<int>(threadIdx.x) % 16 * kRun;
#pragma unroll
    for (int k = 0; k < kDepth; ++k) {
      A a[kRowsOf16];
      for (int i = 0; i < kRowsOf16; i += 4) {
        const auto four = load_pack<4>(&shared.a[k][m + i]);
        for (int j = 0; j < 4; ++j) a[i + j] = four[j];
      }
      const auto b = load_pack<kRun>(&shared.b[k][n]);
#pragma unroll
      for (int i = 0; i < kRowsOf16; ++i) {
#pragma unroll
        for (int j = 0; j < kRun; ++j) sums.v[i][j] += a[i] * b[j];
      }
    }
  }
};

/// kBlocksOf32·32 × 64 by 8 warps, whose tiles are 32 rows high.
template <int kBlocksOf32>
struct MmaTile {
  using Element = bfloat16;
  using A = float;
  static constexpr int kRows = 32 * kBlocksOf32;
  static constexpr int kColumns = 64;
  static constexpr int kThreads = 256;
  static constexpr int kDepth = 32;
  static constexpr int kRun = 2;
  static constexpr int kStages = 3;
  static constexpr int kPad = 8;  // 16 bytes: the rows of a block lie in different banks
  static constexpr int kWarpColumns = kColumns * kBlocksOf32 / 8;

  /// kOuter × kDepth numbers, as they lie in memory.
  template <bool kRowsAlongK, int kOuter>
  struct Piece {
    static constexpr int kHigh = kRowsAlongK ? kDepth : kOuter;
    static constexpr int kWide = kRowsAlongK ? kOuter : kDepth;
    bf16 v[kHigh][kWide + kPad];

    /// Blocks (outer, k) and its neighbours 8 along k and along outer, as operands of a product.
    __device__ void load_left(int outer, int k, std::uint32_t (&r)[4]) const {
      const int block = lane() / 8;
      const int line = lane() % 8;
      if constexpr (kRowsAlongK) {
        load_blocks_transposed(r, &v[k + block / 2 * 8 + line][outer + block % 2 * 8]);
      } else {
        load_blocks(r, &v[outer + block % 2 * 8 + line][k + block / 2 * 8]);
      }
    }
    __device__ void load_right(int outer, int k, std::uint32_t (&r)[4]) const {
      const int block = lane() / 8;
      const int line = lane() % 8;
      if constexpr (kRowsAlongK) {
        load_blocks_transposed(r, &v[k + block % 2 * 8 + line][outer + block / 2 * 8]);
      } else {
        load_blocks(r, &v[outer + block / 2 * 8 + line][k + block % 2 * 8]);
      }
    }
  };
  union PieceA {
    Piece<true, kRows> along_k;
    Piece<false, kRows> along_m;
  };
  union PieceB {
    Piece<true, kColumns> along_k;
    Piece<false, kColumns> along_n;
  };
  struct Shared {
    alignas(16) PieceA a[kStages];
    alignas(16) PieceB b[kStages];
  };
  struct Sums {
    float v[2][kWarpColumns / 8][4];
  };

  template <bool kAlongA, bool kAlongB>
  __device__ static void multiply(const RowMatrix<bfloat16>& a, std::int64_t m0,
                                  const RowMatrix<bfloat16>& b, std::int64_t n0, std::int64_t K,
                                  Shared& shared, Sums& sums) {
    for (auto& block : sums.v) {
      for (auto& column : block) {
        for (float& v : column) v = 0;
      }
    }
    const std::int64_t steps = ceil_div(K, kDepth);
    Mover<kAlongA, kRows> move_a(a, m0);
    Mover<kAlongB, kColumns> move_b(b, n0);
    const auto load = [&](std::int64_t step) {
      if (step < steps) {
        const auto stage = static_cast<int>(step % kStages);
        move_a.copy(piece<kAlongA>(shared.a[stage]));
        move_b.copy(piece<kAlongB>(shared.b[stage]));
      }
      commit_copies();  // one group a step, so that counting them tells which has arrived
    };
    __syncthreads();
    for (int s = 0; s < kStages - 1; ++s) load(s);
    for (std::int64_t step = 0; step < steps; ++step) {
      wait_copies<kStages - 2>();
      __syncthreads();
      load(step + kStages - 1);
      const auto stage = static_cast<int>(step % kStages);
      add_product(piece<kAlongA>(shared.a[stage]), piece<kAlongB>(shared.b[stage]), sums);
    }
    wait_copies<0>();
  }

  template <class F>
  __device__ static void each(const Sums& sums, F&& fn) {
    const int m = warp_row() + lane() / 4;
    const int n = warp_column() + lane() % 4 * 2;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int j = 0; j < kWarpColumns / 8; ++j) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          Pack<float, kRun> pack;
          pack[0] = sums.v[i][j][2 * half];
          pack[1] = sums.v[i][j][2 * half + 1];
          fn(m + 16 * i + 8 * half, n + 8 * j, pack);
        }
      }
    }
  }

 private:
  __device__ static int warp_row() { return warp_of_block() % kBlocksOf32 * 32; }
  __device__ static int warp_column() { return warp_of_block() / kBlocksOf32 * kWarpColumns; }

  template <bool kAlongK>
  __device__ static auto& piece(PieceA& p) {
    if constexpr (kAlongK) {
      return p.along_k;
    } else {
      return p.along_m;
    }
  }
  template <bool kAlongK>
  __device__ static auto& piece(PieceB& p) {
    if constexpr (kAlongK) {
      return p.along_k;
    } else {
      return p.along_n;
    }
  }

  /// Copies one piece of a matrix after the other: the next kDepth along k, kOuter of the others
  /// from `outer` on. Where rows run along k and are given by a list, the places in the list are
  /// read one step ahead: a copy waits for no other access.
  template <bool kRowsAlongK, int kOuter>
  class Mover {
    using P = Piece<kRowsAlongK, kOuter>;
    static constexpr int kChunks = P::kWide / 8;  // of 16 bytes in a row
    static constexpr int kCount = P::kHigh * kChunks / kThreads;
    static_assert(P::kHigh * kChunks % kThreads == 0);

   public:
    __device__ Mover(const RowMatrix<bfloat16>& from, std::int64_t outer) : from_(from) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        if constexpr (kRowsAlongK) {
          row_[i] = from.base + outer + column(i);
          inside_[i] = outer + column(i) < from.columns;
          if (!from.list) row_[i] += line(i) * from.width;
        } else {
          inside_[i] = outer + line(i) < from.rows;
          row_[i] = (inside_[i] ? from.row(outer + line(i)) : from.base) + column(i);
        }
      }
      look_up();
    }

    __device__ void copy(P& to) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const bool there =
            kRowsAlongK ? at_ + line(i) < from_.rows : at_ + column(i) < from_.columns;
        const bool inside = inside_[i] && there;
        const bfloat16* source = row_[i];
        if constexpr (kRowsAlongK) {
          if (from_.list) source += next_[i] * from_.width;
        }
        copy_async_16(&to.v[line(i)][column(i)], inside ? source : from_.base, inside);
        if (!kRowsAlongK || !from_.list) row_[i] += kRowsAlongK ? kDepth * from_.width : kDepth;
      }
      at_ += kDepth;
      look_up();
    }

   private:
    __device__ static int line(int i) {
      return (i * kThreads + static_cast<int>(threadIdx.x)) / kChunks;
    }
    __device__ static int column(int i) {
      return (i * kThreads + static_cast<int>(threadIdx.x)) % kChunks * 8;
    }
    __device__ void look_up() {
      if constexpr (kRowsAlongK) {
        if (!from_.list) return;
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
          next_[i] = at_ + line(i) < from_.rows ? from_.list[at_ + line(i)] : 0;
        }
      }
    }

    const RowMatrix<bfloat16>& from_;
    const bfloat16* row_[kCount];
    bool inside_[kCount];
    std::int64_t at_ = 0;  // of the next piece, along k
    std::int32_t next_[kRowsAlongK ? kCount : 1];
  };

  template <class LeftPiece, class RightPiece>
  __device__ static void add_product(const LeftPiece& a, const RightPiece& b, Sums& sums) {
#pragma unroll
    for (int k = 0; k < kDepth; k += 16) {
      std::uint32_t left[2][4];
      for (int i = 0; i < 2; ++i) a.load_left(warp_row() + 16 * i, k, left[i]);
#pragma unroll
      for (int j = 0; j < kWarpColumns / 8; j += 2) {
        std::uint32_t right[4];
        b.load_right(warp_column() + 8 * j, k, right);
        for (int i = 0; i < 2; ++i) {
          mma(sums.v[i][j], left[i], right[0], right[1]);
          mma(sums.v[i][j + 1], left[i], right[2], right[3]);
        }
      }
    }
  }
};

}  // namespace proteus::cuda
