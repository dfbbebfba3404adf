#include "tensor/dlpack.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <limits>
#include <memory>

#include "tensor/error.h"

namespace proteus::dlpack {
namespace {

static_assert(sizeof(TensorOf) == 48 && offsetof(TensorOf, shape) == 24 && sizeof(DataType) == 4,
              "DLTensor of a 64-bit machine");
static_assert(sizeof(ManagedTensor) == 80 && offsetof(ManagedTensor, tensor) == 32,
              "DLManagedTensorVersioned of a 64-bit machine");

constexpr const char* kImport = "dlpack::import_tensor(m): ";

/// What an exported tensor keeps alive.
struct Exported {
  Tensor tensor;
  std::array<std::int64_t, kMaxRank> shape;
  std::array<std::int64_t, kMaxRank> strides;
  ManagedTensor managed;
};

DataType data_type(DType dtype) {
  const auto bits = static_cast<std::uint8_t>(8 * size_of(dtype));
  if (dtype == DType::bf16) return {kBfloat, bits, 1};
  return {is_floating(dtype) ? kFloat : kInt, bits, 1};
}

DType dtype_of_import(const DataType& got) {
  for (const DType d : {DType::f64, DType::f32, DType::bf16, DType::i8, DType::i32, DType::i64}) {
    const DataType known = data_type(d);
    if (got.code == known.code && got.bits == known.bits && got.lanes == known.lanes) return d;
  }
  throw DTypeError(std::string(kImport) +
                   "dtype: expected f64, f32, bf16, i8, i32 or i64, got code " +
                   std::to_string(got.code) + " with " + std::to_string(got.bits) + " bits and " +
                   std::to_string(got.lanes) + " lanes; convert it on the other side");
}

Device device_of_import(const DeviceOf& got) {
  if (got.type == kCpuCode) return kCpu;
  if (got.type != kCudaCode) {
    throw DeviceError(std::string(kImport) + "device: expected type 1 (CPU) or 2 (CUDA), got " +
                      std::to_string(got.type) + "; copy it on the other side");
  }
  device_hooks(DeviceType::cuda);  // throws if there are none
  return {DeviceType::cuda, got.index};
}

Layout layout_of_import(const TensorOf& got) {
  if (got.rank < 0 || got.rank > kMaxRank) {
    throw ShapeError(std::string(kImport) + "rank: expected at most " + std::to_string(kMaxRank) +
                     ", got " + std::to_string(got.rank));
  }
  const auto rank = static_cast<std::size_t>(got.rank);
  const Shape shape(std::span<const std::int64_t>(got.shape, rank));
  constexpr auto kMost = std::numeric_limits<std::int64_t>::max() / sizeof(std::int64_t);
  std::int64_t n = 1;
  for (const std::int64_t size : shape) {
    if (size < 0 || (size > 0 && n > static_cast<std::int64_t>(kMost) / size)) {
      throw ShapeError(std::string(kImport) + "shape: expected sizes of an address space, got " +
                       to_string(shape));
    }
    if (size > 0) n *= size;
  }
  if (!got.strides) return Layout::contiguous(shape);
  const Shape strides(std::span<const std::int64_t>(got.strides, rank));
  for (const std::int64_t stride : strides) {
    if (stride >= 0) continue;
    throw ShapeError(std::string(kImport) + "strides: expected none below 0, got " +
                     to_string(strides) + "; make it contiguous on the other side");
  }
  return {shape, strides, 0};
}

/// From the first element to the end of the last one.
std::size_t spanned_bytes(const Layout& layout, DType dtype) {
  constexpr auto kMost = std::numeric_limits<std::int64_t>::max();
  const auto size = static_cast<std::int64_t>(size_of(dtype));
  std::int64_t last = 0;
  for (int d = 0; d < layout.shape.rank(); ++d) {
    if (layout.shape[d] == 0) return 0;
  }
  for (int d = 0; d < layout.shape.rank(); ++d) {
    const std::int64_t steps = layout.shape[d] - 1;
    if (steps > 0 && layout.strides[d] > (kMost / size - 1 - last) / steps) {
      throw ShapeError(std::string(kImport) + "shape: " + to_string(layout.shape) +
                       " with strides " + to_string(layout.strides) +
                       " reaches beyond an address space");
    }
    last += steps * layout.strides[d];
  }
  return static_cast<std::size_t>((last + 1) * size);
}

}  // namespace

ManagedTensor* export_tensor(const Tensor& t) {
  if (!t.defined())
    throw Error("dlpack::export_tensor(t): t: expected a tensor, got an undefined one");
  const Device device = t.device();
  if (device.type != DeviceType::cpu) synchronize(device);
  auto* exported = new Exported{t, {}, {}, {}};
  std::copy(t.shape().begin(), t.shape().end(), exported->shape.begin());
  std::copy(t.layout().strides.begin(), t.layout().strides.end(), exported->strides.begin());
  exported->managed = {
      .version = {kMajorVersion, kMinorVersion},
      .owner = exported,
      .deleter = [](ManagedTensor* self) { delete static_cast<Exported*>(self->owner); },
      .flags = 0,
      .tensor = {.data = t.raw(),
                 .device = {device.type == DeviceType::cpu ? kCpuCode : kCudaCode, device.index},
                 .rank = t.rank(),
                 .dtype = data_type(t.dtype()),
                 .shape = exported->shape.data(),
                 .strides = exported->strides.data(),
                 .byte_offset = 0}};
  return &exported->managed;
}

Tensor import_tensor(ManagedTensor* m) {
  if (!m) throw Error(std::string(kImport) + "m: expected a tensor, got null");
  if (m->version.major != kMajorVersion) {
    throw Error(std::string(kImport) + "version: expected 1.x, got " +
                std::to_string(m->version.major) + "." + std::to_string(m->version.minor));
  }
  if (m->flags & kReadOnly) {
    throw Error(
        std::string(kImport) +
        "flags: expected memory that may be written, got read-only; copy it on the other side");
  }
  const DType dtype = dtype_of_import(m->tensor.dtype);
  const Device device = device_of_import(m->tensor.device);
  const Layout layout = layout_of_import(m->tensor);
  const std::size_t bytes = spanned_bytes(layout, dtype);
  char* data = static_cast<char*>(m->tensor.data) + m->tensor.byte_offset;
  if (bytes > 0 && reinterpret_cast<std::uintptr_t>(data) % size_of(dtype) != 0) {
    throw Error(std::string(kImport) + "data: expected the address of an element of " +
                std::to_string(size_of(dtype)) +
                " bytes, got one between two; copy it on the other side");
  }
  auto storage = std::make_shared<Storage>(data, bytes, device, [m] {
    if (m->deleter) m->deleter(m);
  });
  return Tensor(std::move(storage), dtype, layout);
}

}  // namespace proteus::dlpack
