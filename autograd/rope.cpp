#include "autograd/rope.h"

#include "autograd/tape.h"
#include "tensor/error.h"

namespace proteus {

namespace {
ops::RopeOptions backwards(ops::RopeOptions options) {
  options.inverse = true;
  return options;
}

Variable rope_sequence(const char* name, const Variable& x, const ops::RopeOptions& options) {
  return record(name, {x}, ops::rope(x.value(), options), {},
                [back = backwards(options)](const Backward& ctx) -> Gradients {
                  return {ops::rope(ctx.dy(), back)};
                });
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
  if (qkv.value().rank() != 5) {
    throw ShapeError("rope_qkv(qkv, R): qkv: expected [B, T, 3, H, D], got " +
                     to_string(qkv.shape()));
  }
  return rope_sequence("rope_qkv", qkv, {.R = R, .offset = offset, .base = base});
}

}  // namespace proteus
