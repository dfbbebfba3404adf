#include "nn/block.h"

#include "autograd/dropout.h"
#include "autograd/tape.h"
#include "tensor/ops/elementwise.h"

namespace proteus {

Block::Block(std::unique_ptr<Attention> attention, NormKind norm, std::unique_ptr<FeedForward> mlp,
             std::int64_t width, bool bias, double dropout, Generator& generator)
    : norm1_(add_child("norm1", std::make_unique<Norm>(norm, width, bias))),
      attention_(add_child("attn", std::move(attention))),
      norm2_(add_child("norm2", std::make_unique<Norm>(norm, width, bias))),
      mlp_(add_child("mlp", std::move(mlp))),
      dropout_(dropout),
      generator_(generator) {}

Variable Block::forward(const Variable& x) const {
  const double p = training() ? dropout_ : 0.0;
  if (p == 0) {
    const Variable h = attention_.forward_onto(attention_input(x), x);
    return mlp_.forward_onto(norm2_.forward(h), h);
  }
  const Variable h = dropout_add(attention_.forward(attention_input(x)), x, p, generator_);
  return dropout_add(mlp_.forward(norm2_.forward(h)), h, p, generator_);
}

Tensor Block::step(const Tensor& x, std::span<AttentionState* const> states) const {
  const NoGradGuard no_grad;
  return finish_step(attention_.step(attention_input(Variable(x)).value(), states), x);
}

Tensor Block::step(const Tensor& x, const LayerCaches& caches, const Tensor& positions) const {
  const NoGradGuard no_grad;
  return finish_step(attention_.step(attention_input(Variable(x)).value(), caches, positions), x);
}

Tensor Block::finish_step(const Tensor& mixed, const Tensor& x) const {
  const Tensor h = ops::add(mixed, x);
  return mlp_.forward_onto(norm2_.forward(Variable(h)), Variable(h)).value();  // as forward rounds
}

}  // namespace proteus
