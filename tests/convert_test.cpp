// train/convert.h: a dense model and the ASPA one made of it are the same function at alpha 0.
#include "train/convert.h"

#include <gtest/gtest.h>

#include "autograd/tape.h"
#include "tensor/error.h"
#include "tests/error_text.h"
#include "train/checkpoint.h"

namespace proteus {
namespace {

using testing::message_of;

constexpr std::int64_t kVocab = 50;

Options parsed(const char* command, const std::vector<std::string>& args) {
  return parse_options(command, args).options;
}

Options dense_options() {
  return parsed("train", {"--model", "dense", "--layers", "2", "--width", "32", "--heads", "4",
                          "--context", "24", "--mlp", "swiglu", "--norm", "rms"});
}

// As GPT-2 is made.
Options learned_options() {
  return parsed("train", {"--model", "dense", "--layers", "2", "--width", "32", "--heads", "4",
                          "--context", "24", "--positions", "learned", "--bias"});
}

SavedModel saved(const std::string& arm, const Options& options = dense_options()) {
  SavedModel s;
  s.options = options;
  s.arm = arm;
  s.vocab = kVocab;
  s.seed = 3;
  return s;
}

Options call(std::vector<std::string> more) {
  std::vector<std::string> args{"--checkpoint", "a", "--save", "b"};
  args.insert(args.end(), more.begin(), more.end());
  return parsed("convert", args);
}

// Weights, μ and norms that are not those of a fresh model.
void shake(Transformer& model) {
  std::uint64_t stream = 0;
  for (auto& [name, tensor] : module_tensors(model)) {
    if (is_floating(tensor.dtype())) {
      Tensor(tensor).copy_(Tensor::randn(tensor.shape(), {9, stream++}, tensor.dtype(), 0.1, 0.2));
    }
  }
}

Tensor tokens() {
  Tensor t = Tensor::empty({2, 24}, DType::i32);
  for (std::int64_t i = 0; i < t.numel(); ++i) {
    t.data<std::int32_t>()[i] = static_cast<std::int32_t>((7 * i + i * i) % kVocab);
  }
  return t;
}

struct Dense {
  const char* arm;
  Options (*options)();
};

TEST(Convert, IsTheSameFunctionAtAlphaZero) {
  for (const auto& [arm, of] : {Dense{"dense", dense_options}, Dense{"dense_shift", dense_options},
                                Dense{"dense", learned_options}}) {
    for (const char* shared : {"0", "1", "3", "4"}) {
      const SavedModel from = saved(arm, of());
      SCOPED_TRACE(std::string(arm) + ", positions " + from.options.model.positions +
                   ", shared heads " + shared);
      const auto dense = make_model(from.options, arm_named(arm, "arm"), kVocab, from.seed);
      shake(*dense);
      const Options options = converted_options(from, call({"--shared-heads", shared}));
      EXPECT_EQ(options.aspa.shared_heads + options.aspa.routed_heads, 4);
      const auto aspa = converted(*dense, options, from.seed);
      for (Transformer* model : {dense.get(), aspa.get()}) model->set_training(false);
      set_alpha(*aspa, 0);
      const auto expected = dense->logits(tokens()).to_vector();
      const auto got = aspa->logits(tokens()).to_vector();
      double scale = 0;
      for (const double x : expected) scale = std::max(scale, std::abs(x));
      for (std::size_t i = 0; i < got.size(); ++i) {
        ASSERT_NEAR(got[i], expected[i], 1e-5 * scale) << i;
      }
      if (options.aspa.routed_heads == 0) continue;
      set_alpha(*aspa, 1);
      EXPECT_NE(aspa->logits(tokens()).to_vector(), got) << "alpha 1 is another function";
    }
  }
}

TEST(Convert, ChoosesHeadsThatAddUp) {
  const Options o = converted_options(saved("dense"), call({}));
  EXPECT_EQ(o.aspa.shared_heads, 2);
  EXPECT_EQ(o.aspa.routed_heads, 2);
  EXPECT_EQ(o.aspa.k, 1);
  EXPECT_EQ(o.aspa.rope, "full");
  EXPECT_EQ(o.model.mlp, "swiglu");
  EXPECT_EQ(o.model.context, 24);
  EXPECT_EQ(converted_options(saved("dense"), call({"--context", "100"})).model.context, 100);
}

TEST(Convert, TakesAShorterContextOfLearnedPositions) {
  const SavedModel from = saved("dense", learned_options());
  const auto dense = make_model(from.options, arm_named("dense", "arm"), kVocab, from.seed);
  shake(*dense);
  const Options options = converted_options(from, call({"--context", "16"}));
  EXPECT_EQ(options.aspa.rope, "none");
  const auto aspa = converted(*dense, options, from.seed);
  for (Transformer* model : {dense.get(), aspa.get()}) model->set_training(false);
  set_alpha(*aspa, 0);
  const Tensor some = tokens().slice(1, 0, 16).contiguous();
  const auto expected = dense->logits(some).to_vector();
  const auto got = aspa->logits(some).to_vector();
  for (std::size_t i = 0; i < got.size(); ++i) ASSERT_NEAR(got[i], expected[i], 1e-4) << i;
}

TEST(Convert, RefusesWhatWouldNotBeTheSame) {
  const auto says = [](const SavedModel& from, const std::vector<std::string>& more,
                       const char* expected) {
    const std::string message =
        message_of<ConfigError>([&] { converted_options(from, call(more)); });
    EXPECT_NE(message.find(expected), std::string::npos) << message;
  };
  says(saved("aspa"), {}, "expected a dense or dense_shift model");
  says(saved("dense_gated"), {}, "expected a dense or dense_shift model");
  says(saved("dense"), {"--routed-heads", "4"}, "--routed-heads: expected 2");
  says(saved("dense"), {"--shared-heads", "5", "--routed-heads", "1", "--k", "1"},
       "--routed-heads: expected -1");
  says(saved("dense"), {"--rope", "half"}, "--rope: expected full");
  says(saved("dense_shift"), {"--no-key-shift"}, "--no-key-shift");
  says(saved("dense", learned_options()), {"--rope", "full"}, "--rope: expected none");
  says(saved("dense", learned_options()), {"--context", "25"}, "--context: expected at most 24");
}

}  // namespace
}  // namespace proteus
