// Everything that is checked about the CUDA kernels, on a GPU; without one every test is skipped.
// The op cases of tests/op_cases/ run on it, and cases of its own whose sizes reach the kernels'
// other paths: rows that belong to a block, sums in pieces, packs that do not fit.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "autograd/elementwise.h"
#include "autograd/embedding.h"
#include "autograd/gemm.h"
#include "autograd/grouped_gemm.h"
#include "autograd/loss.h"
#include "autograd/norm.h"
#include "autograd/reduce.h"
#include "autograd/softmax.h"
#include "autograd/view.h"
#include "cuda/device.h"
#include "cuda/stream.h"
#include "tensor/dlpack.h"
#include "tensor/error.h"
#include "tensor/ops/dropout.h"
#include "tensor/ops/elementwise.h"
#include "tensor/ops/gemm.h"
#include "tensor/ops/optim.h"
#include "tensor/ops/select.h"
#include "tests/guarded_gpu.h"
#include "tests/op_runs.h"

namespace proteus::testing {
namespace {

// Benchmark cases up to this many operations run here too: their references are made on the CPU.
constexpr double kGpuTestFlops = 2e7;

// Skips the test without a GPU, otherwise selects the first one.
#define PROTEUS_NEED_GPU() \
  if (cuda::device_count() == 0) GTEST_SKIP() << "no GPU: " << cuda::why_no_device()

Device gpu() { return cuda::device(0); }

OpCase case_of(const std::string& op, std::vector<std::string> slots, std::vector<OpInput> inputs,
               std::function<Variable(const std::vector<Variable>&)> run) {
  std::string variant = "long";
  for (const OpInput& input : inputs) variant += " " + to_string(input.shape);
  return {.op = op,
          .variant = variant,
          .slots = std::move(slots),
          .inputs = std::move(inputs),
          .run = std::move(run)};
}

void add_rows(std::vector<OpCase>& cases) {
  for (const Shape& x : {Shape{3, 1025}, Shape{3, 4096}, Shape{2, 50257}, Shape{777, 96}}) {
    const Shape c{x[-1]};
    cases.push_back(case_of("softmax", {"softmax_fwd", "softmax_bwd"}, {{x}},
                            [](const auto& v) { return softmax(v[0]); }));
    cases.push_back(case_of("log_softmax", {"softmax_fwd", "softmax_bwd"}, {{x}},
                            [](const auto& v) { return log_softmax(v[0]); }));
    cases.push_back(case_of("logsumexp", {"softmax_fwd", "softmax_bwd"}, {{x}},
                            [](const auto& v) { return logsumexp(v[0]); }));
    cases.push_back(case_of("layernorm", {"norm_fwd", "norm_bwd"}, {{x}, {c}, {c}},
                            [](const auto& v) { return layernorm(v[0], v[1], v[2]); }));
    cases.push_back(case_of("rmsnorm", {"norm_fwd", "norm_bwd"}, {{x}, {c}},
                            [](const auto& v) { return rmsnorm(v[0], v[1]); }));
    cases.push_back(case_of("max", {"max_fwd", "max_bwd"}, {{x}},
                            [](const auto& v) { return max(v[0], {-1}); }));
    cases.push_back(case_of("scale_rows", {"scale_rows_fwd", "scale_rows_bwd"}, {{x}, {{x[0]}}},
                            [](const auto& v) { return scale_rows(v[0], v[1]); }));
    OpCase loss = case_of("cross_entropy_logits", {"cross_entropy_fwd"},
                          {{x}, {{x[0]}, Fill::index, false, x[-1]}},
                          [](const auto& v) { return cross_entropy_logits(v[0], v[1].value()); });
    cases.push_back(loss);
  }
}

void add_sums(std::vector<OpCase>& cases) {
  for (const Shape& x : {Shape{100003}, Shape{65536, 3}, Shape{3, 70001}, Shape{2, 5000, 70}}) {
    for (int d = 0; d < x.rank(); ++d) {
      OpCase c = case_of("sum", {"sum_fwd"}, {{x}}, [d](const auto& v) { return sum(v[0], {d}); });
      c.variant += " over " + std::to_string(d);
      cases.push_back(c);
    }
  }
  cases.push_back(case_of("key_shift", {"key_shift_fwd", "key_shift_bwd"},
                          {{{3, 1000, 40}}, {{40}}},
                          [](const auto& v) { return key_shift(v[0], v[1]); }));
  cases.push_back(case_of("add", {"binary_fwd", "sum_fwd"}, {{{4000, 48}}, {{48}}},
                          [](const auto& v) { return add(v[0], v[1]); }));
  cases.push_back(case_of("mul", {"binary_fwd", "sum_fwd"}, {{{40, 50, 24}}, {{40, 1, 24}}},
                          [](const auto& v) { return mul(v[0], v[1]); }));
  cases.push_back(case_of("transpose", {"strided_copy"}, {{{70, 33, 40}}},
                          [](const auto& v) { return clone(transpose(v[0], 0, 2)); }));
}

// Two sequences, two heads for a token, one for every ninth: the last head and one of the others.
PackedRows two_heads(std::int64_t tokens, std::int64_t heads, Device device) {
  std::vector<std::int32_t> chosen;
  for (std::int64_t n = 0; n < tokens; ++n) {
    chosen.push_back(static_cast<std::int32_t>(n * 7 % (heads - 1)));
    chosen.push_back(n % 9 == 0 ? -1 : static_cast<std::int32_t>(heads - 1));
  }
  return ops::pack_rows(Tensor::from_data<std::int32_t>(chosen, {tokens, 2}, device), heads, 2);
}

struct GroupedShape {
  std::int64_t tokens = 0, width = 0, out = 0, heads = 5;
};

OpCase grouped_case(bool combine, const GroupedShape& s) {
  const std::int64_t rows = combine ? two_heads(s.tokens, s.heads, kCpu).rows() : s.tokens;
  return case_of(combine ? "grouped_combine" : "grouped_linear",
                 {"grouped_gather", "grouped_scatter", "grouped_weight"},
                 {{{rows, s.width}}, {{s.heads, s.width, s.out}}}, [=](const auto& v) {
                   const PackedRows packed = two_heads(s.tokens, s.heads, v[0].device());
                   return combine ? grouped_combine(v[0], v[1], packed)
                                  : grouped_linear(v[0], v[1], packed);
                 });
}

// The gradient of x is added to in place.
OpCase grouped_twice_case(const GroupedShape& s) {
  OpCase c = grouped_case(false, s);
  c.variant += " twice";
  c.inputs.push_back(c.inputs[1]);
  c.run = [s](const auto& v) {
    const PackedRows packed = two_heads(s.tokens, s.heads, v[0].device());
    return add(grouped_linear(v[0], v[1], packed), grouped_linear(v[0], v[2], packed));
  };
  return c;
}

// More than one stretch of tokens, more than one tile of a group in it and more than one stretch
// for a block; more rows than stay in the cache, whose tiles are taken in another order, and enough
// of them for high tiles; more groups than a warp has lanes; more columns than a block has.
void add_grouped_products(std::vector<OpCase>& cases) {
  for (const std::int64_t width : {64, 136}) {
    cases.push_back(grouped_case(false, {2000, width, 72}));
    cases.push_back(grouped_case(true, {2000, width, 72}));
  }
  cases.push_back(grouped_case(false, {2000, 520, 72}));
  cases.push_back(grouped_case(true, {2000, 64, 72, 70}));
  cases.push_back(grouped_case(false, {20000, 512, 8}));
  cases.push_back(grouped_twice_case({20000, 512, 8}));
  cases.push_back(grouped_case(false, {80000, 16, 8}));
}

void add_products(std::vector<OpCase>& cases) {
  for (const std::int64_t rows : {1, 33, 512}) {
    for (const std::int64_t width : {7, 40, 64}) {
      const std::int64_t out = 2 * width + (width == 7 ? 1 : 0);
      const std::vector<OpInput> inputs{{{rows, width}}, {{out, width}}, {{out}}};
      cases.push_back(case_of("linear", {"gemm_fwd", "bias_bwd"}, inputs,
                              [](const auto& v) { return linear(v[0], v[1], v[2]); }));
      cases.push_back(case_of("linear", {"gemm_fwd", "bias_bwd"},
                              {{{rows, width}}, {{out, width}}, {{out}}, {{rows, out}}},
                              [](const auto& v) { return linear(v[0], v[1], v[2], v[3]); }));
      cases.push_back(case_of("linear_gelu", {"gemm_fwd", "bias_bwd"}, inputs,
                              [](const auto& v) { return linear_gelu(v[0], v[1], v[2]); }));
    }
  }
  cases.push_back(case_of("matmul", {"gemm_fwd"}, {{{6, 65, 64}}, {{6, 64, 33}}},
                          [](const auto& v) { return matmul(v[0], v[1]); }));
  cases.push_back(case_of("matmul transposed", {"gemm_fwd"}, {{{6, 64, 65}}, {{6, 33, 64}}},
                          [](const auto& v) { return matmul(v[0], v[1], true, true); }));
  cases.push_back(case_of("embedding", {"embedding_fwd", "embedding_bwd"},
                          {{{50, 40}}, {{3000}, Fill::index, false, 50}},
                          [](const auto& v) { return embedding(v[0], v[1].value()); }));
  cases.push_back(case_of("embedding", {"embedding_fwd", "embedding_bwd"},
                          {{{30011, 9}}, {{500}, Fill::index, false, 30011}},
                          [](const auto& v) { return embedding(v[0], v[1].value()); }));
}

// Several tiles of rows and of words, whole and not; and targets whose exponentials, beside that of
// the largest logit, are 0.
void add_losses(std::vector<OpCase>& cases) {
  struct Sizes {
    std::int64_t rows, C, V;
  };
  for (const auto& [rows, C, V] :
       {Sizes{300, 64, 1003}, {129, 136, 4104}, {256, 72, 384}, {1100, 392, 4200}}) {
    for (const double size : {0.125, 64.0}) {  // of the logits; exact in every dtype
      OpCase c = case_of(
          "cross_entropy", {"linear_cross_entropy"},
          {{{rows, C}}, {{V, C}}, {{rows}, Fill::index, false, V}},
          [size](const auto& v) { return cross_entropy(scale(v[0], size), v[1], v[2].value()); });
      c.variant += size > 1 ? " far" : "";
      cases.push_back(c);
    }
  }
}

// The cases of the families that are small enough, and those above.
std::vector<Param> gpu_cases() {
  static const auto* mine = [] {
    auto* cases = new std::vector<OpCase>;
    add_rows(*cases);
    add_sums(*cases);
    add_products(*cases);
    add_grouped_products(*cases);
    add_losses(*cases);
    return cases;
  }();
  auto list = params([](const OpCase& c) { return !c.bench_only || c.flops <= kGpuTestFlops; });
  for (const OpCase& c : *mine) list.push_back({&c, identifier(c.op + "_" + c.variant)});
  return list;
}

class CudaOps : public ::testing::TestWithParam<Param> {
 protected:
  void SetUp() override {
    PROTEUS_NEED_GPU();
    device_ = gpu();
    const std::string missing = missing_slot(op(), DeviceType::cuda);
    if (!missing.empty()) GTEST_SKIP() << missing << ": no cuda kernel";
  }
  const OpCase& op() const { return *GetParam().c; }
  Device device() const { return device_; }

