#include "aspa/selection.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "tensor/error.h"
#include "tensor/ops/routing.h"
#include "tensor/ops/select.h"

namespace proteus {

RoutedRows pack_selection(const Selection& selection, std::int64_t B, std::int64_t Hr,
                          const Tensor& visible, ops::Slots slots) {
  const Tensor roles[] = {selection.query, selection.key};
  std::vector<PackedRows> rows = ops::pack_rows(roles, Hr, B, slots);
  RoutedRows out;
  out.query = std::move(rows[0]);
  out.key = std::move(rows[1]);
  const ops::KeyRanges ranges = ops::key_ranges(out.query, out.key, visible);
  out.lo = ranges.lo;
  out.hi = ranges.hi;
  out.streams = ranges.streams;
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

Tensor choose_by_head(const Tensor& z_any, std::int64_t B, std::int64_t k) {
  const Tensor z = z_any.to(kCpu);
  const std::int64_t N = z.size(0);
  const std::int64_t Hr = z.size(1);
  if (N == 0) return Tensor::empty({0, 1}, DType::i32, z_any.device());
  const std::int64_t T = N / B;
  const std::int64_t taken = std::max<std::int64_t>(1, (2 * T * k + Hr) / (2 * Hr));
  const Tensor by_head = z.reshape({B, T, Hr}).transpose(1, 2).contiguous().reshape({B * Hr, T});
  const Tensor tokens = ops::topk_heads(by_head, taken);
  std::vector<std::vector<std::int32_t>> heads(static_cast<std::size_t>(N));
  std::size_t most = 1;
  for (std::int64_t i = 0; i < tokens.numel(); ++i) {
    const std::int64_t stream = i / taken;
    const std::int64_t token = stream / Hr * T + tokens.data<std::int32_t>()[i];
    auto& list = heads[static_cast<std::size_t>(token)];
    list.push_back(static_cast<std::int32_t>(stream % Hr));
    most = std::max(most, list.size());
  }
  Tensor out = Tensor::full({N, static_cast<std::int64_t>(most)}, -1, DType::i32);
  for (std::size_t n = 0; n < heads.size(); ++n) {
    std::copy(heads[n].begin(), heads[n].end(), out.data<std::int32_t>() + n * most);
  }
  return out.to(z_any.device());
}

AttentionPlan stream_plan(const RoutedRows& rows, std::int64_t anchors) {
  return {.segments = rows.streams,
          .lo = rows.lo,
          .hi = rows.hi,
          .slots = rows.query.rows(),
          .anchors = anchors,
          .whole = true};
}

}  // namespace proteus
