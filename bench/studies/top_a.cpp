// Does Top-A help? Reads trained ASPA checkpoints (one per seed) and a judge trained on the same
// text, and prints, as Markdown:
//   1. held-out nats per token with λ·cos(c, E_v) added to the logits, for c read through the final
//      norm, for c as it is, and, as a control, for the c of another token
//   2. on held-out text, how often the filter keeps the true token, beside a smaller top-p that
//      leaves as many candidates
//   3. samples: repetition, distinct n-grams and nats per token under the judge, beside plain
//      samples at lower temperatures
//
// usage: top_a_study DATA JUDGE CHECKPOINT…        (bench/studies/top_a trains them and calls this)
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "autograd/tape.h"
#include "tensor/ops/gemm.h"
#include "train/commands/model_file.h"
#include "train/dataset.h"
#include "train/generate.h"

namespace proteus {
namespace {

constexpr std::int64_t kRows = 16;
constexpr double kTopP = 0.9;
constexpr int kSteps = 100;  // smaller top-p to compare the filter with
constexpr std::array kWeights = {-2.0, -1.0, -0.5, -0.25, 0.25, 0.5, 1.0, 2.0, 4.0};
constexpr std::array kThresholds = {-0.2, -0.1, -0.05, 0.0, 0.05, 0.1, 0.2};
constexpr std::int64_t kSamples = 12;
constexpr std::int64_t kSampleTokens = 400;
constexpr std::size_t kDistinct = 4;  // characters of an n-gram that is counted
constexpr std::size_t kRepeat = 12;   // and of one that should not come twice

/// How c is compared with E_v.
enum class Reading : std::uint8_t { normed, raw, other_token };
constexpr std::array kReadings = {Reading::normed, Reading::raw, Reading::other_token};
constexpr std::array kReadingNames = {"through the final norm", "c as it is",
                                      "control: c of another token"};

/// Rows of x [N, C] with length 1; rows of zeros stay.
Tensor unit_rows(const Tensor& x) {
  const Tensor out = x.clone();
  const std::int64_t C = x.size(1);
  for (std::int64_t n = 0; n < x.size(0); ++n) {
    float* row = out.data<float>() + n * C;
    double square = 0;
    for (std::int64_t c = 0; c < C; ++c) square += static_cast<double>(row[c]) * row[c];
    const auto scale = static_cast<float>(square > 0 ? 1 / std::sqrt(square) : 0);
    for (std::int64_t c = 0; c < C; ++c) row[c] *= scale;
  }
  return out;
}

/// Logits and cosines of one batch, row by row.
struct Scored {
  Tensor logits;                                // [N, V]
  std::array<Tensor, kReadings.size()> cosine;  // [N, V]
  Tensor targets;                               // i32 [N]
};

Scored score(Transformer& model, AspaAttention& last, const Batch& batch) {
  const NoGradGuard no_grad;
  Scored out;
  const std::int64_t N = batch.inputs.numel();
  const std::int64_t V = model.config().vocab;
  const std::int64_t C = model.config().width;
  out.logits = model.logits(batch.inputs).reshape({N, V});
  out.targets = batch.targets.reshape({N});
  const Tensor c = last.consensus().c.reshape({N, C});
  const Tensor E = unit_rows(model.head_weight());
  const auto cosines = [&](const Tensor& read) { return ops::linear(unit_rows(read), E, {}); };
  out.cosine[0] = cosines(model.normed(c));
  out.cosine[1] = cosines(c);
  out.cosine[2] = Tensor::empty({N, V});
  for (std::int64_t n = 0; n < N; ++n) {
    out.cosine[2].select(0, n).copy_(out.cosine[0].select(0, (n + N / 2) % N));
  }
  return out;
}

double nats(const float* logits, const float* cosine, double weight, std::int64_t V,
            std::int64_t target) {
  double top = -1e30;
  for (std::int64_t v = 0; v < V; ++v) top = std::max(top, logits[v] + weight * cosine[v]);
  double sum = 0;
  for (std::int64_t v = 0; v < V; ++v) sum += std::exp(logits[v] + weight * cosine[v] - top);
  return top + std::log(sum) - (logits[target] + weight * cosine[target]);
}

/// What a rule for candidates did on held-out text.
struct Kept {
  double candidates = 0;  // on average
  double truth = 0;       // share of the tokens whose true successor was among them
};

struct HeldOut {
  double plain = 0;
  std::array<std::array<double, kWeights.size()>, kReadings.size()> blended{};
  std::array<Kept, kThresholds.size()> filtered{};
  std::array<Kept, kSteps> smaller{};  // top-p from kTopP / kSteps to kTopP
};

void add_kept(Kept& kept, const std::vector<Candidate>& list, std::int64_t target) {
  kept.candidates += static_cast<double>(list.size());
  const auto is_target = [&](const Candidate& c) { return c.id == target; };
  kept.truth += std::any_of(list.begin(), list.end(), is_target) ? 1 : 0;
}

void add_row(HeldOut& sum, const Scored& s, std::int64_t n) {
  const std::int64_t V = s.logits.size(1);
  const std::int32_t target = s.targets.data<std::int32_t>()[n];
  const float* logits = s.logits.data<float>() + n * V;
  sum.plain += nats(logits, logits, 0, V, target);
  for (std::size_t r = 0; r < kReadings.size(); ++r) {
    const float* cosine = s.cosine[r].data<float>() + n * V;
    for (std::size_t i = 0; i < kWeights.size(); ++i) {
      sum.blended[r][i] += nats(logits, cosine, kWeights[i], V, target);
    }
  }
  const std::span<const float> row(logits, static_cast<std::size_t>(V));
  const auto list = candidates(row, {.top_p = kTopP});
  const float* cosine = s.cosine[0].data<float>() + n * V;
  std::vector<double> agreement;
  for (const Candidate& c : list) agreement.push_back(static_cast<double>(cosine[c.id]));
  for (std::size_t i = 0; i < kThresholds.size(); ++i) {
    add_kept(sum.filtered[i], filter_by_agreement(list, agreement, kThresholds[i]), target);
  }
  const auto all = candidates(row, {});
  std::size_t taken = 0;
  double mass = 0;
  double found = 0;
  for (std::size_t step = 0; step < sum.smaller.size(); ++step) {
    while (mass < kTopP * static_cast<double>(step + 1) / kSteps) {
      if (all[taken].id == target) found = 1;
      mass += all[taken++].probability;
    }
    sum.smaller[step].candidates += static_cast<double>(taken);
    sum.smaller[step].truth += found;
  }
}

HeldOut held_out(Transformer& model, AspaAttention& last, const Dataset& data) {
  const std::int64_t T = model.config().context;
  HeldOut sum;
  double tokens = 0;
  const std::int64_t batches = data.sequential_batches(Split::validation, kRows, T);
  for (std::int64_t i = 0; i < batches; ++i) {
    const Scored s = score(model, last, data.sequential_batch(Split::validation, i, kRows, T));
    for (std::int64_t n = 0; n < s.targets.numel(); ++n) add_row(sum, s, n);
    tokens += static_cast<double>(s.targets.numel());
  }
  const auto share = [&](Kept& k) {
    k.candidates /= tokens;
    k.truth /= tokens;
  };
  sum.plain /= tokens;
  for (auto& reading : sum.blended) {
    for (double& v : reading) v /= tokens;
  }
  for (Kept& k : sum.filtered) share(k);
  for (Kept& k : sum.smaller) share(k);
  return sum;
}

/// The share of true tokens that a smaller top-p keeps with as many candidates.
double truth_at(std::span<const Kept> smaller, double wanted) {
  for (std::size_t i = 0; i + 1 < smaller.size(); ++i) {
    const Kept& a = smaller[i];
    const Kept& b = smaller[i + 1];
    if (b.candidates < wanted) continue;
    const double part =
        b.candidates > a.candidates ? (wanted - a.candidates) / (b.candidates - a.candidates) : 1;
    return a.truth + std::clamp(part, 0.0, 1.0) * (b.truth - a.truth);
  }
  return smaller.back().truth;
}

struct TextFigures {
  double distinct = 0;  // different n-grams of kDistinct characters / all
  double repeated = 0;  // share of the n-grams of kRepeat characters that came before
  double judged = 0;    // nats per token under the judge
};

double new_share(const std::string& text, std::size_t n) {
  std::set<std::string> seen;
  for (std::size_t i = 0; i + n <= text.size(); ++i) seen.insert(text.substr(i, n));
  return static_cast<double>(seen.size()) / static_cast<double>(text.size() - n + 1);
}

double judged(Transformer& judge, const Tokenizer& tokenizer, const std::string& text) {
  const NoGradGuard no_grad;
  const auto ids = tokenizer.encode_option(text, "--prompt");
  const std::int64_t T = judge.config().context;
  const auto rows = (static_cast<std::int64_t>(ids.size()) - 1) / T;
  const auto part = [&](std::int64_t from) {
    return Tensor::from_data<std::int32_t>(
        std::span(ids).subspan(static_cast<std::size_t>(from), static_cast<std::size_t>(rows * T)),
        {rows, T});
  };
  return judge.loss(part(0), part(1)).value().item();
}

struct Setting {
  const char* name;
  double temperature = 0.8;
  double top_p = kTopP;
  const char* top_a = "off";
  double value = 0;
};
constexpr std::array kSettings = {
    Setting{"plain"},
    Setting{"plain, temperature 0.75", 0.75},
    Setting{"plain, temperature 0.7", 0.7},
    Setting{"plain, temperature 0.6", 0.6},
    Setting{"filter, τ = 0", 0.8, kTopP, "filter", 0},
    Setting{"filter, τ = 0.1", 0.8, kTopP, "filter", 0.1},
    Setting{"blend, λ = 0.5", 0.8, kTopP, "blend", 0.5},
    Setting{"blend, λ = 1", 0.8, kTopP, "blend", 1},
    Setting{"blend, λ = 2", 0.8, kTopP, "blend", 2},
};

TextFigures sample(LoadedModel& loaded, Transformer& judge, const Setting& setting) {
  SamplingOptions o;
  o.sample_tokens = kSampleTokens;
  o.temperature = setting.temperature;
  o.top_p = setting.top_p;
  o.top_a = setting.top_a;
  (o.top_a == "filter" ? o.top_a_threshold : o.top_a_weight) = setting.value;
  TextFigures mean;
  for (std::int64_t i = 0; i < kSamples; ++i) {
    const std::string text =
        generate(*loaded.model, loaded.tokenizer, o, static_cast<std::uint64_t>(100 + i)).text;
    mean.distinct += new_share(text, kDistinct) / kSamples;
    mean.repeated += (1 - new_share(text, kRepeat)) / kSamples;
    mean.judged += judged(judge, loaded.tokenizer, text) / kSamples;
  }
  return mean;
}

enum class Sign : std::uint8_t { shown, hidden };

/// A row of figures, one per seed, and their mean; those of differences show their sign.
template <class Seeds, class Get>
void print_row(const std::string& name, const Seeds& seeds, int digits, Sign sign, Get&& get) {
  const auto cell = [&](double value) {
    return sign == Sign::shown ? fmt::format(" {:+.{}f} |", value, digits)
                               : fmt::format(" {:.{}f} |", value, digits);
  };
  fmt::print("| {} |", name);
  double sum = 0;
  for (const auto& seed : seeds) {
    fmt::print("{}", cell(get(seed)));
    sum += get(seed);
  }
  fmt::print("{}\n", cell(sum / static_cast<double>(seeds.size())));
}

void print_header(const std::string& first, std::size_t seeds) {
  fmt::print("\n| {} |", first);
  for (std::size_t i = 0; i < seeds; ++i) fmt::print(" checkpoint {} |", i + 1);
  fmt::print(" mean |\n|---|");
  for (std::size_t i = 0; i <= seeds; ++i) fmt::print("---|");
  fmt::print("\n");
}

void print_held_out(const std::vector<HeldOut>& seeds) {
  fmt::print("\nHeld-out nats per token, plain, and what λ·cos adds to them:\n");
  print_header("", seeds.size());
  print_row("plain", seeds, 4, Sign::hidden, [](const HeldOut& h) { return h.plain; });
  for (std::size_t r = 0; r < kReadings.size(); ++r) {
    for (std::size_t i = 0; i < kWeights.size(); ++i) {
      print_row(fmt::format("{}, λ = {}", kReadingNames[r], kWeights[i]), seeds, 4, Sign::shown,
                [&](const HeldOut& h) { return h.blended[r][i] - h.plain; });
    }
  }
  fmt::print(
      "\nFilter after top-p {}: candidates left, per cent of true tokens among them, and how "
      "many more these are than with a smaller top-p that leaves as many candidates:\n",
      kTopP);
  for (std::size_t i = 0; i < kThresholds.size(); ++i) {
    if (i == 0) print_header("", seeds.size());
    const auto name = [&](const char* what) {
      return fmt::format("τ = {}: {}", kThresholds[i], what);
    };
    print_row(name("candidates"), seeds, 2, Sign::hidden,
              [&](const HeldOut& h) { return h.filtered[i].candidates; });
    print_row(name("true tokens"), seeds, 2, Sign::hidden,
              [&](const HeldOut& h) { return 100 * h.filtered[i].truth; });
    print_row(name("more than top-p"), seeds, 2, Sign::shown, [&](const HeldOut& h) {
      return 100 * (h.filtered[i].truth - truth_at(h.smaller, h.filtered[i].candidates));
    });
  }
}

int run(const std::string& file, const std::string& judge_path,
        const std::vector<std::string>& paths) {
  LoadedModel judge = load_model(judge_path);
  std::vector<HeldOut> figures;
  std::vector<std::array<TextFigures, kSettings.size()>> texts;
  for (const std::string& path : paths) {
    LoadedModel loaded = load_model(path);
    const Dataset data = Dataset::from_file(file, loaded.tokenizer);
    AspaAttention* last = aspa_layer(*loaded.model, loaded.model->layers() - 1);
    if (!last) throw ConfigError(path + ": expected an ASPA checkpoint");
    last->watch_consensus(true);
    figures.push_back(held_out(*loaded.model, *last, data));
    texts.emplace_back();
    for (std::size_t i = 0; i < kSettings.size(); ++i) {
      texts.back()[i] = sample(loaded, *judge.model, kSettings[i]);
    }
  }
  print_held_out(figures);
  const auto print_texts = [&](const char* title, double TextFigures::*member) {
    print_header(title, texts.size());
    for (std::size_t i = 0; i < kSettings.size(); ++i) {
      print_row(kSettings[i].name, texts, 3, Sign::hidden,
                [&](const auto& t) { return t[i].*member; });
    }
  };
  fmt::print("\n{} samples of {} characters each, top-p {}, temperature 0.8:\n", kSamples,
             kSampleTokens, kTopP);
  print_texts("nats under the judge", &TextFigures::judged);
  print_texts("distinct 4-grams", &TextFigures::distinct);
  print_texts("repeated 12-grams", &TextFigures::repeated);
  return 0;
}

}  // namespace
}  // namespace proteus

int main(int argc, char** argv) {
  if (argc < 4) {
    fmt::print(stderr, "usage: top_a_study DATA JUDGE CHECKPOINT...\n");
    return 2;
  }
  try {
    return proteus::run(argv[1], argv[2], std::vector<std::string>(argv + 3, argv + argc));
  } catch (const std::exception& error) {
    fmt::print(stderr, "top_a_study: {}\n", error.what());
    return 2;
  }
}
