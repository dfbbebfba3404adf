// Decoding side by side (nn/decoder.h): the logits of a full forward pass, on the CPU and, bit for
// bit the same, on a device that host code must not touch.
#include <gtest/gtest.h>

#include "tensor/error.h"
#include "tensor/ops/draw.h"
#include "tests/decoder_runs.h"
#include "tests/error_text.h"
#include "tests/fake_device.h"
#include "train/generate.h"
#include "train/sampler.h"

namespace proteus {
namespace {

using namespace testing;

class Int8 : public ::testing::TestWithParam<DecodeCase> {};
class Decoding : public ::testing::TestWithParam<DecodeCase> {};

TEST_P(Decoding, StepsEqualTheForwardPass) {
  for (const auto& [dtype, tolerance] : {std::pair{"f32", 1e-5}, {"bf16", 3e-2}}) {
    const auto model = decode_model(GetParam(), dtype);
    const Tensor tokens = decode_tokens(3);
    Decoder decoder(*model, {.batch = 3});
    EXPECT_LE(difference(decoded_logits(decoder, tokens), model->logits(tokens)), tolerance)
        << dtype;
    EXPECT_EQ(decoder.position(), kDecodeLength);
    EXPECT_GT(decoder.bytes(), 0);
  }
}

TEST_P(Decoding, BeginsAnew) {
  const auto model = decode_model(GetParam(), "f32");
  const Tensor tokens = decode_tokens(2, 30);
  Decoder decoder(*model, {.batch = 2});
  const Tensor first = decoded_logits(decoder, tokens);
  decoder.set_position(0);
  EXPECT_TRUE(same_bits(decoded_logits(decoder, tokens), first));
}

// On a device whose kernels are those of the CPU, with steps that cannot be recorded.
TEST_P(Decoding, TheSameBitsOnADevice) {
  for (const char* dtype : {"f32", "bf16"}) {
    for (const CacheType cache : {CacheType::full, CacheType::int8}) {
      const auto model = decode_model(GetParam(), dtype);
      const Tensor tokens = decode_tokens(3, 5);
      const DecoderConfig config{.batch = 3, .cache = cache};
      Decoder on_cpu(*model, config);
      const Tensor expected = decoded_logits(on_cpu, tokens);
      const FakeDevice fake;
      model->to(kFakeDevice);
      {
        Decoder decoder(*model, config);
        EXPECT_TRUE(same_bits(decoded_logits(decoder, tokens), expected)) << dtype;
        EXPECT_EQ(decoder.replays(), 0);
      }
      model->to(kCpu);
      EXPECT_EQ(FakeDevice::broken_guards(), 0);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Models, Decoding, ::testing::ValuesIn(all_decode_cases()),
                         [](const auto& decode) { return decode.param.name; });

TEST_P(Int8, StaysNear) {
  const auto model = decode_model(GetParam(), "f32");
  const Tensor tokens = decode_tokens(2);
  Decoder decoder(*model, {.batch = 2, .cache = CacheType::int8});
  EXPECT_LE(difference(decoded_logits(decoder, tokens), model->logits(tokens)), 2e-2);
}

INSTANTIATE_TEST_SUITE_P(Models, Int8, ::testing::ValuesIn(int8_cases()),
                         [](const auto& decode) { return decode.param.name; });

TEST(Decoder, DrawsTheTokensOfTheSampler) {
  const auto model = decode_model(dense_cases()[0], "f32");
  for (const SamplerConfig sampler : {SamplerConfig{.temperature = 0.9},
                                      SamplerConfig{.temperature = 2, .top_k = 7, .top_p = 0.8},
                                      SamplerConfig{.temperature = 0}}) {
    const RngKey key{11, 5};
    Decoder decoder(*model, {}, [&](const Tensor& tokens, const Tensor& logits, const Tensor& at) {
      ops::draw_tokens(tokens, logits, at,
                       {sampler.temperature, sampler.top_k, sampler.top_p, key, 0});
    });
    for (std::int64_t t = 0; t < kDecodeLength; ++t) {
      decoder.step();
      const Tensor& logits = decoder.logits();
      const std::span<const float> row(logits.data<float>(), kDecodeVocab);
      EXPECT_EQ(decoder.tokens().data<std::int32_t>()[0],
                sample_token(row, sampler, key, static_cast<std::uint64_t>(t)))
          << t;
    }
  }
}

TEST(Decoder, DrawsNothingFromNumbersThatWentBad) {
  Tensor logits = Tensor::zeros({3, 4});
  logits.select(0, 0).select(0, 1).fill_(NAN);
  logits.select(0, 1).fill_(-INFINITY);
  const Tensor tokens = Tensor::zeros({3}, DType::i32);
  ops::draw_tokens(tokens, logits, Tensor::zeros({3}, DType::i32), {.temperature = 0});
  EXPECT_EQ(tokens.to_vector(), (std::vector<double>{kNoToken, kNoToken, 0}));
}

// Prompt, decoding, and tokens beyond the context.
TEST(Decoder, TextOnADeviceIsTheTextOfTheCpu) {
  const Tokenizer tokenizer = Tokenizer::chars_of("abcdefgh\n", "text");
  for (const char* arm : {"dense", "aspa"}) {
    const auto parsed =
        parse_options("duel", {"--layers", "2", "--width", "32", "--context", "24"});
    // More ids than the tokenizer has, as in a padded table: none of them is drawn.
    const auto model =
        make_model(parsed.options, arm_named(arm, "--arms"), tokenizer.vocab() + 7, 3);
    for (const std::string prompt : {"", "abcab", "abcdefghabcdefghabcdefghabcdefgh"}) {
      SamplingOptions options{.prompt = prompt, .sample_tokens = 40, .top_p = 0.9};
      model->to(kCpu);
      const std::string expected = generate(*model, tokenizer, options, 5).text;
      const FakeDevice fake;
      model->to(kFakeDevice);
      EXPECT_EQ(generate(*model, tokenizer, options, 5).text, expected) << arm << prompt;
      options.top_a = "blend";
      EXPECT_THROW(generate(*model, tokenizer, options, 5), ConfigError);
      EXPECT_TRUE(model->training());
      model->to(kCpu);
    }
  }
}

TEST(Decoder, ErrorsSayWhatToChange) {
  const auto banked = decode_model({"Bank", "aspa", {"--bank-slots", "4"}}, "f32");
  EXPECT_EQ(message_of<ConfigError>([&] { Decoder(*banked, {}); }),
            "aspa: make_caches: a bank is decoded on the CPU only; use --device cpu, or no bank");
  const auto model = decode_model(dense_cases()[2], "f32");
  EXPECT_THROW(Decoder(*model, {.longest = kDecodeLength + 1}), ConfigError);
  EXPECT_THROW(Decoder(*model, {.batch = 0}), ConfigError);
  Decoder decoder(*model, {.batch = 2, .longest = 3});
  EXPECT_THROW(decoder.set_tokens(Tensor::zeros({3}, DType::i32)), ShapeError);
  for (int i = 0; i < 3; ++i) decoder.step();
  EXPECT_THROW(decoder.step(), ShapeError);
  EXPECT_EQ(decoder.position(), 3);
}

}  // namespace
}  // namespace proteus
