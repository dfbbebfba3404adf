#include "tensor/ops/rope.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <mutex>
#include <vector>

#include "tensor/ops/check.h"
#include "tensor/parallel.h"

namespace proteus {
namespace {

constexpr std::int64_t kRowElements = 1 << 14;  // elements per chunk
constexpr std::int64_t kFine = 1024;            // positions per coarse step
constexpr std::size_t kMostTables = 16;         // widths and bases that are remembered

// Sines and cosines for every position in little memory: position |p| = coarse·1024 + fine, and a
// rotation by the sum of two angles is the product of both rotations, in f64.
struct RopeTable {
  std::int64_t R = 0;
  double base = 0;
  std::vector<double> cosine[2];  // fine [1024, R/2] and coarse [steps, R/2]
  std::vector<double> sine[2];

  RopeTable(std::int64_t width, double theta, std::int64_t positions) : R(width), base(theta) {
    const std::int64_t steps = (positions + kFine - 1) / kFine;
    fill(0, kFine, 1);
    fill(1, steps, kFine);
  }

  std::int64_t positions() const {
    return static_cast<std::int64_t>(cosine[1].size()) / std::max<std::int64_t>(1, R / 2) * kFine;
  }

  // c, s [R/2] of position p; the sine is negated for the inverse rotation.
  template <class A>
  void row(std::int64_t p, bool inverse, A* c, A* s) const {
    const std::int64_t half = R / 2;
    const std::int64_t at = std::abs(p);
    const double sign = (p < 0) != inverse ? -1 : 1;
    const double* fc = cosine[0].data() + at % kFine * half;
    const double* fs = sine[0].data() + at % kFine * half;
    const double* cc = cosine[1].data() + at / kFine * half;
    const double* cs = sine[1].data() + at / kFine * half;
#pragma omp simd
    for (std::int64_t i = 0; i < half; ++i) {
      c[i] = static_cast<A>(fc[i] * cc[i] - fs[i] * cs[i]);
      s[i] = static_cast<A>(sign * (fs[i] * cc[i] + fc[i] * cs[i]));
    }
  }

