// Everything that is checked about every op, driven by the case lists in tests/op_cases/.
#include "tests/op_cases/op_case.h"

#include <cxxabi.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <memory>
#include <set>
#include <typeinfo>

#include "autograd/gradcheck.h"
#include "tensor/error.h"
#include "tensor/parallel.h"
#include "tensor/slot.h"
#include "tests/fake_device.h"

namespace proteus::testing {
namespace {

constexpr std::uint64_t kCotangentStream = 0xC07A;
/// Benchmark cases up to this many operations take part in the thread test.
constexpr double kThreadTestFlops = 2e8;

const std::vector<OpFamily>& families() {
  static const auto* list = new std::vector<OpFamily>(all_families());
  return *list;
}

bool wants_gradient(const OpInput& input) {
  return input.differentiable && input.fill != Fill::index;
}

bool is_differentiable(const OpCase& c) {
  return std::any_of(c.inputs.begin(), c.inputs.end(), wants_gradient);
}

bool is_empty(const OpCase& c) {
  return std::any_of(c.inputs.begin(), c.inputs.end(),
                     [](const OpInput& input) { return input.shape.numel() == 0; });
}

/// How an input lies in memory.
enum class Storing { contiguous, transposed, sliced, stepped };
constexpr Storing kStrided[] = {Storing::transposed, Storing::sliced, Storing::stepped};
const char* name_of(Storing s) {
  constexpr const char* kNames[] = {"contiguous", "transposed", "sliced", "stepped"};
  return kNames[static_cast<int>(s)];
}

// What lies around a view: NaN, or an index that no tensor has.
Tensor poisoned(const Shape& shape, DType dtype) {
  return Tensor::full(shape, is_floating(dtype) ? std::nan("") : -1000000, dtype);
}

/// The same values with another layout, surrounded by poison where there is room for it.
Tensor stored(const Tensor& t, Storing how) {
  if (how == Storing::contiguous || t.rank() == 0) return t;
  if (how == Storing::transposed) {
    return t.rank() < 2 ? t : t.transpose(-1, -2).clone().transpose(-1, -2);
  }
  Tensor view;
  if (how == Storing::stepped) {
    Shape larger = t.shape();
    larger.push_back(2);
    view = poisoned(larger, t.dtype()).select(-1, 1);
  } else {
    Shape larger = t.shape();
    for (int d = 0; d < larger.rank(); ++d) larger[d] += 3;
    view = poisoned(larger, t.dtype());
    for (int d = 0; d < t.rank(); ++d) view = view.slice(d, 1, 1 + t.size(d));
  }
  view.copy_(t);
  return view;
}

/// The output and one gradient per input (undefined where there is none), all on the CPU.
using Outcome = std::vector<Tensor>;

/// Runs a case forwards and backwards. The cotangent is a fixed random one, rounded to `rounding`.
Outcome evaluate(const OpCase& c, const std::vector<Tensor>& inputs, DType rounding,
                 Storing how = Storing::contiguous) {
  std::vector<Variable> variables;
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    variables.emplace_back(inputs[i], wants_gradient(c.inputs[i]));
  }
  const Variable y = c.run(variables);
  Outcome out{y.value().to(kCpu).clone()};
  if (y.requires_grad()) {
    const Tensor cotangent = Tensor::randn(y.shape(), {7, kCotangentStream}, rounding);
    y.backward(stored(cotangent.to(y.dtype()), how).to(y.device()));
  }
  for (const Variable& v : variables) {
    out.push_back(v.grad().defined() ? v.grad().to(kCpu) : Tensor());
  }
  return out;
}

std::string name_of_part(std::size_t i) {
  return i == 0 ? "output" : "gradient of input " + std::to_string(i - 1);
}

::testing::AssertionResult same_bits(const Tensor& a, const Tensor& b) {
  if (a.defined() != b.defined()) return ::testing::AssertionFailure() << "one is undefined";
  if (!a.defined()) return ::testing::AssertionSuccess();
  if (a.shape() != b.shape() || a.dtype() != b.dtype()) {
    return ::testing::AssertionFailure() << describe(a) << " and " << describe(b);
  }
  const Tensor x = a.to(kCpu).contiguous();
  const Tensor y = b.to(kCpu).contiguous();
  const std::size_t width = size_of(x.dtype());
  for (std::int64_t i = 0; i < x.numel(); ++i) {
    const auto at = static_cast<std::size_t>(i) * width;
    const char* p = static_cast<const char*>(x.raw()) + at;
    const char* q = static_cast<const char*>(y.raw()) + at;
    if (std::memcmp(p, q, width) != 0) {
      return ::testing::AssertionFailure()
             << describe(a) << ": element " << i << ": " << x.to_vector()[static_cast<size_t>(i)]
             << " and " << y.to_vector()[static_cast<size_t>(i)];
    }
  }
  return ::testing::AssertionSuccess();
}

void expect_same_bits(const Outcome& a, const Outcome& b) {
  ASSERT_EQ(a.size(), b.size());
  for (std::size_t i = 0; i < a.size(); ++i) EXPECT_TRUE(same_bits(a[i], b[i])) << name_of_part(i);
}

/// Σ(a − b)² against Σb²; where both are infinite with one sign they are equal.
void expect_close(const OpCase& c, DType dtype, const Outcome& got, const Outcome& reference) {
  const double tolerance = dtype == DType::bf16 ? c.bf16_tolerance : c.f32_tolerance;
  ASSERT_EQ(got.size(), reference.size());
  for (std::size_t part = 0; part < got.size(); ++part) {
    if (!got[part].defined() && !reference[part].defined()) continue;
    ASSERT_TRUE(got[part].defined() && reference[part].defined()) << name_of_part(part);
    ASSERT_EQ(to_string(got[part].shape()), to_string(reference[part].shape()));
    const auto x = got[part].to_vector();
    const auto y = reference[part].to_vector();
    double error = 0;
    double norm = 0;
    for (std::size_t i = 0; i < x.size(); ++i) {
      if (std::isinf(y[i]) && x[i] == y[i]) continue;
      error += (x[i] - y[i]) * (x[i] - y[i]);
      norm += y[i] * y[i];
    }
    const double allowed =
        tolerance * norm + c.negligible * c.negligible * static_cast<double>(x.size());
    EXPECT_TRUE(error <= allowed) << name_of_part(part) << ": NMSE " << error / norm << " (Σ "
                                  << error << "), allowed " << tolerance;
  }
}

std::vector<Tensor> to_f64(std::vector<Tensor> inputs) {
  for (Tensor& t : inputs) {
    if (is_floating(t.dtype())) t = t.to(DType::f64);
  }
  return inputs;
}

struct Param {
  const OpCase* c = nullptr;
  std::string name;
};

void PrintTo(const Param& p, std::ostream* out) { *out << p.c->op << " " << p.c->variant; }

std::string identifier(std::string text) {
  std::replace_if(
      text.begin(), text.end(), [](unsigned char ch) { return !std::isalnum(ch); }, '_');
  return text;
}

std::vector<Param> params(const std::function<bool(const OpCase&)>& select) {
  std::vector<Param> list;
  for (const OpFamily& family : families()) {
    for (const OpCase& c : family.cases) {
      if (select(c)) list.push_back({&c, identifier(c.op + "_" + c.variant)});
    }
  }
  return list;
}

std::vector<Param> checked_cases() {
  return params([](const OpCase& c) { return !c.bench_only; });
}

std::vector<Param> differentiable_cases() {
  return params([](const OpCase& c) { return !c.bench_only && is_differentiable(c); });
}

std::vector<Param> thread_cases() {
  return params([](const OpCase& c) { return !c.bench_only || c.flops <= kThreadTestFlops; });
}

class OpCaseTest : public ::testing::TestWithParam<Param> {
 protected:
  const OpCase& op() const { return *GetParam().c; }
};
class Gradcheck : public OpCaseTest {};
class Precision : public OpCaseTest {};
class Strides : public OpCaseTest {};
class Threads : public OpCaseTest {
 protected:
  ~Threads() override { set_num_threads(0); }
};
class DeviceParity : public OpCaseTest {};

TEST_P(Gradcheck, CentralDifferences) {
  std::vector<bool> wanted;
  for (const OpInput& input : op().inputs) wanted.push_back(wants_gradient(input));
  const auto inputs = make_inputs(op(), DType::f64);
  GradcheckOptions options;
  options.tolerance = op().grad_tolerance;
  const auto result = gradcheck(op().run, inputs, wanted, options);
  EXPECT_TRUE(result.ok) << result.message;
}

TEST_P(Precision, F32AndBf16AgainstF64) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    SCOPED_TRACE(name_of(dtype));
    const auto inputs = make_inputs(op(), dtype);
    const Outcome reference = evaluate(op(), to_f64(inputs), dtype);
    const Outcome got = evaluate(op(), inputs, dtype);
    expect_close(op(), dtype, got, reference);
  }
}

