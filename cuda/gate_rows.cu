// Logits of packed rows on a GPU (tensor/ops/routing.h has the formulas). What a row gets depends
// on its token alone. Gradients and what prototypes learn: cuda/gate_rows_bwd.cu.
#include <limits>

#include "cuda/gate_rows.h"
#include "cuda/gate_tokens.cuh"
#include "tensor/vmath.h"

namespace proteus::cuda {
namespace {

/// x̃ of a token and λ/|x̃|: what its scores are made of, a lane's part. Up to kHeld packs of a lane
/// stay in registers; kHeld = 0 reads them again each time.
template <class T, int kPack, int kHeld>
class TokenScores {
 public:
  __device__ TokenScores(const GateTable& gates, const void* x, std::int64_t n)
      : gates_(gates), x_(static_cast<const T*>(x) + n * gates.R) {
    if constexpr (kHeld > 0) {
#pragma unroll
      for (int c = 0; c < kHeld; ++c) {
        if (column(c) < gates.R) held_[c] = load_pack<kPack>(x_ + column(c));
      }
    }
    if (!gates.p) return;
    const T square = token_sum(dot([&](std::int64_t, const auto& own) { return own; }));
    scale_ = *static_cast<const T*>(gates.lambda) * inverse_root(square);
  }
  /// Of s of a gate; its sum over the token's lanes is s.
  __device__ T part(std::int64_t gate) const {
    const auto row = [&](const void* table) {
      return [from = static_cast<const T*>(table) + gate * gates_.R](std::int64_t r, const auto&) {
        return load_pack<kPack>(from + r);
      };
    };
    T s = dot(row(gates_.w));
    if (gates_.p) s += scale_ * dot(row(gates_.p));
    return s;
  }

 private:
  __device__ static std::int64_t column(int c) {
    return (c * kTokenLanes + lane() % kTokenLanes) * kPack;
  }
  /// x·y, where other(r, pack of x) is the pack of y at r.
  template <class Other>
  __device__ T dot(Other&& other) const {
    T sum = 0;
    const auto add = [&](std::int64_t r, const Pack<T, kPack>& own) {
      const Pack<T, kPack> y = other(r, own);
#pragma unroll
      for (int i = 0; i < kPack; ++i) sum += own[i] * y[i];
    };
    if constexpr (kHeld > 0) {
#pragma unroll
      for (int c = 0; c < kHeld; ++c) {
        if (column(c) < gates_.R) add(column(c), held_[c]);
      }
    } else {
      for (std::int64_t r = column(0); r < gates_.R; r += kTokenLanes * kPack) {
        add(r, load_pack<kPack>(x_ + r));
      }
    }
    return sum;
  }

