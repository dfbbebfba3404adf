// The families: add a line, and write <family>_family() in tests/op_cases/<family>.cpp.
#pragma once

#include "tests/op_cases/op_case.h"

// clang-format off: one line per family
#define PROTEUS_OP_FAMILIES(X) \
  X(elementwise)               \
  X(view)                      \
  X(reduce)                    \
  X(softmax)                   \
  X(norm)                      \
  X(embedding)                 \
  X(dropout)                   \
  X(rope)                      \
  X(pack)                      \
  X(take)                      \
  X(select)                    \
  X(gemm)                      \
  X(wide_linear)               \
  X(grouped_gemm)              \
  X(routing)                   \
  X(prototypes)                \
  X(salience)                  \
  X(bank)                      \
  X(cache)                     \
  X(attention)                 \
  X(draw)                      \
  X(loss)                      \
  X(optim)
// clang-format on

namespace proteus::testing {

#define PROTEUS_DECLARE_FAMILY(family) OpFamily family##_family();
PROTEUS_OP_FAMILIES(PROTEUS_DECLARE_FAMILY)
#undef PROTEUS_DECLARE_FAMILY

}  // namespace proteus::testing
