// One list of cases per op family drives everything that is checked about an op: gradients, dtypes,
// strides, threads, CPU against other devices, error texts, and the benchmark.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "autograd/variable.h"
#include "tensor/tensor.h"

namespace proteus::testing {

/// How the values of an input are drawn: N(0, 1); uniform in [0.5, 2); uniform in [0, 1); integers.
enum class Fill { normal, positive, unit, index };

struct OpInput {
  Shape shape;
  Fill fill = Fill::normal;
  /// Whether the op is differentiable in it (index inputs never are).
  bool differentiable = true;
  /// For Fill::index: i32 values in [0, bound).
  std::int64_t bound = 0;
  /// Made in the accumulation dtype (f32 for bf16), as gains kept in full precision are.
  bool accumulation = false;
};

struct OpCase {
  std::string op;                  ///< "layernorm": the public function
  std::string variant;             ///< "8x16 no beta": unique within the op
  std::vector<std::string> slots;  ///< kernels that this case runs, forward and backward
  std::vector<OpInput> inputs;
  std::function<Variable(const std::vector<Variable>&)> run;
  /// Floating-point operations and bytes of one forward call at f32; 0 = do not benchmark.
  double flops = 0;
  double bytes = 0;
  /// Too large for gradcheck and parity tests: only for the benchmark.
  bool bench_only = false;
  /// NMSE against f64 that f32 and bf16 must keep (bf16 inputs are rounded first).
  double f32_tolerance = 1e-10;
  double bf16_tolerance = 1e-4;
  /// Errors of this root mean square never count: what is left of numbers that cancel.
  double negligible = 1e-6;
  /// gradcheck's tolerance.
  double grad_tolerance = 1e-6;
};

/// A call that must throw: `error` is the class name, `text` a part of the message.
struct ErrorCase {
  std::string name;
  std::function<void()> call;
  std::string error;
  std::string text;
  /// Tensors that the call was given (it may hold handles on them): must be the same afterwards.
  std::vector<Tensor> arguments = {};
};

struct OpFamily {
  std::string name;
  std::vector<OpCase> cases;
  std::vector<ErrorCase> errors;
};

/// Every family, in the order of the rooms. tests/op_cases/<family>.cpp defines each.
std::vector<OpFamily> all_families();

/// Makes a case's inputs, a pure function of (case, seed).
std::vector<Tensor> make_inputs(const OpCase& c, DType dtype, std::uint64_t seed = 1);

}  // namespace proteus::testing
