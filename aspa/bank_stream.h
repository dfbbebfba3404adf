// The stream of one routed head as decoding keeps it: its window and anchors, and the bank of what
// has left the window (aspa/bank.h). Decoding offers the same entries at the same times as a
// forward pass over the whole sequence does.
#pragma once

#include <array>
#include <vector>

#include "nn/decode.h"
#include "tensor/ops/bank.h"
#include "tensor/ops/rope.h"

namespace proteus {

/// How a stream's bank is run: the layer's, the same for all of its heads but for their number.
struct BankUse {
  BankRule rule;
  std::int64_t slots = 0;  ///< M at this alpha; 0: a query sees its window only
  std::int64_t stride = 1;
  std::int64_t rotated = 0;  ///< width of a key that is rotated
};

/// What the bank judges an entry by, and where it stands in raw time.
template <class A>
struct JudgedKey {
  std::int32_t position = 0;
  std::int32_t gate = 0;
  A score = 0;
};

template <class A>
class BankStream {
 public:
  BankStream(std::int64_t D, std::int64_t anchors, CacheType type)
      : D_(D), anchors_(anchors), stream_(D, anchors, type), slots_(D, type), plain_(D, type) {}

  std::int64_t size() const { return stream_.size(); }
  std::int64_t held() const { return static_cast<std::int64_t>(held_.size()); }
  std::int64_t bytes() const {
    return stream_.bytes() + slots_.bytes() + plain_.bytes() +
           static_cast<std::int64_t>(held_.capacity() * sizeof(BankEntry<A>) +
                                     judged_.capacity() * sizeof(JudgedKey<A>));
  }

  /// To be called before the first entry and the first query of every raw time: at the first one of
  /// a stride it offers what has left the window. `first` is the oldest entry, other than anchors,
  /// that a window ending with the newest one has.
  void refresh(const BankUse& use, std::int64_t head, std::int64_t position, std::int64_t first) {
    if (position / use.stride == stride_) return;
    stride_ = position / use.stride;
    while (held() > use.slots) drop_worst();  // alpha has moved
    const std::int64_t begin = std::max({offered_, anchors_, stream_.first()});
    if (use.slots > 0 && first > begin) offer(use, head, begin, first);
    if (first <= offered_) return;
    judged_.erase(
        judged_.begin(),
        judged_.begin() +
            std::min<std::int64_t>(first - offered_, static_cast<std::int64_t>(judged_.size())));
    offered_ = first;
    stream_.forget(offered_);
  }

  /// A stream whose layer has a bank is told how to judge each entry.
  void append(const A* k, const A* v, A bias) { stream_.append(k, v, bias); }
  void append(const A* k, const A* v, A bias, const JudgedKey<A>& judged) {
    stream_.append(k, v, bias);
    judged_.push_back(judged);
  }
  /// Without slots: no later query sees entries before `lo`, other than anchors.
  void forget(std::int64_t lo) { stream_.forget(lo); }

  /// attend() to the entries from `lo` on and the anchors; with a bank to everything from the first
  /// entry that was not yet offered, and to the bank.
  void attend(const BankUse& use, const A* q, std::int64_t lo, A sink, A sink_weight,
              A* out) const {
    if (use.slots == 0) return stream_.attend(q, lo, sink, sink_weight, out);
    const auto seen = stream_.seen(offered_);
    const std::array<CacheRange<A>, 3> ranges{seen[0], CacheRange<A>{&slots_, 0, slots_.rows()},
                                              seen[1]};
    proteus::attend<A>(q, D_, ranges, sink, sink_weight, out);
  }

 private:
  // The keys of the entries [begin, end) before rotation, [end − begin, 1, D].
  Tensor plain_keys(const BankUse& use, std::int64_t begin, std::int64_t end) const {
    const Tensor k = Tensor::empty({end - begin, 1, D_}, dtype_of<A>());
    Tensor position = Tensor::empty({end - begin}, DType::i32);
    for (std::int64_t e = begin; e < end; ++e) {
      stream_.kept().k.read(stream_.row_of(e), k.template data<A>() + (e - begin) * D_);
      position.data<std::int32_t>()[e - begin] = judged(e).position;
    }
    return use.rotated > 0 ? ops::rope(k, position, {.R = use.rotated, .inverse = true}) : k;
  }

  const JudgedKey<A>& judged(std::int64_t entry) const {
    return judged_[static_cast<std::size_t>(entry - offered_)];
  }

  void offer(const BankUse& use, std::int64_t head, std::int64_t begin, std::int64_t end) {
    const Tensor plain = plain_keys(use, begin, end);
    std::vector<A> value(static_cast<std::size_t>(D_));
    std::vector<A> other(static_cast<std::size_t>(D_));
    for (std::int64_t e = begin; e < end; ++e) {
      const A* key = plain.template data<A>() + (e - begin) * D_;
      const std::int64_t row = stream_.row_of(e);
      stream_.kept().v.read(row, value.data());
      const auto alike = [&](std::int64_t m) {
        plain_.read(m, other.data());
        if (!points_alike<A, A>(key, other.data(), D_, use.rule.delta)) return false;
        slots_.v.read(m, other.data());
        return points_alike<A, A>(value.data(), other.data(), D_, use.rule.delta_v);
      };
      const BankEntry<A> offered{e, judged(e).gate, judged(e).score};
      const std::int64_t slot =
          bank_slot(use.rule, use.slots, held_.data(), held(), offered, head, alike);
      if (slot < 0) continue;
      if (slot == held()) held_.emplace_back();
      held_[static_cast<std::size_t>(slot)] = offered;
      slots_.copy_row(slot, stream_.kept(), row);
      plain_.set(slot, key);
    }
  }

  void drop_worst() {
    const auto worst = std::min_element(
        held_.begin(), held_.end(), [](const auto& a, const auto& b) { return a.score < b.score; });
    const std::int64_t slot = worst - held_.begin();
    held_.erase(worst);
    slots_.erase(slot, 1);
    plain_.erase(slot, 1);
  }

  std::int64_t D_;
  std::int64_t anchors_;
  KeyStream<A> stream_;
  std::int64_t stride_ = 0;           // of the last refresh
  std::int64_t offered_ = 0;          // entries before this one were offered, or are anchors
  std::vector<JudgedKey<A>> judged_;  // from entry offered_ on
  KeyCache<A> slots_;
  CachedRows<A> plain_;  // keys of the slots before rotation
  std::vector<BankEntry<A>> held_;
};

}  // namespace proteus
