// The CPU kernel: streams in parallel, each from its first entry to its last.
#include "tensor/ops/bank.h"

#include <algorithm>
#include <string>
#include <vector>

#include "tensor/ops/check.h"
#include "tensor/parallel.h"

namespace proteus {
namespace {

template <class T>
void select_stream(const BankSelect& a, std::int64_t stream) {
  using A = accum_t<T>;
  const std::int64_t base = a.offsets[stream];
  const auto row = [&](const void* values, std::int64_t entry) {
    return static_cast<const T*>(values) + (base + entry) * a.D;
  };
  std::vector<BankEntry<A>> bank;
  std::int64_t next = a.anchors;  // the first entry that was not yet offered
  for (std::int64_t i = 0; i < a.strides; ++i) {
    for (const std::int64_t end = a.first[stream * a.strides + i]; next < end; ++next) {
      const A* share = static_cast<const A*>(a.share) + (base + next) * a.gates;
      const BankEntry<A> offer{
          next, static_cast<std::int32_t>(std::max_element(share, share + a.gates) - share),
          static_cast<const A*>(a.score)[base + next]};
      const auto alike = [&](std::int64_t m) {
        const std::int64_t other = bank[static_cast<std::size_t>(m)].entry;
        return points_alike<T, A>(row(a.k, next), row(a.k, other), a.D, a.rule.delta) &&
               points_alike<T, A>(row(a.v, next), row(a.v, other), a.D, a.rule.delta_v);
      };
      const auto held = static_cast<std::int64_t>(bank.size());
      const std::int64_t slot =
          bank_slot(a.rule, a.M, bank.data(), held, offer, stream / a.sequences, alike);
      if (slot == held) bank.emplace_back();
      if (slot >= 0) bank[static_cast<std::size_t>(slot)] = offer;
    }
    std::int32_t* out = a.slots + (stream * a.strides + i) * a.M;
    std::fill_n(out, a.M, -1);
    for (const BankEntry<A>& e : bank) *out++ = static_cast<std::int32_t>(base + e.entry);
  }
}

void bank_select_cpu(const BankSelect& a) {
  dispatch_float(a.dtype, "bank_select", [&](auto tag) {
    using T = typename decltype(tag)::type;
    parallel_for(a.streams, 1, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t s = begin; s < end; ++s) select_stream<T>(a, s);
    });
  });
}

}  // namespace

Slot<BankSelect> bank_select{"bank_select", bank_select_cpu};

namespace ops {
namespace {

constexpr const char* kCall = "bank_select(rows, offsets, first, M)";

void check_bank_rows(const BankRows& rows) {
  const std::string call = kCall;
  check_floating(call, "k", rows.k);
  if (rows.k.rank() != 2) {
    throw ShapeError(call + ": k: expected [rows, D], got " + to_string(rows.k.shape()));
  }
  check_like(call, "v", rows.v, rows.k);
  check_shape(call, "v", rows.v, rows.k.shape(), "(= k.shape)");
  const DType accum = accum_dtype(rows.k.dtype());
  for (const auto& [name, t] : {std::pair{"share", rows.share}, {"score", rows.score}}) {
    if (t.dtype() != accum) throw_dtype(call + ": " + name, t.dtype(), proteus::name_of(accum));
    check_device(call, name, t, rows.k);
  }
  if (rows.share.rank() != 2 || rows.share.size(0) != rows.k.size(0) || rows.share.size(1) < 1) {
    throw ShapeError(call + ": share: expected [" + std::to_string(rows.k.size(0)) +
                     ", gates] (= rows of k), got " + to_string(rows.share.shape()));
  }
  check_shape(call, "score", rows.score, {rows.k.size(0)}, "(= rows of k)");
}

}  // namespace

Tensor bank_select(const BankRows& rows, const Tensor& offsets, const Tensor& first, std::int64_t M,
                   std::int64_t anchors, std::int64_t sequences, const BankRule& rule) {
  const std::string call = kCall;
  check_bank_rows(rows);
  for (const auto& [name, t] : {std::pair{"offsets", offsets}, {"first", first}}) {
    if (t.dtype() != DType::i32) throw_dtype(call + ": " + name, t.dtype(), "i32");
    check_device(call, name, t, rows.k);
  }
  if (M < 1 || anchors < 0 || sequences < 1) {
    throw ConfigError(call + ": M, anchors, sequences: expected at least 1, 0 and 1, got " +
                      std::to_string(M) + ", " + std::to_string(anchors) + " and " +
                      std::to_string(sequences));
  }
  if (first.rank() != 2 || offsets.rank() != 1 || offsets.numel() != first.size(0) + 1) {
    throw ShapeError(call + ": first: expected [" + std::to_string(offsets.numel() - 1) +
                     ", strides] (= streams of offsets), got " + to_string(first.shape()));
  }
  Tensor slots = Tensor::empty({first.size(0), first.size(1), M}, DType::i32, rows.k.device());
  if (slots.numel() == 0) return slots;
  const Tensor k = rows.k.contiguous();
  const Tensor v = rows.v.contiguous();
  const Tensor share = rows.share.contiguous();
  const Tensor score = rows.score.contiguous();
  const Tensor starts = offsets.contiguous();
  const Tensor ends = first.contiguous();
  proteus::bank_select(k.device(), {.k = k.raw(),
                                    .v = v.raw(),
                                    .share = share.raw(),
                                    .score = score.raw(),
                                    .offsets = starts.data<std::int32_t>(),
                                    .first = ends.data<std::int32_t>(),
                                    .slots = slots.data<std::int32_t>(),
                                    .streams = first.size(0),
                                    .strides = first.size(1),
                                    .M = M,
                                    .D = k.size(1),
                                    .gates = share.size(1),
                                    .anchors = anchors,
                                    .sequences = sequences,
                                    .rule = rule,
                                    .dtype = k.dtype()});
  return slots;
}

}  // namespace ops
}  // namespace proteus
