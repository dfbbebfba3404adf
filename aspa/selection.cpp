#include "aspa/selection.h"

#include <fmt/format.h>

#include "tensor/error.h"
#include "tensor/ops/routing.h"

namespace proteus {

RoutedRows pack_selection(const Selection& selection, std::int64_t B, std::int64_t Hr,
                          const Tensor& visible) {
  RoutedRows out;
  out.query = ops::pack_rows(selection.query, Hr, B);
  out.key = ops::pack_rows(selection.key, Hr, B);
  const ops::KeyRanges ranges = ops::key_ranges(out.query, out.key, visible);
  out.lo = ranges.lo;
  out.hi = ranges.hi;
  return out;
}

void check_heads(Role role, const Tensor& heads, std::int64_t tokens, std::int64_t Hr) {
  const std::string where = fmt::format("selection: {}", role == Role::query ? "query" : "key");
  if (heads.rank() != 2 || heads.size(0) != tokens) {
    throw ShapeError(fmt::format("{}: expected [{}, k] (= tokens), got {}", where, tokens,
                                 to_string(heads.shape())));
  }
  if (heads.dtype() != DType::i32) throw_dtype(where, heads.dtype(), "i32");
  const Tensor host = heads.to(kCpu).contiguous();
  const auto* values = host.data<std::int32_t>();
  const std::int64_t k = heads.size(1);
  for (std::int64_t i = 0; i < heads.numel(); ++i) {
    const std::int32_t head = values[i];
    const bool first = i % k == 0;
    const bool ascending = first || head < 0 || (values[i - 1] >= 0 && values[i - 1] < head);
    if (head < -1 || head >= Hr || !ascending) {
      throw ConfigError(
          fmt::format("{}: token {}: expected ascending heads below {} and then -1, got {}{}",
                      where, i / k, Hr, first ? "" : fmt::format("{}, ", values[i - 1]), head));
    }
  }
}

AttentionPlan stream_plan(const RoutedRows& rows, std::int64_t anchors) {
  const auto* q = rows.query.host_offsets.data<std::int32_t>();
  const auto* k = rows.key.host_offsets.data<std::int32_t>();
  const std::int64_t streams = rows.query.offsets.numel() - 1;
  Tensor segments = Tensor::zeros({streams, 8}, DType::i64);
  auto* segment = static_cast<AttentionSegment*>(segments.raw());
  for (std::int64_t s = 0; s < streams; ++s) {
    segment[s] = {.q_row = q[s],
                  .k_row = k[s],
                  .slot = q[s],
                  .range = q[s],
                  .q_count = q[s + 1] - q[s],
                  .k_count = k[s + 1] - k[s],
                  .head = s / rows.query.sequences()};
  }
  return {.segments = segments.to(rows.lo.device()),
          .lo = rows.lo,
          .hi = rows.hi,
          .slots = rows.query.rows(),
          .anchors = anchors};
}

}  // namespace proteus
