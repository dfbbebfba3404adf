// The bank of one packed stream once more, in f64 and as plainly as docs/aspa.md states it, for the
// masked-dense reference (aspa/reference.h).
#pragma once

#include <cstdint>
#include <vector>

#include "aspa/config.h"

namespace proteus {

class ReferenceBank {
 public:
  /// What keys are judged by, of token t of (sequence, head) at [(b·Hr + h)·T + t].
  struct Keys {
    std::vector<double> k, v;  ///< [.., D], k before rotation
    std::vector<double> score;
    std::vector<std::int64_t> gate;
  };

  /// The stream of (sequence, head) number bh: is_key [T] marks its tokens. All outlive this.
  ReferenceBank(const AspaConfig& config, const Keys& keys, std::int64_t bh, std::int64_t T,
                const double* is_key)
      : config_(config), keys_(keys), bh_(bh), T_(T), is_key_(is_key) {}

  /// To be called for t = 0, 1, 2, …: refreshes the bank where a stride begins.
  void advance(std::int64_t t);
  /// The first entry that was not yet offered.
  std::int64_t offered() const { return offered_; }
  /// Whether the bank holds the key of token t.
  bool holds(std::int64_t t) const;

 private:
  struct Entry {
    std::int64_t time;
    std::int64_t number;
  };

  void offer(const Entry& e);
  std::size_t at(const Entry& e) const { return static_cast<std::size_t>(bh_ * T_ + e.time); }
  double cosine(const std::vector<double>& rows, const Entry& a, const Entry& b) const;
  bool alike(const Entry& a, const Entry& b) const;
  /// The entry that makes room for e; nullptr if e is not good enough.
  Entry* victim(const Entry& e);

  const AspaConfig& config_;
  const Keys& keys_;
  std::int64_t bh_, T_;
  const double* is_key_;
  std::vector<Entry> held_;
  std::int64_t offered_ = 0;
};

}  // namespace proteus
