#include "train/gpt2.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "tensor/error.h"
#include "tensor/ops/elementwise.h"
#include "train/checkpoint.h"
#include "train/file_ops.h"
#include "train/gates.h"
#include "train/json_file.h"
#include "train/mapped_file.h"
#include "train/tokenizer.h"

namespace proteus {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

constexpr double kEps = 1e-5;  // of our norms
constexpr std::string_view kPrefix = "transformer.";
constexpr std::string_view kHead = "lm_head.weight";
constexpr std::string_view kEnd = "<|endoftext|>";

std::string in_folder(const std::string& folder, const char* name) {
  return (std::filesystem::path(folder) / name).string();
}

bool there(const std::string& path) {
  std::error_code ignored;
  return std::filesystem::exists(path, ignored);
}

/// A tensor of the folder and ours; a matrix is kept the other way round there.
struct Pair {
  std::string theirs;
  std::string ours;
  bool transposed = false;
};

std::vector<Pair> pairs_of(std::int64_t layers) {
  std::vector<Pair> all{{"wte.weight", "embedding.weight"}, {"wpe.weight", "positions.weight"}};
  const auto both = [&](const std::string& theirs, const std::string& ours, bool transposed) {
    all.push_back({theirs + ".weight", ours + ".weight", transposed});
    all.push_back({theirs + ".bias", ours + ".bias"});
  };
  for (std::int64_t l = 0; l < layers; ++l) {
    const std::string theirs = fmt::format("h.{}.", l);
    const std::string ours = fmt::format("blocks.{}.", l);
    both(theirs + "ln_1", ours + "norm1", false);
    both(theirs + "attn.c_attn", ours + "attn.qkv", true);
    both(theirs + "attn.c_proj", ours + "attn.out", true);
    both(theirs + "ln_2", ours + "norm2", false);
    both(theirs + "mlp.c_fc", ours + "mlp.up", true);
    both(theirs + "mlp.c_proj", ours + "mlp.down", true);
  }
  both("ln_f", "norm", false);
  return all;
}

/// config.json of a folder.
class Config {
 public:
  Config(std::string_view text, const std::string& path)
      : path_(path), json_(parse_json_file(text, path)) {
    if (!json_.is_object()) fail("expected an object");
  }

  std::int64_t size(const char* key, std::int64_t most) const {
    if (!has(key) || !json_[key].is_number_integer())
      fail(fmt::format("{}: expected a number", key));
    const auto value = json_[key].get<std::int64_t>();
    if (value < 1 || value > most) {
      fail(fmt::format("{}: expected 1 to {}, got {}", key, most, json_[key].dump()));
    }
    return value;
  }
  bool has(const char* key) const { return json_.contains(key) && !json_[key].is_null(); }
  double number(const char* key, double otherwise) const {
    if (!has(key)) return otherwise;
    if (!json_[key].is_number()) fail(fmt::format("{}: expected a number", key));
    return json_[key].get<double>();
  }
  /// Only functions that ours can be: `values` are those, the first being what absence means.
  void demand(const char* key, const std::vector<json>& values) const {
    if (!has(key) || std::find(values.begin(), values.end(), json_[key]) != values.end()) return;
    std::string expected;
    for (const json& value : values) {
      expected += fmt::format("{}{}", expected.empty() ? "" : " or ", value.dump());
    }
    fail(fmt::format("{}: expected {}, got {}; that is another function than Proteus computes", key,
                     expected, json_[key].dump()));
  }
  [[noreturn]] void fail(const std::string& what) const {
    throw FileError(fmt::format("{}: {}", path_, what));
  }

 private:
  std::string path_;
  json json_;
};

Options options_of_config(const Config& config) {
  config.demand("model_type", {"gpt2"});
  config.demand("activation_function", {"gelu_new", "gelu_pytorch_tanh"});
  config.demand("layer_norm_epsilon", {kEps});
  config.demand("scale_attn_weights", {true});
  config.demand("scale_attn_by_inverse_layer_idx", {false});
  config.demand("add_cross_attention", {false});
  config.demand("tie_word_embeddings", {true});
  // The largest that the command line takes (train/options_check.cpp says so again).
  constexpr std::int64_t kMostSize = 1 << 20;
  constexpr std::int64_t kMostLayers = 4096;
  Options o = parse_options("train", {"--preset", "gpt2", "--model", "dense"}).options;
  o.model.layers = config.size("n_layer", kMostLayers);
  o.model.width = config.size("n_embd", kMostSize);
  o.model.heads = config.size("n_head", kMostSize);
  o.model.context = config.size("n_positions", std::int64_t{1} << 30);
  if (o.model.width % o.model.heads != 0) {
    config.fail(fmt::format("n_head: expected a divisor of n_embd {}, got {}", o.model.width,
                            o.model.heads));
  }
  o.model.head_width = o.model.width / o.model.heads;
  if (config.has("n_inner")) o.model.mlp_width = config.size("n_inner", kMostSize);
  o.model.dropout = config.number("resid_pdrop", 0.1);
  // To be trained on, not from the start.
  o.training.batch = 4;
  o.training.grad_accum = 1;
  o.training.steps = 1000;
  o.training.lr = 3e-5;
  o.training.min_lr = 3e-6;
  o.training.warmup = 100;
  return o;
}

/// model.safetensors of a folder, its names without "transformer.".
class Weights {
 public:
  explicit Weights(const std::string& folder) : file_(path_in(folder)) {
    for (std::int64_t i = 0; i < file_.count(); ++i) {
      const std::string name = file_.info(i).name;
      const bool prefixed = name.starts_with(kPrefix);
      if (!numbers_.emplace(prefixed ? name.substr(kPrefix.size()) : name, i).second) {
        fail(fmt::format("{}: expected it once, with or without {}", name, kPrefix));
      }
    }
  }

