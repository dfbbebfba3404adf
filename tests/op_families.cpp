#include "tests/op_runs.h"

namespace proteus::testing {

const std::vector<OpFamily>& families() {
  static const auto* list = new std::vector<OpFamily>(all_families());
  return *list;
}

}  // namespace proteus::testing
