// Rotary position embedding (Su et al., arXiv:2104.09864, eq. 34): at position p the pair
// (x[2i], x[2i+1]) of a head is rotated by the angle p·base^(−2i/R), for 2i < R; channels from R on
// stay as they are. The gradient is rotated back by the same angle. Angles, sines and cosines are
// f64.
#pragma once

#include "tensor/slot.h"
#include "tensor/tensor.h"

namespace proteus {

/// x, y [rows, heads, D], contiguous: the first `rotated` heads of every row are rotated, the
/// others copied. y may be x. The position of row r is positions[r], or r % period + offset where
/// that is null.
struct RopeFwd {
  const void* x = nullptr;
  void* y = nullptr;
  const std::int32_t* positions = nullptr;
  std::int64_t period = 1;
  std::int64_t offset = 0;
  std::int64_t rows = 0;
  std::int64_t heads = 0;
  std::int64_t rotated = 0;
  std::int64_t D = 0;
  std::int64_t R = 0;
  double base = 10000;
  bool inverse = false;
  DType dtype = DType::f32;
};
extern Slot<RopeFwd> rope_fwd;

namespace ops {

constexpr double kRopeBase = 10000;

/// Which rotation: the first R ≤ D channels of a head (R even), forwards or backwards.
struct RopeOptions {
  std::int64_t R = 0;
  std::int64_t offset = 0;  ///< position of the first token (without explicit positions)
  double base = kRopeBase;
  bool inverse = false;
};

/// x [B, T, H, D], or [B, T, 3, H, D], of which entries 0 and 1 (queries and keys) are rotated and
/// entry 2 is copied; token t is at position t + offset. f64, f32, bf16, any strides. Throws
/// ShapeError, DTypeError, ConfigError for an R that is odd, negative or above D.
Tensor rope(const Tensor& x, const RopeOptions& options);
/// The same in place, of a contiguous x.
void rope_(const Tensor& x, const RopeOptions& options);
/// x [rows, D] or [rows, H, D] with positions i32 [rows].
Tensor rope(const Tensor& x, const Tensor& positions, const RopeOptions& options);

/// In place, of the queries and keys of one token of every sequence: x [B, 3, H, D], contiguous.
void rope_(const Tensor& x, const Tensor& positions, const RopeOptions& options);

/// i32 [B·T]: the position t + offset of every token of B sequences.
Tensor sequence_positions(std::int64_t B, std::int64_t T, std::int64_t offset = 0,
                          Device device = kCpu);

}  // namespace ops
}  // namespace proteus
