// Running op cases and comparing what comes out: shared by the tests on the CPU, on the fake device
// and on a GPU.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <iosfwd>
#include <span>
#include <string>
#include <vector>

#include "tests/op_cases/op_case.h"

namespace proteus::testing {

/// What a test runs: tests/op_families.cpp, or with one more in tests/toy_op/families.cpp.
const std::vector<OpFamily>& families();
bool wants_gradient(const OpInput& input);
bool is_differentiable(const OpCase& c);
/// Whether an input has no elements.
bool is_empty(const OpCase& c);

/// How an input lies in memory.
enum class Storing { contiguous, transposed, sliced, stepped };
constexpr Storing kStrided[] = {Storing::transposed, Storing::sliced, Storing::stepped};
const char* name_of(Storing s);
/// The same values with another layout, surrounded by poison where there is room for it.
Tensor stored(const Tensor& t, Storing how);

/// The output and one gradient per input (undefined where there is none), all on the CPU.
using Outcome = std::vector<Tensor>;

/// Runs a case forwards and backwards. The cotangent is a fixed random one, rounded to `rounding`.
Outcome evaluate(const OpCase& c, const std::vector<Tensor>& inputs, DType rounding,
                 Storing how = Storing::contiguous);

std::vector<Tensor> to_f64(std::vector<Tensor> inputs);
std::vector<Tensor> to_device(std::vector<Tensor> inputs, Device device);

::testing::AssertionResult same_bits(const Tensor& a, const Tensor& b);
void expect_same_bits(const Outcome& a, const Outcome& b);
/// Σ(a − b)² against Σb², by the case's tolerances; where both are infinite with one sign they are
/// equal.
void expect_close(const OpCase& c, DType dtype, const Outcome& got, const Outcome& reference);

struct Param {
  const OpCase* c = nullptr;
  std::string name;
};
void PrintTo(const Param& p, std::ostream* out);
/// A name that GoogleTest takes.
std::string identifier(std::string text);
std::vector<Param> params(const std::function<bool(const OpCase&)>& select);
/// Benchmark cases up to this many operations are small enough for tests.
constexpr double kTestFlops = 2e8;

/// The first of the case's slots without a kernel on a device type, or "".
std::string missing_slot(const OpCase& c, DeviceType type);

/// The case on a device that runs the CPU's kernels: the same bits as on the CPU, in every float
/// type; each slot that the case names must have been called there.
void expect_cpu_bits(const OpCase& c, Device device);

/// The case on a device of its own arithmetic, in every float type and with inputs and cotangent in
/// each of these layouts, against f64 on the CPU with the same inputs; each slot that the case
/// names must have been called there, and the inputs stay what they were. f32 keeps the case's
/// tolerance; bf16 keeps 1e-5, or twice what the CPU's bf16 makes of it where that is more.
void expect_parity(const OpCase& c, Device device, std::span<const Storing> layouts);

}  // namespace proteus::testing