TEST_P(Strides, ViewsGiveTheSameBitsAndInputsStayAsTheyWere) {
  const auto inputs = make_inputs(op(), DType::f32);
  const Outcome reference = evaluate(op(), inputs, DType::f32);
  for (const Storing how : kStrided) {
    SCOPED_TRACE(name_of(how));
    std::vector<Tensor> views;
    std::vector<std::uint64_t> versions;
    for (const Tensor& t : inputs) {
      views.push_back(stored(t, how));
      versions.push_back(views.back().version());
    }
    expect_same_bits(evaluate(op(), views, DType::f32, how), reference);
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      EXPECT_TRUE(same_bits(views[i], inputs[i])) << "input " << i << " was changed";
      EXPECT_EQ(views[i].version(), versions[i]) << "input " << i;
    }
  }
}

TEST_P(Threads, AnyNumberGivesTheSameBits) {
  const auto inputs = make_inputs(op(), DType::f32);
  set_num_threads(1);
  const Outcome one = evaluate(op(), inputs, DType::f32);
  for (int threads = 2; threads <= 4; ++threads) {
    SCOPED_TRACE(threads);
    set_num_threads(threads);
    expect_same_bits(evaluate(op(), inputs, DType::f32), one);
  }
}

std::map<std::string, std::uint64_t> device_calls() {
  std::map<std::string, std::uint64_t> calls;
  for (const SlotBase* slot : slot_registry()) {
    calls[std::string(slot->name())] = slot->device_calls();
  }
  return calls;
}

