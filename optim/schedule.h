// Learning-rate schedules: pure functions of the step.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace proteus {

/// Linear from lr/warmup at step 0 to lr at step warmup − 1.
inline double warmup_factor(std::int64_t step, std::int64_t warmup) {
  if (step >= warmup) return 1;
  return static_cast<double>(step + 1) / static_cast<double>(warmup);
}

/// Warm-up, then lr.
inline double constant_lr(std::int64_t step, double lr, std::int64_t warmup) {
  return lr * warmup_factor(step, warmup);
}

/// Warm-up, then half a cosine from lr towards min_lr, which it would reach at step `steps`, one
/// after the last (Loshchilov & Hutter, arXiv:1608.03983, without restarts).
inline double cosine_lr(std::int64_t step, std::int64_t steps, double lr, double min_lr,
                        std::int64_t warmup) {
  if (step < warmup) return lr * warmup_factor(step, warmup);
  const double span = static_cast<double>(std::max<std::int64_t>(steps - warmup, 1));
  const double progress = std::min(1.0, static_cast<double>(step - warmup) / span);
  constexpr double kPi = 3.141592653589793;
  return min_lr + 0.5 * (lr - min_lr) * (1 + std::cos(kPi * progress));
}

}  // namespace proteus
