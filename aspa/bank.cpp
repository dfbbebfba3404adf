#include "aspa/bank.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "aspa/attention.h"
#include "aspa/slider.h"
#include "autograd/attention.h"
#include "autograd/checkpoint.h"
#include "autograd/elementwise.h"
#include "autograd/take.h"
#include "autograd/tape.h"
#include "autograd/view.h"
#include "tensor/error.h"

namespace proteus {
namespace {

// The tensors that a plan is made from, on the CPU.
struct Host {
  Tensor q_offsets, k_offsets, q_time, hi, first, slots;

  Host(const RoutedRows& rows, const Tensor& first_any, const Tensor& slots_any)
      : q_offsets(rows.query.offsets.to(kCpu)),
        k_offsets(rows.key.offsets.to(kCpu)),
        q_time(rows.query.time.to(kCpu)),
        hi(rows.hi.to(kCpu)),
        first(first_any.to(kCpu)),
        slots(slots_any.to(kCpu)) {}
};

const std::int32_t* numbers(const Tensor& t) { return t.data<std::int32_t>(); }

// Lists keys and segments, queries in the order of their rows.
class PlanBuilder {
 public:
  PlanBuilder(const Host& host, std::int64_t stride, std::int64_t anchors, std::int64_t sequences)
      : host_(host),
        stride_(stride),
        anchors_(anchors),
        sequences_(sequences),
        hi_(static_cast<std::size_t>(host.hi.numel())) {}

  void add_stream(std::int64_t stream) {
    const std::int64_t end = numbers(host_.q_offsets)[stream + 1];
    std::int64_t q = numbers(host_.q_offsets)[stream];
    while (q < end) {
      const std::int64_t begin = q;
      // Where nothing more was offered, nothing has changed.
      while (q < end && first(stream, q) == first(stream, begin)) ++q;
      add_segment(stream, begin, q);
    }
  }

  BankPlan plan(std::int64_t key_rows, Device device) const {
    const auto queries = static_cast<std::int64_t>(hi_.size());
    Tensor segments = Tensor::zeros({static_cast<std::int64_t>(segments_.size()), 8}, DType::i64);
    std::copy(segments_.begin(), segments_.end(),
              reinterpret_cast<AttentionSegment*>(segments.data<std::int64_t>()));
    const Tensor row =
        Tensor::from_data<std::int32_t>(rows_, {static_cast<std::int64_t>(rows_.size())}, device);
    return {.keys = ops::row_index(row, key_rows),
            .attention = {.segments = segments.to(device),
                          .lo = Tensor::zeros({queries}, DType::i32, device),
                          .hi = Tensor::from_data<std::int32_t>(hi_, {queries}, device),
                          .slots = queries,
                          .anchors = 0}};
  }

 private:
  std::int32_t first(std::int64_t stream, std::int64_t q) const {
    const std::int64_t stride = numbers(host_.q_time)[q] / stride_;
    return numbers(host_.first)[stream * host_.first.size(1) + stride];
  }

  void add_segment(std::int64_t stream, std::int64_t begin, std::int64_t end) {
    const std::int32_t base = numbers(host_.k_offsets)[stream];
    const std::int32_t from = first(stream, begin);
    const std::int64_t stride = numbers(host_.q_time)[begin] / stride_;
    const auto k_row = static_cast<std::int64_t>(rows_.size());
    const auto fixed = static_cast<std::int32_t>(std::min<std::int64_t>(anchors_, from));
    for (std::int32_t e = 0; e < fixed; ++e) rows_.push_back(base + e);
    const std::int64_t M = host_.slots.size(2);
    const std::int32_t* slot = numbers(host_.slots) + (stream * host_.slots.size(1) + stride) * M;
    for (std::int64_t m = 0; m < M && slot[m] >= 0; ++m) rows_.push_back(slot[m]);
    const auto prefix = static_cast<std::int32_t>(static_cast<std::int64_t>(rows_.size()) - k_row);
    const std::int32_t* hi = numbers(host_.hi);
    for (std::int32_t e = from; e < hi[end - 1]; ++e) rows_.push_back(base + e);
    for (std::int64_t q = begin; q < end; ++q) {
      hi_[static_cast<std::size_t>(q)] = prefix + hi[q] - from;
    }
    segments_.push_back({.q_row = begin,
                         .k_row = k_row,
                         .slot = begin,
                         .range = begin,
                         .q_count = end - begin,
                         .k_count = static_cast<std::int64_t>(rows_.size()) - k_row,
                         .head = stream / sequences_});
    if (rows_.size() > std::numeric_limits<std::int32_t>::max()) {
      throw ShapeError(fmt::format(
          "aspa: bank: more than {} keys for all strides together; use a longer bank stride than "
          "{} or smaller batches",
          std::numeric_limits<std::int32_t>::max(), stride_));
    }
  }

