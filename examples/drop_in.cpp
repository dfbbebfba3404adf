// One model, dense or ASPA: the line that makes the attention is the only difference.
#include <proteus/aspa/attention.h>
#include <proteus/nn/transformer.h>

#include <cstdio>

using namespace proteus;

std::unique_ptr<Attention> dense(const AttentionSite& site) {
  const DenseAttentionConfig config{.width = 64, .heads = 4, .head_width = 16};
  return std::make_unique<DenseAttention>(config, site.output_std, site.init, site.generator);
}

std::unique_ptr<Attention> aspa(const AttentionSite& site) {
  AspaConfig config;
  config.width = 64;
  config.head_width = 16;
  return std::make_unique<AspaAttention>(config, site.output_std, site.init, site.generator);
}

int main() {
  const TransformerConfig config{.vocab = 100, .context = 1024, .layers = 2, .width = 64};
  Transformer before(config, dense);
  Transformer after(config, aspa);
  const Tensor tokens = Tensor::arange(64, DType::i32).reshape({1, 64});
  for (Transformer* model : {&before, &after}) {
    std::printf("%7lld parameters, %7.0f attention FLOP a token, loss %.1f\n",
                static_cast<long long>(model->parameter_count()),
                model->attention_flops_per_token(config.context),
                model->loss(tokens, tokens).value().item());
  }
}
