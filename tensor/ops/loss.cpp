#include "tensor/ops/loss.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "tensor/ops/check.h"
#include "tensor/ops/gemm.h"
#include "tensor/ops/reduce.h"
#include "tensor/parallel.h"
#include "tensor/vmath.h"

namespace proteus {
namespace {

// Elements of logits that exist at once. On the CPU 64 MiB of f32, few enough to stay near the
// caches and enough rows for the weight gradient's GEMM even at 50,000 words. On a GPU 512 MiB of
// bf16: every chunk reads and writes the sums of the weight gradient, which in chunks half as large
// costs 1.7 of 18 ms at 32,768 rows and 50,304 words.
constexpr std::int64_t kLogitsAtOnce = std::int64_t{1} << 24;
constexpr std::int64_t kDeviceLogitsAtOnce = std::int64_t{1} << 28;
constexpr std::int64_t kDeviceRows = 256;  // chunks of whole tiles of a GPU's products

// In lanes of its own: compilers do not vectorise a plain maximum of floats without -ffast-math.
template <class T>
accum_t<T> row_max(const T* z, std::int64_t V) {
  using A = accum_t<T>;
  constexpr std::int64_t kLanes = 32;
  A lanes[kLanes];
  std::fill_n(lanes, kLanes, -std::numeric_limits<A>::infinity());
  std::int64_t v = 0;
  for (; v + kLanes <= V; v += kLanes) {
    for (std::int64_t l = 0; l < kLanes; ++l) {
      const A value = A(z[v + l]);
      lanes[l] = value > lanes[l] ? value : lanes[l];
    }
  }
  for (; v < V; ++v) lanes[0] = A(z[v]) > lanes[0] ? A(z[v]) : lanes[0];
  return *std::max_element(lanes, lanes + kLanes);
}

template <class T, class D>
double row_loss(const CrossEntropyFwd& a, std::int64_t row) {
  using A = accum_t<T>;
  const T* z = static_cast<const T*>(a.logits) + row * a.V;
  D* dz = a.dlogits ? static_cast<D*>(a.dlogits) + row * a.V : nullptr;
  const std::int64_t target = a.target[row];
  if (target < 0) {
    if (dz) std::fill_n(dz, a.V, D(0.0f));
    return 0;
  }
  const A top = row_max<T>(z, a.V);
  const A picked = A(z[target]);
  A sum = 0;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t v = 0; v < a.V; ++v) sum += vmath::exp(A(z[v]) - top);
  if (dz) {
    const A factor = static_cast<A>(a.scale);
    const A share = factor / sum;
#pragma omp simd
    for (std::int64_t v = 0; v < a.V; ++v) dz[v] = D(vmath::exp(A(z[v]) - top) * share);
    dz[target] = D((vmath::exp(picked - top) / sum - A(1)) * factor);
  }
  return static_cast<double>(std::log(sum) + (top - picked));
}

void cross_entropy_cpu(const CrossEntropyFwd& a) {
  const std::int64_t grain = std::max<std::int64_t>(1, 16384 / std::max<std::int64_t>(a.V, 1));
  dispatch_float(a.dtype, "cross_entropy_fwd", [&](auto tag) {
    using T = typename decltype(tag)::type;
    parallel_for(a.rows, grain, [&](std::int64_t begin, std::int64_t end) {
      const bool narrow = a.dlogits_dtype == DType::bf16;
      for (std::int64_t r = begin; r < end; ++r) {
        a.loss[r] = narrow ? row_loss<T, bfloat16>(a, r) : row_loss<T, accum_t<T>>(a, r);
      }
    });
  });
}

void row_copy_cpu(const RowCopy& a) {
  const std::int64_t grain =
      std::max<std::int64_t>(1, 65536 / std::max<std::int64_t>(a.row_bytes, 1));
  parallel_for(a.rows, grain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t from = a.src_row ? a.src_row[i] : i;
      const std::int64_t to = a.dst_row ? a.dst_row[i] : i;
      std::memcpy(static_cast<char*>(a.dst) + to * a.row_bytes,
                  static_cast<const char*>(a.src) + from * a.row_bytes,
                  static_cast<std::size_t>(a.row_bytes));
    }
  });
}

