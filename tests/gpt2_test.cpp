// train/gpt2.h: folders that `transformers` wrote give PyTorch's logits here, and what is written
// here opens there. tests/fixtures/gpt2/make.py made the folders and checks ours.
#include "train/gpt2.h"

#include <gtest/gtest.h>
#include <sys/wait.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "autograd/tape.h"
#include "tensor/error.h"
#include "tests/error_text.h"
#include "tests/temporary_folder.h"
#include "train/checkpoint.h"
#include "train/convert.h"
#include "train/gates.h"
#include "train/generate.h"
#include "train/safetensors.h"
#include "train/trainer.h"

namespace proteus {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using testing::message_of;
using testing::TemporaryFolder;

constexpr double kTolerance = 1e-4;
constexpr const char* kFolders[] = {"two_layers", "inner", "text"};

std::string fixture(const std::string& name) { return PROTEUS_FIXTURES "/gpt2/" + name; }

bool have_pcre2() {
#ifdef PROTEUS_HAVE_PCRE2
  return true;
#else
  return false;
#endif
}

struct Expected {
  Tensor tokens, logits;
};

Expected expected_of(const std::string& name) {
  const SafetensorsFile file(fixture(name) + "/expected.safetensors");
  return {file.read("tokens"), file.read("logits")};
}

double largest_difference(const Tensor& a, const Tensor& b) {
  if (a.shape() != b.shape()) return 1e9;
  const auto x = a.to_vector();
  const auto y = b.to_vector();
  double largest = 0;
  for (std::size_t i = 0; i < x.size(); ++i) largest = std::max(largest, std::abs(x[i] - y[i]));
  return largest;
}

/// A copy of a fixture whose files can be changed.
class Copy {
 public:
  explicit Copy(const std::string& name) {
    for (const auto& entry : fs::directory_iterator(fixture(name))) {
      fs::copy_file(entry.path(), fs::path(folder_.path()) / entry.path().filename());
    }
  }
  std::string path() const { return folder_.path(); }
  void change(const std::function<void(json&)>& edit) const {
    json config = json::parse(folder_.read("config.json"));
    edit(config);
    folder_.write("config.json", config.dump());
  }
  void change_tensors(const std::function<void(NamedTensors&)>& edit) const {
    NamedTensors tensors = read_safetensors(folder_.file("model.safetensors"));
    edit(tensors);
    fs::remove(folder_.file("model.safetensors"));
    write_safetensors(folder_.file("model.safetensors"), tensors);
  }
  void remove(const std::string& file) const { fs::remove(folder_.file(file)); }
  /// What the reader says, behind the folder's path.
  std::string refusal() const {
    const std::string message = message_of<FileError>([&] { read_gpt2(path(), ""); });
    const std::size_t begin = message.find(path());
    return begin == std::string::npos ? message : message.substr(begin + path().size());
  }

