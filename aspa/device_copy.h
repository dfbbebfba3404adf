// Small tables that host code reads and writes all the time live on the CPU; kernels read a copy
// where the tokens are, which is renewed when the table has changed.
#pragma once

#include <cstdint>

#include "tensor/tensor.h"

namespace proteus {

class DeviceCopy {
 public:
  /// `table` on `device`: itself where it is already there.
  const Tensor& of(const Tensor& table, Device device) {
    if (table.device() == device) return table;
    const bool same = copy_.defined() && copy_.device() == device &&
                      source_.storage() == table.storage() && version_ == table.version();
    if (!same) {
      copy_ = table.to(device);
      source_ = table;
      version_ = table.version();
    }
    return copy_;
  }

 private:
  Tensor source_;
  Tensor copy_;
  std::uint64_t version_ = 0;
};

}  // namespace proteus