/// The targets that count, by row.
struct HostTargets {
  std::vector<std::int64_t> rows;
  std::vector<std::int64_t> values;
  std::int64_t all = 0;
  std::int64_t count() const { return static_cast<std::int64_t>(rows.size()); }
};

HostTargets read_targets(const std::string& call, const Tensor& targets, std::int64_t V,
                         std::int64_t ignore_index) {
  if (targets.dtype() != DType::i32 && targets.dtype() != DType::i64) {
    throw_dtype(call + ": targets", targets.dtype(), "i32 or i64");
  }
  const Tensor host = targets.to(kCpu).to(DType::i64).contiguous();
  const std::int64_t* t = host.data<std::int64_t>();
  HostTargets out;
  out.all = host.numel();
  for (std::int64_t i = 0; i < out.all; ++i) {
    if (t[i] == ignore_index) continue;
    if (t[i] < 0 || t[i] >= V) {
      throw ShapeError(call + ": targets: row " + std::to_string(i) + " is " +
                       std::to_string(t[i]) + ", expected 0 to " + std::to_string(V - 1) + " or " +
                       std::to_string(ignore_index) + " (ignored)");
    }
    out.rows.push_back(i);
    out.values.push_back(t[i]);
  }
  return out;
}

void check_rows(const std::string& call, const Tensor& x, const Shape& targets) {
  if (targets == x.shape().without(-1)) return;
  throw ShapeError(call + ": targets: expected " + to_string(x.shape().without(-1)) + ", got " +
                   to_string(targets) + "; the rows are " + to_string(x.shape()));
}

Tensor index_tensor(const std::vector<std::int64_t>& values, Device device) {
  return Tensor::from_data<std::int64_t>(values, {static_cast<std::int64_t>(values.size())},
                                         device);
}

void copy_rows(const Tensor& dst, const Tensor* dst_row, const Tensor& src, const Tensor* src_row,
               std::int64_t rows) {
  row_copy(dst.device(),
           {.src = src.raw(),
            .dst = dst.raw(),
            .src_row = src_row ? src_row->data<std::int64_t>() : nullptr,
            .dst_row = dst_row ? dst_row->data<std::int64_t>() : nullptr,
            .rows = rows,
            .row_bytes = src.size(-1) * static_cast<std::int64_t>(size_of(src.dtype()))});
}

// The mean of per-row losses, summed in f64.
Tensor mean_loss(const Tensor& losses, std::int64_t count, DType dtype) {
  return ops::sum(losses, {}, false, count ? 1.0 / static_cast<double>(count) : 0.0).to(dtype);
}

void check_inputs(const std::string& call, const char* name, const Tensor& x) {
  if (!is_floating(x.dtype())) throw_dtype(call + ": " + name, x.dtype(), "f64, f32 or bf16");
  if (x.rank() == 0) throw ShapeError(call + ": " + name + ": expected [..., C], got []");
}

// One pass over the compacted rows h [n, C]: losses [n], and the gradients that are defined. The
// sums of dw are in the accumulation type.
void run_chunks(const Tensor& h, const Tensor& w, const Tensor& target, const Tensor& losses,
                const Tensor& dh, const Tensor& dw) {
  const std::int64_t n = h.size(0);
  const std::int64_t V = w.size(0);
  const Device device = h.device();
  const bool cpu = device.type == DeviceType::cpu;
  const std::int64_t most =
      std::max<std::int64_t>(1, (cpu ? kLogitsAtOnce : kDeviceLogitsAtOnce) / V);
  const std::int64_t chunks = (n + most - 1) / most;
  const std::int64_t tile = cpu ? 1 : kDeviceRows;
  const std::int64_t chunk = ((n + chunks - 1) / chunks + tile - 1) / tile * tile;
  for (std::int64_t begin = 0; begin < n; begin += chunk) {
    const std::int64_t end = std::min(n, begin + chunk);
    linear_cross_entropy(device, {.h = h.slice(0, begin, end).raw(),
                                  .w = w.raw(),
                                  .target = target.data<std::int64_t>() + begin,
                                  .loss = losses.data<double>() + begin,
                                  .dh = dh.defined() ? dh.slice(0, begin, end).raw() : nullptr,
                                  .dw = dw.defined() ? dw.raw() : nullptr,
                                  .add_dw = begin > 0,
                                  .rows = end - begin,
                                  .V = V,
                                  .C = h.size(1),
                                  .scale = 1.0 / static_cast<double>(n),
                                  .dtype = h.dtype()});
  }
}

