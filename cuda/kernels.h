// The families that have CUDA kernels: add a line, and define install_<family>_kernels() in
// cuda/<family>.cu, which puts the kernels into their slots. cuda::device(i) calls them all.
#pragma once

#define PROTEUS_CUDA_FAMILIES(X) \
  X(attention)                   \
  X(bank)                        \
  X(cache)                       \
  X(copy)                        \
  X(draw)                        \
  X(dropout)                     \
  X(elementwise)                 \
  X(elementwise_fused)           \
  X(embedding)                   \
  X(gemm)                        \
  X(grouped_gemm)                \
  X(keep)                        \
  X(linear_loss)                 \
  X(loss)                        \
  X(norm)                        \
  X(optim)                       \
  X(pack)                        \
  X(prototypes)                  \
  X(reduce)                      \
  X(rope)                        \
  X(routing)                     \
  X(salience)                    \
  X(select)                      \
  X(softmax)                     \
  X(take)                        \
  X(wide_linear)

namespace proteus::cuda {

#define PROTEUS_DECLARE_INSTALL(family) void install_##family##_kernels();
PROTEUS_CUDA_FAMILIES(PROTEUS_DECLARE_INSTALL)
#undef PROTEUS_DECLARE_INSTALL

}  // namespace proteus::cuda