 private:
  void fill(int which, std::int64_t count, std::int64_t step) {
    const std::int64_t half = R / 2;
    for (std::int64_t n = 0; n < count; ++n) {
      for (std::int64_t i = 0; i < half; ++i) {
        const double angle = static_cast<double>(n * step) *
                             std::pow(base, -2.0 * static_cast<double>(i) / static_cast<double>(R));
        cosine[which].push_back(std::cos(angle));
        sine[which].push_back(std::sin(angle));
      }
    }
  }
};

// A table for positions in (−positions, positions), made once per width and base.
std::shared_ptr<const RopeTable> rope_table(std::int64_t R, double base, std::int64_t positions) {
  static std::mutex mutex;
  static std::vector<std::shared_ptr<const RopeTable>> tables;
  const std::lock_guard lock(mutex);
  const auto found = std::find_if(tables.begin(), tables.end(),
                                  [&](const auto& t) { return t->R == R && t->base == base; });
  if (found != tables.end()) {
    if ((*found)->positions() >= positions) return *found;
    tables.erase(found);
  }
  if (tables.size() == kMostTables) tables.erase(tables.begin());
  tables.push_back(std::make_shared<const RopeTable>(R, base, positions));
  return tables.back();
}

std::int64_t positions_needed(const RopeFwd& a) {
  if (!a.positions) return std::max(std::abs(a.offset), std::abs(a.offset + a.period)) + 1;
  std::int64_t most = 0;
#pragma omp simd reduction(max : most)
  for (std::int64_t r = 0; r < a.rows; ++r) {
    const std::int64_t p = a.positions[r] < 0 ? -std::int64_t{a.positions[r]} : a.positions[r];
    most = p > most ? p : most;
  }
  return most + 1;
}

template <class T>
void rotate(const T* x, const accum_t<T>* c, const accum_t<T>* s, std::int64_t half, T* y) {
  using A = accum_t<T>;
#pragma omp simd
  for (std::int64_t i = 0; i < half; ++i) {
    const A u = A(x[2 * i]);
    const A v = A(x[2 * i + 1]);
    y[2 * i] = T(u * c[i] - v * s[i]);
    y[2 * i + 1] = T(u * s[i] + v * c[i]);
  }
}

template <class T>
void rope_typed(const RopeFwd& a) {
  using A = accum_t<T>;
  const auto table = rope_table(a.R, a.base, positions_needed(a));
  const std::int64_t width = a.heads * a.D;
  const std::int64_t half = a.R / 2;
  const std::int64_t grain = std::max<std::int64_t>(1, kRowElements / width);
  parallel_for(a.rows, grain, [&](std::int64_t begin, std::int64_t end) {
    std::vector<A> buffer(static_cast<std::size_t>(a.R));
    A* c = buffer.data();
    A* s = c + half;
    for (std::int64_t r = begin; r < end; ++r) {
      table->row(a.positions ? a.positions[r] : r % a.period + a.offset, a.inverse, c, s);
      const T* x = static_cast<const T*>(a.x) + r * width;
      T* y = static_cast<T*>(a.y) + r * width;
      for (std::int64_t h = 0; h < a.rotated; ++h) {
        rotate(x + h * a.D, c, s, half, y + h * a.D);
        if (a.R < a.D && x != y) std::copy(x + h * a.D + a.R, x + (h + 1) * a.D, y + h * a.D + a.R);
      }
      if (x != y) std::copy(x + a.rotated * a.D, x + width, y + a.rotated * a.D);
    }
  });
}

void rope_cpu(const RopeFwd& a) {
  dispatch_float(a.dtype, "rope_fwd",
                 [&](auto tag) { rope_typed<typename decltype(tag)::type>(a); });
}

void check_options(const std::string& call, const Tensor& x, const ops::RopeOptions& o) {
  if (o.R < 0 || o.R % 2 != 0 || o.R > x.size(-1)) {
    throw ConfigError(call + ": R: expected an even number from 0 to " +
                      std::to_string(x.size(-1)) + " (= x.shape[-1]), got " + std::to_string(o.R));
  }
  if (!(o.base > 0)) {
    throw ConfigError(call + ": base: expected a positive number, got " + std::to_string(o.base));
  }
}

void run(const Tensor& x, const Tensor& y, const std::int32_t* positions, std::int64_t rows,
         std::int64_t period, std::int64_t heads, std::int64_t rotated, const ops::RopeOptions& o) {
  if (y.numel() == 0) return;
  rope_fwd(x.device(), {.x = x.raw(),
                        .y = y.raw(),
                        .positions = positions,
                        .period = period,
                        .offset = o.offset,
                        .rows = rows,
                        .heads = heads,
                        .rotated = rotated,
                        .D = x.size(-1),
                        .R = o.R,
                        .base = o.base,
                        .inverse = o.inverse,
                        .dtype = x.dtype()});
}

// Of sequences: x [B, T, H, D] or [B, T, 3, H, D], checked, into y, which may be x.
void run_sequences(const Tensor& x, const Tensor& y, const ops::RopeOptions& options) {
  const bool packed = x.rank() == 5;
  const std::int64_t H = x.size(-2);
  run(x, y, nullptr, x.size(0) * x.size(1), x.size(1), packed ? 3 * H : H, packed ? 2 * H : H,
      options);
}

void check_sequences(const Tensor& x, const ops::RopeOptions& options) {
  const std::string call = "rope(x, R)";
  ops::check_floating(call, "x", x);
  const bool packed = x.rank() == 5;
  if ((!packed && x.rank() != 4) || (packed && x.size(2) != 3)) {
    throw ShapeError(call + ": x: expected [B, T, H, D] or [B, T, 3, H, D], got " +
                     to_string(x.shape()));
  }
  check_options(call, x, options);
}

void check_positions(const std::string& call, const Tensor& x, const Tensor& positions) {
  if (positions.dtype() != DType::i32) throw_dtype(call + ": positions", positions.dtype(), "i32");
  ops::check_device(call, "positions", positions, x);
  ops::check_shape(call, "positions", positions, {x.size(0)}, "(= x.shape[0])");
}

}  // namespace

Slot<RopeFwd> rope_fwd{"rope_fwd", rope_cpu};

namespace ops {

Tensor rope(const Tensor& x_any, const RopeOptions& options) {
  check_sequences(x_any, options);
  const Tensor x = x_any.contiguous();
  Tensor y = Tensor::empty(x.shape(), x.dtype(), x.device());
  run_sequences(x, y, options);
  return y;
}

void rope_(const Tensor& x, const RopeOptions& options) {
  check_sequences(x, options);
  if (!x.is_contiguous()) {
    throw ShapeError("rope_(x, R): x: expected a contiguous tensor; use rope for views");
  }
  x.bump_version();
  run_sequences(x, x, options);
}

Tensor rope(const Tensor& x_any, const Tensor& positions_any, const RopeOptions& options) {
  const std::string call = "rope(x, positions, R)";
  check_floating(call, "x", x_any);
  if (x_any.rank() != 2 && x_any.rank() != 3) {
    throw ShapeError(call + ": x: expected [rows, D] or [rows, H, D], got " +
                     to_string(x_any.shape()));
  }
  check_positions(call, x_any, positions_any);
  check_options(call, x_any, options);
  const Tensor x = x_any.contiguous();
  const Tensor positions = positions_any.contiguous();
  const std::int64_t H = x.rank() == 3 ? x.size(1) : 1;
  Tensor y = Tensor::empty(x.shape(), x.dtype(), x.device());
  run(x, y, positions.data<std::int32_t>(), x.size(0), 1, H, H, options);
  return y;
}

void rope_(const Tensor& x, const Tensor& positions_any, const RopeOptions& options) {
  const std::string call = "rope_(x, positions, R)";
  check_floating(call, "x", x);
  if (x.rank() != 4 || x.size(1) != 3 || !x.is_contiguous()) {
    throw ShapeError(call + ": x: expected [B, 3, H, D], contiguous, got " + to_string(x.shape()));
  }
  check_positions(call, x, positions_any);
  check_options(call, x, options);
  const Tensor positions = positions_any.contiguous();
  const std::int64_t H = x.size(2);
  x.bump_version();
  run(x, x, positions.data<std::int32_t>(), x.size(0), 1, 3 * H, 2 * H, options);
}

Tensor sequence_positions(std::int64_t B, std::int64_t T, std::int64_t offset, Device device) {
  Tensor positions = Tensor::empty({B * T}, DType::i32);
  auto* p = positions.data<std::int32_t>();
  for (std::int64_t n = 0; n < B * T; ++n) p[n] = static_cast<std::int32_t>(n % T + offset);
  return positions.to(device);
}

}  // namespace ops
}  // namespace proteus
