#include "tests/op_cases/op_case.h"

#include "tests/op_cases/families.h"

namespace proteus::testing {
namespace {

// FNV-1a: the same number on every platform.
std::uint64_t hash(const std::string& text) {
  std::uint64_t h = 0xcbf29ce484222325u;
  for (const char c : text) h = (h ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  return h;
}

Tensor index_input(const OpInput& input, RngKey key) {
  Tensor out = Tensor::empty(input.shape, DType::i32);
  for (std::int64_t i = 0; i < out.numel(); ++i) {
    const std::uint64_t u = random_u32(key, static_cast<std::uint64_t>(i));
    out.data<std::int32_t>()[i] =
        static_cast<std::int32_t>(u * static_cast<std::uint64_t>(input.bound) >> 32);
  }
  return out;
}

}  // namespace

std::vector<Tensor> make_inputs(const OpCase& c, DType requested, std::uint64_t seed) {
  std::vector<Tensor> inputs;
  const std::uint64_t name = hash(c.op + " " + c.variant);
  for (const OpInput& input : c.inputs) {
    const RngKey key{seed, name + inputs.size()};
    const bool widen = input.accumulation && requested == DType::bf16;
    const DType dtype = widen ? DType::f32 : requested;
    switch (input.fill) {
      case Fill::normal:
        inputs.push_back(Tensor::randn(input.shape, key, dtype));
        break;
      case Fill::positive:
        inputs.push_back(Tensor::rand(input.shape, key, dtype, 0.5, 2));
        break;
      case Fill::unit:
        inputs.push_back(Tensor::rand(input.shape, key, dtype));
        break;
      case Fill::index:
        inputs.push_back(index_input(input, key));
        break;
    }
  }
  return inputs;
}

std::vector<OpFamily> all_families() {
  std::vector<OpFamily> families;
#define PROTEUS_ADD_FAMILY(family) families.push_back(family##_family());
  PROTEUS_OP_FAMILIES(PROTEUS_ADD_FAMILY)
#undef PROTEUS_ADD_FAMILY
  return families;
}

}  // namespace proteus::testing
