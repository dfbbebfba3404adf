// DLPack: tensors that other frameworks read, and theirs read here, without copying an element. The
// structs are the C ABI of DLPack 1.x (https://dmlc.github.io/dlpack), member by member; they have
// names of their own so that a program may include dlpack.h beside this header and cast.
#pragma once

#include <cstdint>

#include "tensor/tensor.h"

namespace proteus::dlpack {

constexpr std::uint32_t kMajorVersion = 1;
constexpr std::uint32_t kMinorVersion = 0;

struct Version {
  std::uint32_t major;
  std::uint32_t minor;
};

/// Of DLDeviceType, what Proteus knows.
enum DeviceCode : std::int32_t { kCpuCode = 1, kCudaCode = 2 };
struct DeviceOf {
  std::int32_t type;
  std::int32_t index;
};

/// Of DLDataTypeCode, what Proteus knows.
enum TypeCode : std::uint8_t { kInt = 0, kFloat = 2, kBfloat = 4 };
struct DataType {
  std::uint8_t code;
  std::uint8_t bits;
  std::uint16_t lanes;
};

struct TensorOf {
  void* data;
  DeviceOf device;
  std::int32_t rank;
  DataType dtype;
  std::int64_t* shape;
  std::int64_t* strides;  ///< in elements; null: row-major without gaps
  std::uint64_t byte_offset;
};

/// Bits of `flags`.
constexpr std::uint64_t kReadOnly = 1;
constexpr std::uint64_t kIsCopy = 2;

struct ManagedTensor {
  Version version;
  void* owner;
  void (*deleter)(ManagedTensor* self);  ///< to be called once; may be null
  std::uint64_t flags;
  TensorOf tensor;
};

/// The same memory for another framework: it stays alive until `deleter` is called, whatever
/// becomes of `t`. Both sides may write; what the other side writes is no new version here (see
/// Storage). Its data points to the first element and its byte_offset is 0, as some readers want.
/// On a device, all work queued so far is waited for. Throws Error if `t` is undefined.
ManagedTensor* export_tensor(const Tensor& t);

/// A tensor on another framework's memory, which is given back by its deleter when the last tensor
/// on it is gone. The other side's work on a device must be done. Throws, and leaves `m` to the
/// caller: DTypeError, DeviceError; Error for another major version, for memory that must not be
/// written, or that begins in the middle of an element; ShapeError for more than kMaxRank
/// dimensions and for strides below 0.
Tensor import_tensor(ManagedTensor* m);

}  // namespace proteus::dlpack
