#include "autograd/rope.h"

#include "autograd/tape.h"
#include "tensor/error.h"

namespace proteus {

namespace {
ops::RopeOptions backwards(ops::RopeOptions options) {
  options.inverse = true;
  return options;
}

// In place when nobody else can see that memory.
Tensor rotated_back(const Tensor& dy, const ops::RopeOptions& back) {
  if (dy.storage().use_count() > 1 || !dy.is_contiguous()) return ops::rope(dy, back);
  ops::rope_(dy, back);
  return dy;
}

Variable rope_sequence(const char* name, const Variable& x, const ops::RopeOptions& options,
                       bool in_place = false) {
  Tensor y = x.value();
  if (in_place && y.is_contiguous()) {
    ops::rope_(y, options);
  } else {
    y = ops::rope(y, options);
  }
  return record(name, {x}, std::move(y), {},
                [back = backwards(options)](const Backward& ctx) -> Gradients {
                  return {rotated_back(ctx.dy(), back)};
                });
}

void check_qkv(const Variable& qkv) {
  if (qkv.value().rank() == 5) return;
  throw ShapeError("rope_qkv(qkv, R): qkv: expected [B, T, 3, H, D], got " +
                   to_string(qkv.shape()));
}
}  // namespace

Variable rope(const Variable& x, std::int64_t R, std::int64_t offset, double base) {
  if (x.value().rank() != 4) {
    throw ShapeError("rope(x, R): x: expected [B, T, H, D], got " + to_string(x.shape()));
  }
  return rope_sequence("rope", x, {.R = R, .offset = offset, .base = base});
}

Variable rope(const Variable& x, const Tensor& positions, std::int64_t R, double base) {
  const ops::RopeOptions options{.R = R, .base = base};
  return record("rope", {x}, ops::rope(x.value(), positions, options), {positions},
                [back = backwards(options)](const Backward& ctx) -> Gradients {
                  return {ops::rope(ctx.dy(), ctx.saved(0), back)};
                });
}

Variable rope_qkv(const Variable& qkv, std::int64_t R, std::int64_t offset, double base) {
  check_qkv(qkv);
  return rope_sequence("rope_qkv", qkv, {.R = R, .offset = offset, .base = base});
}

Variable rope_qkv_(const Variable& qkv, std::int64_t R, std::int64_t offset, double base) {
  check_qkv(qkv);
  return rope_sequence("rope_qkv", qkv, {.R = R, .offset = offset, .base = base}, true);
}

}  // namespace proteus