  /// Copies a tensor into `to`.
  void read(const Pair& pair, const Tensor& to) {
    const Tensor from = read(pair.theirs);
    const Tensor turned = pair.transposed && from.rank() == 2 ? from.transpose(0, 1) : from;
    if (turned.shape() != to.shape() || !is_floating(from.dtype())) {
      const Shape expected = pair.transposed ? to.transpose(0, 1).shape() : to.shape();
      fail(fmt::format("{}: expected {} of floating numbers, as config.json has it, got {}",
                       pair.theirs, to_string(expected), describe(from)));
    }
    to.copy_(turned.to(to.dtype()));
    used_.insert(pair.theirs);
  }
  /// An output head of its own would be another model.
  void check_head(const Tensor& embedding) {
    if (!numbers_.contains(std::string(kHead))) return;
    const Tensor head = read(std::string(kHead));
    if (head.shape() != embedding.shape() ||
        head.to(DType::f32).to_vector() != embedding.to_vector()) {
      fail(fmt::format("{}: expected wte.weight again (tied), got other numbers", kHead));
    }
    used_.insert(std::string(kHead));
  }
  /// Masks of attention, which older versions of `transformers` wrote, may be left over.
  double count() const {
    double sum = 0;
    for (std::int64_t i = 0; i < file_.count(); ++i) {
      double numbers = 1;
      for (const std::int64_t size : file_.info(i).shape) numbers *= static_cast<double>(size);
      sum += numbers;
    }
    return sum;
  }
  void check_all_used() const {
    for (const auto& [name, i] : numbers_) {
      if (used_.contains(name) || name.ends_with(".attn.bias") ||
          name.ends_with(".attn.masked_bias")) {
        continue;
      }
      fail(fmt::format("{}: no tensor of the GPT-2 that config.json describes", name));
    }
  }

 private:
  static std::string path_in(const std::string& folder) {
    const std::string path = in_folder(folder, "model.safetensors");
    if (there(path)) return path;
    throw FileError(fmt::format(
        "{}: expected model.safetensors, in one part; in Python, "
        "GPT2LMHeadModel.from_pretrained(…).save_pretrained(…, max_shard_size=\"100GB\") writes it",
        folder));
  }
  Tensor read(const std::string& name) const {
    const auto found = numbers_.find(name);
    if (found == numbers_.end()) {
      fail(
          fmt::format("{}: expected a tensor of this name, with or without {}, as config.json has "
                      "it; the file has {}",
                      name, kPrefix, numbers_.size()));
    }
    return file_.read(found->second);
  }
  [[noreturn]] void fail(const std::string& what) const {
    throw FileError(fmt::format("{}: {}", file_.path(), what));
  }

