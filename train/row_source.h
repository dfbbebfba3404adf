// Where the embeddings of a streamed text come from, row by row and in order: numbers made from a
// seed, a file (.npy or .safetensors), or a pipe of raw f32.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "tensor/rng.h"
#include "tensor/tensor.h"
#include "train/row_file.h"

namespace proteus {

enum class RowFormat : std::uint8_t { f32, f16, bf16 };
std::int64_t bytes_of(RowFormat format);

struct RowSource {
  RowFormat format = RowFormat::f32;
  std::int64_t width = 0;
  std::int64_t rows = -1;  ///< −1: until it ends
  bool waits = false;      ///< for a device: worth a thread of its own
  /// Writes up to n rows in `format`, fewer only at the end or when interrupted. Throws FileError.
  std::function<std::int64_t(void* out, std::int64_t n)> read = nullptr;
  std::shared_ptr<RowFile> file = nullptr;  ///< where all rows stay readable, if they do

  std::int64_t row_bytes() const { return width * bytes_of(format); }
};

/// `rows` rows of standard normal numbers (train/random_rows.h).
RowSource random_source(RngKey key, std::int64_t rows, std::int64_t width);

/// "-" is standard input: raw little-endian f32 rows of `width` numbers. Otherwise a file with an
/// array [rows, width] of f32, f16 or bf16: .npy, or .safetensors with that one tensor. Throws
/// FileError naming what was expected.
RowSource embedding_source(const std::string& path, std::int64_t width);

/// The first `rows` rows of a source. Throws FileError, naming it, where it has fewer; of a pipe
/// when that turns out.
RowSource first_rows(RowSource source, std::int64_t rows, const std::string& name);

/// The first n rows of a block i8 [≥ n, row bytes] as f32 [n, width]; a view where they are f32.
Tensor rows_of(const Tensor& block, std::int64_t n, std::int64_t width, RowFormat format);

}  // namespace proteus
