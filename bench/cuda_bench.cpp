// The CUDA kernels against what the GPU reaches: bytes per second of a large copy for those that
// move memory, the rate of an 8192³ product for those that multiply. Every figure is the median of
// several runs timed with events; tensors are larger than the caches.
//
// usage: cuda_bench [--json FILE] [--filter TEXT]
#include <algorithm>
#include <cstdio>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "bench/cuda_attention.h"
#include "tensor/ops/dropout.h"
#include "tensor/ops/elementwise.h"
#include "tensor/ops/embedding.h"
#include "tensor/ops/gemm.h"
#include "tensor/ops/loss.h"
#include "tensor/ops/norm.h"
#include "tensor/ops/optim.h"
#include "tensor/ops/reduce.h"
#include "tensor/ops/rope.h"
#include "tensor/ops/softmax.h"

namespace proteus {
namespace {

using bench::milliseconds;

constexpr Device kGpu{DeviceType::cuda, 0};
constexpr std::int64_t kRows = 65536;
constexpr std::int64_t kWidth = 768;

struct Entry {
  std::string name;
  DType dtype = DType::f32;
  double bytes = 0;  ///< read and written once
  double flops = 0;
  std::function<void()> run;
};

Tensor random(const Shape& shape, DType dtype, std::uint64_t stream = 1) {
  // Drawn once and repeated: drawing hundreds of megabytes on the host would take longer than all
  // measurements.
  constexpr std::int64_t kDrawn = 1 << 20;
  const std::int64_t n = shape.numel();
  const Tensor drawn = Tensor::randn({kDrawn}, {1, stream}, dtype, 0, 1, kGpu);
  const std::int64_t copies = (n + kDrawn - 1) / kDrawn;
  return drawn.expand({copies, kDrawn})
      .clone()
      .reshape({copies * kDrawn})
      .slice(0, 0, n)
      .reshape(shape);
}

double bytes_of(std::initializer_list<Tensor> tensors) {
  double sum = 0;
  for (const Tensor& t : tensors) sum += static_cast<double>(t.bytes());
  return sum;
}

void add_elementwise(std::vector<Entry>& list, DType dtype) {
  const Tensor x = random({kRows, kWidth}, dtype);
  const Tensor y = random({kRows, kWidth}, dtype, 2);
  const Tensor row = random({kWidth}, dtype, 3);
  const Tensor r = random({kRows}, dtype, 4);
  const double one = bytes_of({x});
  const auto add = [&](const char* name, double passes, std::function<void()> run) {
    list.push_back({name, dtype, passes * one, 0, std::move(run)});
  };
  add("copy", 2, [=] { x.clone(); });
  add("copy transposed", 2, [=] { x.transpose(0, 1).contiguous(); });
  add("copy heads", 2, [=] {
    x.reshape({kRows / 1024, 1024, 12, kWidth / 12}).permute({0, 2, 1, 3}).contiguous();
  });
  add("fill", 1, [=] { y.fill_(1); });
  add("accumulate", 3, [=] { y.add_(x, 1e-3); });
  add("add", 3, [=] { ops::add(x, y); });
  add("add row", 2, [=] { ops::add(x, row); });
  add("gelu", 2, [=] { ops::unary(UnaryOp::gelu, "gelu(x)", x); });
  add("gelu backward", 3, [=] { ops::unary_backward(UnaryOp::gelu, x, y); });
  add("swiglu", 3, [=] { ops::swiglu(x, y); });
  add("swiglu backward", 5, [=] { ops::swiglu_backward(x, y, x); });
  add("scale_rows", 2, [=] { ops::scale_rows(x, r); });
  add("scale_rows backward", 3, [=] { ops::scale_rows_backward(x, r, y, true, true); });
  const Shape sequences{kRows / 1024, 1024, kWidth};
  add("key_shift", 2, [=] { ops::key_shift(x.reshape(sequences), row); });
  add("key_shift backward", 3, [=] {
    ops::key_shift_backward(x.reshape(sequences), row, y.reshape(sequences), true, true);
  });
  add("dropout", 2, [=] { ops::dropout(x, 0.1, {1, 2}); });
  add("dropout_add", 3, [=] { ops::dropout_add(x, y, 0.1, {1, 2}); });
  add("rope", 2, [=] {
    ops::rope(x.reshape({kRows / 1024, 1024, 12, kWidth / 12}), {.R = kWidth / 12});
  });
}

void add_rows(std::vector<Entry>& list, DType dtype) {
  const Tensor x = random({kRows, kWidth}, dtype);
  const Tensor y = random({kRows, kWidth}, dtype, 2);
  const Tensor row = random({kWidth}, dtype, 3);
  const double one = bytes_of({x});
  const auto add = [&](const char* name, double bytes, std::function<void()> run) {
    list.push_back({name, dtype, bytes, 0, std::move(run)});
  };
  add("sum all", one, [=] { ops::sum(x); });
  add("sum rows", one, [=] { ops::sum(x, {1}); });
  add("sum columns", one, [=] { ops::sum(x, {0}); });
  add("max rows", one, [=] { ops::max(x, {1}); });
  const auto layer = ops::layernorm(x, row, row);
  const auto root = ops::rmsnorm(x, row);
  add("layernorm", 2 * one, [=] { ops::layernorm(x, row, row); });
  add("layernorm backward", 3 * one, [=] { ops::norm_backward(x, row, layer, y, true); });
  add("rmsnorm", 2 * one, [=] { ops::rmsnorm(x, row); });
  add("rmsnorm backward", 3 * one, [=] { ops::norm_backward(x, row, root, y, false); });
  add("bias backward", one, [=] { ops::bias_backward(y, {}, true); });
  add("bias and gelu backward", 3 * one, [=] { ops::bias_backward(y, x, true); });
  const Tensor wide = random({8192, 4096}, dtype, 5);
  add("softmax", 2 * bytes_of({wide}), [=] { ops::softmax(wide); });
  add("softmax backward", 3 * bytes_of({wide}),
      [=] { ops::softmax_backward(SoftmaxOp::softmax, {}, wide, {}, wide); });
}

void add_vocabulary(std::vector<Entry>& list, DType dtype) {
  constexpr std::int64_t kVocab = 50304;
  constexpr std::int64_t kTokens = 32768;
  constexpr std::int64_t kLossRows = 4096;
  const Tensor ids = Tensor::rand({kTokens}, {1, 9}, DType::f64, 0, kVocab).to(DType::i32).to(kGpu);
  const Tensor weight = random({kVocab, kWidth}, dtype);
  const Tensor y = random({kTokens, kWidth}, dtype, 2);
  list.push_back({"embedding", dtype, 2 * bytes_of({y}), 0, [=] {
                    embedding_fwd(kGpu, {weight.raw(), ids.raw(), y.raw(), kTokens, kVocab, kWidth,
                                         dtype, DType::i32});
                  }});
  list.push_back({"embedding backward", dtype, bytes_of({y, weight}), 0,
                  [=] { ops::embedding_backward(ids, y, kVocab); }});
  const Tensor logits = random({kLossRows, kVocab}, dtype, 3);
  const Tensor target = ids.slice(0, 0, kLossRows).to(DType::i64);
  const Tensor loss = Tensor::empty({kLossRows}, DType::f64, kGpu);
  list.push_back({"cross_entropy with gradient", dtype, 2 * bytes_of({logits}), 0, [=] {
                    cross_entropy_fwd(
                        kGpu, {logits.raw(), target.data<std::int64_t>(), loss.data<double>(),
                               logits.raw(), kLossRows, kVocab, 1e-3, dtype, dtype});
                  }});
  const Tensor x = random({100, 1 << 20}, dtype, 4);
  const DType state = dtype == DType::bf16 ? DType::f32 : dtype;
  const Tensor m = Tensor::zeros(x.shape(), state, kGpu);
  const Tensor v = Tensor::full(x.shape(), 1, state, kGpu);
  const StepTensor step{x.raw(), x.raw(), m.raw(), v.raw(), x.numel(), 0.1, dtype};
  // What the step reads must live as long as the entry: it is captured with it.
  const Tensor numbers = Tensor::from({1e-4, 0.1, 0.01, 1e-3, 0}, {kStepNumbers}, DType::f64, kGpu);
  list.push_back(
      {"adamw", dtype, 3 * bytes_of({x}) + 2 * bytes_of({m, v}), 0, [step, x, m, v, numbers] {
         const auto* now = reinterpret_cast<const StepNumbers*>(numbers.raw());
         adamw_step(kGpu, {&step, 1, now, 0.9, 0.99, 1e-8});
       }});
  const Tensor sum = Tensor::empty({}, DType::f64, kGpu);
  list.push_back({"squared norm", dtype, bytes_of({x}), 0, [step, x, sum] {
                    squared_norm(kGpu, {&step, 1, sum.data<double>()});
                  }});
}

void add_products(std::vector<Entry>& list, DType dtype) {
  const std::int64_t rows = 32768;
  const std::int64_t hidden = 4 * kWidth;
  const double flops = 2.0 * static_cast<double>(rows * kWidth * hidden);
  const Tensor x = random({rows, kWidth}, dtype);
  const Tensor h = random({rows, hidden}, dtype, 2);
  const Tensor up = random({hidden, kWidth}, dtype, 3);
  const Tensor down = random({kWidth, hidden}, dtype, 4);
  const Tensor bias = random({hidden}, dtype, 5);
  const auto add = [&](const char* name, double work, std::function<void()> run) {
    list.push_back({name, dtype, 0, work, std::move(run)});
  };
  add("linear", flops, [=] { ops::linear(x, up, bias); });
  add("linear_gelu", flops, [=] { ops::linear_gelu(x, up, bias, true); });
  add("linear dx", flops, [=] { ops::linear_dx(h, up); });
  add("linear dweight", flops, [=] { ops::linear_dweight(h, x); });
  add("linear dx with gelu gradient", flops, [=] { ops::linear_dx_gelu(x, down, h); });
}

std::vector<Entry> all_entries() {
  std::vector<Entry> list;
  for (const DType dtype : {DType::bf16, DType::f32}) {
    add_elementwise(list, dtype);
    add_rows(list, dtype);
    add_vocabulary(list, dtype);
    add_products(list, dtype);
  }
  return list;
}

/// GB/s of a device-to-device copy of 2 GiB, counting bytes read and written.
double copy_rate() {
  const Tensor from = random({std::int64_t{1} << 29}, DType::f32);
  const Tensor to = Tensor::empty(from.shape(), DType::f32, kGpu);
  const auto bytes = static_cast<std::size_t>(from.bytes());
  const double ms = milliseconds([&] { copy_bytes(to.raw(), kGpu, from.raw(), kGpu, bytes); });
  return 2 * static_cast<double>(bytes) / ms * 1e-6;
}

/// TFLOP/s of a large square product through the library alone.
double product_rate(DType dtype) {
  const std::int64_t n = dtype == DType::bf16 ? 8192 : 4096;
  const Tensor a = random({n, n}, dtype);
  const Tensor b = random({n, n}, dtype, 2);
  const Tensor c = Tensor::empty({n, n}, dtype, kGpu);
  const double ms = milliseconds([&] { ops::gemm_into(c, a, b); });
  return 2.0 * static_cast<double>(n * n * n) / ms * 1e-9;
}

int run(int argc, char** argv) {
  std::string json_path;
  std::string filter;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string option = argv[i];
    if (option == "--json") json_path = argv[i + 1];
    if (option == "--filter") filter = argv[i + 1];
  }
  if (cuda::device_count() == 0) {
    std::fprintf(stderr, "cuda_bench: no GPU: the driver offers none\n");
    return 1;
  }
  cuda::device(0);
  const double copy = copy_rate();
  const double product[] = {product_rate(DType::bf16), product_rate(DType::f32)};
  std::printf("copy %.0f GB/s, product bf16 %.0f TFLOP/s, f32 %.1f TFLOP/s\n", copy, product[0],
              product[1]);
  nlohmann::json out{{"copy_gb_per_s", copy},
                     {"product_bf16_tflop_per_s", product[0]},
                     {"product_f32_tflop_per_s", product[1]},
                     {"kernels", nlohmann::json::array()}};
  std::printf("%-30s %-5s %10s %10s %8s\n", "kernel", "dtype", "us", "rate", "of best");
  for (const Entry& e : all_entries()) {
    if (e.name.find(filter) == std::string::npos) continue;
    const double ms = milliseconds(e.run);
    const bool moves = e.bytes > 0;
    const double rate = moves ? e.bytes / ms * 1e-6 : e.flops / ms * 1e-9;
    const double best = moves ? copy : product[e.dtype == DType::bf16 ? 0 : 1];
    const std::string dtype(name_of(e.dtype));
    std::printf("%-30s %-5s %10.1f %6.0f %s %7.0f%%\n", e.name.c_str(), dtype.c_str(), ms * 1e3,
                rate, moves ? "GB/s" : "TF/s", 100 * rate / best);
    out["kernels"].push_back({{"name", e.name},
                              {"dtype", dtype},
                              {"us", ms * 1e3},
                              {moves ? "gb_per_s" : "tflop_per_s", rate},
                              {"share_of_best", rate / best}});
  }
  if (!json_path.empty()) std::ofstream(json_path) << out.dump(2) << "\n";
  return 0;
}

}  // namespace
}  // namespace proteus

int main(int argc, char** argv) { return proteus::run(argc, argv); }