  const GateTable& gates_;
  const T* x_;
  T scale_ = 0;
  Pack<T, kPack> held_[kHeld > 0 ? kHeld : 1];
};

// z and shares of one row. Every lane of its token knows all scores as they come; gate i's share is
// kept by lane i mod kTokenLanes.
template <class T, class Scores>
__device__ void row_logits(const GateRowsFwd& a, const Scores& scores, std::int64_t row,
                           std::int32_t begin, int count) {
  const std::int32_t* order = a.gates.order + begin;
  const T* mass = static_cast<const T*>(a.gates.mass);
  T* share = static_cast<T*>(a.share) + row * a.width;
  const int own = lane() % kTokenLanes;
  T top = -std::numeric_limits<T>::max();
  for (int i = 0; i < count; ++i) {
    const T s = token_sum(scores.part(order[i]));
    if (i % kTokenLanes == own) share[i] = s;
    top = max(top, s);
  }
  T sum = 0;
  for (std::int64_t i = own; i < a.width; i += kTokenLanes) {
    share[i] = i < count ? mass[order[i]] * vmath::exp(share[i] - top) : T(0);
    sum += share[i];
  }
  sum = token_sum(sum);
  for (int i = own; i < count; i += kTokenLanes) share[i] /= sum;
  if (own == 0) static_cast<T*>(a.z)[row] = top + vmath::log(sum);
}

constexpr int kRowsAtOnce = 4;  // of a token, whose gates are read together

// The rows of heads with one gate each, of up to kTokenLanes slots: `row` and `begin` are those of
// this lane's slot.
template <class T, class Scores>
__device__ void single_gates(const GateRowsFwd& a, const Scores& scores, int slots,
                             std::int64_t row, std::int32_t begin) {
  const int own = lane() % kTokenLanes;
  const std::int32_t gate = row >= 0 ? a.gates.order[begin] : 0;
  T mine = 0;
  for (int j0 = 0; j0 < slots; j0 += kRowsAtOnce) {
    T s[kRowsAtOnce];
#pragma unroll
    for (int j = 0; j < kRowsAtOnce; ++j) s[j] = scores.part(of_slot(gate, j0 + j));
#pragma unroll
    for (int j = 0; j < kRowsAtOnce; ++j) {
      const T sum = token_sum(s[j]);
      if (own == j0 + j) mine = sum;
    }
  }
  if (row < 0) return;
  static_cast<T*>(a.z)[row] = mine + vmath::log(static_cast<const T*>(a.gates.mass)[gate]);
  static_cast<T*>(a.share)[row] = 1;
}

// What is the same in all lanes of a token is read by one of them each, kTokenLanes slots at once.
template <class T, int kPack, int kHeld>
__global__ void gate_rows_kernel(GateRowsFwd a) {
  const std::int64_t n = first_unit() / kTokenLanes;
  if (n >= a.N) return;
  const TokenScores<T, kPack, kHeld> scores(a.gates, a.x, n);
  for (std::int64_t j0 = 0; j0 < a.slots; j0 += kTokenLanes) {
    const int slots = static_cast<int>(min(a.slots - j0, std::int64_t{kTokenLanes}));
    const int own = lane() % kTokenLanes;
    const std::int64_t at = n * a.slots + j0 + own;
    const std::int32_t row = own < slots ? a.row_of[at] : -1;
    const std::int32_t head = row >= 0 ? a.heads[at] : 0;
    const std::int32_t begin = a.gates.head_begin[head];
    if (a.width == 1) {
      single_gates<T>(a, scores, slots, row, begin);
      continue;
    }
    const int count = a.gates.head_begin[head + 1] - begin;
    for (int j = 0; j < slots; ++j) {
      const std::int32_t row_of_slot = of_slot(row, j);
      const std::int32_t first = of_slot(begin, j);
      const int gates = of_slot(count, j);
      if (row_of_slot >= 0) row_logits<T>(a, scores, row_of_slot, first, gates);
    }
  }
}

template <class T>
void gate_rows_typed(const GateRowsFwd& a) {
  constexpr int kPack = kPackOf<T>;
  constexpr int kHeld = 64 / kTokenLanes / kPack;  // for the usual routing width
  const auto run = [&](auto kernel) {
    launch("gate_rows_fwd", kernel, thread_blocks(a.N * kTokenLanes), kBlock, 0, a);
  };
  const bool packs = a.gates.R % kPack == 0 && can_pack<T, kPack>(static_cast<const T*>(a.x),
                                                                  static_cast<const T*>(a.gates.w),
                                                                  static_cast<const T*>(a.gates.p));
  if (!packs) return run(gate_rows_kernel<T, 1, 0>);
  a.gates.R <= kHeld* kTokenLanes* kPack ? run(gate_rows_kernel<T, kPack, kHeld>)
                                         : run(gate_rows_kernel<T, kPack, 0>);
}

}  // namespace

void gate_rows_forward(const GateRowsFwd& a) {
  a.dtype == DType::f64 ? gate_rows_typed<double>(a) : gate_rows_typed<float>(a);
}

}  // namespace proteus::cuda