 private:
  Device device_;
};

TEST_P(CudaOps, Parity) {
  const GuardedGpu guarded;
  expect_parity(op(), device(), {{Storing::contiguous}});
  EXPECT_EQ(GuardedGpu::broken_guards(), 0);
  EXPECT_EQ(GuardedGpu::live_blocks(), 0);
}

TEST_P(CudaOps, StridedViews) {
  const GuardedGpu guarded;
  expect_parity(op(), device(), kStrided);
  EXPECT_EQ(GuardedGpu::broken_guards(), 0);
  EXPECT_EQ(GuardedGpu::live_blocks(), 0);
}

// Fresh memory is poisoned late on the other stream: what a kernel, copy or clearing wrote from
// elsewhere is gone.
TEST_P(CudaOps, SameBitsAgainAndOnAnotherStream) {
  for (const DType dtype : {DType::f64, DType::f32, DType::bf16}) {
    SCOPED_TRACE(name_of(dtype));
    const auto inputs = to_device(make_inputs(op(), dtype), device());
    const Outcome once = evaluate(op(), inputs, dtype);
    expect_same_bits(evaluate(op(), inputs, dtype), once);
    const GuardedGpu guarded(Poisoning::late);
    const cuda::Stream stream;
    const cuda::StreamScope scope(stream);
    expect_same_bits(evaluate(op(), inputs, dtype), once);
  }
}

INSTANTIATE_TEST_SUITE_P(Cuda, CudaOps, ::testing::ValuesIn(gpu_cases()),
                         [](const auto& each) { return each.param.name; });

TEST(CudaSlots, EverySlotHasAKernel) {
  PROTEUS_NEED_GPU();
  gpu();
  std::string missing;
  for (const SlotBase* slot : slot_registry()) {
    if (!slot->has_kernel(DeviceType::cuda)) missing += " " + std::string(slot->name());
  }
  EXPECT_EQ(missing, "") << "slots without a CUDA kernel";
}

TEST(CudaSelect, InfinitiesNansAndTiesLikeTheCpu) {
  PROTEUS_NEED_GPU();
  const Device device = gpu();
  const double nan = std::nan("");
  const double inf = std::numeric_limits<double>::infinity();
  const Tensor x = Tensor::from({-nan, 1, -0.0, inf, nan, -inf}, {6});
  const std::vector<std::int64_t> ranks{0, 1, 2, 3, 4, 5};
  for (const DType dtype : {DType::f32, DType::f64}) {
    const Tensor there = x.to(dtype).to(device);
    EXPECT_TRUE(
        same_bits(ops::order_statistics(there, ranks), ops::order_statistics(x.to(dtype), ranks)));
  }
  const Tensor extra = Tensor::from({1, 0, 0, 1, 0}, {5}, DType::i32);
  const Tensor scores = Tensor::from({0,    -inf, -inf, 1,    -inf,  //
                                      -inf, -inf, -inf, -inf, -inf,  //
                                      inf,  inf,  0,    -0.0, 0,     //
                                      1,    2,    inf,  3,    inf},
                                     {4, 5});
  for (const Tensor& marked : {Tensor(), extra}) {
    for (const std::int64_t k : {1, 2, 3}) {
      EXPECT_TRUE(same_bits(ops::topk_heads(scores.to(device), k, {}, {}, marked),
                            ops::topk_heads(scores, k, {}, {}, marked)))
          << k;
    }
  }
}

TEST(CudaMemory, TooMuchIsAnErrorThatSaysHowMuch) {
  PROTEUS_NEED_GPU();
  const Device device = gpu();
  constexpr std::int64_t kPetabyte = std::int64_t{1} << 50;
  try {
    Tensor::empty({kPetabyte}, DType::i8, device);
    FAIL() << "a petabyte was found";
  } catch (const OutOfMemory& e) {
    const std::string text = e.what();
    EXPECT_NE(text.find("allocate: cuda:0: wanted " + std::to_string(kPetabyte) + " bytes, "),
              std::string::npos)
        << text;
    EXPECT_NE(text.find(" are free; use a smaller batch or context"), std::string::npos) << text;
  }
  const Tensor after = Tensor::full({3}, 2, DType::f32, device);
  EXPECT_EQ(after.to_vector(), (std::vector<double>{2, 2, 2}));
}

TEST(CudaMemory, CountsLiveAndPeakBytes) {
  PROTEUS_NEED_GPU();
  const Device device = gpu();
  const auto before = memory_stats(DeviceType::cuda);
  reset_peak_memory(DeviceType::cuda);
  {
    const Tensor a = Tensor::empty({1000}, DType::f32, device);
    EXPECT_EQ(memory_stats(DeviceType::cuda).live_bytes, before.live_bytes + 4000);
  }
  EXPECT_EQ(memory_stats(DeviceType::cuda).live_bytes, before.live_bytes);
  EXPECT_EQ(memory_stats(DeviceType::cuda).peak_bytes, before.live_bytes + 4000);
}

TEST(CudaCopies, RoundTripsOfEverySizeKeepTheBits) {
  PROTEUS_NEED_GPU();
  const Device device = gpu();
  constexpr std::int64_t kPiece = std::int64_t{1} << 20;
  for (const std::int64_t n :
       {std::int64_t{0}, std::int64_t{1}, kPiece - 1, kPiece, kPiece + 3, 11 * kPiece + 5}) {
    SCOPED_TRACE(n);
    const Tensor there = Tensor::rand({n}, {1, 2}, DType::f64, -100, 100).to(DType::i8);
    EXPECT_TRUE(same_bits(there.to(device).clone(), there));
  }
}

TEST(CudaCopies, ConvertsLikeTheCpu) {
  PROTEUS_NEED_GPU();
  const Device device = gpu();
  const DType all[] = {DType::f64, DType::f32, DType::bf16, DType::i8, DType::i32, DType::i64};
  const Tensor values = Tensor::rand({1003}, {3, 4}, DType::f64, -100, 100);
  for (const DType from : all) {
    for (const DType to : all) {
      SCOPED_TRACE(std::string(name_of(from)) + " to " + std::string(name_of(to)));
      const Tensor source = values.to(from);
      EXPECT_TRUE(same_bits(source.to(device).to(to), source.to(to)));
    }
  }
  // Between two bf16 numbers: the middle, and just beside it.
  const double middle = 1 + std::ldexp(1.0, -8);
  const Tensor ties = Tensor::from(
      {middle, middle + std::ldexp(1.0, -40), middle - std::ldexp(1.0, -40), -middle, 1e300, 0},
      {6}, DType::f64);
  EXPECT_TRUE(same_bits(ties.to(device).to(DType::bf16), ties.to(DType::bf16)));
}

TEST(CudaRandom, DropoutDrawsTheMasksOfTheCpu) {
  PROTEUS_NEED_GPU();
  const Device device = gpu();
  for (const DType dtype : {DType::f64, DType::f32, DType::bf16}) {
    for (const std::int64_t n : {1, 4, 7, 100003}) {
      const Tensor x = Tensor::full({n}, 1, dtype);
      const RngKey key{12345678901, 77};
      EXPECT_TRUE(same_bits(ops::dropout(x.to(device), 0.3, key), ops::dropout(x, 0.3, key))) << n;
    }
  }
}

TEST(CudaGemm, Bf16ProductsIntoF32KeepTheirSums) {
  PROTEUS_NEED_GPU();
  const Device device = gpu();
  for (const std::int64_t n : {9, 64, 400}) {
    const Tensor a = Tensor::randn({n, 72}, {1, 2}, DType::bf16);
    const Tensor b = Tensor::randn({72, 2 * n}, {3, 4}, DType::bf16);
    const Tensor before = Tensor::randn({n, 2 * n}, {5, 6});
    const Tensor here = before.clone();
    const Tensor there = before.to(device);
    ops::gemm_into(here, a, b, 1, 1);
    ops::gemm_into(there, a.to(device), b.to(device), 1, 1);
    const auto x = there.to_vector();
    const auto y = here.to_vector();
    for (std::size_t i = 0; i < x.size(); ++i) ASSERT_NEAR(x[i], y[i], 1e-4) << n << ", " << i;
  }
}

// More parameters than one launch takes, of every dtype and of sizes around a chunk.
std::vector<Tensor> many_tensors(std::uint64_t stream, bool state, Device device) {
  std::vector<Tensor> list;
  const DType types[] = {DType::f32, DType::bf16, DType::f64};
  for (std::int64_t i = 0; i < 120; ++i) {
    const std::int64_t n = i % 10 == 0 ? 16384 * 2 + i : 1 + 37 * i;
    const DType dtype = types[i % 3];
    const DType made = state && dtype == DType::bf16 ? DType::f32 : dtype;
    list.push_back(
        Tensor::rand({n}, {stream, static_cast<std::uint64_t>(i)}, made, 0.5, 2).to(device));
  }
  return list;
}

struct Step {
  std::vector<Tensor> value, grad, m, v;
  double norm = 0;

