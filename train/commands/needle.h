// proteus recall --task needle.
#pragma once

#include "train/options.h"

namespace proteus {

/// Trains every arm on short lessons and asks it for needles in long streams.
int run_needle(const Options& options);

}  // namespace proteus
