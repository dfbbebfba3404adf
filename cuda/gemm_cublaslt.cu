// cuBLASLt stores by columns: C [M, N] by rows is Cᵀ [N, M] by columns, and Cᵀ = op(B)ᵀ·op(A)ᵀ. So
// the library's first factor is b, its second a, and its rows are our N columns: a bias is added
// along them.
#include <cublasLt.h>

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "cuda/gemm_cublaslt.h"
#include "cuda/kernel.cuh"

namespace proteus::cuda {
namespace {

constexpr std::size_t kMostWorkspace = std::size_t{32} << 20;  // what NVIDIA advises for Hopper

void check_lt(cublasStatus_t status, const char* call) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  throw DeviceError(std::string("cuda: ") + call + ": " + cublasLtGetStatusString(status));
}

cudaDataType_t type_of(DType dtype) {
  switch (dtype) {
    case DType::f64:
      return CUDA_R_64F;
    case DType::f32:
      return CUDA_R_32F;
    default:
      return CUDA_R_16BF;
  }
}

DType c_dtype(const GemmFwd& g) {
  return g.wide_c && g.dtype == DType::bf16 ? DType::f32 : g.dtype;
}

// The largest power of two, up to 256, that divides a pointer and the steps from matrix to matrix.
std::uint32_t alignment_of(const void* p, std::int64_t stride, const GemmFwd& g, DType dtype) {
  constexpr std::uint64_t kMost = 256;
  std::uint64_t bits = reinterpret_cast<std::uintptr_t>(p) | kMost;
  if (g.batch > 1) bits |= static_cast<std::uint64_t>(stride) * size_of(dtype);
  return static_cast<std::uint32_t>(bits & (~bits + 1));
}

// A matrix as it lies in memory: `columns` runs of `rows` elements, `ld` apart.
struct Matrix {
  cublasLtMatrixLayout_t handle = nullptr;

  Matrix(const GemmFwd& g, DType dtype, std::int64_t rows, std::int64_t columns, std::int64_t ld,
         std::int64_t stride) {
    check_lt(cublasLtMatrixLayoutCreate(&handle, type_of(dtype), static_cast<std::uint64_t>(rows),
                                        static_cast<std::uint64_t>(columns), ld),
             "cublasLtMatrixLayoutCreate");
    const auto batch = static_cast<std::int32_t>(g.batch);
    set(CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, batch);
    set(CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, stride);
  }
  ~Matrix() { cublasLtMatrixLayoutDestroy(handle); }
  Matrix(const Matrix&) = delete;
  Matrix& operator=(const Matrix&) = delete;

 private:
  template <class Value>
  void set(cublasLtMatrixLayoutAttribute_t attribute, const Value& value) {
    check_lt(cublasLtMatrixLayoutSetAttribute(handle, attribute, &value, sizeof value),
             "cublasLtMatrixLayoutSetAttribute");
  }
};

struct Operation {
  cublasLtMatmulDesc_t handle = nullptr;

  explicit Operation(const GemmFwd& g) {
    const bool wide = g.dtype == DType::f64;
    check_lt(cublasLtMatmulDescCreate(&handle, wide ? CUBLAS_COMPUTE_64F : CUBLAS_COMPUTE_32F,
                                      wide ? CUDA_R_64F : CUDA_R_32F),
             "cublasLtMatmulDescCreate");
    set(CUBLASLT_MATMUL_DESC_TRANSA, g.trans_b ? CUBLAS_OP_T : CUBLAS_OP_N);
    set(CUBLASLT_MATMUL_DESC_TRANSB, g.trans_a ? CUBLAS_OP_T : CUBLAS_OP_N);
  }
  ~Operation() { cublasLtMatmulDescDestroy(handle); }
  Operation(const Operation&) = delete;
  Operation& operator=(const Operation&) = delete;

  template <class Value>
  void set(cublasLtMatmulDescAttributes_t attribute, const Value& value) const {
    check_lt(cublasLtMatmulDescSetAttribute(handle, attribute, &value, sizeof value),
             "cublasLtMatmulDescSetAttribute");
  }
};

struct Preference {
  cublasLtMatmulPreference_t handle = nullptr;