  SafetensorsFile file_;
  std::map<std::string, std::int64_t> numbers_;
  std::set<std::string> used_;
};

std::string tokenizer_json(const std::string& folder, const std::string& chosen,
                           std::int64_t vocab) {
  const bool own =
      there(in_folder(folder, "tokenizer.json")) || there(in_folder(folder, "vocab.json"));
  if (chosen.empty() && !own) return {};
  const std::string path = chosen.empty() ? folder : chosen;
  const Tokenizer tokenizer = path == "byte" ? Tokenizer::bytes() : Tokenizer::from_path(path);
  if (tokenizer.vocab() > vocab) {
    throw FileError(fmt::format("{}: tokenizer: expected at most {} ids (= vocab_size), got {}",
                                path, vocab, tokenizer.vocab()));
  }
  return tokenizer.to_json();
}

std::map<std::string, Tensor> named(const Transformer& model) {
  const NamedTensors all = module_tensors(model);
  return {all.begin(), all.end()};
}

// The id of <|endoftext|>, with which `transformers` begins and ends texts.
ordered_json end_of_text(const std::string& tokenizer) {
  if (tokenizer.empty()) return nullptr;
  const json added = json::parse(tokenizer).value("added_tokens", json::array());
  for (const json& token : added) {
    if (token["content"] == kEnd) return token["id"].get<std::int64_t>();
  }
  return nullptr;
}

ordered_json config_of(const SavedModel& saved) {
  const ModelOptions& m = saved.options.model;
  const ordered_json end = end_of_text(saved.tokenizer);
  return {{"architectures", {"GPT2LMHeadModel"}},
          {"model_type", "gpt2"},
          {"activation_function", "gelu_new"},
          {"vocab_size", saved.vocab},
          {"n_positions", m.context},
          {"n_embd", m.width},
          {"n_layer", m.layers},
          {"n_head", m.heads},
          {"n_inner", m.mlp_width > 0 ? ordered_json(m.mlp_width) : nullptr},
          {"layer_norm_epsilon", kEps},
          {"resid_pdrop", m.dropout},
          {"embd_pdrop", m.dropout},
          {"attn_pdrop", m.dropout},
          {"initializer_range", 0.02},
          {"scale_attn_weights", true},
          {"tie_word_embeddings", true},
          {"torch_dtype", "float32"},
          {"bos_token_id", end},
          {"eos_token_id", end}};
}

void check_is_gpt2(const SavedModel& saved) {
  const ModelOptions& m = saved.options.model;
  const auto demand = [](bool ok, std::string_view option, std::string_view expected,
                         const auto& got) {
    if (ok) return;
    throw ConfigError(fmt::format("--to-gpt2: expected a model trained with --{} {}, got {}",
                                  option, expected, got));
  };
  demand(saved.arm == "dense", "model", "dense", saved.arm);
  demand(m.positions == "learned", "positions", "learned", m.positions);
  demand(m.norm == "layer", "norm", "layer", m.norm);
  demand(m.mlp == "gelu", "mlp", "gelu", m.mlp);
  demand(m.heads * m.head_width == m.width, "heads",
         fmt::format("and --head-width whose product is {} (= --width)", m.width),
         fmt::format("{} × {}", m.heads, m.head_width));
}

}  // namespace

SavedModel parse_gpt2_config(std::string_view text, const std::string& source) {
  constexpr std::int64_t kMostIds = 1 << 24;
  const Config config(text, source);
  SavedModel saved;
  saved.options = options_of_config(config);
  saved.arm = "dense";
  saved.vocab = config.size("vocab_size", kMostIds);
  saved.seed = static_cast<std::uint64_t>(saved.options.common.seed);
  try {
    validate(saved.options);
  } catch (const ConfigError& error) {
    config.fail(error.what());
  }
  return saved;
}

Gpt2 read_gpt2(const std::string& folder, const std::string& tokenizer) {
  const std::string path = in_folder(folder, "config.json");
  if (!there(path)) {
    throw FileError(fmt::format(
        "{}: expected a Hugging Face folder of a GPT-2 with config.json and model.safetensors",
        folder));
  }
  Gpt2 out;
  SavedModel& saved = out.saved;
  saved = parse_gpt2_config(MappedFile(path).view(), path);
  Weights weights(folder);
  check_size(saved, weights.count(), folder);
  saved.tokenizer = tokenizer_json(folder, tokenizer, saved.vocab);
  out.model = make_model(saved.options, arm_named("dense", "arm"), saved.vocab, saved.seed);
  const auto ours = named(*out.model);
  for (const Pair& pair : pairs_of(saved.options.model.layers))
    weights.read(pair, ours.at(pair.ours));
  weights.check_head(out.model->head_weight());
  weights.check_all_used();
  return out;
}

void write_gpt2(const std::string& folder, const SavedModel& saved, const Transformer& model) {
  check_is_gpt2(saved);
  const auto ours = named(model);
  NamedTensors tensors;
  for (const Pair& pair : pairs_of(model.layers())) {
    const auto found = ours.find(pair.ours);
    Tensor tensor;
    if (found != ours.end()) {
      tensor = pair.transposed ? found->second.transpose(0, 1).contiguous() : found->second;
    } else {
      const std::string weight = pair.ours.substr(0, pair.ours.rfind('.')) + ".weight";
      tensor = Tensor::zeros({ours.at(weight).size(0)});
    }
    tensors.emplace_back(std::string(kPrefix) + pair.theirs, tensor);
  }
  make_folders(folder);
  write_safetensors(in_folder(folder, "model.safetensors"), tensors, {{"format", "pt"}});
  write_file_atomically(in_folder(folder, "config.json"), config_of(saved).dump(2) + "\n");
  if (saved.tokenizer.empty() ||
      Tokenizer::from_json(saved.tokenizer, folder).kind() != TokenizerKind::bpe) {
    return;
  }
  write_file_atomically(in_folder(folder, "tokenizer.json"), saved.tokenizer);
  ordered_json about{{"tokenizer_class", "GPT2Tokenizer"},
                     {"model_max_length", model.config().context}};
  if (!end_of_text(saved.tokenizer).is_null()) about["eos_token"] = about["bos_token"] = kEnd;
  write_file_atomically(in_folder(folder, "tokenizer_config.json"), about.dump(2) + "\n");
}

}  // namespace proteus
