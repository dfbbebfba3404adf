#include "aspa/reference_bank.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "aspa/slider.h"

namespace proteus {

void ReferenceBank::advance(std::int64_t t) {
  if (t % config_.bank.stride != 0) return;
  const auto n = static_cast<std::int64_t>(std::accumulate(is_key_, is_key_ + t, 0.0));
  const std::int64_t first = n - slider::window(config_.alpha, config_.window, n);
  std::int64_t entry = 0;
  for (std::int64_t j = 0; j < t; ++j) {
    if (is_key_[j] == 0) continue;
    if (entry >= std::max(offered_, config_.anchors) && entry < first) offer({j, entry});
    ++entry;
  }
  offered_ = std::max(offered_, first);
}

bool ReferenceBank::holds(std::int64_t t) const {
  return std::any_of(held_.begin(), held_.end(), [&](const Entry& e) { return e.time == t; });
}

double ReferenceBank::cosine(const std::vector<double>& rows, const Entry& a,
                             const Entry& b) const {
  const auto D = static_cast<std::size_t>(config_.head_width);
  const double* x = rows.data() + at(a) * D;
  const double* y = rows.data() + at(b) * D;
  const auto dot = [&](const double* p, const double* q) {
    return std::inner_product(p, p + D, q, 0.0);
  };
  return dot(x, y) / std::sqrt(dot(x, x) * dot(y, y));
}

bool ReferenceBank::alike(const Entry& a, const Entry& b) const {
  return keys_.gate[at(a)] == keys_.gate[at(b)] && cosine(keys_.k, a, b) > config_.bank.delta &&
         cosine(keys_.v, a, b) > config_.bank.delta_v;
}

void ReferenceBank::offer(const Entry& e) {
  const auto same =
      std::find_if(held_.begin(), held_.end(), [&](const Entry& held) { return alike(held, e); });
  if (same != held_.end()) {
    if (keys_.score[at(e)] > keys_.score[at(*same)]) *same = e;
    return;
  }
  const std::int64_t slots = slider::bank_slots(config_.alpha, config_.bank.slots);
  if (static_cast<std::int64_t>(held_.size()) < slots) {
    held_.push_back(e);
  } else if (Entry* room = victim(e)) {
    *room = e;
  }
}

ReferenceBank::Entry* ReferenceBank::victim(const Entry& e) {
  const auto least = [&](auto&& value) {
    return &*std::min_element(held_.begin(), held_.end(),
                              [&](const Entry& a, const Entry& b) { return value(a) < value(b); });
  };
  const auto score = [&](const Entry& x) { return keys_.score[at(x)]; };
  switch (config_.bank.eviction) {
    case BankEviction::score: {
      Entry* worst = least(score);
      return score(e) > score(*worst) ? worst : nullptr;
    }
    case BankEviction::fifo:
      return least([](const Entry& x) { return x.number; });
    case BankEviction::random: {
      const double draw = philox(config_.seed, static_cast<std::uint64_t>(e.number),
                                 static_cast<std::uint64_t>(bh_ % config_.routed_heads))
                              .v[0];
      return &held_[static_cast<std::size_t>(draw / 4294967296.0 *
                                             static_cast<double>(held_.size()))];
    }
  }
  return nullptr;
}

}  // namespace proteus