  Preference() {
    check_lt(cublasLtMatmulPreferenceCreate(&handle), "cublasLtMatmulPreferenceCreate");
  }
  ~Preference() { cublasLtMatmulPreferenceDestroy(handle); }
  Preference(const Preference&) = delete;
  Preference& operator=(const Preference&) = delete;

  template <class Value>
  void set(cublasLtMatmulPreferenceAttributes_t attribute, const Value& value) const {
    check_lt(cublasLtMatmulPreferenceSetAttribute(handle, attribute, &value, sizeof value),
             "cublasLtMatmulPreferenceSetAttribute");
  }
};

// One product's description and the algorithm chosen for it; pointers are set at every call.
struct Plan {
  Operation operation;
  Matrix first, second, result;
  cublasLtMatmulAlgo_t algorithm{};
  std::size_t workspace = 0;
  LtDone done;

  explicit Plan(const GemmFwd& g)
      : operation(g),
        first(g, g.dtype, g.trans_b ? g.K : g.N, g.trans_b ? g.N : g.K, g.ldb, g.b_stride),
        second(g, g.dtype, g.trans_a ? g.M : g.K, g.trans_a ? g.K : g.M, g.lda, g.a_stride),
        result(g, c_dtype(g), g.N, g.M, g.ldc, g.c_stride) {}
};

// GELU in the library is the tanh form with the GPU's approximate tanh, and so is its slope: good
// for bf16 results only. What it keeps or reads of the pre-activation wants rows of whole 16-byte
// words; and for factors whose rows are none it takes kernels that round the sums before the bias
// and GELU.
bool gelu_fits(const GemmFwd& g) {
  constexpr std::int64_t kWord = 8;  // bf16 in 16 bytes
  if (g.epilogue == GemmEpilogue::none || g.dtype != DType::bf16 || g.batch > 1) return false;
  if (g.lda % kWord != 0 || g.ldb % kWord != 0) return false;
  const bool grad = g.epilogue == GemmEpilogue::gelu_grad;
  if (grad && (g.bias || g.beta != 0 || g.ldc != g.N)) return false;
  return !g.pre || (g.ldc % kWord == 0 && can_pack<bfloat16, kWord>(g.pre));
}

// The library adds no bias in f64, and reads it in words.
bool bias_fits(const GemmFwd& g) {
  constexpr std::uintptr_t kWordMask = 15;
  return g.bias && g.dtype != DType::f64 &&
         (reinterpret_cast<std::uintptr_t>(g.bias) & kWordMask) == 0;
}

cublasLtEpilogue_t epilogue_of(const GemmFwd& g, const LtDone& done) {
  if (done.gelu && g.epilogue == GemmEpilogue::gelu_grad) return CUBLASLT_EPILOGUE_DGELU;
  if (done.gelu && g.pre) {
    return done.bias ? CUBLASLT_EPILOGUE_GELU_AUX_BIAS : CUBLASLT_EPILOGUE_GELU_AUX;
  }
  if (done.gelu) return done.bias ? CUBLASLT_EPILOGUE_GELU_BIAS : CUBLASLT_EPILOGUE_GELU;
  return done.bias ? CUBLASLT_EPILOGUE_BIAS : CUBLASLT_EPILOGUE_DEFAULT;
}

void set_epilogue(const Plan& plan, const GemmFwd& g) {
  const Operation& o = plan.operation;
  o.set(CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue_of(g, plan.done));
  if (plan.done.bias) o.set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, g.bias);
  if (plan.done.gelu && g.pre) {
    o.set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, g.pre);
    o.set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, g.ldc);
  }
}

struct Library {
  std::mutex mutex;
  cublasLtHandle_t handle = nullptr;
  std::map<std::array<std::int64_t, 19>, std::unique_ptr<Plan>> plans;

  Library() { check_lt(cublasLtCreate(&handle), "cublasLtCreate"); }
};

// One per device; never destroyed, because the driver may be gone before it.
Library& library() {
  static std::mutex mutex;
  static auto* by_device = new std::map<int, std::unique_ptr<Library>>;
  std::lock_guard lock(mutex);
  auto& found = (*by_device)[current_device()];
  if (!found) found = std::make_unique<Library>();
  return *found;
}

