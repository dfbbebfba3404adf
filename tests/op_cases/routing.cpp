#include "autograd/routing.h"

#include "autograd/view.h"
#include "tests/op_cases/families.h"

namespace proteus::testing {
namespace {

struct Sizes {
  std::string name;
  std::int64_t tokens, R, gates, heads, k, sequences;
};

// Gates dealt out to heads in turn, so that neighbours in the table belong to different heads; the
// last ones all go to head 0, so that heads differ in size, unless there is one for each.
std::int64_t head_of(const Sizes& s, std::int64_t gate) {
  if (s.gates == s.heads) return s.heads - 1 - gate;
  return gate < s.gates - s.gates / 4 ? gate % s.heads : 0;
}

ops::GateTensors table(const Sizes& s, const Tensor& p, DType dtype, Device device) {
  ops::GateTensors out;
  std::vector<std::int32_t> order;
  std::vector<std::int32_t> begin{0};
  std::vector<double> mass(static_cast<std::size_t>(s.gates));
  for (std::int64_t h = 0; h < s.heads; ++h) {
    for (std::int64_t g = 0; g < s.gates; ++g) {
      if (head_of(s, g) != h) continue;
      mass[static_cast<std::size_t>(g)] = 1.0 / static_cast<double>(1 + g % 3);
      order.push_back(static_cast<std::int32_t>(g));
    }
    begin.push_back(static_cast<std::int32_t>(order.size()));
    out.width = std::max<std::int64_t>(out.width, begin.back() - begin[begin.size() - 2]);
  }
  out.p = p;
  out.mass = Tensor::from(mass, {s.gates}, dtype, device);
  out.order = Tensor::from_data<std::int32_t>(order, {s.gates}, device);
  out.head_begin = Tensor::from_data<std::int32_t>(begin, {s.heads + 1}, device);
  return out;
}

// k neighbouring heads for every token, one fewer for every fourth; `turn` makes another selection.
PackedRows rows_of(const Sizes& s, Device device, std::int64_t turn = 0) {
  Tensor heads = Tensor::full({s.tokens, s.k}, -1, DType::i32);
  for (std::int64_t n = 0; n < s.tokens; ++n) {
    const std::int64_t first = (n * 5 + turn) % (s.heads - s.k + 1);
    for (std::int64_t j = 0; j < s.k - (n % 4 == 3 ? 1 : 0); ++j) {
      heads.data<std::int32_t>()[n * s.k + j] = static_cast<std::int32_t>(first + j);
    }
  }
  return ops::pack_rows(heads.to(device), s.heads, s.sequences);
}

std::vector<OpInput> router_inputs(const Sizes& s, bool prototypes, bool differentiable) {
  std::vector<OpInput> inputs{{.shape = {s.tokens, s.R}},
                              {.shape = {s.gates, s.R}},
                              {.shape = {s.gates, s.R}},
                              {.shape = {}}};
  if (!prototypes) inputs.resize(2);
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    inputs[i].differentiable = differentiable && i != 2;  // prototypes have no gradient
    inputs[i].accumulation = true;
  }
  return inputs;
}

ops::GateTensors table_of(const Sizes& s, const std::vector<Variable>& v) {
  ops::GateTensors gates =
      table(s, v.size() > 2 ? v[2].value() : Tensor(), v[0].dtype(), v[0].device());
  gates.w = v[1].value();
  if (v.size() > 3) gates.lambda = v[3].value();
  return gates;
}

OpCase rows_case(const Sizes& s, bool prototypes) {
  const double flops = static_cast<double>(s.tokens * s.k * s.gates / s.heads * s.R * 4);
  return {.op = "gate_row_logits",
          .variant = s.name + (prototypes ? "" : " no prototypes"),
          .slots = {"gate_rows_fwd", "gate_rows_bwd"},
          .inputs = router_inputs(s, prototypes, true),
          .run =
              [s](const std::vector<Variable>& v) {
                return gate_row_logits(v[0],
                                       {v[1], v.size() > 3 ? v[3] : Variable(), table_of(s, v)},
                                       rows_of(s, v[0].device()))
                    .z;
              },
          .flops = flops,
          .bytes = 4.0 * static_cast<double>(s.tokens * s.k * s.R)};
}

OpCase logits_case(const Sizes& s, bool prototypes) {
  return {.op = "gate_logits",
          .variant = s.name + (prototypes ? "" : " no prototypes"),
          .slots = {"gate_logits_fwd"},
          .inputs = router_inputs(s, prototypes, false),
          .run =
              [s](const std::vector<Variable>& v) {
                return Variable(ops::gate_logits(v[0].value(), table_of(s, v)));
              },
          .flops = 4.0 * static_cast<double>(s.tokens * s.gates * s.R),
          .bytes = 4.0 * static_cast<double>(s.tokens * (s.R + s.heads))};
}

OpCase nearest_case(const Sizes& s) {
  return {.op = "gate_logits_and_nearest",
          .variant = s.name,
          .slots = {"gate_logits_fwd"},
          .inputs = router_inputs(s, true, false),
          .run = [s](const std::vector<Variable>& v) {
            const auto out = ops::gate_logits_and_nearest(v[0].value(), table_of(s, v));
            return Variable(out.nearest.to(v[0].dtype()));
          }};
}

// Σω beside Σω·x̃: [G, R + 1].
OpCase statistics_case(const Sizes& s) {
  return {.op = "gate_statistics",
          .variant = s.name,
          .slots = {"gate_rows_fwd", "prototype_stats"},
          .inputs = router_inputs(s, true, false),
          .run =
              [s](const std::vector<Variable>& v) {
                const ops::GateTensors gates = table_of(s, v);
                const PackedRows rows = rows_of(s, v[0].device());
                const auto logits = ops::gate_row_logits(v[0].value(), gates, rows);
                const auto sums = ops::gate_statistics(v[0].value(), gates, rows, logits.share);
                return concat(
                    {Variable(sums.weighted_sum), Variable(sums.weight_sum.reshape({s.gates, 1}))},
                    1);
              },
          .flops = 2.0 * static_cast<double>(s.tokens * s.k * s.gates / s.heads * s.R),
          .bytes = 4.0 * static_cast<double>(s.tokens * s.k * s.R)};
}

// lo and hi as numbers; every stream's last three entries are visible, half of what came before.
OpCase ranges_case(const Sizes& s) {
  return {.op = "key_ranges",
          .variant = s.name,
          .slots = {"key_ranges_fwd"},
          .inputs = {{.shape = {s.tokens}, .differentiable = false}},
          .run = [s](const std::vector<Variable>& v) {
            Tensor visible = Tensor::empty({s.tokens + 1}, DType::i32);
            for (std::int64_t n = 0; n <= s.tokens; ++n) {
              visible.data<std::int32_t>()[n] =
                  static_cast<std::int32_t>(n < 3 ? n : 3 + (n - 3) / 2);
            }
            const Device device = v[0].device();
            const auto ranges =
                ops::key_ranges(rows_of(s, device), rows_of(s, device, 1), visible.to(device));
            return concat(
                {Variable(ranges.lo.to(v[0].dtype())), Variable(ranges.hi.to(v[0].dtype()))}, 0);
          }};
}

Sizes small() { return {"small", 6, 4, 6, 3, 2, 2}; }

ops::GateTensors small_table() {
  const Sizes s = small();
  ops::GateTensors gates = table(s, Tensor::zeros({6, 4}), DType::f32, kCpu);
  gates.w = Tensor::zeros({6, 4});
  gates.lambda = Tensor::scalar(1);
  return gates;
}

std::vector<ErrorCase> errors() {
  return {
      {"tokens of another width",
       [] {
         ops::gate_logits(Tensor::zeros({3, 5}), small_table());
       },
       "ShapeError", "gate_logits(x, gates): x: expected [N, 4] (= w.shape[1]), got [3, 5]"},
      {"bf16 tokens",
       [] {
         ops::gate_logits(Tensor::zeros({3, 4}, DType::bf16), small_table());
       },
       "DTypeError", "gate_logits(x, gates): x: expected dtype f32 or f64, got bf16"},
      {"prototypes of another shape",
       [] {
         ops::GateTensors gates = small_table();
         gates.p = Tensor::zeros({5, 4});
         ops::gate_logits(Tensor::zeros({3, 4}), gates);
       },
       "ShapeError", "gate_logits(x, gates): p: expected [6, 4] (= w.shape), got [5, 4]"},
      {"rows of other tokens",
       [] {
         ops::gate_row_logits(Tensor::zeros({3, 4}), small_table(), rows_of(small(), kCpu));
       },
       "ShapeError",
       "gate_row_logits(x, gates, rows): x: expected [6, 4] (= tokens of rows), got [3, 4]"},
      {"rows of other heads",
       [] {
         const Sizes more{"", 6, 4, 6, 4, 2, 2};
         ops::gate_row_logits(Tensor::zeros({6, 4}), small_table(), rows_of(more, kCpu));
       },
       "ShapeError",
       "gate_row_logits(x, gates, rows): rows: expected 3 heads (= head_begin.shape[0] - 1), got "
       "4"},
      {"too short a table of windows",
       [] {
         const PackedRows rows = rows_of(small(), kCpu);
         ops::key_ranges(rows, rows, Tensor::zeros({3}, DType::i32));
       },
       "ShapeError",
       "key_ranges(queries, keys, visible): visible: expected at least [4] (= tokens of a sequence "
       "+ 1), got [3]"},
  };
}

}  // namespace