  explicit Step(Device device)
      : value(many_tensors(1, false, device)),
        grad(many_tensors(2, false, device)),
        m(many_tensors(3, true, device)),
        v(many_tensors(4, true, device)) {
    std::vector<StepTensor> all;
    for (std::size_t i = 0; i < value.size(); ++i) {
      all.push_back({value[i].raw(), grad[i].raw(), m[i].raw(), v[i].raw(), value[i].numel(), 0.1,
                     value[i].dtype()});
    }
    const auto count = static_cast<std::int64_t>(all.size());
    const Tensor sum = Tensor::empty({}, DType::f64, device);
    squared_norm(device, {all.data(), count, sum.data<double>()});
    norm = sum.item();
    const Tensor numbers =
        Tensor::from({1e-2, 0.1, 0.01, 0.5, 0}, {kStepNumbers}, DType::f64, device);
    const auto* now = reinterpret_cast<const StepNumbers*>(numbers.raw());
    adamw_step(device, {all.data(), count, now, 0.9, 0.99, 1e-8});
    sgd_step(device, {all.data(), count, now, 0.9});
  }
};

TEST(CudaOptim, ManyParametersInOneStep) {
  PROTEUS_NEED_GPU();
  const Step here(kCpu);
  const Step there(gpu());
  const Step again(gpu());
  EXPECT_NEAR(there.norm / here.norm, 1, 1e-12);
  EXPECT_EQ(there.norm, again.norm);
  for (std::size_t i = 0; i < here.value.size(); ++i) {
    EXPECT_TRUE(same_bits(there.value[i], again.value[i])) << i;
    const auto x = there.value[i].to_vector();
    const auto y = here.value[i].to_vector();
    const double tolerance = here.value[i].dtype() == DType::bf16 ? 0.01 : 1e-6;
    for (std::size_t k = 0; k < x.size(); ++k) {
      ASSERT_NEAR(x[k], y[k], tolerance * std::abs(y[k])) << i << ", " << k;
    }
  }
}

TEST(CudaStreams, WorkOfAScopeFollowsWhatWasQueuedBefore) {
  PROTEUS_NEED_GPU();
  const Device device = gpu();
  Tensor x = Tensor::zeros({1 << 22}, DType::f32, device);
  for (int round = 0; round < 20; ++round) {
    x = ops::affine(x, 1, 1);
    const cuda::Stream stream;
    const cuda::StreamScope scope(stream);
    x = ops::affine(x, 1, 1);
  }
  EXPECT_EQ(max(Variable(x)).value().item(), 40);
  EXPECT_EQ(max(Variable(ops::affine(x, -1, 0))).value().item(), -40);
}

TEST(CudaDlpack, TensorsLeaveAndComeBackInPlace) {
  PROTEUS_NEED_GPU();
  const Tensor x = Tensor::from({1, 2, 3, 4, 5, 6}, {2, 3}, DType::f32, gpu());
  dlpack::ManagedTensor* m = dlpack::export_tensor(ops::affine(x, 2, 0).transpose(0, 1));
  EXPECT_EQ(m->tensor.device.type, dlpack::kCudaCode);
  const Tensor back = dlpack::import_tensor(m);
  EXPECT_EQ(back.device(), gpu());
  EXPECT_EQ(ops::affine(back, 1, 1).to_vector(), (std::vector<double>{3, 9, 5, 11, 7, 13}));
}

}  // namespace
}  // namespace proteus::testing