void linear_cross_entropy_cpu(const LinearCrossEntropy& a) {
  linear_cross_entropy_by_logits(kCpu, a);
}

void rescale_cpu(const Rescale& a) {
  constexpr std::int64_t kGrain = 1 << 15;
  dispatch_float(a.dtype, "rescale", [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = accum_t<T>;
    const A factor = *static_cast<const A*>(a.factor);
    if (factor == A(1)) return;
    T* x = static_cast<T*>(a.x);
    parallel_for(a.n, kGrain, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) x[i] = T(factor * A(x[i]));
    });
  });
}

constexpr const char* kFused = "cross_entropy(hidden, weight, targets)";

}  // namespace

Slot<CrossEntropyFwd> cross_entropy_fwd{"cross_entropy_fwd", cross_entropy_cpu};
Slot<LinearCrossEntropy> linear_cross_entropy{"linear_cross_entropy", linear_cross_entropy_cpu};
Slot<RowCopy> row_copy{"row_copy", row_copy_cpu};
Slot<Rescale> rescale{"rescale", rescale_cpu};

GemmFwd hidden_gradient(const LinearCrossEntropy& a, const void* dz, std::int64_t dz_step) {
  return {.a = dz,
          .b = a.w,
          .c = a.dh,
          .M = a.rows,
          .N = a.C,
          .K = a.V,
          .lda = dz_step,
          .ldb = a.C,
          .ldc = a.C,
          .dtype = a.dtype};
}

GemmFwd weight_gradient(const LinearCrossEntropy& a, const void* dz, std::int64_t dz_step,
                        const void* h) {
  return {.a = dz,
          .b = h,
          .c = a.dw,
          .M = a.V,
          .N = a.C,
          .K = a.rows,
          .lda = dz_step,
          .ldb = a.C,
          .ldc = a.C,
          .trans_a = true,
          .wide_c = ops::accum_dtype(a.dtype) != a.dtype,
          .beta = a.add_dw ? 1.0 : 0.0,
          .dtype = a.dtype};
}

void linear_cross_entropy_by_logits(Device device, const LinearCrossEntropy& a) {
  const DType wide = ops::accum_dtype(a.dtype);
  const bool gradients = a.dh || a.dw;
  const Tensor logits = Tensor::empty({a.rows, a.V}, wide, device);
  const bool in_place = !gradients || wide == a.dtype;
  const Tensor dlogits = in_place ? logits : Tensor::empty({a.rows, a.V}, a.dtype, device);
  gemm_fwd(device, {.a = a.h,
                    .b = a.w,
                    .c = logits.raw(),
                    .M = a.rows,
                    .N = a.V,
                    .K = a.C,
                    .lda = a.C,
                    .ldb = a.C,
                    .ldc = a.V,
                    .trans_b = true,
                    .wide_c = wide != a.dtype,
                    .dtype = a.dtype});
  cross_entropy_fwd(device, {.logits = logits.raw(),
                             .target = a.target,
                             .loss = a.loss,
                             .dlogits = gradients ? dlogits.raw() : nullptr,
                             .rows = a.rows,
                             .V = a.V,
                             .scale = a.scale,
                             .dtype = wide,
                             .dlogits_dtype = dlogits.dtype()});
  if (a.dh) gemm_fwd(device, hidden_gradient(a, dlogits.raw(), a.V));
  if (a.dw) gemm_fwd(device, weight_gradient(a, dlogits.raw(), a.V, a.h));
}

