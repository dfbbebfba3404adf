// Everything that is checked about every op, driven by the case lists in tests/op_cases/.
#include <cxxabi.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <memory>
#include <set>
#include <typeinfo>

#include "autograd/gradcheck.h"
#include "tensor/error.h"
#include "tensor/parallel.h"
#include "tensor/slot.h"
#include "tests/fake_device.h"
#include "tests/op_runs.h"

namespace proteus::testing {
namespace {

std::vector<Param> checked_cases() {
  return params([](const OpCase& c) { return !c.bench_only; });
}

std::vector<Param> differentiable_cases() {
  return params([](const OpCase& c) { return !c.bench_only && is_differentiable(c); });
}

std::vector<Param> thread_cases() {
  return params([](const OpCase& c) { return !c.bench_only || c.flops <= kTestFlops; });
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

TEST_P(DeviceParity, FakeDevice) {
  const FakeDevice fake;
  const std::string missing = missing_slot(op(), DeviceType::cuda);
  if (!missing.empty()) GTEST_SKIP() << missing << ": no cuda kernel";
  expect_cpu_bits(op(), kFakeDevice);
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