 private:
  TemporaryFolder folder_;
};

class Gpt2Folder : public ::testing::TestWithParam<const char*> {
 protected:
  Gpt2Folder() {
    if (std::string(GetParam()) == "text" && !have_pcre2()) tokenizer_ = "byte";
    gpt2_ = read_gpt2(fixture(GetParam()), tokenizer_);
    gpt2_.model->set_training(false);
  }
  std::string tokenizer_;
  Gpt2 gpt2_;
};
INSTANTIATE_TEST_SUITE_P(Shapes, Gpt2Folder, ::testing::ValuesIn(kFolders),
                         [](const auto& test) { return std::string(test.param); });

TEST_P(Gpt2Folder, HasTheLogitsOfPyTorch) {
  const Expected expected = expected_of(GetParam());
  EXPECT_LE(largest_difference(gpt2_.model->logits(expected.tokens), expected.logits), kTolerance);
}

TEST_P(Gpt2Folder, DecodesToTheLogitsOfPyTorch) {
  const Expected expected = expected_of(GetParam());
  DecodeState a = gpt2_.model->begin_sequence();
  DecodeState b = gpt2_.model->begin_sequence();
  DecodeState* const both[] = {&a, &b};
  for (std::int64_t t = 0; t < expected.tokens.size(1); ++t) {
    const Tensor logits = gpt2_.model->step(expected.tokens.select(1, t).contiguous(), both);
    EXPECT_LE(largest_difference(logits, expected.logits.select(1, t)), kTolerance) << t;
  }
}

TEST_P(Gpt2Folder, ComesBackAsItWas) {
  const TemporaryFolder folder;
  write_gpt2(folder.path(), gpt2_.saved, *gpt2_.model);
  const SafetensorsFile theirs(fixture(GetParam()) + "/model.safetensors");
  const SafetensorsFile ours(folder.file("model.safetensors"));
  for (std::int64_t i = 0; i < ours.count(); ++i) {
    const std::string name = ours.info(i).name;
    ASSERT_TRUE(name.starts_with("transformer.")) << name;
    const std::string bare = name.substr(std::string("transformer.").size());
    const std::int64_t at = theirs.find(name) >= 0 ? theirs.find(name) : theirs.find(bare);
    ASSERT_GE(at, 0) << name;
    EXPECT_EQ(ours.info(i).shape, theirs.info(at).shape) << name;
    EXPECT_EQ(ours.bytes(i), theirs.bytes(at)) << name;
  }
  const Gpt2 again = read_gpt2(folder.path(), tokenizer_);
  EXPECT_EQ(model_json(again.saved), model_json(gpt2_.saved));
}

TEST_P(Gpt2Folder, SurvivesACheckpoint) {
  const TemporaryFolder folder;
  const std::string path = folder.file("checkpoint");
  save_checkpoint(path, {model_json(gpt2_.saved), "{}", module_tensors(*gpt2_.model), {}});
  const Checkpoint loaded = load_checkpoint(path, CheckpointPart::model);
  const auto model = saved_model(parse_model_json(loaded.config, path), loaded.model, path);
  model->set_training(false);
  const Expected expected = expected_of(GetParam());
  EXPECT_EQ(model->logits(expected.tokens).to_vector(),
            gpt2_.model->logits(expected.tokens).to_vector());
}

TEST_P(Gpt2Folder, IsFineTuned) {
  const Expected expected = expected_of(GetParam());
  const std::int64_t T = expected.tokens.size(1);
  const auto part = [&](std::int64_t begin, std::int64_t end) {
    return expected.tokens.slice(1, begin, end).to(DType::i32).contiguous();
  };
  const Batch batch{part(0, T - 1), part(1, T)};
  TrainerConfig config;
  config.steps = 30;
  config.lr = 1e-2;
  config.warmup = 2;
  Trainer trainer(*gpt2_.model, config, [&](std::int64_t) { return batch; });
  const double first = trainer.step().loss;
  double last = first;
  while (!trainer.finished()) last = trainer.step().loss;
  EXPECT_LT(last, first - 1);
}

TEST_P(Gpt2Folder, IsTheSameAsAspaAtAlphaZero) {
  const Options& dense = gpt2_.saved.options;
  if (dense.model.heads < 2) GTEST_SKIP() << "one head";
  const Options call =
      parse_options("convert", {"--checkpoint", "a", "--save", "b", "--shared-heads", "1"}).options;
  const Options options = converted_options(gpt2_.saved, call);
  const auto aspa = converted(*gpt2_.model, options, gpt2_.saved.seed);
  aspa->set_training(false);
  set_alpha(*aspa, 0);
  const Expected expected = expected_of(GetParam());
  EXPECT_LE(largest_difference(aspa->logits(expected.tokens), expected.logits), kTolerance);
  set_alpha(*aspa, 1);
  EXPECT_GT(largest_difference(aspa->logits(expected.tokens), expected.logits), kTolerance);
}

// By the Python that PROTEUS_PYTHON names, or python3.
TEST(Gpt2, WhatIsWrittenIsOpenedByTransformers) {
  const char* given = std::getenv("PROTEUS_PYTHON");
  const std::string python = given ? given : "python3";
  const TemporaryFolder folder;
  std::string command = "'" + python + "' '" + fixture("make.py") + "' --check";
  for (const std::string name : kFolders) {
    const Gpt2 gpt2 = read_gpt2(fixture(name), name == "text" && !have_pcre2() ? "byte" : "");
    write_gpt2(folder.file(name), gpt2.saved, *gpt2.model);
    fs::copy_file(fixture(name) + "/expected.safetensors",
                  folder.file(name + "/expected.safetensors"));
    command += " '" + folder.file(name) + "'";
  }
  const int status = std::system((command + " 2>/dev/null").c_str());
  constexpr int kMissing = 77;
  constexpr int kNoPython = 127;
  ASSERT_TRUE(WIFEXITED(status));
  if (WEXITSTATUS(status) == kMissing || WEXITSTATUS(status) == kNoPython) {
    GTEST_SKIP() << python << " has no torch and transformers; PROTEUS_PYTHON names another";
  }
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

TEST(Gpt2, TextGoesThroughTheFoldersTokenizer) {
  if (!have_pcre2()) GTEST_SKIP() << "byte-pair encoding needs PCRE2";
  const Gpt2 gpt2 = read_gpt2(fixture("text"), "");
  const Tokenizer tokenizer = Tokenizer::from_json(gpt2.saved.tokenizer, "fixture");
  EXPECT_EQ(tokenizer.vocab(), 270);
  EXPECT_EQ(gpt2.saved.vocab, 280) << "a padded table";
  SamplingOptions sampling;
  sampling.prompt = "to be";
  sampling.sample_tokens = 30;  // beyond the context
  sampling.temperature = 5;
  const std::string text = generate(*gpt2.model, tokenizer, sampling, 3).text;
  EXPECT_TRUE(text.starts_with("to be")) << text;
}

TEST(Gpt2, BiasesThatAModelHasNotAreZeros) {
  SavedModel saved;
  saved.options = parse_options("train", {"--model", "dense", "--positions", "learned", "--layers",
                                          "1", "--width", "16", "--heads", "2"})
                      .options;
  saved.arm = "dense";
  saved.vocab = 20;
  const auto model = make_model(saved.options, arm_named("dense", "arm"), 20, 3);
  model->set_training(false);
  const TemporaryFolder folder;
  write_gpt2(folder.path(), saved, *model);
  const Gpt2 back = read_gpt2(folder.path(), "");
  back.model->set_training(false);
  const Tensor tokens = Tensor::arange(20, DType::i32).unsqueeze(0);
  EXPECT_LE(largest_difference(back.model->logits(tokens), model->logits(tokens)), 1e-6);
}

TEST(Gpt2, RefusesWhatIsNoGpt2ToWrite) {
  const TemporaryFolder folder;
  const auto message = [&](const char* arm, std::vector<std::string> args) {
    args.insert(args.begin(), {"--layers", "1", "--width", "16", "--heads", "2"});
    SavedModel saved;
    saved.options = parse_options("train", args).options;
    saved.arm = arm;
    saved.vocab = 20;
    const auto model = make_model(saved.options, arm_named(arm, "arm"), 20, 3);
    return message_of<ConfigError>([&] { write_gpt2(folder.path(), saved, *model); });
  };
  EXPECT_EQ(message("dense", {}),
            "--to-gpt2: expected a model trained with --positions learned, got rope");
  EXPECT_EQ(message("aspa", {"--rope", "full"}),
            "--to-gpt2: expected a model trained with --model dense, got aspa");
  EXPECT_EQ(message("dense", {"--positions", "learned", "--norm", "rms"}),
            "--to-gpt2: expected a model trained with --norm layer, got rms");
  EXPECT_EQ(message("dense", {"--positions", "learned", "--head-width", "4"}),
            "--to-gpt2: expected a model trained with --heads and --head-width whose product is 16 "
            "(= --width), got 2 × 4");
}

TEST(Gpt2, RefusesConfigsOfAnotherFunction) {
  const auto refusal = [](const char* key, const json& value) {
    const Copy copy("two_layers");
    copy.change([&](json& config) { config[key] = value; });
    return copy.refusal();
  };
  const std::string other = "; that is another function than Proteus computes";
  EXPECT_EQ(refusal("activation_function", "relu"),
            "/config.json: activation_function: expected \"gelu_new\" or \"gelu_pytorch_tanh\", "
            "got \"relu\"" +
                other);
  EXPECT_EQ(refusal("model_type", "llama"),
            "/config.json: model_type: expected \"gpt2\", got \"llama\"" + other);
  EXPECT_EQ(refusal("layer_norm_epsilon", 1e-6),
            "/config.json: layer_norm_epsilon: expected 1e-05, got 1e-06" + other);
  EXPECT_EQ(refusal("scale_attn_by_inverse_layer_idx", true),
            "/config.json: scale_attn_by_inverse_layer_idx: expected false, got true" + other);
  EXPECT_EQ(refusal("tie_word_embeddings", false),
            "/config.json: tie_word_embeddings: expected true, got false" + other);
  EXPECT_EQ(refusal("n_head", 3), "/config.json: n_head: expected a divisor of n_embd 16, got 3");
  EXPECT_EQ(refusal("n_layer", 0), "/config.json: n_layer: expected 1 to 4096, got 0");
  EXPECT_EQ(refusal("n_embd", "16"), "/config.json: n_embd: expected a number");
  EXPECT_EQ(refusal("resid_pdrop", 1),
            "/config.json: --dropout: expected a number in [0, 1), got 1");
}

// No memory is asked for 2e14 parameters where a file has some thousands.
TEST(Gpt2, RefusesConfigsOfMuchLargerModels) {
  const Copy copy("two_layers");
  copy.change([&](json& config) {
    config["n_layer"] = 4096;
    config["n_embd"] = 1 << 16;
    config["n_head"] = 1 << 10;
  });
  const std::string refusal = copy.refusal();
  EXPECT_NE(refusal.find("config.json describes a model of about 2.1e+14 parameters; the file "
                         "holds"),
            std::string::npos)
      << refusal;
}

TEST(Gpt2, RefusesWeightsThatDoNotFit) {
  const auto with = [](const std::function<void(NamedTensors&)>& edit) {
    const Copy copy("two_layers");
    copy.change_tensors(edit);
    return copy.refusal();
  };
  const auto named = [](NamedTensors& tensors, const std::string& name) {
    return std::find_if(tensors.begin(), tensors.end(),
                        [&](const auto& t) { return t.first == name; });
  };
  const std::string weight = "transformer.h.1.mlp.c_fc.weight";
  EXPECT_EQ(with([&](NamedTensors& t) { t.erase(named(t, weight)); }),
            "/model.safetensors: h.1.mlp.c_fc.weight: expected a tensor of this name, with or "
            "without transformer., as config.json has it; the file has 27");
  EXPECT_EQ(with([&](NamedTensors& t) {
              named(t, weight)->second = named(t, weight)->second.transpose(0, 1).contiguous();
            }),
            "/model.safetensors: h.1.mlp.c_fc.weight: expected [16, 64] of floating numbers, as "
            "config.json has it, got f32 [64, 16]");
  EXPECT_EQ(with([&](NamedTensors& t) { t.emplace_back("h.2.ln_1.weight", Tensor::zeros({16})); }),
            "/model.safetensors: h.2.ln_1.weight: no tensor of the GPT-2 that config.json "
            "describes");
  EXPECT_EQ(with([&](NamedTensors& t) {
              t.emplace_back("lm_head.weight", Tensor::zeros({40, 16}));
            }),
            "/model.safetensors: lm_head.weight: expected wte.weight again (tied), got other "
            "numbers");
  EXPECT_EQ(with([&](NamedTensors& t) { t.emplace_back("ln_f.bias", Tensor::zeros({16})); }),
            "/model.safetensors: ln_f.bias: expected it once, with or without transformer.");
}

TEST(Gpt2, RefusesFoldersWithoutTheFiles) {
  const Copy copy("two_layers");
  copy.remove("model.safetensors");
  EXPECT_NE(copy.refusal().find(": expected model.safetensors, in one part"), std::string::npos);
  copy.remove("config.json");
  EXPECT_EQ(copy.refusal(),
            ": expected a Hugging Face folder of a GPT-2 with config.json and model.safetensors");
  const Copy text("text");
  text.change([](json& config) { config["vocab_size"] = 40; });
  EXPECT_EQ(message_of<FileError>([&] { read_gpt2(text.path(), "byte"); }),
            "byte: tokenizer: expected at most 40 ids (= vocab_size), got 256");
}

}  // namespace
}  // namespace proteus