OpFamily routing_family() {
  OpFamily family{"routing", {}, errors()};
  const std::vector<Sizes> sizes{
      {"1 token", 1, 4, 3, 1, 1, 1},     {"2x3", 6, 3, 8, 4, 2, 2},
      {"2x8", 16, 8, 9, 3, 2, 2},        {"33", 33, 5, 12, 5, 3, 1},
      {"R 1", 9, 1, 4, 2, 1, 3},         {"every head", 12, 6, 7, 3, 3, 1},
      {"3x13", 39, 16, 20, 6, 2, 3},     {"uneven heads", 10, 7, 5, 4, 2, 2},
      {"0 tokens", 0, 4, 6, 3, 2, 1},    {"40 gates", 11, 8, 40, 5, 2, 1},
      {"150 gates", 5, 4, 150, 2, 1, 1}, {"R 70", 5, 70, 4, 2, 2, 1},
      {"R 260", 3, 260, 3, 2, 1, 1},     {"single gates", 21, 64, 12, 12, 10, 3},
      {"3 single", 7, 68, 3, 3, 3, 1}};
  for (const Sizes& s : sizes) {
    family.cases.push_back(rows_case(s, true));
    family.cases.push_back(rows_case(s, false));
    family.cases.push_back(logits_case(s, true));
    family.cases.push_back(logits_case(s, false));
    family.cases.push_back(nearest_case(s));
    family.cases.push_back(statistics_case(s));
    family.cases.push_back(ranges_case(s));
  }
  const Sizes large{"16x256 tokens, 64 gates", 4096, 64, 64, 16, 2, 16};
  for (OpCase c : {rows_case(large, true), logits_case(large, true), statistics_case(large)}) {
    c.bench_only = true;
    family.cases.push_back(c);
  }
  return family;
}

}  // namespace proteus::testing
