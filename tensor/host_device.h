// PROTEUS_HOST_DEVICE marks a function that CPU and GPU share: nvcc compiles it for both, any other
// compiler sees an ordinary function.
#pragma once

#ifdef __CUDACC__
#define PROTEUS_HOST_DEVICE __host__ __device__
#else
#define PROTEUS_HOST_DEVICE
#endif
