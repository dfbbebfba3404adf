// The families of every other test and the toy's: what docs/adding-an-op.md adds to
// tests/op_cases/families.h and cuda/kernels.h.
#include "tests/op_runs.h"

namespace proteus::cuda {
void install_softsign_kernels();
}

namespace proteus::testing {

OpFamily softsign_family();

const std::vector<OpFamily>& families() {
  static const auto* list = [] {
#ifdef PROTEUS_HAVE_CUDA
    cuda::install_softsign_kernels();
#endif
    auto* all = new std::vector<OpFamily>(all_families());
    all->push_back(softsign_family());
    return all;
  }();
  return *list;
}

}  // namespace proteus::testing
