#include "aspa/top_a.h"

#include <algorithm>
#include <cmath>

#include "aspa/attention.h"
#include "tensor/error.h"

namespace proteus {

double cosine(const double* a, const double* b, std::int64_t n, bool& defined) {
  double dot = 0;
  double aa = 0;
  double bb = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    dot += a[i] * b[i];
    aa += a[i] * a[i];
    bb += b[i] * b[i];
  }
  defined = aa > 0 && bb > 0;
  return defined ? std::clamp(dot / std::sqrt(aa) / std::sqrt(bb), -1.0, 1.0) : 0;
}

std::vector<HeadOutputs> last_outputs(const Tensor& gated, const PackedRows& rows) {
  const std::int64_t T = rows.tokens() / rows.sequences();
  std::vector<HeadOutputs> last(static_cast<std::size_t>(rows.sequences()));
  for (std::size_t b = 0; b < last.size(); ++b) {
    const std::int64_t token = (static_cast<std::int64_t>(b) + 1) * T - 1;
    const Tensor row_of = rows.row_of.select(0, token).to(kCpu);
    const Tensor heads = rows.heads.select(0, token).to(kCpu);
    for (std::int64_t slot = 0; slot < rows.slots(); ++slot) {
      const std::int32_t row = row_of.data<std::int32_t>()[slot];
      if (row < 0) break;
      last[b].heads.push_back(heads.data<std::int32_t>()[slot]);
      last[b].gated.push_back(gated.select(0, row));
    }
  }
  return last;
}

std::vector<double> head_agreement(const HeadOutputs& token, const Tensor& w_out) {
  const std::int64_t D = w_out.size(1);
  const std::int64_t C = w_out.size(2);
  const auto n = static_cast<std::int64_t>(token.heads.size());
  std::vector<double> y(static_cast<std::size_t>(n * C));
  std::vector<double> sum(static_cast<std::size_t>(C));
  for (std::int64_t i = 0; i < n; ++i) {
    const auto at = static_cast<std::size_t>(i);
    const std::vector<double> o = token.gated[at].to_vector();
    const std::vector<double> w = w_out.select(0, token.heads[at]).to_vector();
    double* out = y.data() + i * C;
    for (std::int64_t d = 0; d < D; ++d) {
      const double* row = w.data() + d * C;
      for (std::int64_t c = 0; c < C; ++c) out[c] += o[static_cast<std::size_t>(d)] * row[c];
    }
    for (std::int64_t c = 0; c < C; ++c) sum[static_cast<std::size_t>(c)] += out[c];
  }
  std::vector<double> agreement;
  std::vector<double> others(static_cast<std::size_t>(C));
  for (std::int64_t i = 0; i < n; ++i) {
    const double* own = y.data() + i * C;
    for (std::int64_t c = 0; c < C; ++c) {
      others[static_cast<std::size_t>(c)] = sum[static_cast<std::size_t>(c)] - own[c];
    }
    bool defined = false;
    const double a = cosine(own, others.data(), C, defined);
    if (defined) agreement.push_back(a);
  }
  return agreement;
}

void AgreementSummary::add(std::span<const double> agreement) {
  for (const double a : agreement) {
    ++count_;
    sum_ += a;
    min_ = std::min(min_, a);
    max_ = std::max(max_, a);
  }
}

void AspaAttention::watch_consensus(bool on) {
  if (on) router();  // throws where there are no routed heads
  watching_ = on;
  consensus_.reset();
}

const Consensus& AspaAttention::consensus() const {
  if (!consensus_) {
    throw ConfigError(
        "aspa: consensus: nothing was watched; call watch_consensus(true) and run the layer");
  }
  return *consensus_;
}

void AspaAttention::keep_consensus(const Tensor& c, const std::vector<HeadOutputs>& last) {
  Consensus out{c, {}};
  for (const HeadOutputs& token : last) {
    out.agreement.push_back(head_agreement(token, weights_.o.value()));
  }
  consensus_ = std::move(out);
}

}  // namespace proteus
