// The checked functions of tensor/ops/gemm.h: shapes, strides and batches; kernels are in gemm.cpp.
#include <algorithm>
#include <string>
#include <vector>

#include "tensor/ops/check.h"
#include "tensor/ops/elementwise.h"
#include "tensor/ops/gemm.h"

namespace proteus {
namespace {

using ops::check_floating;
using ops::check_like;

// Whether the rows of the last two dimensions are contiguous, and how far they are apart.
bool has_rows(const Tensor& t) {
  return (t.size(-1) <= 1 || t.stride(-1) == 1) && (t.size(-2) <= 1 || t.stride(-2) >= t.size(-1));
}

std::int64_t row_step(const Tensor& t) {
  return std::max<std::int64_t>(1, t.size(-2) <= 1 ? t.size(-1) : t.stride(-2));
}

Tensor row_major(const Tensor& t) { return has_rows(t) ? t : t.contiguous(); }

/// op(stored): a matrix, or a batch of them, to be read transposed or as it is.
struct Factor {
  Tensor stored;
  bool trans = false;
};

// A strided matrix in the way that costs no copy, if there is one.
Factor as_stored(const Tensor& t) {
  if (!has_rows(t) && has_rows(t.transpose(-1, -2))) return {t.transpose(-1, -2), true};
  return {t, false};
}

Shape batch_of(const Tensor& t) {
  Shape out;
  for (int d = 0; d < t.rank() - 2; ++d) out.push_back(t.size(d));
  return out;
}

Tensor with_batch(const Tensor& t, Shape batch) {
  batch.push_back(t.size(-2));
  batch.push_back(t.size(-1));
  return t.expand(batch);
}

/// One batch dimension with its stride in c, a and b.
struct BatchDim {
  std::int64_t size = 1, c = 0, a = 0, b = 0;
};

// The batch dimensions, neighbours merged where all three tensors step through them evenly.
std::vector<BatchDim> batch_dims(const Tensor& c, const Tensor& a, const Tensor& b) {
  std::vector<BatchDim> dims;
  for (int d = 0; d < c.rank() - 2; ++d) {
    if (c.size(d) == 1) continue;
    const BatchDim dim{c.size(d), c.stride(d), a.stride(d), b.stride(d)};
    if (!dims.empty()) {
      BatchDim& last = dims.back();
      if (last.c == dim.c * dim.size && last.a == dim.a * dim.size && last.b == dim.b * dim.size) {
        last = {last.size * dim.size, dim.c, dim.a, dim.b};
        continue;
      }
    }
    dims.push_back(dim);
  }
  return dims;
}

DType c_dtype(const GemmFwd& g) { return g.wide_c ? ops::accum_dtype(g.dtype) : g.dtype; }

const void* offset(const void* p, std::int64_t elements, DType dtype) {
  return static_cast<const char*>(p) + elements * static_cast<std::int64_t>(size_of(dtype));
}

// Runs the kernel with its batch on one dimension that c does not sum over, and steps through the
// others here, in order.
void run_batches(Device device, GemmFwd g, std::vector<BatchDim> dims) {
  for (std::size_t d = dims.size(); d-- > 0;) {
    if (dims[d].c == 0) continue;
    g.batch = dims[d].size;
    g.a_stride = dims[d].a;
    g.b_stride = dims[d].b;
    g.c_stride = dims[d].c;
    dims.erase(dims.begin() + static_cast<std::ptrdiff_t>(d));
    break;
  }
  std::int64_t calls = 1;
  for (const BatchDim& dim : dims) calls *= dim.size;
  for (std::int64_t call = 0; call < calls; ++call) {
    GemmFwd now = g;
    std::int64_t rest = call;
    std::int64_t a = 0;
    std::int64_t b = 0;
    std::int64_t c = 0;
    for (std::size_t d = dims.size(); d-- > 0;) {
      const std::int64_t i = rest % dims[d].size;
      rest /= dims[d].size;
      a += i * dims[d].a;
      b += i * dims[d].b;
      c += i * dims[d].c;
      if (dims[d].c == 0 && i > 0) now.beta = 1;  // this block of c has been written already
    }
    now.a = offset(g.a, a, g.dtype);
    now.b = offset(g.b, b, g.dtype);
    now.c = const_cast<void*>(offset(g.c, c, c_dtype(g)));
    gemm_fwd(device, now);
  }
}

void check_product(const std::string& call, const Tensor& a, const Tensor& b) {
  check_floating(call, "a", a);
  check_like(call, "b", b, a);
  if (a.rank() < 2)
    throw ShapeError(call + ": a: expected [..., M, K], got " + to_string(a.shape()));
  if (b.rank() < 2)
    throw ShapeError(call + ": b: expected [..., K, N], got " + to_string(b.shape()));
  if (b.size(-2) != a.size(-1)) {
    throw ShapeError(call + ": b: expected [..., " + std::to_string(a.size(-1)) +
                     ", N] (K = a.shape[-1]), got " + to_string(b.shape()) + "; a is " +
                     to_string(a.shape()));
  }
}

void product(const Tensor& c, const Factor& a, const Factor& b, double alpha, double beta);

// bf16 sums over batch dimensions are taken in f32 and rounded once.
void product_in_f32(const Tensor& c, const Factor& a, const Factor& b, double alpha, double beta) {
  const Tensor wide = c.to(DType::f32).contiguous();
  product(wide, {a.stored.to(DType::f32), a.trans}, {b.stored.to(DType::f32), b.trans}, alpha,
          beta);
  c.copy_(wide);
}

// Which way a factor is read is the caller's choice.
void product(const Tensor& c, const Factor& a, const Factor& b, double alpha, double beta) {
  if (c.numel() == 0) return;
  const Tensor a_read = row_major(a.stored);
  const Tensor b_read = row_major(b.stored);
  const Shape batch = broadcast_shapes("matmul(a, b)", batch_of(a_read), batch_of(b_read));
  if (batch.numel() == 0) {  // sums over nothing
    c.copy_(beta == 0 ? Tensor::zeros(c.shape(), c.dtype(), c.device()) : ops::affine(c, beta, 0));
    return;
  }
  const Tensor c_batch = with_batch(c, batch);
  if (c.dtype() == DType::bf16 && c.numel() != c_batch.numel()) {
    return product_in_f32(c, a, b, alpha, beta);
  }
  const GemmFwd g{.a = a_read.raw(),
                  .b = b_read.raw(),
                  .c = c.raw(),
                  .M = c.size(-2),
                  .N = c.size(-1),
                  .K = a_read.size(a.trans ? -2 : -1),
                  .lda = row_step(a_read),
                  .ldb = row_step(b_read),
                  .ldc = row_step(c),
                  .trans_a = a.trans,
                  .trans_b = b.trans,
                  .wide_c = c.dtype() != a_read.dtype(),
                  .alpha = alpha,
                  .beta = beta,
                  .dtype = a_read.dtype()};
  run_batches(c.device(), g,
              batch_dims(c_batch, with_batch(a_read, batch), with_batch(b_read, batch)));
}

// [..., n] seen as rows of n.
Tensor rows_of(const Tensor& t) {
  std::int64_t rows = 1;
  for (int d = 0; d < t.rank() - 1; ++d) rows *= t.size(d);
  return t.reshape({rows, t.size(-1)});
}

Shape with_last(Shape shape, std::int64_t size) {
  shape[-1] = size;
  return shape;
}

void check_linear(const std::string& call, const Tensor& x, const Tensor& weight,
                  const Tensor& bias) {
  check_floating(call, "x", x);
  check_like(call, "weight", weight, x);
  if (x.rank() < 1) throw ShapeError(call + ": x: expected [..., in], got []");
  if (weight.rank() != 2 || weight.size(1) != x.size(-1)) {
    throw ShapeError(call + ": weight: expected [out, " + std::to_string(x.size(-1)) +
                     "] (in = x.shape[-1]), got " + to_string(weight.shape()) + "; x is " +
                     to_string(x.shape()));
  }
  if (!bias.defined()) return;
  check_like(call, "bias", bias, x);
  if (bias.shape() != Shape{weight.size(0)}) {
    throw ShapeError(call + ": bias: expected [" + std::to_string(weight.size(0)) +
                     "] (= weight.shape[0]), got " + to_string(bias.shape()) + "; weight is " +
                     to_string(weight.shape()));
  }
}

// dy [..., out] against weight [out, in].
void check_backward(const std::string& call, const Tensor& dy, const Tensor& weight) {
  check_floating(call, "dy", dy);
  check_like(call, "weight", weight, dy);
  if (dy.rank() >= 1 && weight.rank() == 2 && weight.size(0) == dy.size(-1)) return;
  throw ShapeError(call + ": weight: expected [" +
                   (dy.rank() ? std::to_string(dy.size(-1)) : std::string("out")) +
                   ", in] (out = dy.shape[-1]), got " + to_string(weight.shape()) + "; dy is " +
                   to_string(dy.shape()));
}

// x·weightᵀ (+ bias, GELU, or residual) with the epilogue's tensors; y, pre, act and the residual
// are contiguous.
void run_linear(const Tensor& x_any, const Tensor& matrix_any, bool trans_matrix,
                const Tensor& bias_any, const Tensor& y, const Tensor& pre, const Tensor& act,
                GemmEpilogue epilogue, const Tensor& residual = {}) {
  if (y.numel() == 0) return;
  const Tensor x = row_major(rows_of(x_any));
  const Tensor matrix = row_major(matrix_any);
  const Tensor bias = bias_any.defined() ? bias_any.contiguous() : bias_any;
  const std::int64_t N = y.size(-1);
  gemm_fwd(x.device(), {.a = x.raw(),
                        .b = matrix.raw(),
                        .c = y.raw(),
                        .bias = bias.defined() ? bias.raw() : nullptr,
                        .add = residual.defined() ? residual.raw() : nullptr,
                        .pre = pre.defined() ? pre.raw() : nullptr,
                        .act = act.defined() ? act.raw() : nullptr,
                        .M = x.size(0),
                        .N = N,
                        .K = x.size(1),
                        .lda = row_step(x),
                        .ldb = row_step(matrix),
                        .ldc = N,
                        .trans_b = trans_matrix,
                        .epilogue = epilogue,
                        .dtype = x.dtype()});
}

}  // namespace

namespace ops {

void gemm_into(const Tensor& c, const Tensor& a, const Tensor& b, double alpha, double beta) {
  const std::string call = "gemm_into(c, a, b)";
  check_product(call, a, b);
  if (c.defined() && c.dtype() == accum_dtype(a.dtype())) {
    check_device(call, "c", c, a);
  } else {
    check_like(call, "c", c, a);
  }
  Shape wanted = broadcast_shapes(call, batch_of(a), batch_of(b));
  const int lead = wanted.rank();
  bool fits = c.rank() == lead + 2 && c.size(-2) == a.size(-2) && c.size(-1) == b.size(-1);
  for (int d = 0; fits && d < lead; ++d) fits = c.size(d) == wanted[d] || c.size(d) == 1;
  if (!fits) {
    wanted.push_back(a.size(-2));
    wanted.push_back(b.size(-1));
    throw ShapeError(call + ": c: expected " + to_string(wanted) +
                     " (or 1 in batch dimensions to sum over), got " + to_string(c.shape()));
  }
  const Factor out = as_stored(c);
  if (!has_rows(out.stored)) {
    throw ShapeError(call +
                     ": c: needs contiguous rows or columns; write into a contiguous tensor");
  }
  c.bump_version();
  if (out.trans) {  // cᵀ = bᵀ·aᵀ has contiguous rows
    product(out.stored, as_stored(b.transpose(-1, -2)), as_stored(a.transpose(-1, -2)), alpha,
            beta);
  } else {
    product(out.stored, as_stored(a), as_stored(b), alpha, beta);
  }
}

Tensor matmul(const Tensor& a, const Tensor& b, bool trans_a, bool trans_b) {
  const std::string call = "matmul(a, b)";
  const auto seen = [](const Tensor& t, bool trans) {
    return trans && t.defined() && t.rank() >= 2 ? t.transpose(-1, -2) : t;
  };
  const Tensor left = seen(a, trans_a);
  const Tensor right = seen(b, trans_b);
  check_product(call, left, right);
  Shape shape = broadcast_shapes(call, batch_of(a), batch_of(b));
  shape.push_back(left.size(-2));
  shape.push_back(right.size(-1));
  Tensor c = Tensor::empty(shape, a.dtype(), a.device());
  if (b.rank() == 2 && a.rank() > 2 && !trans_a) {  // one product over all rows
    run_linear(a, b, trans_b, {}, c, {}, {}, GemmEpilogue::none);
  } else {
    product(c, {a, trans_a}, {b, trans_b}, 1, 0);
  }
  return c;
}

Tensor linear(const Tensor& x, const Tensor& weight, const Tensor& bias,
              const Tensor& residual_any) {
  const std::string call = "linear(x, weight, bias)";
  check_linear(call, x, weight, bias);
  const Shape shape = with_last(x.shape(), weight.size(0));
  Tensor residual;
  if (residual_any.defined()) {
    check_like(call, "residual", residual_any, x);
    check_shape(call, "residual", residual_any, shape, "(= rows of x, out)");
    residual = residual_any.contiguous();
  }
  Tensor y = Tensor::empty(shape, x.dtype(), x.device());
  run_linear(x, weight, true, bias, y, {}, {}, GemmEpilogue::none, residual);
  return y;
}

LinearGelu linear_gelu(const Tensor& x, const Tensor& weight, const Tensor& bias, bool keep_pre) {
  check_linear("linear_gelu(x, weight, bias)", x, weight, bias);
  const Shape shape = with_last(x.shape(), weight.size(0));
  LinearGelu out{Tensor::empty(shape, x.dtype(), x.device()), {}};
  if (keep_pre) out.pre = Tensor::empty(shape, x.dtype(), x.device());
  run_linear(x, weight, true, bias, out.y, out.pre, {}, GemmEpilogue::gelu);
  return out;
}

Tensor linear_dx(const Tensor& dy, const Tensor& weight) {
  check_backward("linear_dx(dy, weight)", dy, weight);
  Tensor dx = Tensor::empty(with_last(dy.shape(), weight.size(1)), dy.dtype(), dy.device());
  run_linear(dy, weight, false, {}, dx, {}, {}, GemmEpilogue::none);
  return dx;
}

void linear_dx_add(const Tensor& dx, const Tensor& dy, const Tensor& weight) {
  const std::string call = "linear_dx_add(dx, dy, weight)";
  check_backward(call, dy, weight);
  check_like(call, "dx", dx, dy);
  check_shape(call, "dx", dx, with_last(dy.shape(), weight.size(1)), "(= rows of dy, in)");
  if (!dx.is_contiguous()) throw ShapeError(call + ": dx: expected contiguous rows");
  product(rows_of(dx), {rows_of(dy), false}, {weight, false}, 1, 1);
  dx.bump_version();
}

Tensor linear_dweight(const Tensor& dy, const Tensor& x, DType dtype) {
  const std::string call = "linear_dweight(dy, x)";
  check_floating(call, "dy", dy);
  check_like(call, "x", x, dy);
  if (dy.rank() < 1 || x.rank() != dy.rank() || x.shape().without(-1) != dy.shape().without(-1)) {
    throw ShapeError(call + ": x: expected the rows of dy, got " + to_string(x.shape()) +
                     "; dy is " + to_string(dy.shape()));
  }
  if (dtype != x.dtype() && dtype != accum_dtype(x.dtype())) {
    throw_dtype(call + ": dtype", dtype, "that of x, or f32 beside bf16");
  }
  Tensor dw = Tensor::empty({dy.size(-1), x.size(-1)}, dtype, x.device());
  product(dw, {rows_of(dy), true}, {rows_of(x), false}, 1, 0);
  return dw;
}

GeluGrad linear_dx_gelu(const Tensor& dy, const Tensor& weight, const Tensor& pre_any,
                        bool with_act) {
  const std::string call = "linear_dx_gelu(dy, weight, pre)";
  check_backward(call, dy, weight);
  check_like(call, "pre", pre_any, dy);
  if (pre_any.shape() != with_last(dy.shape(), weight.size(1))) {
    throw ShapeError(call + ": pre: expected " + to_string(with_last(dy.shape(), weight.size(1))) +
                     ", got " + to_string(pre_any.shape()));
  }
  const Tensor pre = pre_any.contiguous();
  GeluGrad out{Tensor::empty(pre.shape(), dy.dtype(), dy.device()), {}};
  if (with_act) out.act = Tensor::empty(pre.shape(), dy.dtype(), dy.device());
  run_linear(dy, weight, false, {}, out.dpre, pre, out.act, GemmEpilogue::gelu_grad);
  return out;
}

BiasGrad bias_backward(const Tensor& dy_any, const Tensor& pre_any, bool with_bias) {
  if (pre_any.defined()) {
    ops::check_like("bias_backward(dy, pre)", "pre", pre_any, dy_any);
    ops::check_shape("bias_backward(dy, pre)", "pre", pre_any, dy_any.shape(), "(= dy.shape)");
  }
  const Tensor dy = dy_any.contiguous();
  const Tensor pre = pre_any.defined() ? pre_any.contiguous() : pre_any;
  BiasGrad out{dy, {}};
  const std::int64_t N = dy.size(-1);
  if (pre.defined()) out.dpre = Tensor::empty(dy.shape(), dy.dtype(), dy.device());
  if (with_bias) out.dbias = Tensor::empty({N}, dy.dtype(), dy.device());
  if (!pre.defined() && !with_bias) return out;
  bias_bwd(dy.device(), {.dy = dy.raw(),
                         .pre = pre.defined() ? pre.raw() : nullptr,
                         .dpre = pre.defined() ? out.dpre.raw() : nullptr,
                         .dbias = with_bias ? out.dbias.raw() : nullptr,
                         .M = N ? dy.numel() / N : 0,
                         .N = N,
                         .dtype = dy.dtype()});
  return out;
}

}  // namespace ops
}  // namespace proteus
