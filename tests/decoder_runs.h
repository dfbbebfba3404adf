// What the tests of decoding side by side share, on the CPU and on a GPU: small models of every
// kind, and their sequences decoded token by token.
#pragma once

#include <string>
#include <vector>

#include "nn/decoder.h"
#include "tests/aspa_layers.h"
#include "train/models.h"

namespace proteus::testing {

struct DecodeCase {
  std::string name;
  std::string arm;
  std::vector<std::string> options = {};
  int layers = 2;
  std::string k = "2";  ///< heads that a token enters, of 8
};

inline void PrintTo(const DecodeCase& c, std::ostream* out) { *out << c.name; }

inline std::vector<DecodeCase> dense_cases() {
  return {{"Dense", "dense"},
          {"DenseShiftGated", "dense_shift_gated"},
          {"DenseAsGpt2", "dense", {"--positions", "learned", "--bias"}},
          {"DenseSwiglu", "dense", {"--mlp", "swiglu", "--norm", "rms"}}};
}

/// What replays can hold whole; and where the host waits for a number of rows.
inline std::vector<DecodeCase> aspa_cases() {
  return {{"Aspa", "aspa"},
          {"AspaHalf", "aspa", {"--alpha", "0.5"}},
          {"AspaDense", "aspa", {"--alpha", "0"}},
          {"AspaBare", "aspa", {"--no-key-shift", "--no-prototypes", "--anchors", "0"}},
          {"AspaAsGpt2", "aspa", {"--positions", "learned", "--bias"}},
          {"AspaShared", "aspa_shared"},
          {"AspaExperts", "aspa", {"--experts", "4"}},
          {"AspaSharedGates", "aspa", {"--experts", "8", "--expert-router", "attention"}}};
}
inline std::vector<DecodeCase> waiting_cases() {
  return {{"AspaDoublySparse", "aspa", {"--token-keep", "0.6"}},
          {"AspaNucleus", "aspa", {"--head-top-p", "0.9"}}};
}
/// One layer, in which no code has been seen when a token is routed: of several, heads that are
/// nearly level may change places.
inline std::vector<DecodeCase> int8_cases() {
  std::vector<DecodeCase> all = dense_cases();
  for (DecodeCase c : aspa_cases()) {
    if (c.name == "AspaExperts" || c.name == "AspaSharedGates") continue;  // they route after it
    c.layers = 1;
    all.push_back(c);
  }
  return all;
}
inline std::vector<DecodeCase> all_decode_cases() {
  std::vector<DecodeCase> all = dense_cases();
  for (const auto& more : {aspa_cases(), waiting_cases()}) {
    all.insert(all.end(), more.begin(), more.end());
  }
  return all;
}

constexpr std::int64_t kDecodeVocab = 61;
constexpr std::int64_t kDecodeLength = 96;

inline std::unique_ptr<Transformer> decode_model(const DecodeCase& c, const std::string& dtype) {
  std::vector<std::string> words{
      "--width",         "128", "--context",      "96", "--head-width", "32",
      "--dtype",         dtype, "--window",       "24", "--k",          c.k,
      "--shared-window", "16",  "--routed-heads", "8",  "--layers",     std::to_string(c.layers)};
  words.insert(words.end(), c.options.begin(), c.options.end());
  const Options options = parse_options("duel", words).options;
  auto model = make_model(options, arm_named(c.arm, "arm"), kDecodeVocab, 3);
  model->set_training(false);
  return model;
}

/// Tokens i32 [B, T].
inline Tensor decode_tokens(std::int64_t B, std::int64_t T = kDecodeLength) {
  return Tensor::rand({B, T}, {9, 4}, DType::f64, 0, static_cast<double>(kDecodeVocab))
      .to(DType::i32);
}

/// Logits [B, T, V] on the CPU, of tokens that are given one by one.
inline Tensor decoded_logits(Decoder& decoder, const Tensor& tokens) {
  Tensor out;
  for (std::int64_t t = 0; t < tokens.size(1); ++t) {
    decoder.set_tokens(tokens.select(1, t).contiguous());
    decoder.step();
    const Tensor logits = decoder.logits().to(kCpu);
    if (!out.defined()) {
      out = Tensor::empty({logits.size(0), tokens.size(1), logits.size(1)}, DType::f32);
    }
    out.select(1, t).copy_(logits);
  }
  return out;
}

}  // namespace proteus::testing
