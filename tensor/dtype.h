// Element types, bfloat16 arithmetic, and the one helper that turns a runtime dtype into a type.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <type_traits>

#include "tensor/error.h"
#include "tensor/host_device.h"

namespace proteus {

enum class DType : std::uint8_t { f64, f32, bf16, i8, i32, i64 };

/// Brain floating point: the upper half of an IEEE f32. Arithmetic happens in f32.
struct bfloat16 {
  std::uint16_t bits = 0;

  bfloat16() = default;
  bfloat16(const bfloat16&) = default;
  // Written out, because g++ 12 does not vectorise a loop that assigns whole objects.
  PROTEUS_HOST_DEVICE bfloat16& operator=(const bfloat16& other) {
    bits = other.bits;
    return *this;
  }
  /// Rounds to nearest even; NaN stays NaN.
  PROTEUS_HOST_DEVICE explicit bfloat16(float value) {
#ifdef __CUDA_ARCH__
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
#else
    const auto u = std::bit_cast<std::uint32_t>(value);
    const bool nan = (u & 0x7fffffffu) > 0x7f800000u;
    const std::uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
    bits = static_cast<std::uint16_t>(nan ? ((u >> 16) | 0x0040u) : rounded);
#endif
  }
  // NOLINTNEXTLINE(google-explicit-constructor): widening is exact
  PROTEUS_HOST_DEVICE operator float() const {
    return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
  }
};

constexpr std::size_t size_of(DType dtype) {
  switch (dtype) {
    case DType::f64:
    case DType::i64:
      return 8;
    case DType::f32:
    case DType::i32:
      return 4;
    case DType::bf16:
      return 2;
    case DType::i8:
      return 1;
  }
  return 0;
}

constexpr std::string_view name_of(DType dtype) {
  switch (dtype) {
    case DType::f64:
      return "f64";
    case DType::f32:
      return "f32";
    case DType::bf16:
      return "bf16";
    case DType::i8:
      return "i8";
    case DType::i32:
      return "i32";
    case DType::i64:
      return "i64";
  }
  return "?";
}

constexpr bool is_floating(DType dtype) {
  return dtype == DType::f64 || dtype == DType::f32 || dtype == DType::bf16;
}

template <class T>
struct TypeTag {
  using type = T;
};

template <class T>
constexpr DType dtype_of() {
  if constexpr (std::is_same_v<T, double>) return DType::f64;
  if constexpr (std::is_same_v<T, float>) return DType::f32;
  if constexpr (std::is_same_v<T, bfloat16>) return DType::bf16;
  if constexpr (std::is_same_v<T, std::int8_t>) return DType::i8;
  if constexpr (std::is_same_v<T, std::int32_t>) return DType::i32;
  if constexpr (std::is_same_v<T, std::int64_t>) return DType::i64;
}

/// The type sums are kept in: f64 for f64, f32 for f32 and bf16.
template <class T>
using accum_t = std::conditional_t<std::is_same_v<T, double>, double, float>;

[[noreturn]] inline void throw_dtype(std::string_view function, DType got,
                                     std::string_view expected) {
  throw DTypeError(std::string(function) + ": expected dtype " + std::string(expected) + ", got " +
                   std::string(name_of(got)));
}

/// Calls `fn(TypeTag<T>{})` with T one of double, float, bfloat16.
template <class F>
auto dispatch_float(DType dtype, std::string_view function, F&& fn) {
  switch (dtype) {
    case DType::f64:
      return fn(TypeTag<double>{});
    case DType::f32:
      return fn(TypeTag<float>{});
    case DType::bf16:
      return fn(TypeTag<bfloat16>{});
    default:
      throw_dtype(function, dtype, "f64, f32 or bf16");
  }
}

/// Calls `fn(TypeTag<T>{})` with T the element type, integers included.
template <class F>
auto dispatch_all(DType dtype, std::string_view function, F&& fn) {
  switch (dtype) {
    case DType::i8:
      return fn(TypeTag<std::int8_t>{});
    case DType::i32:
      return fn(TypeTag<std::int32_t>{});
    case DType::i64:
      return fn(TypeTag<std::int64_t>{});
    default:
      return dispatch_float(dtype, function, static_cast<F&&>(fn));
  }
}

}  // namespace proteus
