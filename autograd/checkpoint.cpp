#include "autograd/checkpoint.h"

#include <memory>
#include <variant>

#include "tensor/error.h"

namespace proteus {
namespace {

struct Decisions {
  std::vector<std::variant<std::vector<Tensor>, RngKey>> items;
  std::size_t next = 0;
};

/// What happens to decisions in the current scope: they are recorded, or replayed.
struct Scope {
  Decisions* decisions = nullptr;
  bool replay = false;
  Scope* outer = nullptr;
};

thread_local Scope* t_scope = nullptr;

class DecisionScope {
 public:
  DecisionScope(Decisions& decisions, bool replay) : scope_{&decisions, replay, t_scope} {
    decisions.next = 0;
    t_scope = &scope_;
  }
  ~DecisionScope() { t_scope = scope_.outer; }
  DecisionScope(const DecisionScope&) = delete;
  DecisionScope& operator=(const DecisionScope&) = delete;

 private:
  Scope scope_;
};

// A scope that records asks the one around it first: a segment within a segment that is recomputed
// gets the decisions of the first forward pass.
template <class T, class F>
T remember(Scope* scope, F&& make) {
  if (!scope) return make();
  Decisions& d = *scope->decisions;
  if (!scope->replay) {
    T value = remember<T>(scope->outer, make);
    d.items.emplace_back(value);
    return value;
  }
  if (d.next == d.items.size() || !std::holds_alternative<T>(d.items[d.next])) {
    throw AutogradError(
        "checkpoint: the recomputation asked for another decision than the forward pass made; the "
        "segment must do the same both times");
  }
  return std::get<T>(d.items[d.next++]);
}

}  // namespace

Variable checkpoint(const std::function<Variable(const std::vector<Variable>&)>& fn,
                    const std::vector<Variable>& inputs) {
  if (!grad_enabled()) return fn(inputs);
  auto decisions = std::make_shared<Decisions>();
  std::vector<Saved> values;
  std::vector<bool> wanted;
  std::vector<Variable> edges = inputs;
  for (const Variable& input : inputs) {
    values.emplace_back(input);
    wanted.push_back(input.requires_grad());
  }
  Tensor output;
  {
    const NoGradGuard no_grad;
    const DecisionScope scope(*decisions, false);
    output = fn(inputs).value();
  }
  // Parameters inside the segment want gradients even if no input does: a leaf keeps the node.
  edges.emplace_back(Tensor::zeros({}), true);
  return record("checkpoint", edges, output, std::move(values),
                [fn, decisions, wanted](const Backward& ctx) -> Gradients {
                  std::vector<Variable> again;
                  for (std::size_t i = 0; i < wanted.size(); ++i) {
                    again.emplace_back(ctx.saved(static_cast<int>(i)), wanted[i]);
                  }
                  const GradMode grad(true);
                  {
                    const DecisionScope scope(*decisions, true);
                    const Variable y = fn(again);
                    if (y.requires_grad()) y.backward(ctx.dy());
                  }
                  Gradients grads;
                  for (const Variable& v : again) grads.push_back(v.grad());
                  grads.emplace_back();
                  return grads;
                });
}

std::vector<Tensor> decide(const std::function<std::vector<Tensor>()>& make) {
  return remember<std::vector<Tensor>>(t_scope, make);
}

RngKey next_key(Generator& generator) {
  return remember<RngKey>(t_scope, [&] { return generator.next(); });
}

bool recomputing() {
  for (const Scope* scope = t_scope; scope; scope = scope->outer) {
    if (scope->replay) return true;
  }
  return false;
}

}  // namespace proteus