/// The first of the case's slots without a kernel on a device type, or "".
std::string missing_slot(const OpCase& c, DeviceType type) {
  for (const SlotBase* slot : slot_registry()) {
    const bool named = std::find(c.slots.begin(), c.slots.end(), slot->name()) != c.slots.end();
    if (named && !slot->has_kernel(type)) return std::string(slot->name());
  }
  return "";
}

/// The case on `device` against the same on the CPU, in every float type; each slot that the case
/// names must have been called there.
void check_parity(const OpCase& c, Device device, bool exact) {
  for (const DType dtype : {DType::f64, DType::f32, DType::bf16}) {
    SCOPED_TRACE(name_of(dtype));
    const auto inputs = make_inputs(c, dtype);
    const Outcome reference = evaluate(c, inputs, dtype);
    std::vector<Tensor> there;
    for (const Tensor& t : inputs) there.push_back(t.to(device));
    const auto before = device_calls();
    const Outcome got = evaluate(c, there, dtype);
    auto after = device_calls();
    if (exact) {
      expect_same_bits(got, reference);
    } else {
      expect_close(c, dtype, got, reference);
    }
    for (const std::string& slot : c.slots) {
      if (!is_empty(c)) {
        EXPECT_GT(after[slot], before.at(slot)) << slot << " did not run";
      }
    }
  }
}

TEST_P(DeviceParity, FakeDevice) {
  const FakeDevice fake;
  const std::string missing = missing_slot(op(), DeviceType::cuda);
  if (!missing.empty()) GTEST_SKIP() << missing << ": no cuda kernel";
  check_parity(op(), kFakeDevice, true);
  EXPECT_EQ(FakeDevice::broken_guards(), 0);
  EXPECT_EQ(FakeDevice::counts().live_blocks, 0);
}

std::string test_name(const ::testing::TestParamInfo<Param>& info) { return info.param.name; }

INSTANTIATE_TEST_SUITE_P(Ops, Gradcheck, ::testing::ValuesIn(differentiable_cases()), test_name);
INSTANTIATE_TEST_SUITE_P(Ops, Precision, ::testing::ValuesIn(checked_cases()), test_name);
INSTANTIATE_TEST_SUITE_P(Ops, Strides, ::testing::ValuesIn(checked_cases()), test_name);
INSTANTIATE_TEST_SUITE_P(Ops, Threads, ::testing::ValuesIn(thread_cases()), test_name);
INSTANTIATE_TEST_SUITE_P(Ops, DeviceParity, ::testing::ValuesIn(checked_cases()), test_name);

