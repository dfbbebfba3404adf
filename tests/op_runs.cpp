#include "tests/op_runs.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>

#include "tensor/slot.h"

namespace proteus::testing {
namespace {

constexpr std::uint64_t kCotangentStream = 0xC07A;

// What lies around a view: NaN, or an index that no tensor has.
Tensor poisoned(const Shape& shape, const Tensor& like) {
  const DType dtype = like.dtype();
  return Tensor::full(shape, is_floating(dtype) ? std::nan("") : -1000000, dtype, like.device());
}

std::string name_of_part(std::size_t i) {
  return i == 0 ? "output" : "gradient of input " + std::to_string(i - 1);
}

// The squared error of a part of an outcome, and Σ reference².
struct Deviation {
  double error = 0;
  double norm = 0;
};

Deviation deviation(const Tensor& got, const Tensor& reference) {
  const auto x = got.to_vector();
  const auto y = reference.to_vector();
  Deviation d;
  for (std::size_t i = 0; i < x.size(); ++i) {
    if (std::isinf(y[i]) && x[i] == y[i]) continue;
    d.error += (x[i] - y[i]) * (x[i] - y[i]);
    d.norm += y[i] * y[i];
  }
  return d;
}

// Calls compare(part, got, reference) for the parts that are defined; both must have the same.
template <class F>
void for_parts(const Outcome& got, const Outcome& reference, F&& compare) {
  ASSERT_EQ(got.size(), reference.size());
  for (std::size_t part = 0; part < got.size(); ++part) {
    if (!got[part].defined() && !reference[part].defined()) continue;
    ASSERT_TRUE(got[part].defined() && reference[part].defined()) << name_of_part(part);
    ASSERT_EQ(to_string(got[part].shape()), to_string(reference[part].shape()));
    compare(part, got[part], reference[part]);
  }
}

std::map<std::string, std::uint64_t> device_calls() {
  std::map<std::string, std::uint64_t> calls;
  for (const SlotBase* slot : slot_registry()) {
    calls[std::string(slot->name())] = slot->device_calls();
  }
  return calls;
}

// Runs the case on `device`; each slot that it names must have been called there.
Outcome evaluate_there(const OpCase& c, const std::vector<Tensor>& inputs, DType dtype,
                       Device device, Storing how = Storing::contiguous) {
  auto there = to_device(inputs, device);
  for (Tensor& t : there) t = stored(t, how);
  const auto before = device_calls();
  const Outcome got = evaluate(c, there, dtype, how);
  auto after = device_calls();
  for (const std::string& slot : c.slots) {
    if (!is_empty(c)) {
      EXPECT_GT(after[slot], before.at(slot)) << slot << " did not run";
    }
  }
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    EXPECT_TRUE(same_bits(there[i], inputs[i])) << "input " << i << " was changed";
  }
  return got;
}

}  // namespace

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

const char* name_of(Storing s) {
  constexpr const char* kNames[] = {"contiguous", "transposed", "sliced", "stepped"};
  return kNames[static_cast<int>(s)];
}

Tensor stored(const Tensor& t, Storing how) {
  if (how == Storing::contiguous || t.rank() == 0) return t;
  if (how == Storing::transposed) {
    return t.rank() < 2 ? t : t.transpose(-1, -2).clone().transpose(-1, -2);
  }
  Tensor view;
  if (how == Storing::stepped) {
    Shape larger = t.shape();
    larger.push_back(2);
    view = poisoned(larger, t).select(-1, 1);
  } else {
    Shape larger = t.shape();
    for (int d = 0; d < larger.rank(); ++d) larger[d] += 3;
    view = poisoned(larger, t);
    for (int d = 0; d < t.rank(); ++d) view = view.slice(d, 1, 1 + t.size(d));
  }
  view.copy_(t);
  return view;
}

