#include "train/convert.h"

#include <fmt/format.h>

#include <map>

#include "tensor/error.h"
#include "train/checkpoint.h"

namespace proteus {
namespace {

using Named = std::map<std::string, Tensor>;

const Tensor& find(const Named& tensors, const std::string& name) {
  const auto it = tensors.find(name);
  if (it == tensors.end()) throw FileError(fmt::format("convert: the dense model has no {}", name));
  return it->second;
}

void convert_biases(const Named& dense, const Named& aspa, const std::string& at,
                    const Options& o) {
  const std::int64_t D = o.model.head_width;
  const std::int64_t H = o.model.heads;
  const std::int64_t Hs = o.aspa.shared_heads;
  const Tensor qkv = find(dense, at + "qkv.bias").reshape({3, H, D});
  if (Hs > 0) find(aspa, at + "qkv.bias").reshape({3, Hs, D}).copy_(qkv.slice(1, 0, Hs));
  const char* const parts[] = {"routed.q_bias", "routed.k_bias", "routed.v_bias"};
  for (std::int64_t i = 0; i < 3 && Hs < H; ++i) {
    find(aspa, at + parts[i]).copy_(qkv.select(0, i).slice(0, Hs, H));
  }
  find(aspa, at + "out.bias").copy_(find(dense, at + "out.bias"));
}

// Attention of one layer; `at` is its prefix in both models.
void convert_attention(const Named& dense, const Named& aspa, const std::string& at,
                       const Options& o) {
  const std::int64_t C = o.model.width;
  const std::int64_t D = o.model.head_width;
  const std::int64_t H = o.model.heads;
  const std::int64_t Hs = o.aspa.shared_heads;
  const Tensor qkv = find(dense, at + "qkv.weight").reshape({3, H, D, C});
  const Tensor out = find(dense, at + "out.weight").reshape({C, H, D});
  if (Hs > 0) {
    find(aspa, at + "qkv.weight").reshape({3, Hs, D, C}).copy_(qkv.slice(1, 0, Hs));
    find(aspa, at + "out.weight").reshape({C, Hs, D}).copy_(out.slice(1, 0, Hs));
  }
  if (Hs < H) {
    const char* const parts[] = {"routed.q", "routed.k", "routed.v"};
    for (std::int64_t i = 0; i < 3; ++i) {
      // Routed heads have their matrices the other way round: [Hr, C, D].
      find(aspa, at + parts[i]).copy_(qkv.select(0, i).slice(0, Hs, H).transpose(1, 2));
    }
    find(aspa, at + "routed.o").copy_(out.slice(1, Hs, H).permute({1, 2, 0}));
  }
  if (o.model.bias) convert_biases(dense, aspa, at, o);
  const auto mu = aspa.find(at + "mu");
  if (mu == aspa.end()) return;
  const auto shift = dense.find(at + "mu");
  if (shift == dense.end()) {
    Tensor(mu->second).fill_(0);
  } else {
    Tensor(mu->second).copy_(shift->second);
  }
}

Named named(const Transformer& model) {
  Named out;
  for (auto& [name, tensor] : module_tensors(model)) out.emplace(name, tensor);
  return out;
}

}  // namespace

Options converted_options(const SavedModel& dense, const Options& call) {
  if (dense.arm != "dense" && dense.arm != "dense_shift") {
    throw ConfigError(
        fmt::format("--checkpoint: expected a dense or dense_shift model, whose heads have no "
                    "output gate, got {}",
                    dense.arm));
  }
  Options o = dense.options;
  o.command = "train";
  o.aspa = call.aspa;
  o.common = call.common;
  o.checkpoint.model = "aspa";
  const auto given = [&](const char* name) { return call.given.contains(name); };
  const bool learned = o.model.positions == "learned";
  if (given("context")) o.model.context = call.model.context;
  if (learned && o.model.context > dense.options.model.context) {
    throw ConfigError(fmt::format(
        "--context: expected at most {}, the positions that the dense model has learned, got {}",
        dense.options.model.context, o.model.context));
  }
  if (!given("shared-heads"))
    o.aspa.shared_heads = std::min(o.aspa.shared_heads, o.model.heads / 2);
  if (!given("routed-heads")) o.aspa.routed_heads = o.model.heads - o.aspa.shared_heads;
  if (o.aspa.shared_heads + o.aspa.routed_heads != o.model.heads) {
    throw ConfigError(fmt::format(
        "--routed-heads: expected {} (= {} heads of the dense model − --shared-heads {}), got {}",
        o.model.heads - o.aspa.shared_heads, o.model.heads, o.aspa.shared_heads,
        o.aspa.routed_heads));
  }
  if (!given("k"))
    o.aspa.k = std::max<std::int64_t>(1, std::min(o.aspa.k, o.aspa.routed_heads / 2));
  const char* const rotated = learned ? "none" : "full";
  if (!given("rope")) o.aspa.rope = rotated;
  if (o.aspa.rope != rotated && o.aspa.routed_heads > 0) {
    throw ConfigError(
        fmt::format("--rope: expected {}, as the heads of the dense model are {}, "
                    "got {}",
                    rotated, learned ? "not rotated" : "rotated", o.aspa.rope));
  }
  if (o.aspa.no_key_shift && dense.arm == "dense_shift") {
    throw ConfigError("--no-key-shift: expected the key shift of the dense_shift model to stay");
  }
  if (o.aspa.experts > 0) {
    throw ConfigError(
        fmt::format("--experts: expected 0, a dense MLP stays one, got {}", o.aspa.experts));
  }
  validate(o);
  return o;
}

std::unique_ptr<Transformer> converted(const Transformer& dense, const Options& options,
                                       std::uint64_t seed) {
  auto model = make_model(options, arm_named("aspa", "arm"), dense.config().vocab, seed);
  const Named from = named(dense);
  const Named to = named(*model);
  for (const auto& [name, tensor] : to) {
    if (name.find(".attn.") != std::string::npos) continue;
    // Of learned positions a shorter context takes the first.
    Tensor(tensor).copy_(find(from, name).slice(0, 0, tensor.size(0)));
  }
  for (std::int64_t l = 0; l < model->layers(); ++l) {
    convert_attention(from, to, fmt::format("blocks.{}.attn.", l), options);
  }
  return model;
}

}  // namespace proteus