struct ErrorParam {
  const ErrorCase* e = nullptr;
  std::string name;
};

void PrintTo(const ErrorParam& p, std::ostream* out) { *out << p.e->name; }

std::vector<ErrorParam> error_cases() {
  std::vector<ErrorParam> list;
  for (const OpFamily& family : families()) {
    for (const ErrorCase& e : family.errors) {
      list.push_back({&e, identifier(family.name + "_" + e.name)});
    }
  }
  return list;
}

/// "ShapeError" for a proteus::ShapeError, whatever the static type.
std::string class_name(const std::exception& e) {
  int status = 0;
  const std::unique_ptr<char, void (*)(void*)> name(
      abi::__cxa_demangle(typeid(e).name(), nullptr, nullptr, &status), std::free);
  const std::string full = status == 0 ? name.get() : typeid(e).name();
  return full.substr(full.rfind(':') + 1);
}

class OpError : public ::testing::TestWithParam<ErrorParam> {};

TEST_P(OpError, IsThrownAndLeavesTheArgumentsAlone) {
  const ErrorCase& e = *GetParam().e;
  std::vector<Tensor> before;
  std::vector<std::uint64_t> versions;
  for (const Tensor& t : e.arguments) {
    before.push_back(t.clone());
    versions.push_back(t.version());
  }
  const auto live = memory_stats(DeviceType::cpu).live_bytes;
  try {
    e.call();
    FAIL() << "nothing was thrown, expected " << e.error << " with \"" << e.text << "\"";
  } catch (const std::exception& error) {
    EXPECT_EQ(class_name(error), e.error) << error.what();
    EXPECT_NE(std::string(error.what()).find(e.text), std::string::npos)
        << "message:  " << error.what() << "\nexpected: " << e.text;
  }
  EXPECT_EQ(memory_stats(DeviceType::cpu).live_bytes, live) << "the failed call kept memory";
  for (std::size_t i = 0; i < before.size(); ++i) {
    EXPECT_TRUE(same_bits(e.arguments[i], before[i])) << "argument " << i;
    EXPECT_EQ(e.arguments[i].version(), versions[i]) << "argument " << i;
  }
}

std::string error_test_name(const ::testing::TestParamInfo<ErrorParam>& info) {
  return info.param.name;
}

INSTANTIATE_TEST_SUITE_P(Ops, OpError, ::testing::ValuesIn(error_cases()), error_test_name);

TEST(OpCases, EverySlotIsNamedByACase) {
  std::set<std::string> named;
  for (const OpFamily& family : families()) {
    for (const OpCase& c : family.cases) {
      if (!c.bench_only) named.insert(c.slots.begin(), c.slots.end());
    }
  }
  const auto slots = slot_names();
  for (const std::string& slot : slots) EXPECT_TRUE(named.count(slot)) << slot << ": no op case";
  for (const std::string& slot : named) {
    EXPECT_TRUE(std::find(slots.begin(), slots.end(), slot) != slots.end())
        << slot << ": named by a case, but there is no such slot";
  }
  EXPECT_EQ(std::set<std::string>(slots.begin(), slots.end()).size(), slots.size())
      << "two slots have one name";
}

TEST(OpCases, EveryDifferentiableOpHasEightShapes) {
  std::map<std::string, std::set<std::string>> shapes;
  for (const Param& p : differentiable_cases()) {
    std::string text;
    for (const OpInput& input : p.c->inputs) text += to_string(input.shape);
    shapes[p.c->op].insert(text);
  }
  for (const auto& [name, seen] : shapes) EXPECT_GE(seen.size(), 8u) << name;
}

TEST(OpCases, EveryFamilyHasErrorCases) {
  for (const OpFamily& family : families()) EXPECT_FALSE(family.errors.empty()) << family.name;
}

TEST(OpCases, InputsAreAFunctionOfCaseAndSeed) {
  const OpCase& c = families().front().cases.front();
  EXPECT_TRUE(same_bits(make_inputs(c, DType::f64)[0], make_inputs(c, DType::f64)[0]));
  EXPECT_FALSE(same_bits(make_inputs(c, DType::f64, 1)[0], make_inputs(c, DType::f64, 2)[0]));
}

}  // namespace
}  // namespace proteus::testing
