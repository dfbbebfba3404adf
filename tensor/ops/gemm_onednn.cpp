// f32 tiles through oneDNN's sgemm. Empty where the build has no oneDNN (see gemm_eigen.cpp).
#ifdef PROTEUS_HAVE_ONEDNN

#include <dnnl.h>
#include <omp.h>

#include <string>

#include "tensor/error.h"
#include "tensor/ops/gemm_backend.h"

namespace proteus::gemm_backend {
namespace {

// oneDNN opens its own OpenMP region, and splits the work by the number of threads, unless it is
// called from within one. Outside of one this holds it to a single thread, so that the bits of a
// tile are the same in both situations.
class SingleThread {
 public:
  SingleThread() : before_(omp_in_parallel() ? 1 : omp_get_max_threads()) {
    if (before_ > 1) omp_set_num_threads(1);
  }
  ~SingleThread() {
    if (before_ > 1) omp_set_num_threads(before_);
  }
  SingleThread(const SingleThread&) = delete;
  SingleThread& operator=(const SingleThread&) = delete;

 private:
  int before_;
};

}  // namespace

void multiply(const Tile<float>& t) {
  const SingleThread guard;
  const dnnl_status_t status = dnnl_sgemm(t.trans_a ? 'T' : 'N', t.trans_b ? 'T' : 'N', t.m, t.n,
                                          t.k, t.alpha, t.a, t.lda, t.b, t.ldb, t.beta, t.c, t.ldc);
  if (status == dnnl_out_of_memory) {
    throw OutOfMemory("gemm: oneDNN had no memory for its packing buffers; use a smaller batch");
  }
  if (status != dnnl_success) {
    throw Error("gemm: oneDNN refused a tile with status " + std::to_string(status));
  }
}

const char* name() {
  static const std::string text = [] {
    const dnnl_version_t* v = dnnl_version();
    return "oneDNN " + std::to_string(v->major) + "." + std::to_string(v->minor) + "." +
           std::to_string(v->patch);
  }();
  return text.c_str();
}

}  // namespace proteus::gemm_backend

#endif  // PROTEUS_HAVE_ONEDNN