  const Host& host_;
  std::int64_t stride_, anchors_, sequences_;
  std::vector<std::int32_t> rows_;
  std::vector<std::int32_t> hi_;
  std::vector<AttentionSegment> segments_;
};

}  // namespace

Tensor bank_first(const PackedRows& keys, const Tensor& visible, std::int64_t stride) {
  const std::int64_t T = keys.tokens() / std::max<std::int64_t>(1, keys.sequences());
  const std::int64_t strides = (T + stride - 1) / stride;
  const std::int64_t streams = keys.offsets.numel() - 1;
  const Tensor offsets = keys.offsets.to(kCpu);
  const Tensor time = keys.time.to(kCpu);
  const Tensor seen = visible.to(kCpu);
  Tensor out = Tensor::empty({streams, strides}, DType::i32);
  for (std::int64_t s = 0; s < streams; ++s) {
    const std::int32_t begin = numbers(offsets)[s];
    const std::int32_t end = numbers(offsets)[s + 1];
    std::int32_t row = begin;
    for (std::int64_t i = 0; i < strides; ++i) {
      while (row < end && numbers(time)[row] < i * stride) ++row;
      const std::int32_t entries = row - begin;
      out.data<std::int32_t>()[s * strides + i] = entries - numbers(seen)[entries];
    }
  }
  return out.to(keys.token.device());
}

BankPlan bank_plan(const RoutedRows& rows, const Tensor& first, const Tensor& slots,
                   std::int64_t stride, std::int64_t anchors) {
  const Host host(rows, first, slots);
  PlanBuilder builder(host, stride, anchors, rows.query.sequences());
  for (std::int64_t s = 0; s + 1 < rows.query.offsets.numel(); ++s) builder.add_stream(s);
  return builder.plan(rows.key.rows(), rows.lo.device());
}

Variable bank_attention(const Variable& q, const Variable& k, const Variable& v,
                        const Variable& key_bias, const Variable& sink, const BankPlan& plan,
                        const AttentionOptions& options) {
  const auto taken = [&](const Variable& rows) {
    const std::int64_t width = rows.value().rank() == 1 ? 1 : rows.size(2);
    return take_rows(reshape(rows, {rows.size(0), width}), plan.keys);
  };
  const auto heads = [&](const Variable& rows) {
    return reshape(taken(rows), {plan.keys.taken(), 1, rows.size(2)});
  };
  const Variable bias =
      key_bias.defined() ? reshape(taken(key_bias), {plan.keys.taken()}) : Variable();
  return attention(q, heads(k), heads(v), bias, sink, plan.attention, options);
}

BankRule bank_rule(const AspaConfig& c) {
  return {c.bank.delta, c.bank.delta_v, c.bank.eviction, c.seed};
}

double bank_pairs(const AspaConfig& c, double entries, double length) {
  const std::int64_t slots = slider::bank_slots(c.alpha, c.bank.slots);
  const auto n = static_cast<std::int64_t>(entries);
  if (n == 0) return entries;
  double pairs = 0;
  for (std::int64_t i = 1; i <= n; ++i) {
    // Raw time of the i-th entry, and the entries before its stride.
    const auto time = static_cast<std::int64_t>(static_cast<double>(i - 1) * length / entries);
    const auto before =
        static_cast<std::int64_t>(static_cast<double>(time / c.bank.stride) *
                                  static_cast<double>(c.bank.stride) * entries / length);
    const std::int64_t first = before - slider::window(c.alpha, c.window, before);
    const std::int64_t fixed = std::min(c.anchors, first);
    pairs += static_cast<double>(i - first + fixed + std::min(slots, first - fixed));
  }
  return pairs * entries / static_cast<double>(n);
}

std::int64_t AspaAttention::bank_slots() const {
  return slider::bank_slots(config_.alpha, config_.bank.slots);
}

AspaAttention::BankJudgement AspaAttention::judge(const RoleRouting& key, const PackedRows& rows,
                                                  const RowLogitsVar& logits) const {
  const NoGradGuard no_grad;
  return {logits.share, gating_->key_bias(Variable(logits.z.value()), key, rows).value()};
}

BankPlan AspaAttention::plan_bank(const RoutedRows& rows, const Tensor& k, const Tensor& v,
                                  const BankJudgement& judgement) {
  const std::int64_t T = rows.key.tokens() / std::max<std::int64_t>(1, rows.key.sequences());
  const BankConfig& c = config_.bank;
  const Tensor first = bank_first(rows.key, visible_entries(T, k.device()), c.stride);
  const Shape packed{k.size(0), k.size(2)};
  bank_ = decide([&]() -> std::vector<Tensor> {
    if (forced_bank_.defined()) return {forced_bank_};
    return {ops::bank_select(
        {k.reshape(packed), v.reshape(packed), judgement.share, judgement.score}, rows.key.offsets,
        first, bank_slots(), config_.anchors, rows.key.sequences(), bank_rule(config_))};
  })[0];
  return bank_plan(rows, first, bank_, c.stride, config_.anchors);
}

}  // namespace proteus
