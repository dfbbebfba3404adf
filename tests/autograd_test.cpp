// The tape, gradcheck and checkpointing themselves; single ops are in op_case_test.cpp.
#include <gtest/gtest.h>

#include <cmath>
#include <thread>

#include "autograd/checkpoint.h"
#include "autograd/elementwise.h"
#include "autograd/gemm.h"
#include "autograd/gradcheck.h"
#include "autograd/norm.h"
#include "autograd/reduce.h"
#include "autograd/softmax.h"
#include "autograd/tape.h"
#include "autograd/view.h"
#include "tensor/error.h"
#include "tensor/ops/elementwise.h"

namespace proteus::testing {
namespace {

using Values = std::vector<double>;

template <class E, class F>
void expect_error(F&& call, const std::string& text) {
  try {
    call();
    ADD_FAILURE() << "nothing was thrown, expected \"" << text << "\"";
  } catch (const E& error) {
    EXPECT_NE(std::string(error.what()).find(text), std::string::npos)
        << "message:  " << error.what() << "\nexpected: " << text;
  } catch (const std::exception& error) {
    ADD_FAILURE() << "another class: " << error.what();
  }
}

Variable leaf(std::initializer_list<double> values) {
  const auto n = static_cast<std::int64_t>(values.size());
  return Variable(Tensor::from(values, {n}, DType::f64), true);
}

Variable random_leaf(const Shape& shape, std::uint64_t stream, DType dtype = DType::f64) {
  return Variable(Tensor::randn(shape, {11, stream}, dtype), true);
}

Values grad_of(const Variable& v) { return v.grad().to_vector(); }

TEST(Tape, AddsGradientsOverUsesAndBackwards) {
  const Variable x = leaf({1, 2, 3});
  const auto loss = [&] { return sum(add(mul(x, x), add(x, x))); };  // x² + 2x
  loss().backward();
  EXPECT_EQ(grad_of(x), (Values{4, 6, 8}));
  loss().backward();
  EXPECT_EQ(grad_of(x), (Values{8, 12, 16})) << "gradients of several backwards add up";
  x.zero_grad();
  EXPECT_FALSE(x.grad().defined());
  loss().backward();
  EXPECT_EQ(grad_of(x), (Values{4, 6, 8}));
}

TEST(Tape, SharedSubexpressions) {
  const Variable x = leaf({2});
  Variable y = x;
  for (int i = 0; i < 20; ++i) y = add(y, y);  // 2^20 paths, 20 nodes
  y.backward();
  EXPECT_EQ(grad_of(x), Values{1048576});
}

TEST(Tape, LeafGradientsAreTheirOwn) {
  const Variable a = leaf({1, 2});
  const Variable b = leaf({3, 4});
  const Tensor cotangent = Tensor::from({5, 6}, {2}, DType::f64);
  add(a, b).backward(cotangent);
  EXPECT_NE(a.grad().storage(), b.grad().storage());
  EXPECT_NE(a.grad().storage(), cotangent.storage());
  add(a, a).backward(cotangent);
  EXPECT_EQ(grad_of(a), (Values{15, 18}));
  EXPECT_EQ(grad_of(b), (Values{5, 6})) << "adding to one must not change the other";
  EXPECT_EQ(cotangent.to_vector(), (Values{5, 6}));
  const Variable c = leaf({1});
  expand(c, {1, 1}).backward();
  sum(expand(c, {3})).backward();
  EXPECT_EQ(grad_of(c), Values{4});
  const Variable t = random_leaf({2, 3}, 1);
  transpose(t, 0, 1).backward(Tensor::zeros({3, 2}, DType::f64));
  EXPECT_TRUE(t.grad().is_contiguous());
}

TEST(Tape, ProductsAddInPlaceWhatNobodyElseSees) {
  const Variable x = random_leaf({3, 4}, 1);
  const Variable w = random_leaf({2, 4}, 2);
  const Variable v = random_leaf({2, 4}, 3);
  const Tensor cotangent = Tensor::randn({3, 2}, {4, 1}, DType::f64);
  linear(x, w).backward(cotangent);
  const Tensor alone = x.grad().clone();
  const Tensor seen = x.grad();
  linear(x, v).backward(cotangent);
  EXPECT_EQ(seen.to_vector(), alone.to_vector());
  EXPECT_NE(seen.storage(), x.grad().storage());
  const Tensor both = x.grad().clone();
  x.zero_grad();
  add(linear(x, w), linear(x, v)).backward(cotangent);
  const Values sum = both.to_vector(), together = grad_of(x);
  for (std::size_t i = 0; i < sum.size(); ++i) EXPECT_NEAR(together[i], sum[i], 1e-12);
}

TEST(Tape, SeveralOutputsAndRoots) {
  const Variable x = leaf({1, 2, 3, 4});
  const auto parts =
      record("halves", {x}, std::vector<Tensor>{x.value().slice(0, 0, 2), x.value().slice(0, 2, 4)},
             {}, [](const Backward& ctx) -> Gradients {
               EXPECT_TRUE(ctx.has_dy(1));
               const Tensor dx = Tensor::zeros({4}, DType::f64);
               dx.slice(0, 0, 2).copy_(ctx.dy(0));  // zeros if nothing flowed into it
               dx.slice(0, 2, 4).copy_(ctx.dy(1));
               return {dx};
             });
  sum(scale(parts[1], 3)).backward();
  EXPECT_EQ(grad_of(x), (Values{0, 0, 3, 3}));
  x.zero_grad();
  run_backward({square(x), x},
               {Tensor::full({4}, 1, DType::f64), Tensor::full({4}, 10, DType::f64)});
  EXPECT_EQ(grad_of(x), (Values{12, 14, 16, 18}));
}

TEST(Tape, NoGradRecordsNothing) {
  const Variable x = leaf({1, 2});
  {
    const NoGradGuard guard;
    EXPECT_FALSE(grad_enabled());
    const Variable y = square(x);
    EXPECT_FALSE(y.requires_grad());
    {
      const GradMode on(true);
      EXPECT_TRUE(square(x).requires_grad());
    }
    EXPECT_FALSE(grad_enabled());
  }
  EXPECT_TRUE(grad_enabled());
  EXPECT_TRUE(square(x).requires_grad());
  EXPECT_FALSE(square(x.detach()).requires_grad());
  EXPECT_FALSE(square(Variable(x.value())).requires_grad());
  // Nothing that only a backward pass needs is kept alive.
  const auto live = memory_stats(DeviceType::cpu).live_bytes;
  const NoGradGuard guard;
  Variable y = x;
  for (int i = 0; i < 5; ++i) y = exp(y);
  EXPECT_EQ(memory_stats(DeviceType::cpu).live_bytes, live + 16);
}

TEST(Tape, FrozenLeavesGetNothing) {
  const Variable x = leaf({1, 2});
  const Variable w = leaf({3, 4});
  w.set_requires_grad(false);
  sum(mul(x, w)).backward();
  EXPECT_EQ(grad_of(x), (Values{3, 4}));
  EXPECT_FALSE(w.grad().defined());
  const Variable y = square(x);
  expect_error<AutogradError>([&] { y.set_requires_grad(false); }, "only for leaves");
  expect_error<AutogradError>([&] { sum(square(w)).backward(); },
                              "backward: the variable has no history and requires no gradient");
}

TEST(Tape, SeesSavedTensorsThatChanged) {
  const Variable x = leaf({1, 2});
  const Variable y = sum(mul(x, x));
  x.value().fill_(5);
  expect_error<AutogradError>([&] { y.backward(); },
                              "mul: saved tensor 0 (f64 [2]) was changed in place after the "
                              "forward pass; change a clone");
  // Through a view too, and what was not saved may change.
  const Variable z = sum(mul(x, x));
  x.value().slice(0, 0, 1).add_(Tensor::full({1}, 1, DType::f64));
  EXPECT_THROW(z.backward(), AutogradError);
  const Variable a = leaf({1});
  const Variable s = add(a, a);
  a.value().fill_(3);
  EXPECT_NO_THROW(s.backward());
}

TEST(Tape, MakesAgainWhatIsNotKept) {
  const Variable x = random_leaf({64, 8}, 1, DType::f32);
  const Variable w = random_leaf({8, 8}, 2, DType::f32);
  const auto gradients = [&](bool again) {
    int made = 0;
    x.zero_grad();
    w.zero_grad();
    Variable y = scale(x, 3);
    if (again) {
      y = made_again(y, {x.value()}, [&made](const std::vector<Tensor>& from) {
        ++made;
        return ops::affine(from[0], 3, 0);
      });
    }
    Variable z = sum(matmul(linear(y, w), transpose(linear(y, w), 0, 1)));
    y = {};
    z.backward();
    EXPECT_EQ(made, again ? 2 : 0);  // by each of the two that saved it
    return std::pair{grad_of(x), grad_of(w)};
  };
  EXPECT_EQ(gradients(true), gradients(false));
  const Variable y = made_again(scale(x, 3), {x.value()}, [](const std::vector<Tensor>& from) {
    return ops::affine(from[0], 3, 0);
  });
  const Variable z = sum(linear(y, w));
  x.value().fill_(5);
  expect_error<AutogradError>([&] { z.backward(); },
                              "linear: saved tensor 0 (f32 [64, 8]) was changed in place");
}

TEST(Tape, SecondBackwardThrows) {
  const Variable x = leaf({1, 2});
  const Variable y = square(x);
  const Variable z = sum(y);
  z.backward();
  expect_error<AutogradError>([&] { z.backward(); },
                              "sum: backward was already run through this history");
  expect_error<AutogradError>([&] { sum(scale(y, 2)).backward(); },
                              "square: backward was already run through this history");
}

TEST(Tape, BackwardNeedsAFittingCotangent) {
  const Variable x = leaf({1, 2});
  expect_error<ShapeError>([&] { square(x).backward(); },
                           "backward(x): x: expected one element, got [2]; pass a cotangent");
  expect_error<AutogradError>([&] { square(x).backward(Tensor::zeros({3}, DType::f64)); },
                              "backward(cotangent): cotangent: expected f64 [2], got f64 [3]");
  expect_error<AutogradError>([&] { square(x).backward(Tensor::zeros({2})); },
                              "expected f64 [2], got f32 [2]");
  expect_error<AutogradError>([] { (void)Variable().value(); }, "an undefined variable");
}

TEST(Tape, CatchesWrongGradients) {
  const Variable x = leaf({1, 2});
  const auto run = [&](Gradients gradients) {
    record("wrong", {x, x}, x.value().clone(), {}, [gradients](const Backward&) {
      return gradients;
    }).backward(Tensor::zeros({2}, DType::f64));
  };
  const Tensor good = Tensor::zeros({2}, DType::f64);
  EXPECT_NO_THROW(run({good, Tensor()}));
  expect_error<AutogradError>([&] { run({good}); },
                              "wrong: backward returned 1 gradients for 2 inputs");
  expect_error<AutogradError>(
      [&] {
        run({good, Tensor::zeros({1, 2}, DType::f64)});
      },
      "wrong: gradient of input 1: expected f64 [2], got f64 [1, 2]");
  expect_error<AutogradError>(
      [&] {
        run({Tensor::zeros({2}, DType::f32), good});
      },
      "wrong: gradient of input 0: expected f64 [2], got f32 [2]");
}

TEST(Tape, ReleasesWhatItUsed) {
  const auto live = memory_stats(DeviceType::cpu).live_bytes;
  {
    const Variable x = random_leaf({1000}, 1);
    Variable y = x;
    for (int i = 0; i < 10; ++i) y = tanh(y);  // each saves its input
    y = sum(y);
    EXPECT_GE(memory_stats(DeviceType::cpu).live_bytes, live + 80000);
    y.backward();
    // x, its gradient and the loss.
    EXPECT_LE(memory_stats(DeviceType::cpu).live_bytes, live + 2 * 8000 + 64);
  }
  EXPECT_EQ(memory_stats(DeviceType::cpu).live_bytes, live);
}

TEST(Tape, AMillionNodesDeep) {
  constexpr int kDepth = 1000000;
  const Variable x = Variable(Tensor::full({1}, 0, DType::f64), true);
  const auto chain = [&] {
    Variable y = x;
    for (int i = 0; i < kDepth; ++i) y = shift(y, 1);
    return y;
  };
  {
    const Variable y = chain();
    EXPECT_EQ(y.value().item(), kDepth);
    y.backward();
    EXPECT_EQ(grad_of(x), Values{1});
  }
  const Variable unused = chain();  // destroyed without a backward pass
}

TEST(Tape, HistoriesMayCrossThreads) {
  const Variable x = leaf({2});
  Variable y = x;
  for (int i = 0; i < 10; ++i) y = scale(y, 1);
  Variable z;
  std::thread([&] { z = add(square(y), square(y)); }).join();
  const Variable w = add(z, y);
  w.backward();
  EXPECT_EQ(grad_of(x), Values{9});
}

TEST(Variables, LeafOperations) {
  const Variable x = leaf({1, 2});
  x.set_value(Tensor::from({5, 6}, {2}, DType::f64));
  EXPECT_EQ(x.value().to_vector(), (Values{5, 6}));
  expect_error<ShapeError>([&] { x.set_value(Tensor::zeros({3}, DType::f64)); },
                           "set_value(value): value: expected f64 [2], got f64 [3]");
  expect_error<AutogradError>([&] { square(x).set_value(x.value()); }, "only for leaves");
  expect_error<ShapeError>([&] { x.set_grad(Tensor::zeros({3}, DType::f64)); },
                           "set_grad(grad): grad: expected f64 [2], got f64 [3]");
  expect_error<AutogradError>([&] { square(x).set_grad(x.value()); }, "only for leaves");
  const Variable copy = x;
  sum(copy).backward();
  EXPECT_EQ(grad_of(x), (Values{1, 1})) << "copies are handles";
}

// Controls: gradcheck must be able to fail.
Variable softmax_with(const Variable& x,
                      const std::function<Tensor(const Tensor&, const Tensor&)>& f) {
  const Tensor y = softmax(x.detach()).value();
  return record("control", {x}, y, {y},
                [f](const Backward& ctx) -> Gradients { return {f(ctx.saved(0), ctx.dy())}; });
}

GradcheckResult check_control(const std::function<Tensor(const Tensor&, const Tensor&)>& f) {
  return gradcheck([&](const auto& v) { return softmax_with(v[0], f); },
                   {Tensor::randn({3, 5}, {3, 1}, DType::f64)});
}

Tensor softmax_gradient(const Tensor& y, const Tensor& dy, double sign, double term) {
  const Variable dot = sum(Variable(ops::mul(y, dy)), {-1}, true);
  const Tensor inner = ops::sub(dy, ops::affine(dot.value(), term, 0));
  return ops::affine(ops::mul(y, inner), sign, 0);
}

TEST(GradcheckControls, TheRightGradientPasses) {
  const auto result = check_control(
      [](const Tensor& y, const Tensor& dy) { return softmax_gradient(y, dy, 1, 1); });
  EXPECT_TRUE(result.ok) << result.message;
  EXPECT_LT(result.worst, 1e-8);
}

TEST(GradcheckControls, ZerosFail) {
  const auto result = check_control(
      [](const Tensor& y, const Tensor&) { return Tensor::zeros(y.shape(), DType::f64); });
  EXPECT_FALSE(result.ok);
  EXPECT_NE(result.message.find("input 0 [3, 5], element 0: analytic 0.000000, numeric"),
            std::string::npos)
      << result.message;
}

TEST(GradcheckControls, ASignErrorFails) {
  EXPECT_FALSE(check_control([](const Tensor& y, const Tensor& dy) {
                 return softmax_gradient(y, dy, -1, 1);
               }).ok);
}

TEST(GradcheckControls, AMissingTermFails) {
  EXPECT_FALSE(check_control([](const Tensor& y, const Tensor& dy) {
                 return softmax_gradient(y, dy, 1, 0);
               }).ok);
}

TEST(GradcheckControls, NanFails) {
  EXPECT_FALSE(check_control([](const Tensor& y, const Tensor&) {
                 return Tensor::full(y.shape(), std::nan(""), DType::f64);
               }).ok);
}

TEST(GradcheckControls, AForgottenHistoryFails) {
  EXPECT_FALSE(gradcheck([](const auto& v) { return square(v[0].detach()); },
                         {Tensor::randn({3}, {3, 2}, DType::f64)})
                   .ok);
}

TEST(GradcheckControls, OneElementOfManyFails) {
  const auto last_is_wrong = [](const auto& v) {
    return record("control", {v[0]}, v[0].value().clone(), {},
                  [](const Backward& ctx) -> Gradients {
                    const Tensor dx = ctx.dy().clone();
                    dx.slice(0, 6, 7).fill_(0);
                    return {dx};
                  });
  };
  const auto result = gradcheck(last_is_wrong, {Tensor::randn({7}, {3, 3}, DType::f64)});
  EXPECT_FALSE(result.ok);
  EXPECT_NE(result.message.find("element 6"), std::string::npos) << result.message;
}

TEST(GradcheckInputs, ViewsIntegersAndEmptyOnes) {
  const Tensor x = Tensor::randn({4, 3}, {3, 4}, DType::f64);
  const auto before = x.to_vector();
  EXPECT_TRUE(gradcheck([](const auto& v) { return mul(v[0], exp(v[0])); },
                        {x.transpose(0, 1).slice(1, 1, 3)})
                  .ok);
  EXPECT_EQ(x.to_vector(), before) << "inputs are as they were";
  EXPECT_TRUE(
      gradcheck([](const auto& v) { return square(v[0]); }, {Tensor::zeros({0, 3}, DType::f64)})
          .ok);
  EXPECT_TRUE(gradcheck([](const auto& v) { return square(v[0]); }, {x, Tensor::arange(3)}).ok);
  expect_error<DTypeError>(
      [] { gradcheck([](const auto& v) { return v[0]; }, {Tensor::zeros({2})}); },
      "gradcheck(fn, inputs): inputs: expected dtype f64, got f32");
}

TEST(Rounded, ALeafIsRoundedOnceForEveryValueThatItHas) {
  const Variable w(Tensor::randn({5, 7}, {1, 2}), true);
  const Tensor first = w.rounded();
  EXPECT_EQ(first.dtype(), DType::bf16);
  EXPECT_EQ(first.to_vector(), w.value().to(DType::bf16).to_vector());
  EXPECT_EQ(w.rounded().raw(), first.raw());
  const std::uint64_t version = first.version();
  w.value().fill_(1.5);
  EXPECT_EQ(w.rounded().raw(), first.raw());  // recorded work reads there
  EXPECT_GT(first.version(), version);        // and a backward that saved it is refused
  EXPECT_EQ(first.to_vector(), std::vector<double>(35, 1.5));
  w.set_value(Tensor::zeros({5, 7}));
  EXPECT_EQ(w.rounded().to_vector(), std::vector<double>(35, 0.0));
  w.resize(Tensor::full({2}, 1.0));
  EXPECT_EQ(w.rounded().to_vector(), std::vector<double>(2, 1.0));
}

}  // namespace
}  // namespace proteus::testing