Outcome evaluate(const OpCase& c, const std::vector<Tensor>& inputs, DType rounding, Storing how) {
  std::vector<Variable> variables;
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    variables.emplace_back(inputs[i], wants_gradient(c.inputs[i]));
  }
  const Variable y = c.run(variables);
  Outcome out{y.value().to(kCpu).clone()};
  if (y.requires_grad()) {
    const Tensor cotangent = Tensor::randn(y.shape(), {7, kCotangentStream}, rounding);
    y.backward(stored(cotangent.to(y.dtype()).to(y.device()), how));
  }
  for (const Variable& v : variables) {
    out.push_back(v.grad().defined() ? v.grad().to(kCpu) : Tensor());
  }
  return out;
}

std::vector<Tensor> to_f64(std::vector<Tensor> inputs) {
  for (Tensor& t : inputs) {
    if (is_floating(t.dtype())) t = t.to(DType::f64);
  }
  return inputs;
}

std::vector<Tensor> to_device(std::vector<Tensor> inputs, Device device) {
  for (Tensor& t : inputs) t = t.to(device);
  return inputs;
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

void expect_close(const OpCase& c, DType dtype, const Outcome& got, const Outcome& reference) {
  const double tolerance = dtype == DType::bf16 ? c.bf16_tolerance : c.f32_tolerance;
  for_parts(got, reference, [&](std::size_t part, const Tensor& x, const Tensor& y) {
    const Deviation d = deviation(x, y);
    const double allowed =
        tolerance * d.norm + c.negligible * c.negligible * static_cast<double>(x.numel());
    EXPECT_TRUE(d.error <= allowed) << name_of_part(part) << ": NMSE " << d.error / d.norm << " (Σ "
                                    << d.error << "), allowed " << tolerance;
  });
}

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

std::string missing_slot(const OpCase& c, DeviceType type) {
  for (const SlotBase* slot : slot_registry()) {
    const bool named = std::find(c.slots.begin(), c.slots.end(), slot->name()) != c.slots.end();
    if (named && !slot->has_kernel(type)) return std::string(slot->name());
  }
  return "";
}

void expect_cpu_bits(const OpCase& c, Device device) {
  for (const DType dtype : {DType::f64, DType::f32, DType::bf16}) {
    SCOPED_TRACE(name_of(dtype));
    const auto inputs = make_inputs(c, dtype);
    expect_same_bits(evaluate_there(c, inputs, dtype, device), evaluate(c, inputs, dtype));
  }
}

void expect_parity(const OpCase& c, Device device, std::span<const Storing> layouts) {
  constexpr double kF64 = 1e-20;           // f64 against f64
  constexpr double kF64Negligible = 1e-6;  // of what is negligible in f32
  constexpr double kBf16 = 1e-5;
  constexpr double kNotWorse = 2;  // times the CPU's own error in bf16
  for (const DType dtype : {DType::f64, DType::f32, DType::bf16}) {
    SCOPED_TRACE(name_of(dtype));
    const auto inputs = make_inputs(c, dtype);
    const Outcome reference = evaluate(c, to_f64(inputs), dtype);
    const Outcome narrow = dtype == DType::bf16 ? evaluate(c, inputs, dtype) : Outcome{};
    const double negligible = c.negligible * (dtype == DType::f64 ? kF64Negligible : 1);
    for (const Storing how : layouts) {
      SCOPED_TRACE(name_of(how));
      const Outcome got = evaluate_there(c, inputs, dtype, device, how);
      for_parts(got, reference, [&](std::size_t part, const Tensor& x, const Tensor& y) {
        const Deviation d = deviation(x, y);
        double allowed = dtype == DType::f64 ? kF64 * d.norm : c.f32_tolerance * d.norm;
        if (dtype == DType::bf16) {
          allowed = std::max(kBf16 * d.norm, kNotWorse * deviation(narrow[part], y).error);
        }
        allowed += negligible * negligible * static_cast<double>(x.numel());
        EXPECT_TRUE(d.error <= allowed) << name_of_part(part) << ": NMSE " << d.error / d.norm
                                        << " (Σ " << d.error << "), allowed Σ " << allowed;
      });
    }
  }
}

}  // namespace proteus::testing
