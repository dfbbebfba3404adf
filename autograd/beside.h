// Parameters kept in f32 beside activations of bf16.
#pragma once

#include "autograd/variable.h"

namespace proteus {

/// The value of a parameter as beside() (autograd/view.h) rounds it, for functions that make its
/// gradient in f32 themselves; undefined for an undefined parameter.
Tensor value_beside(const Variable& parameter, const Variable& x);

}  // namespace proteus
