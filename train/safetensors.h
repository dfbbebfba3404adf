// The safetensors file format: an 8-byte little-endian header length, a JSON header that maps names
// to {dtype, shape, data_offsets}, then the raw data. Files of Python's `safetensors` open here and
// the other way round.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tensor/tensor.h"
#include "train/mapped_file.h"

namespace proteus {

using NamedTensors = std::vector<std::pair<std::string, Tensor>>;
using Metadata = std::map<std::string, std::string>;

/// What a header may hold; files beyond it are refused before anything of that size is allocated.
constexpr std::uint64_t kMaxHeaderBytes = 100'000'000;  // as in the format's own library
constexpr std::size_t kMaxFileTensors = std::size_t{1} << 17;
constexpr std::size_t kMaxNameBytes = 1024;
constexpr std::size_t kMaxMetadata = 1024;

/// Element types of the format.
enum class FileDType : std::uint8_t {
  f64,
  f32,
  bf16,
  f16,
  f8_e4m3,
  f8_e5m2,
  i64,
  i32,
  i16,
  i8,
  u64,
  u32,
  u16,
  u8,
  boolean
};
/// "F32", as a header says it.
std::string_view name_of(FileDType dtype);
std::size_t size_of(FileDType dtype);
/// The one that holds a tensor's elements as they are.
FileDType file_dtype(DType dtype);

struct TensorInfo {
  std::string name;
  FileDType dtype = FileDType::f32;
  Shape shape;
  std::uint64_t begin = 0, end = 0;  ///< of its bytes, behind the header
};

namespace detail {
/// A tensor as the header has it, small: a hostile header is mostly these.
struct HeaderEntry {
  std::uint64_t begin = 0, end = 0;
  std::string_view name;       ///< in the JSON, or in SafetensorsHeader::unescaped
  std::uint32_t shape_at = 0;  ///< in SafetensorsHeader::sizes
  std::uint8_t rank = 0;
  FileDType dtype = FileDType::f32;
};
struct SafetensorsHeader {
  std::deque<std::string> unescaped;  ///< names that are written with escapes
  std::deque<std::int64_t> sizes;
  std::deque<HeaderEntry> entries;  ///< in the order of their bytes
  Metadata metadata;
};
/// Reads and checks the JSON, which must outlive what comes back. Its tensors must fill the
/// `data_bytes` behind it without holes or overlaps. Throws FileError naming `path`.
SafetensorsHeader parse_safetensors_header(std::string_view json, std::uint64_t data_bytes,
                                           const std::string& path);
}  // namespace detail

/// An open file. Opening reads the header alone; the tensors are mapped into memory and their bytes
/// are read when they are asked for. The file must not be cut while it is open.
class SafetensorsFile {
 public:
  /// Throws FileError on anything that is not a well-formed file: header out of bounds or not of
  /// the format, unknown dtype, sizes that overflow or do not match the offsets, overlaps, holes,
  /// duplicate names, names that are not UTF-8 or have control characters.
  explicit SafetensorsFile(const std::string& path);

  const std::string& path() const { return path_; }
  const Metadata& metadata() const { return header_.metadata; }
  /// Tensors are numbered in the order of their bytes.
  std::int64_t count() const { return static_cast<std::int64_t>(header_.entries.size()); }
  TensorInfo info(std::int64_t i) const;
  /// The number of a name, or −1.
  std::int64_t find(std::string_view name) const;
  /// The bytes where they are mapped; they need not be aligned.
  std::string_view bytes(std::int64_t i) const;
  /// A copy. Types that tensors do not have are widened without loss: f16 to f32; i16, u16, u8 and
  /// bool to i32; u32 to i64. Throws FileError for f8 and u64.
  Tensor read(std::int64_t i) const;
  /// The same; throws FileError when there is no such name.
  Tensor read(std::string_view name) const;
  /// The bytes of the whole file.
  std::string_view contents() const { return file_.view(); }

 private:
  std::string path_;
  MappedFile file_;
  std::string_view data_;
  detail::SafetensorsHeader header_;
  std::vector<std::uint32_t> by_name_;
};

/// Every tensor of a file, in the order of their bytes. Throws like SafetensorsFile.
NamedTensors all_tensors(const SafetensorsFile& file);
NamedTensors read_safetensors(const std::string& path);

/// A tensor and the type to write it as.
struct OutputTensor {
  std::string name;
  Tensor tensor;
  FileDType dtype = FileDType::f32;
};

/// What a file on disk is known by.
struct FileStamp {
  std::uint64_t bytes = 0;
  std::string hash;  ///< see file_hash
};

/// Writes contiguous copies of CPU or device tensors and syncs the file. Floating types round to
/// nearest; integers and bools must hold what they are given. Throws FileError (two tensors of one
/// name, names that a reader would refuse, values that the type does not hold, a failed write), or
/// OutOfMemory when the disk is full.
FileStamp write_safetensors(const std::string& path, const std::vector<OutputTensor>& tensors,
                            const Metadata& metadata = {});
/// Each tensor as it is.
FileStamp write_safetensors(const std::string& path, const NamedTensors& tensors,
                            const Metadata& metadata = {});

}  // namespace proteus