namespace ops {

Targets ready_targets(const Tensor& targets, std::int64_t V, std::int64_t ignore_index,
                      Device device) {
  const HostTargets read = read_targets(kFused, targets, V, ignore_index);
  Targets out{targets.shape(), read.count(), index_tensor(read.values, device), {}};
  if (read.count() < read.all) out.rows = index_tensor(read.rows, device);
  return out;
}

CrossEntropy cross_entropy(const Tensor& hidden, const Tensor& weight, const Targets& targets,
                           bool want_dhidden, bool want_dweight) {
  const std::string call = kFused;
  check_inputs(call, "hidden", hidden);
  check_like(call, "weight", weight, hidden);
  check_rows(call, hidden, targets.shape);
  const std::int64_t C = hidden.size(-1);
  if (weight.rank() != 2 || weight.size(1) != C) {
    throw ShapeError(call + ": weight: expected [V, " + std::to_string(C) +
                     "] (C = hidden.shape[-1]), got " + to_string(weight.shape()) + "; hidden is " +
                     to_string(hidden.shape()));
  }
  const Device device = hidden.device();
  const DType dtype = hidden.dtype();
  const DType wide = accum_dtype(dtype);
  const std::int64_t n = targets.count;
  CrossEntropy out;
  out.count = n;
  if (n == 0) {
    out.loss = Tensor::zeros({}, wide, device);
    if (want_dhidden) out.dhidden = Tensor::zeros(hidden.shape(), dtype, device);
    if (want_dweight) out.dweight = Tensor::zeros(weight.shape(), wide, device);
    return out;
  }
  const Tensor* rows = targets.rows.defined() ? &targets.rows : nullptr;
  const Tensor all_rows = hidden.contiguous().reshape({targets.shape.numel(), C});
  Tensor h = all_rows;
  if (rows) {
    h = Tensor::empty({n, C}, dtype, device);
    copy_rows(h, nullptr, all_rows, rows, n);
  }
  const Tensor losses = Tensor::empty({n}, DType::f64, device);
  const Tensor dh = want_dhidden ? Tensor::empty({n, C}, dtype, device) : Tensor();
  if (want_dweight) out.dweight = Tensor::empty(weight.shape(), wide, device);
  run_chunks(h, weight.contiguous(), targets.words, losses, dh, out.dweight);
  out.loss = mean_loss(losses, n, wide);
  if (want_dhidden && !rows) out.dhidden = dh.reshape(hidden.shape());
  if (want_dhidden && rows) {
    out.dhidden = Tensor::zeros(hidden.shape(), dtype, device);
    copy_rows(out.dhidden, rows, dh, nullptr, n);
  }
  return out;
}

CrossEntropy cross_entropy(const Tensor& hidden, const Tensor& weight, const Tensor& targets,
                           std::int64_t ignore_index, bool want_dhidden, bool want_dweight) {
  const std::int64_t V = weight.rank() > 0 ? weight.size(0) : 0;
  return cross_entropy(hidden, weight, ready_targets(targets, V, ignore_index, hidden.device()),
                       want_dhidden, want_dweight);
}

CrossEntropy cross_entropy_logits(const Tensor& logits_any, const Tensor& targets,
                                  std::int64_t ignore_index, bool want_dlogits) {
  const std::string call = "cross_entropy_logits(logits, targets)";
  check_inputs(call, "logits", logits_any);
  const Tensor logits = logits_any.contiguous();
  const std::int64_t V = logits.size(-1);
  check_rows(call, logits, targets.shape());
  const HostTargets t = read_targets(call, targets, V, ignore_index);
  std::vector<std::int64_t> target(static_cast<std::size_t>(t.all), -1);
  for (std::size_t i = 0; i < t.rows.size(); ++i) {
    target[static_cast<std::size_t>(t.rows[i])] = t.values[i];
  }
  const Device device = logits.device();
  CrossEntropy out;
  out.count = t.count();
  if (want_dlogits) out.dlogits = Tensor::empty(logits.shape(), logits.dtype(), device);
  const Tensor losses = Tensor::empty({t.all}, DType::f64, device);
  const Tensor target_rows = index_tensor(target, device);
  if (t.all > 0 && V > 0) {
    cross_entropy_fwd(device, {.logits = logits.raw(),
                               .target = target_rows.data<std::int64_t>(),
                               .loss = losses.data<double>(),
                               .dlogits = want_dlogits ? out.dlogits.raw() : nullptr,
                               .rows = t.all,
                               .V = V,
                               .scale = t.count() ? 1.0 / static_cast<double>(t.count()) : 0.0,
                               .dtype = logits.dtype(),
                               .dlogits_dtype = logits.dtype()});
  } else {
    losses.zero_();
  }
  out.loss = mean_loss(losses, out.count, accum_dtype(logits.dtype()));
  return out;
}

void rescale_gradient(const Tensor& gradient, const Tensor& factor) {
  if (gradient.numel() == 0) return;
  gradient.bump_version();
  rescale(gradient.device(), {gradient.raw(), factor.raw(), gradient.numel(), gradient.dtype()});
}

}  // namespace ops
}  // namespace proteus
