// AspaConfig::validate and the slider's budgets.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "aspa/config.h"
#include "aspa/slider.h"
#include "tensor/error.h"

namespace proteus {
namespace {

AspaConfig small() {
  AspaConfig c;
  c.width = 32;
  c.head_width = 8;
  return c;
}

std::string message_of(const AspaConfig& c) {
  try {
    c.validate();
  } catch (const ConfigError& e) {
    return e.what();
  }
  return "";
}

TEST(AspaConfig, AcceptsTheDefaultsWithAWidth) { EXPECT_EQ(message_of(small()), ""); }

TEST(AspaConfig, NamesWhatIsWrong) {
  struct Case {
    std::function<void(AspaConfig&)> change;
    std::string text;
  };
  const std::vector<Case> cases{
      {[](AspaConfig& c) { c.alpha = 1.5; }, "aspa: alpha: expected a number in [0, 1], got 1.5"},
      {[](AspaConfig& c) { c.alpha = -0.25; },
       "aspa: alpha: expected a number in [0, 1], got -0.25"},
      {[](AspaConfig& c) { c.alpha = std::nan(""); },
       "aspa: alpha: expected a number in [0, 1], got nan"},
      {[](AspaConfig& c) { c.k = 17; }, "aspa: k: expected at most 16 (= routed_heads), got 17"},
      {[](AspaConfig& c) { c.k = 0; }, "aspa: k: expected at least 1, got 0"},
      {[](AspaConfig& c) { c.shared_heads = c.routed_heads = 0; },
       "aspa: shared_heads and routed_heads: expected at least one head, got 0 + 0"},
      {[](AspaConfig& c) { c.shared_heads = -1; },
       "aspa: shared_heads: expected at least 0, got -1"},
      {[](AspaConfig& c) { c.routed_heads = -2; },
       "aspa: routed_heads: expected at least 0, got -2"},
      {[](AspaConfig& c) { c.width = 0; }, "aspa: width: expected at least 1, got 0"},
      {[](AspaConfig& c) { c.window = 0; }, "aspa: window: expected at least 1, got 0"},
      {[](AspaConfig& c) { c.shared_window = -4; },
       "aspa: shared_window: expected at least 1, got -4"},
      {[](AspaConfig& c) { c.anchors = -1; }, "aspa: anchors: expected at least 0, got -1"},
      {[](AspaConfig& c) { c.gates_per_head = 0; },
       "aspa: gates_per_head: expected at least 1, got 0"},
      {[](AspaConfig& c) { c.routing_width = 0; },
       "aspa: routing_width: expected at least 1, got 0"},
      {[](AspaConfig& c) { c.head_width = 7; },
       "aspa: head_width: expected an even number (rotary positions turn pairs), got 7"},
      {[](AspaConfig& c) { c.head_width = 6; },
       "aspa: head_width: expected a multiple of 4 (half of it is rotated in pairs), got 6"},
      {[](AspaConfig& c) { c.dropout = 1; },
       "aspa: dropout: expected a number in [0, 0.999], got 1"},
      {[](AspaConfig& c) { c.prototypes.ema = 1.1; },
       "aspa: prototypes.ema: expected a number in [0, 1], got 1.1"},
      {[](AspaConfig& c) { c.balance.u = -1; },
       "aspa: balance.u: expected a number in [0, 10], got -1"},
      {[](AspaConfig& c) { c.dtype = DType::i32; },
       "aspa: dtype: expected f64, f32 or bf16, got i32"},
  };
  for (const Case& test : cases) {
    AspaConfig c = small();
    test.change(c);
    EXPECT_EQ(message_of(c), test.text);
  }
}

TEST(AspaConfig, ALayerOfOneKindOfHeadIsFine) {
  AspaConfig only_shared = small();
  only_shared.routed_heads = 0;
  EXPECT_EQ(message_of(only_shared), "");
  AspaConfig only_routed = small();
  only_routed.shared_heads = 0;
  EXPECT_EQ(message_of(only_routed), "");
}

TEST(Slider, HeadsGoFromAllToK) {
  EXPECT_EQ(slider::routed_heads(0, 16, 2), 16);
  EXPECT_EQ(slider::routed_heads(1, 16, 2), 2);
  EXPECT_EQ(slider::routed_heads(0.5, 16, 4), 8);  // the geometric mean
  EXPECT_EQ(slider::routed_heads(0.3, 5, 5), 5);
  EXPECT_EQ(slider::routed_heads(0.7, 1, 1), 1);
}

TEST(Slider, WindowEnds) {
  for (const std::int64_t n : {0, 1, 15, 16, 17, 1000, 1 << 20}) {
    EXPECT_EQ(slider::window(0, 16, n), n);
    EXPECT_EQ(slider::window(1, 16, n), std::min<std::int64_t>(n, 16));
  }
  EXPECT_EQ(slider::window(0.5, 16, 64), 32);  // 16·√4
  EXPECT_EQ(slider::window(0.5, std::int64_t{1} << 62, 64), 64);
}

TEST(Slider, BudgetsAreMonotoneInAlpha) {
  for (std::int64_t n = 1; n < 400; n += 7) {
    std::int64_t heads = 33;
    std::int64_t window = n;
    double keep = 1;
    for (double alpha = 0; alpha <= 1.0001; alpha += 0.05) {
      EXPECT_LE(slider::routed_heads(alpha, 32, 3), heads);
      EXPECT_LE(slider::window(alpha, 10, n), window);
      EXPECT_LE(slider::keep(alpha, 0.5), keep);
      heads = slider::routed_heads(alpha, 32, 3);
      window = slider::window(alpha, 10, n);
      keep = slider::keep(alpha, 0.5);
    }
  }
}

// The kernels rely on it: neither end of a window moves backwards.
TEST(Slider, WindowsOnlyMoveForward) {
  for (const double alpha : {0.0, 1e-9, 0.01, 0.25, 0.5, 0.75, 0.99, 1.0}) {
    for (const std::int64_t w : {1, 2, 3, 16, 64, 100}) {
      for (std::int64_t n = 0; n < 3000; ++n) {
        const std::int64_t now = slider::window(alpha, w, n);
        const std::int64_t next = slider::window(alpha, w, n + 1);
        ASSERT_GE(now, std::min(n, w)) << alpha << " " << w << " " << n;
        ASSERT_LE(now, n);
        ASSERT_LE(next, now + 1) << alpha << " " << w << " " << n;
        ASSERT_GE(next, now);
      }
    }
  }
}

TEST(Slider, BlendKeepAndLength) {
  EXPECT_EQ(slider::blend(0, 0.3), 1);
  EXPECT_EQ(slider::blend(1, 0.3), 0.3);
  EXPECT_EQ(slider::keep(0, 0.25), 1);
  EXPECT_EQ(slider::keep(1, 0.25), 0.25);
  EXPECT_EQ(slider::alpha_for_length(1024, 1024, 16384), 0);
  EXPECT_EQ(slider::alpha_for_length(16384, 1024, 16384), 1);
  EXPECT_DOUBLE_EQ(slider::alpha_for_length(4096, 1024, 16384), 0.5);
}

}  // namespace
}  // namespace proteus