// Whether the library has an algorithm for the plan with what it says is done; the first that its
// heuristics name is taken.
bool find_algorithm(const Library& lt, const GemmFwd& g, Plan& plan) {
  set_epilogue(plan, g);
  const Preference preference;
  preference.set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, kMostWorkspace);
  preference.set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
                 alignment_of(g.b, g.b_stride, g, g.dtype));
  preference.set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
                 alignment_of(g.a, g.a_stride, g, g.dtype));
  preference.set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
                 alignment_of(g.add ? g.add : g.c, g.c_stride, g, c_dtype(g)));
  preference.set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
                 alignment_of(g.c, g.c_stride, g, c_dtype(g)));
  cublasLtMatmulHeuristicResult_t found{};
  int count = 0;
  const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(
      lt.handle, plan.operation.handle, plan.first.handle, plan.second.handle, plan.result.handle,
      plan.result.handle, preference.handle, 1, &found, &count);
  if (status != CUBLAS_STATUS_SUCCESS || count == 0) return false;
  plan.algorithm = found.algo;
  plan.workspace = found.workspaceSize;
  return true;
}

std::unique_ptr<Plan> make_plan(const Library& lt, const GemmFwd& g) {
  auto plan = std::make_unique<Plan>(g);
  const bool bias = bias_fits(g);
  const LtDone wishes[] = {{true, bias, gelu_fits(g)}, {true, bias, false}, {true, false, false}};
  for (const LtDone& wish : wishes) {
    // GELU comes after the bias: it can only be done with it.
    if (wish.gelu && g.bias && !wish.bias) continue;
    plan->done = wish;
    if (find_algorithm(lt, g, *plan)) return plan;
  }
  plan->done = {};
  return plan;
}

Plan& plan_for(Library& lt, const GemmFwd& g) {
  const std::array<std::int64_t, 19> key{static_cast<std::int64_t>(g.dtype),
                                         static_cast<std::int64_t>(g.epilogue),
                                         g.M,
                                         g.N,
                                         g.K,
                                         g.lda,
                                         g.ldb,
                                         g.ldc,
                                         g.batch,
                                         g.a_stride,
                                         g.b_stride,
                                         g.c_stride,
                                         (g.trans_a ? 1 : 0) + (g.trans_b ? 2 : 0) +
                                             (g.bias ? 4 : 0) + (g.pre ? 8 : 0) +
                                             (g.wide_c ? 16 : 0),
                                         alignment_of(g.a, g.a_stride, g, g.dtype),
                                         alignment_of(g.b, g.b_stride, g, g.dtype),
                                         alignment_of(g.c, g.c_stride, g, c_dtype(g)),
                                         g.bias ? alignment_of(g.bias, 0, g, g.dtype) : 0,
                                         g.add ? alignment_of(g.add, 0, g, g.dtype) : 0,
                                         g.pre ? alignment_of(g.pre, g.c_stride, g, g.dtype) : 0};
  auto& found = lt.plans[key];
  if (!found) found = make_plan(lt, g);
  return *found;
}

}  // namespace

bool lt_finishes(const GemmFwd& g) {
  Library& lt = library();
  const std::lock_guard lock(lt.mutex);
  const LtDone done = plan_for(lt, g).done;
  return done.product && (done.bias || !g.bias) && (g.epilogue == GemmEpilogue::none || done.gelu);
}

LtDone lt_multiply(const GemmFwd& g) {
  Library& lt = library();
  const std::lock_guard lock(lt.mutex);
  const Plan& plan = plan_for(lt, g);
  if (!plan.done.product) return {};
  set_epilogue(plan, g);
  const Storage workspace = scratch(plan.workspace);
  const float alpha = static_cast<float>(g.alpha);
  const float beta = g.add ? 1.0f : static_cast<float>(g.beta);
  const double beta64 = g.add ? 1.0 : g.beta;
  const bool wide = g.dtype == DType::f64;
  check_lt(
      cublasLtMatmul(lt.handle, plan.operation.handle,
                     wide ? static_cast<const void*>(&g.alpha) : &alpha, g.b, plan.first.handle,
                     g.a, plan.second.handle, wide ? static_cast<const void*>(&beta64) : &beta,
                     g.add ? g.add : g.c, plan.result.handle, g.c, plan.result.handle,
                     &plan.algorithm, workspace.data(), plan.workspace, current_stream()),
      "cublasLtMatmul");
  return plan.done;
}

}  // namespace proteus::cuda
