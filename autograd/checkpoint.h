// Activation checkpointing (Chen et al., arXiv:1604.06174): the forward pass of a segment keeps its
// inputs only; the backward pass runs it again. What was decided in the forward pass (routing
// selections, dropout streams) is remembered and reused: a recomputation never decides anew.
#pragma once

#include <functional>
#include <vector>

#include "autograd/tape.h"

namespace proteus {

/// Returns `fn(inputs)`; same values and gradients as without, for less memory and a second
/// forward. `fn` may use parameters; they get their gradients too. It must be a pure function of
/// its inputs, the parameters and of what passes through decide() and next_key().
Variable checkpoint(const std::function<Variable(const std::vector<Variable>&)>& fn,
                    const std::vector<Variable>& inputs);

/// Runs `make` and returns its tensors, which carry no gradient. Within a checkpointed segment they
/// are remembered, and returned again without calling `make` while it is recomputed.
std::vector<Tensor> decide(const std::function<std::vector<Tensor>()>& make);
/// `generator.next()`, remembered in the same way.
RngKey next_key(Generator& generator);
/// True while a segment is recomputed: whoever counts or collects statistics in a forward pass must
/// not do so a second time.
bool recomputing();

}  // namespace proteus
