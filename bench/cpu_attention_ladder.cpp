// The steps from the definition of causal attention to the CPU kernel, forward in f32, each with
// how far it is from the definition (NMSE), GFLOP/s, and the share of the FMA peak measured in
// turns with it. docs/attention_ladder.md says why each step is one; attention_ladder is the same
// on a GPU.
//   cpu_attention_ladder [T]      6 heads of 64 over T positions (1,024)
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <vector>

#include "bench/fma_peak.h"
#include "bench/nmse.h"
#include "tensor/ops/attention.h"
#include "tensor/parallel.h"
#include "tensor/vmath.h"

namespace proteus::bench {
namespace {

constexpr std::int64_t kHeads = 6;
constexpr std::int64_t kWidth = 64;
constexpr std::int64_t kQueries = 64;  // per tile
constexpr std::int64_t kKeys = 64;
constexpr float kScale = 0.125f;  // 1/√D
constexpr float kNegInf = -std::numeric_limits<float>::infinity();

/// q, k and v side by side, as dense layers have them: [T, 3, heads, width]; out [T, heads, width].
struct Problem {
  std::int64_t T;
  Tensor qkv, out;
  explicit Problem(std::int64_t length)
      : T(length),
        qkv(Tensor::randn({T, 3, kHeads, kWidth}, {1, 0})),
        out(Tensor::zeros({T, kHeads, kWidth})) {}
  const float* row(int which, std::int64_t head, std::int64_t t) const {
    return qkv.data<float>() + ((t * 3 + which) * kHeads + head) * kWidth;
  }
  float* out_row(std::int64_t head, std::int64_t t) const {
    return out.data<float>() + (t * kHeads + head) * kWidth;
  }
  double flops() const {
    const auto n = static_cast<double>(T);
    return 4.0 * kWidth * kHeads * n * (n + 1) / 2;
  }
};

/// The definition: a query at a time, its scores, their softmax, the sum of values.
void definition(const Problem& p) {
  parallel_for(kHeads * p.T, 16, [&](std::int64_t begin, std::int64_t end) {
    std::vector<float> weight(static_cast<std::size_t>(p.T));
    for (std::int64_t n = begin; n < end; ++n) {
      const std::int64_t head = n / p.T;
      const std::int64_t i = n % p.T;
      const float* q = p.row(0, head, i);
      float top = kNegInf;
      for (std::int64_t j = 0; j <= i; ++j) {
        const float* k = p.row(1, head, j);
        float score = 0;
        for (std::int64_t d = 0; d < kWidth; ++d) score += q[d] * k[d];
        weight[static_cast<std::size_t>(j)] = score * kScale;
        top = std::max(top, score * kScale);
      }
      float sum = 0;
      float* out = p.out_row(head, i);
      std::fill(out, out + kWidth, 0.0f);
      for (std::int64_t j = 0; j <= i; ++j) {
        const float w = std::exp(weight[static_cast<std::size_t>(j)] - top);
        const float* v = p.row(2, head, j);
        sum += w;
        for (std::int64_t d = 0; d < kWidth; ++d) out[d] += w * v[d];
      }
      for (std::int64_t d = 0; d < kWidth; ++d) out[d] /= sum;
    }
  });
}

/// A tile of queries on one thread. Scores lie transposed, [key, query]: a lane of a vector is a
/// query, and maxima, sums and exponentials need nothing across lanes.
class Tile {
 public:
  Tile(const Problem& p, std::int64_t head, std::int64_t first)
      : p_(p), head_(head), first_(first), count_(std::min(kQueries, p.T - first)) {
    for (std::int64_t i = 0; i < count_; ++i) {
      for (std::int64_t d = 0; d < kWidth; ++d) {
        q_[d][i] = p.row(0, head, first + i)[d] * kScale;
      }
    }
    std::fill(top_, top_ + kQueries, kNegInf);
  }
  std::int64_t keys() const { return first_ + count_; }

