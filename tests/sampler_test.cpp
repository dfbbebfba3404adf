// train/sampler.h.
#include "train/sampler.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "tensor/error.h"
#include "tests/error_text.h"

namespace proteus {
namespace {

using testing::message_of;

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

/// Probabilities 0.5, 0.25, 0.125, 0.125 for ids 2, 0, 1, 3.
const std::vector<float> kLogits = {std::log(0.25f), std::log(0.125f), std::log(0.5f),
                                    std::log(0.125f)};

std::vector<std::int32_t> ids_of(const std::vector<Candidate>& list) {
  std::vector<std::int32_t> ids;
  for (const Candidate& c : list) ids.push_back(c.id);
  return ids;
}

using Ids = std::vector<std::int32_t>;

TEST(Sampler, OrdersByProbabilityThenId) {
  const auto list = candidates(kLogits, {});
  EXPECT_EQ(ids_of(list), (Ids{2, 0, 1, 3}));
  EXPECT_NEAR(list[0].probability, 0.5, 1e-6);
  EXPECT_NEAR(list[3].probability, 0.125, 1e-6);
}

TEST(Sampler, TemperatureSharpensAndFlattens) {
  EXPECT_NEAR(candidates(kLogits, {.temperature = 0.5})[0].probability,
              0.25 / (0.25 + 0.0625 + 2 * 0.015625), 1e-6);
  EXPECT_NEAR(candidates(kLogits, {.temperature = 1e6})[3].probability, 0.25, 1e-4);
  EXPECT_NEAR(candidates(kLogits, {.temperature = 1e-300})[0].probability, 1, 1e-12);
}

TEST(Sampler, TopKKeepsTheLargest) {
  const auto list = candidates(kLogits, {.top_k = 3});
  EXPECT_EQ(ids_of(list), (Ids{2, 0, 1}));
  EXPECT_NEAR(list[0].probability, 0.5 / 0.875, 1e-6);
  EXPECT_EQ(candidates(kLogits, {.top_k = 99}).size(), 4u);
}

TEST(Sampler, TopPKeepsTheFewestThatReachIt) {
  EXPECT_EQ(ids_of(candidates(kLogits, {.top_p = 0.4})), (Ids{2}));
  EXPECT_EQ(ids_of(candidates(kLogits, {.top_p = 0.6})), (Ids{2, 0}));
  EXPECT_EQ(ids_of(candidates(kLogits, {.top_p = 0.8})), (Ids{2, 0, 1}));
  EXPECT_EQ(ids_of(candidates(kLogits, {.top_p = 1})), (Ids{2, 0, 1, 3}));
  EXPECT_EQ(ids_of(candidates(kLogits, {.top_p = 1e-12})), (Ids{2})) << "never empty";
  // top-p looks at what top-k has left: 0.5 and 0.25 become 2/3 and 1/3.
  EXPECT_EQ(ids_of(candidates(kLogits, {.top_k = 2, .top_p = 0.66})), (Ids{2}));
}

TEST(Sampler, ZeroTemperatureTakesTheLargestAndTheLowerId) {
  const std::vector<float> tied = {1, 5, 5, 2};
  for (std::uint64_t i = 0; i < 20; ++i) {
    EXPECT_EQ(sample_token(tied, {.temperature = 0}, {1, 0}, i), 1);
  }
}

TEST(Sampler, DrawsWithTheRightFrequencies) {
  int counts[4] = {};
  constexpr int kDraws = 20000;
  for (std::uint64_t i = 0; i < kDraws; ++i) ++counts[sample_token(kLogits, {}, {9, 4}, i)];
  const double expected[] = {0.25, 0.125, 0.5, 0.125};
  for (int id = 0; id < 4; ++id) {
    EXPECT_NEAR(static_cast<double>(counts[id]) / kDraws, expected[id], 0.015) << id;
  }
}

TEST(Sampler, IsAFunctionOfKeyAndIndex) {
  Ids first;
  Ids again;
  Ids other;
  for (std::uint64_t i = 0; i < 64; ++i) {
    first.push_back(sample_token(kLogits, {}, {1, 2}, i));
    again.push_back(sample_token(kLogits, {}, {1, 2}, i));
    other.push_back(sample_token(kLogits, {}, {1, 3}, i));
  }
  EXPECT_EQ(first, again);
  EXPECT_NE(first, other);
}

TEST(Sampler, NeverDrawsWhatIsMasked) {
  const std::vector<float> masked = {-kInf, 0, -kInf, 0};
  EXPECT_EQ(ids_of(candidates(masked, {})), (Ids{1, 3}));
  for (std::uint64_t i = 0; i < 200; ++i) EXPECT_EQ(sample_token(masked, {}, {1, 1}, i) % 2, 1);
}

// Three candidates at 0.5, 0.25, 0.25, which agree by 0.2, 0.6 and −0.4.
const std::vector<Candidate> kList = {{7, 0.5}, {2, 0.25}, {4, 0.25}};
const std::vector<double> kAgreement = {0.2, 0.6, -0.4};

TEST(TopA, FilterKeepsWhatAgrees) {
  const auto at = [](double threshold) {
    return filter_by_agreement(kList, kAgreement, threshold);
  };
  EXPECT_EQ(ids_of(at(-0.4)), (Ids{7, 2, 4}));
  EXPECT_EQ(ids_of(at(0)), (Ids{7, 2}));
  EXPECT_NEAR(at(0)[0].probability, 2.0 / 3, 1e-12);
  EXPECT_NEAR(at(0)[1].probability, 1.0 / 3, 1e-12);
  EXPECT_EQ(ids_of(at(0.2)), (Ids{7, 2})) << "at the threshold stays";
  EXPECT_EQ(ids_of(at(0.5)), (Ids{2}));
  EXPECT_EQ(ids_of(at(0.9)), (Ids{2})) << "never empty";
  EXPECT_EQ(at(0.9)[0].probability, 1);
  EXPECT_EQ(ids_of(filter_by_agreement(kList, std::vector<double>{0.1, 0.1, 0.1}, 0.5)), (Ids{7}));
}

TEST(TopA, BlendAddsToTheLogits) {
  const double weight = 2;
  const auto list = blend_agreement(kList, kAgreement, weight);
  const double a = 0.5 * std::exp(0.4);
  const double b = 0.25 * std::exp(1.2);
  const double c = 0.25 * std::exp(-0.8);
  EXPECT_EQ(ids_of(list), (Ids{2, 7, 4})) << "most probable first, again";
  EXPECT_NEAR(list[0].probability, b / (a + b + c), 1e-12);
  EXPECT_NEAR(list[1].probability, a / (a + b + c), 1e-12);
  EXPECT_NEAR(list[2].probability, c / (a + b + c), 1e-12);
  // A temperature of almost nothing: only the best is left, and no number goes bad.
  const auto cold = blend_agreement({{1, 1.0}, {0, 0.0}}, std::vector<double>{-1, 1}, kInf);
  EXPECT_EQ(cold[0].id, 1);
  EXPECT_EQ(cold[0].probability, 1);
}

TEST(TopA, NothingToSayChangesNoBit) {
  const auto same = [](const std::vector<Candidate>& a, const std::vector<Candidate>& b) {
    if (a.size() != b.size()) return false;
    for (std::size_t i = 0; i < a.size(); ++i) {
      if (a[i].id != b[i].id || a[i].probability != b[i].probability) return false;
    }
    return true;
  };
  const auto list = candidates(kLogits, {.temperature = 0.7, .top_p = 0.9});
  const std::vector<double> agreement(list.size(), 0.3);
  EXPECT_TRUE(same(blend_agreement(list, agreement, 0), list));
  EXPECT_TRUE(same(filter_by_agreement(list, agreement, 0.3), list));
  EXPECT_TRUE(same(blend_agreement(list, {}, 3), list));
  EXPECT_TRUE(same(filter_by_agreement(list, {}, 1), list));
}

TEST(TopA, DoesWhatTheSettingsSay) {
  SamplerConfig c{.temperature = 0.5, .top_a = TopA::blend, .top_a_weight = 1};
  EXPECT_EQ(ids_of(apply_top_a(kList, kAgreement, c)), (Ids{2, 7, 4}));  // λ / temperature = 2
  c.top_a = TopA::filter;
  c.top_a_threshold = 0.5;
  EXPECT_EQ(ids_of(apply_top_a(kList, kAgreement, c)), (Ids{2}));
  c.top_a = TopA::off;
  EXPECT_EQ(ids_of(apply_top_a(kList, kAgreement, c)), (Ids{7, 2, 4}));
}

TEST(TopA, AgreementIsACosine) {
  const Tensor embedding = Tensor::from({1, 0, 0, 2, -3, -3, 0, 0}, {4, 2});
  const std::vector<Candidate> list = {{2, 0.4}, {1, 0.3}, {0, 0.2}, {3, 0.1}};
  const auto a = agreement_with(Tensor::from({2, 2}, {2}), embedding, list);
  ASSERT_EQ(a.size(), 4u);
  EXPECT_NEAR(a[0], -1, 1e-12);
  EXPECT_NEAR(a[1], std::sqrt(0.5), 1e-12);
  EXPECT_NEAR(a[2], std::sqrt(0.5), 1e-12);
  EXPECT_EQ(a[3], 0) << "a row of zeros";
  EXPECT_TRUE(agreement_with(Tensor::zeros({2}), embedding, list).empty());
}

TEST(TopA, RefusesWhatDoesNotFit) {
  EXPECT_EQ(message_of<ShapeError>([] {
              filter_by_agreement(kList, std::vector<double>{1, 2}, 0);
            }),
            "filter_by_agreement(list, agreement, threshold): agreement: expected [3] (= "
            "candidates) or none, got [2]");
  EXPECT_EQ(message_of<ShapeError>([] {
              agreement_with(Tensor::zeros({3}), Tensor::zeros({4, 2}), kList);
            }),
            "agreement_with(consensus, embedding, list): consensus: expected [2] (= the width of "
            "embedding), got [3]");
  EXPECT_THROW(candidates(kLogits, {.top_a_threshold = static_cast<double>(kNan)}), ConfigError);
  EXPECT_THROW(candidates(kLogits, {.top_a_weight = -1}), ConfigError);
}

TEST(Sampler, RefusesBadNumbers) {
  const auto run = [](std::vector<float> logits, SamplerConfig config) {
    return [=] { sample_token(logits, config, {}, 0); };
  };
  EXPECT_EQ(message_of<NumericError>(run({0, kNan}, {})),
            "sample_token(logits, …): logits[1] is nan; expected finite numbers (or −inf)");
  EXPECT_THROW(run({kInf, 0}, {})(), NumericError);
  EXPECT_THROW(run({-kInf, -kInf}, {})(), NumericError);
  EXPECT_THROW(run({}, {})(), NumericError);
  EXPECT_EQ(message_of<ConfigError>(run({0}, {.temperature = -1})),
            "--temperature: expected a number of at least 0, got -1");
  EXPECT_EQ(message_of<ConfigError>(run({0}, {.top_k = -1})),
            "--top-k: expected at least 0 (= all), got -1");
  EXPECT_EQ(message_of<ConfigError>(run({0}, {.top_p = 0})),
            "--top-p: expected a number in (0, 1], got 0");
  EXPECT_THROW(run({0}, {.temperature = static_cast<double>(kNan)})(), ConfigError);
}

}  // namespace
}  // namespace proteus
