// Products of packed rows in bf16 on Hopper (sm_90a): cuda/grouped_hopper_*.cu. Each has conditions
// that say where it is the one to take; cuda/grouped_gemm.cu has kernels for everything else.
#pragma once

#include "tensor/ops/grouped_gemm.h"

namespace proteus::cuda {

bool hopper_gather_fits(const GroupedGather& a);
void grouped_gather_hopper(const GroupedGather& a);

bool hopper_scatter_fits(const GroupedScatter& a);
void grouped_scatter_hopper(const GroupedScatter& a);

bool hopper_weight_fits(const GroupedWeight& a);
void grouped_weight_hopper(const GroupedWeight& a);

}  // namespace proteus::cuda