  /// Attends to the keys [begin, end) behind those before; scores [end − begin, kQueries].
  void attend(std::int64_t begin, std::int64_t end, float* scores) {
    float shrink[kQueries];
    std::copy(top_, top_ + kQueries, shrink);
    for (std::int64_t j = begin; j < end; ++j) score(j, scores + (j - begin) * kQueries);
    for (std::int64_t i = 0; i < kQueries; ++i) {
      shrink[i] = top_[i] == kNegInf ? 0.0f : vmath::exp(shrink[i] - top_[i]);
      sum_[i] *= shrink[i];
    }
    for (std::int64_t j = begin; j < end; ++j) {
      float* of_key = scores + (j - begin) * kQueries;
      for (std::int64_t i = 0; i < kQueries; ++i) {
        of_key[i] = of_key[i] == kNegInf ? 0.0f : vmath::exp(of_key[i] - top_[i]);
        sum_[i] += of_key[i];
      }
    }
    for (std::int64_t i = 0; i < count_; ++i) {
      for (std::int64_t d = 0; d < kWidth; ++d) out_[i][d] *= shrink[i];
      for (std::int64_t j = begin; j < end; ++j) {
        const float* v = p_.row(2, head_, j);
        const float w = scores[(j - begin) * kQueries + i];
        for (std::int64_t d = 0; d < kWidth; ++d) out_[i][d] += w * v[d];
      }
    }
  }
  void store() const {
    for (std::int64_t i = 0; i < count_; ++i) {
      float* to = p_.out_row(head_, first_ + i);
      for (std::int64_t d = 0; d < kWidth; ++d) to[d] = out_[i][d] / sum_[i];
    }
  }

 private:
  void score(std::int64_t j, float* of_key) {
    const float* k = p_.row(1, head_, j);
    std::fill(of_key, of_key + kQueries, 0.0f);
    for (std::int64_t d = 0; d < kWidth; ++d) {
      for (std::int64_t i = 0; i < kQueries; ++i) of_key[i] += k[d] * q_[d][i];
    }
    for (std::int64_t i = 0; i < std::min(kQueries, j - first_); ++i) of_key[i] = kNegInf;
    for (std::int64_t i = 0; i < kQueries; ++i) top_[i] = std::max(top_[i], of_key[i]);
  }

  const Problem& p_;
  std::int64_t head_, first_, count_;
  float q_[kWidth][kQueries] = {};
  float out_[kQueries][kWidth] = {};
  float top_[kQueries], sum_[kQueries] = {};
};

/// Tiles of queries; `at_once` keys are scored before any value is added.
void tiled(const Problem& p, std::int64_t at_once) {
  const std::int64_t tiles = (p.T + kQueries - 1) / kQueries;
  parallel_for(kHeads * tiles, 1, [&](std::int64_t begin, std::int64_t end) {
    std::vector<float> scores(static_cast<std::size_t>(at_once * kQueries));
    for (std::int64_t n = begin; n < end; ++n) {
      Tile tile(p, n / tiles, n % tiles * kQueries);
      for (std::int64_t j = 0; j < tile.keys(); j += at_once) {
        tile.attend(j, std::min(j + at_once, tile.keys()), scores.data());
      }
      tile.store();
    }
  });
}

void kernel(const Problem& p) {
  const AttentionPlan plan = ops::causal_plan(1, kHeads, p.T, p.T, std::int64_t{0}, 0);
  const Tensor out =
      ops::attention(p.qkv.select(1, 0), p.qkv.select(1, 1), p.qkv.select(1, 2), {}, {}, plan, {})
          .out;
  p.out.copy_(out);
}

struct Rung {
  const char* name;
  void (*run)(const Problem&);
};
constexpr Rung kRungs[] = {
    {"definition", definition},
    {"tiles", [](const Problem& p) { tiled(p, p.T); }},
    {"online", [](const Problem& p) { tiled(p, kKeys); }},
    {"kernel", kernel},
};

void climb(std::int64_t T) {
  constexpr double kTimed = 0.5;  // seconds per rung, without those of the peak
  const Problem p(T);
  std::vector<double> first;
  std::printf("%-12s %10s %10s %10s %10s\n", "", "NMSE", "ms", "GFLOP/s", "of peak");
  for (const Rung& rung : kRungs) {
    rung.run(p);
    if (first.empty()) first = p.out.to_vector();
    const double error = nmse(p.out.to_vector(), first);
    Work work;
    Work peak;
    int runs = 0;
    for (; work.seconds < kTimed; ++runs) {
      const double start = seconds();
      rung.run(p);
      work.seconds += seconds() - start;
      work.flops += p.flops();
      fma_peak(peak);
    }
    std::printf("%-12s %10.1e %10.2f %10.1f %9.1f%%\n", rung.name, error, 1e3 * work.seconds / runs,
                work.rate() / 1e9, 100 * work.rate() / peak.rate());
    std::fflush(stdout);
  }
}

}  // namespace
}  // namespace proteus::bench

int main(int argc, char** argv) {
  const long long T = argc > 1 ? std::atoll(argv[1]) : 1024;
  if (T < 1 || T > 65536) {
    std::fprintf(stderr, "cpu_attention_ladder: T: expected 1 to 65,536, got %s\n", argv[1]);
    return 2;
  }
  proteus::bench::climb(T);
}
