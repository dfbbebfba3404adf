// Activation checkpointing: same numbers, less memory, and nothing decided twice.
#include "autograd/checkpoint.h"

#include <gtest/gtest.h>

#include "autograd/elementwise.h"
#include "autograd/norm.h"
#include "autograd/reduce.h"
#include "autograd/tape.h"
#include "autograd/view.h"
#include "tensor/error.h"

namespace proteus::testing {
namespace {

using Values = std::vector<double>;
using Segment = std::function<Variable(const std::vector<Variable>&)>;

Variable random_leaf(const Shape& shape, std::uint64_t stream, DType dtype = DType::f32) {
  return Variable(Tensor::randn(shape, {11, stream}, dtype), true);
}

/// Value and gradients of sum(fn(x, z)²), with or without checkpointing.
struct Outcome {
  Values y, dx, dz, dw;
  friend bool operator==(const Outcome&, const Outcome&) = default;
};

Outcome run(const Variable& w, const Segment& fn, bool checkpointed) {
  const Variable x = random_leaf({3, 4}, 1);
  const Variable z = random_leaf({4}, 2);
  w.zero_grad();
  const Variable y = checkpointed ? checkpoint(fn, {x, z}) : fn({x, z});
  sum(square(y)).backward();
  return {y.value().to_vector(), x.grad().to_vector(), z.grad().to_vector(), w.grad().to_vector()};
}

TEST(Checkpoint, SameBitsAsWithout) {
  const Variable w = random_leaf({4}, 3);
  const Segment fn = [&](const auto& v) { return gelu(mul(layernorm(v[0], v[1], {}), w)); };
  EXPECT_TRUE(run(w, fn, true) == run(w, fn, false));
}

TEST(Checkpoint, ParametersGetGradientsWhereInputsWantNone) {
  const Variable w = random_leaf({4}, 3);
  const Variable x(Tensor::randn({3, 4}, {11, 4}));
  sum(checkpoint([&](const auto& v) { return mul(v[0], w); }, {x})).backward();
  EXPECT_TRUE(w.grad().defined());
  EXPECT_FALSE(x.grad().defined());
}

TEST(Checkpoint, WithoutGradientsIsACall) {
  const NoGradGuard guard;
  const Variable x = random_leaf({3}, 1);
  int calls = 0;
  const Variable y = checkpoint(
      [&](const auto& v) {
        ++calls;
        return square(v[0]);
      },
      {x});
  EXPECT_FALSE(y.requires_grad());
  EXPECT_EQ(calls, 1);
}

TEST(Checkpoint, DecidesOnce) {
  const Variable w = random_leaf({4}, 3);
  int decided = 0;
  int counted = 0;
  // A selection that would come out differently each time.
  const Segment fn = [&](const auto& v) {
    const auto chosen = decide([&] {
      ++decided;
      return std::vector<Tensor>{Tensor::full({4}, decided)};
    });
    if (!recomputing()) ++counted;
    return mul(mul(v[0], v[1]), mul(w, Variable(chosen[0])));
  };
  EXPECT_FALSE(recomputing());
  const Outcome with = run(w, fn, true);
  EXPECT_EQ(decided, 1);
  EXPECT_EQ(counted, 1);
  decided = 0;
  EXPECT_TRUE(with == run(w, fn, false));
  EXPECT_EQ(decided, 1);
}

/// Keeps or drops each element by its random number.
Variable drop(const Variable& x, Generator& generator) {
  const RngKey key = next_key(generator);
  const Tensor u = Tensor::rand(x.shape(), key, x.dtype());
  std::vector<double> mask = u.to_vector();
  for (double& m : mask) m = m < 0.5 ? 0 : 2;
  return mul(x, Variable(Tensor::from(mask, x.shape(), x.dtype())));
}

TEST(Checkpoint, ReplaysRandomKeys) {
  const Variable w = random_leaf({4}, 3);
  Generator generator(5);
  const Segment fn = [&](const auto& v) {
    return drop(mul(drop(mul(v[0], v[1]), generator), w), generator);
  };
  const Outcome with = run(w, fn, true);
  EXPECT_EQ(generator.stream(), 2u) << "the recomputation drew no new keys";
  generator.set_stream(0);
  EXPECT_TRUE(with == run(w, fn, false));
}

TEST(Checkpoint, Nests) {
  const Variable w = random_leaf({4}, 3);
  Generator generator(5);
  int decided = 0;
  int counted = 0;
  const Segment inner = [&](const auto& v) {
    const auto factor = decide([&] {
      ++decided;
      return std::vector<Tensor>{Tensor::full({4}, 1 + decided)};
    });
    if (!recomputing()) ++counted;
    return mul(drop(tanh(mul(v[0], w)), generator), Variable(factor[0]));
  };
  const auto outer = [&](bool nested) -> Segment {
    return [&, nested](const std::vector<Variable>& v) {
      Variable h = drop(mul(v[0], v[1]), generator);
      for (int i = 0; i < 3; ++i) h = nested ? checkpoint(inner, {h}) : inner({h});
      return drop(h, generator);
    };
  };
  const Outcome with = run(w, outer(true), true);
  EXPECT_EQ(decided, 3);
  EXPECT_EQ(counted, 3) << "what is recomputed for the inner segment counts no second time";
  EXPECT_EQ(generator.stream(), 5u);
  decided = 0;
  generator.set_stream(0);
  EXPECT_TRUE(with == run(w, outer(false), false));
}

TEST(Checkpoint, SeesASegmentThatDecidesDifferently) {
  const Variable x = random_leaf({3}, 1);
  int calls = 0;
  const Variable y = checkpoint(
      [&](const auto& v) {
        if (++calls > 1) decide([] { return std::vector<Tensor>{}; });
        return square(v[0]);
      },
      {x});
  try {
    sum(y).backward();
    FAIL();
  } catch (const AutogradError& error) {
    EXPECT_NE(std::string(error.what()).find("the segment must do the same both times"),
              std::string::npos);
  }
  EXPECT_FALSE(recomputing()) << "the scope is left with the exception";
  EXPECT_TRUE(grad_enabled());
}

TEST(Checkpoint, SeesInputsThatChanged) {
  const Variable x = random_leaf({3}, 1);
  const Variable y = sum(checkpoint([](const auto& v) { return square(v[0]); }, {x}));
  x.value().fill_(0);
  EXPECT_THROW(y.backward(), AutogradError);
}

TEST(Checkpoint, NeedsLessMemory) {
  constexpr std::int64_t kCount = 100000;
  constexpr std::int64_t kBytes = kCount * 4;
  const Segment block = [](const auto& v) {
    Variable h = v[0];
    for (int i = 0; i < 8; ++i) h = tanh(h);
    return h;
  };
  const auto peak = [&](bool checkpointed) {
    const Variable x = random_leaf({kCount}, 1);
    const auto live = memory_stats(DeviceType::cpu).live_bytes;
    reset_peak_memory(DeviceType::cpu);
    Variable h = x;
    for (int i = 0; i < 8; ++i) h = checkpointed ? checkpoint(block, {h}) : block({h});
    sum(h).backward();
    h = {};
    return memory_stats(DeviceType::cpu).peak_bytes - live;
  };
  EXPECT_GE(peak(false), 64 * kBytes);
  EXPECT_LE(peak(true), (8 + 8 + 6) * kBytes) << "block inputs, one block, gradients";
}

}  // namespace
}  // namespace proteus::testing
