// One attention layer on a GPU against the length of its sequence, in bf16 (routing in f32).
//   cuda_layer_bench [--most T] [--dense-most T] [--by-slot T]
// aspa: width 512, 32 routed heads of 64 of which a token enters 4, a window of 256 entries, 2
// shared heads with a window of 256 tokens, 4 anchors, one gate per head, alpha 1; dense: 8 heads
// of 64. One sequence; forward without gradients in evaluation mode, and forward with backward (to
// x and to all parameters) in training mode: queued kernel by kernel, and replayed as a CUDA graph,
// which leaves out what the host needs to launch them. bytes/T is the most memory that was in use
// at once, x, weights and gradients included. --by-slot T times every kernel of ASPA at one length
// on its own instead. bench/peers/attention_layer.py measures PyTorch's dense layer in the same
// shapes.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "aspa/attention.h"
#include "autograd/tape.h"
#include "bench/cuda_attention.h"
#include "bench/program_options.h"
#include "bench/slot_times.h"
#include "cuda/graph.h"
#include "nn/attention.h"
#include "tensor/storage.h"

namespace proteus::bench {
namespace {

constexpr std::int64_t kWidth = 512;
constexpr std::int64_t kShortest = 2048;
constexpr double kOutputStd = 0.02;

AspaConfig aspa_config() {
  AspaConfig c;
  c.width = kWidth;
  c.routed_heads = 32;
  c.k = 4;
  c.gates_per_head = 1;
  c.window = 256;
  c.shared_heads = 2;
  c.shared_window = 256;
  c.alpha = 1;
  c.dtype = DType::bf16;
  return c;
}

DenseAttentionConfig dense_config() {
  DenseAttentionConfig c;
  c.width = kWidth;
  c.heads = 8;
  c.head_width = 64;
  c.dtype = DType::bf16;
  return c;
}

struct Problem {
  Variable x;
  Tensor dy;
};

Problem problem(std::int64_t T, Device device, bool training) {
  const auto random = [&](std::uint64_t stream) {
    return random_rows({T, kWidth}, stream, DType::bf16, device).unsqueeze(0);
  };
  return {Variable(random(0), true), training ? random(1) : Tensor()};
}

void forward(Attention& layer, const Problem& p) {
  const NoGradGuard no_grad;
  layer.forward(p.x);
}

void forward_backward(Attention& layer, const Problem& p) {
  layer.zero_grad();
  p.x.zero_grad();
  layer.forward(p.x).backward(p.dy);
}

struct Figures {
  double ms = 0;
  double replayed_ms = 0;
  double bytes = 0;
};

double replayed(const std::function<void()>& call) {
  cuda::Graph graph;
  call();
  graph.finish();
  return milliseconds([&] { graph.replay(0); });
}

Figures measure(Attention& layer, bool training, std::int64_t T, Device device) {
  const Problem p = problem(T, device, training);
  layer.set_training(training);
  const auto call = [&] { training ? forward_backward(layer, p) : forward(layer, p); };
  call();
  synchronize(device);
  reset_peak_memory(DeviceType::cuda);
  const double ms = milliseconds(call);
  const auto bytes = static_cast<double>(memory_stats(DeviceType::cuda).peak_bytes);
  return {ms, replayed(call), bytes};
}

// Slope of log time to log length, by least squares.
double slope(const std::vector<double>& lengths, const std::vector<double>& times) {
  double x = 0, y = 0, xx = 0, xy = 0;
  const auto n = static_cast<double>(lengths.size());
  for (std::size_t i = 0; i < lengths.size(); ++i) {
    const double u = std::log(lengths[i]);
    const double v = std::log(times[i]);
    x += u;
    y += v;
    xx += u * u;
    xy += u * v;
  }
  return (n * xy - x * y) / (n * xx - x * x);
}

void table(const char* name, Attention& layer, std::int64_t most, Device device) {
  constexpr double kLinearFrom = 32768;
  std::vector<double> lengths, forward_ms, both_ms;
  for (std::int64_t T = kShortest; T <= most; T *= 2) {
    const Figures forward = measure(layer, false, T, device);
    const Figures both = measure(layer, true, T, device);
    layer.zero_grad();
    const auto tokens = static_cast<double>(T);
    std::printf("%-6s %9.0f %11.3f %12.3f %11.3f %12.3f %12.0f %14.0f\n", name, tokens, forward.ms,
                both.ms, forward.replayed_ms, both.replayed_ms, forward.bytes / tokens,
                both.bytes / tokens);
    std::fflush(stdout);
    if (tokens < kLinearFrom) continue;
    lengths.push_back(tokens);
    forward_ms.push_back(forward.ms);
    both_ms.push_back(both.ms);
  }
  if (lengths.size() < 2) return;
  std::printf("%-6s slope from 32K: %.3f forward, %.3f forward and backward\n", name,
              slope(lengths, forward_ms), slope(lengths, both_ms));
}

// The work of aspa_config() by slot, of T tokens; see SlotWork.
SlotWorks forward_works(double T) {
  const AspaConfig c = aspa_config();
  const auto C = static_cast<double>(c.width), D = static_cast<double>(c.head_width);
  const auto k = static_cast<double>(c.k), Hs = static_cast<double>(c.shared_heads);
  const auto R = static_cast<double>(c.routing_width), Hr = static_cast<double>(c.routed_heads);
  const auto W = static_cast<double>(c.window + c.anchors);
  const double x = 2 * C, rows = 2 * k * D, shared = 2 * Hs * D, z = 4 * k, projected = 4 * R;
  SlotWorks works{
      {"key_shift_fwd", {0, 2 * x}},
      {"wide_linear_fwd", {2 * 3 * 2 * C * R, 2 * (x + projected)}},
      {"gate_logits_fwd", {0, 2 * (projected + 4 * Hr)}},
      {"topk_fwd", {0, 2 * (4 * Hr + z)}},
      {"pack_rows", {0, 2 * 4 * z}},
      {"key_ranges_fwd", {0, 4 * z}},
      {"gate_rows_fwd", {0, 2 * (projected + 3 * z)}},
      {"grouped_gather", {3 * 2 * k * C * D, 3 * (x + rows)}},
      {"rope_fwd", {0, 2 * 2 * (rows + shared)}},
      {"attention_fwd", {4 * D * W * (k + Hs), 4 * (rows + shared)}},
      {"scale_rows_fwd", {0, 2 * (rows + shared)}},
      {"grouped_scatter", {2 * k * C * D, rows + 2 * x}},
      {"gemm_fwd", {2 * C * Hs * (4 * D + 1), 5 * x + 4 * shared}},
  };
  for (auto& [name, work] : works) work = {work.flops * T, work.bytes * T};
  return works;
}

SlotWorks both_works(double T) {
  const AspaConfig c = aspa_config();
  const auto C = static_cast<double>(c.width), D = static_cast<double>(c.head_width);
  const auto k = static_cast<double>(c.k), Hs = static_cast<double>(c.shared_heads);
  const auto R = static_cast<double>(c.routing_width);
  const auto W = static_cast<double>(c.window + c.anchors);
  const double x = 2 * C, rows = 2 * k * D, shared = 2 * Hs * D, z = 4 * k, projected = 4 * R;
  const SlotWorks backward{
      {"key_shift_bwd", {0, 3 * x}},
      {"accumulate", {0, 3 * x}},
      {"wide_linear_bwd", {2 * 2 * 2 * C * R, 2 * (3 * x + projected)}},
      {"gate_rows_bwd", {0, 2 * (2 * projected + 3 * z)}},
      {"prototype_stats", {0, 2 * (projected + 2 * z)}},
      {"grouped_gather", {2 * k * C * D, x + rows}},
      {"grouped_weight", {4 * 2 * k * C * D, 4 * (x + rows)}},
      {"grouped_scatter", {3 * 2 * k * C * D, 3 * rows + 4 * x}},
      {"rope_fwd", {0, 2 * 2 * (rows + shared)}},
      {"attention_bwd", {10 * D * W * (k + Hs), 8 * (rows + shared)}},
      {"scale_rows_bwd", {0, 3 * (rows + shared)}},
      {"gemm_fwd", {4 * C * Hs * (4 * D + 1), 14 * x + 8 * shared}},
  };
  SlotWorks works = forward_works(T);
  for (const auto& [name, work] : backward) {
    works[name].flops += work.flops * T;
    works[name].bytes += work.bytes * T;
  }
  return works;
}

void by_slot(Attention& layer, std::int64_t T, Device device) {
  const Problem p = problem(T, device, true);
  const auto times = [&](const char* what, bool training, const SlotWorks& works,
                         const std::function<void()>& call) {
    layer.set_training(training);
    call();
    synchronize(device);
    std::printf("%s, T = %lld\n", what, static_cast<long long>(T));
    const SlotTimes watch;
    call();
    synchronize(device);
    watch.print(works);
  };
  const auto tokens = static_cast<double>(T);
  times("forward", false, forward_works(tokens), [&] { forward(layer, p); });
  times("forward and backward", true, both_works(tokens), [&] { forward_backward(layer, p); });
}

std::int64_t number(int argc, char** argv, std::string_view name, std::int64_t standard) {
  return std::atoll(option(argc, argv, name, std::to_string(standard).c_str()).c_str());
}

void run(int argc, char** argv) {
  const Device device = cuda::device(0);
  Generator init(1);
  Generator generator(2);
  AspaAttention aspa(aspa_config(), kOutputStd, init, generator);
  aspa.to(device);
  if (const std::int64_t T = number(argc, argv, "--by-slot", 0)) return by_slot(aspa, T, device);
  DenseAttention dense(dense_config(), kOutputStd, init, generator);
  dense.to(device);
  std::printf("%-6s %9s %11s %12s %11s %12s %12s %14s\n", "", "T", "fwd ms", "fwd+bwd ms",
              "replayed", "replayed", "fwd bytes/T", "f+b bytes/T");
  table("aspa", aspa, number(argc, argv, "--most", 1 << 20), device);
  table("dense", dense, number(argc, argv, "--dense-most", 1 << 17), device);
}

}  // namespace
}  // namespace proteus::bench

int main(int argc, char** argv) {
  if (proteus::cuda::device_count() == 0) {
    std::puts("cuda_layer_bench: no GPU here");
    return 0;
  }
  proteus::bench::run(argc, argv);
}
