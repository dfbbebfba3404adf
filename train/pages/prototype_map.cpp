#include "train/pages/prototype_map.h"

#include <algorithm>
#include <cmath>

#include "autograd/tape.h"
#include "train/models.h"
#include "train/utf8.h"

namespace proteus {
namespace {

constexpr double kTiny = 1e-12;

void append_unit_rows(const Tensor& rows, std::vector<double>& out) {
  const auto values = rows.to_vector();
  const auto d = static_cast<std::size_t>(rows.size(1));
  for (std::size_t at = 0; at < values.size(); at += d) {
    double squares = 0;
    for (std::size_t i = 0; i < d; ++i) squares += values[at + i] * values[at + i];
    const double norm = std::max(std::sqrt(squares), kTiny);
    for (std::size_t i = 0; i < d; ++i) out.push_back(values[at + i] / norm);
  }
}

std::vector<std::int32_t> heads_of(const Tensor& heads, std::int64_t token) {
  const std::int64_t k = heads.size(1);
  const auto* row = heads.data<std::int32_t>() + token * k;
  std::vector<std::int32_t> list;
  for (std::int64_t i = 0; i < k; ++i) {
    if (row[i] >= 0) list.push_back(row[i]);
  }
  return list;
}

PrototypeMap map_layer(Transformer& model, AspaAttention& layer, std::int64_t number,
                       const Tensor& tokens, const std::vector<std::string>& texts) {
  const NoGradGuard no_grad;
  const Tensor input = model.attention_input(tokens, number).to(layer.config().dtype);
  const Tensor projected = layer.router().project(Variable(input)).value().contiguous();
  const Selection selection = layer.select(Variable(input));
  const Tensor nearest = layer.router().logits_and_nearest(projected).nearest;
  const GateState gates = layer.router().gate_state();
  std::vector<double> rows;
  append_unit_rows(gates.p, rows);
  append_unit_rows(projected, rows);
  const Projection projection = project_rows(rows, projected.size(1));
  PrototypeMap map;
  map.layer = number;
  std::copy_n(projection.explained, 2, map.explained);
  const std::int64_t G = gates.p.size(0);
  const auto mass = gates.mass.to_vector();
  for (std::int64_t g = 0; g < G; ++g) {
    const auto i = static_cast<std::size_t>(g);
    map.gates.push_back(
        {projection.points[i], gates.head_of_gate.data<std::int32_t>()[g], mass[i]});
  }
  for (std::int64_t t = 0; t < projected.size(0); ++t) {
    map.tokens.push_back({projection.points[static_cast<std::size_t>(G + t)],
                          texts[static_cast<std::size_t>(t)], nearest.data<std::int32_t>()[t],
                          heads_of(selection.query, t), heads_of(selection.key, t)});
  }
  return map;
}

}  // namespace

std::vector<PrototypeMap> prototype_maps(Transformer& model, const Tokenizer& tokenizer,
                                         std::span<const std::int32_t> ids, std::size_t most) {
  const auto T =
      std::min<std::size_t>({static_cast<std::size_t>(model.config().context), most, ids.size()});
  if (T == 0) return {};
  const std::size_t B = std::min(most, ids.size()) / T;
  const auto used = ids.subspan(0, B * T);
  const Tensor tokens = Tensor::from_data<std::int32_t>(
      used, {static_cast<std::int64_t>(B), static_cast<std::int64_t>(T)});
  std::vector<std::string> texts;
  for (std::size_t i = 0; i < used.size(); ++i) {
    texts.push_back(repaired_utf8(tokenizer.decode(used.subspan(i, 1))));
  }
  std::vector<PrototypeMap> maps;
  for (std::int64_t l = 0; l < model.layers(); ++l) {
    AspaAttention* layer = aspa_layer(model, l);
    const bool routed = layer && layer->gates() && layer->alpha() > 0;
    if (!routed || !layer->router().gate_state().N.defined()) continue;
    maps.push_back(map_layer(model, *layer, l, tokens, texts));
  }
  return maps;
}

}  // namespace proteus
