#include "autograd/beside.h"

namespace proteus {

Tensor value_beside(const Variable& parameter, const Variable& x) {
  if (!parameter.defined()) return {};
  const bool wider = parameter.dtype() == DType::f32 && x.dtype() == DType::bf16;
  return wider ? parameter.rounded() : parameter.value();
}

}  // namespace proteus
