// wide_linear_fwd in one kernel on Hopper. Private to cuda/wide_linear*.cu.
#pragma once

#include "tensor/ops/wide_linear.h"

namespace proteus::cuda {

bool hopper_wide_fits(const WideLinearFwd& a);
void wide_linear_hopper(const WideLinearFwd& a);

}  // namespace proteus::cuda
