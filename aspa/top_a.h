// Top-A: do the routed heads agree about what comes next? What they add to the stream together is
// the consensus of a token, and each of them agrees with the others by a cosine:
//   c_t = Σ_{h ∈ sel^Q(t)} y_{t,h}     y_{t,h} = r_{t,h}·W_O^h·o_{t,h}
//   A_h = cos(y_h, c − y_h)
// The sampler compares c of the last layer with its candidates (train/sampler.h).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "tensor/ops/pack.h"
#include "tensor/tensor.h"

namespace proteus {

/// What a layer's last pass said (see AspaAttention::watch_consensus).
struct Consensus {
  Tensor c;  ///< [B, T, C] of forward(), [B, C] of step(); zero for a token that enters no head
  /// [B]: A_h of the heads of each sequence's last token. A head without a direction, or without
  /// others that have one together, has no A_h and is left out.
  std::vector<std::vector<double>> agreement;
};

/// The routed heads of one token and what each of them has found: r·o [D].
struct HeadOutputs {
  std::vector<std::int32_t> heads;
  std::vector<Tensor> gated;
};

/// Those of every sequence's last token; gated [M, D] are the packed rows.
std::vector<HeadOutputs> last_outputs(const Tensor& gated, const PackedRows& rows);

/// A_h of one token; w_out is W_O [Hr, D, C]. Sums in f64.
std::vector<double> head_agreement(const HeadOutputs& token, const Tensor& w_out);

/// cos(a, b) of two vectors of n numbers; `defined` becomes false, and the cosine 0, where one of
/// them is zero.
double cosine(const double* a, const double* b, std::int64_t n, bool& defined);

/// Running mean, least and largest of many A_h.
class AgreementSummary {
 public:
  void add(std::span<const double> agreement);
  std::int64_t count() const { return count_; }
  double mean() const { return count_ > 0 ? sum_ / static_cast<double>(count_) : 0; }
  double min() const { return min_; }
  double max() const { return max_; }

 private:
  std::int64_t count_ = 0;
  double sum_ = 0;
  double min_ = 1;
  double max_ = -1;
};

}  // namespace proteus
