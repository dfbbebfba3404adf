// Small tables that host code reads and writes all the time live on the CPU; kernels read a copy
// where the tokens are, which is renewed when the table has changed: in place where it has the same
// shape, so that recorded kernels read what is there now.
#pragma once

#include <cstdint>

#include "tensor/queue.h"
#include "tensor/tensor.h"

namespace proteus {

class DeviceCopy {
 public:
  /// `table` on `device`: itself where it is already there.
  const Tensor& of(const Tensor& table, Device device) {
    if (table.device() == device) return table;
    const bool fits = copy_.defined() && copy_.device() == device &&
                      copy_.shape() == table.shape() && copy_.dtype() == table.dtype();
    if (!fits) {
      copy_ = table.to(device);
    } else if (source_.storage() != table.storage() || version_ != table.version()) {
      copy_.copy_(table);
    }
    source_ = table;
    version_ = table.version();
    keep_for_replays(copy_);
    return copy_;
  }

 private:
  Tensor source_;
  Tensor copy_;
  std::uint64_t version_ = 0;
};

}  // namespace proteus
