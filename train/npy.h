// The header of NumPy's .npy files: what array there is, without reading it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace proteus {

struct NpyInfo {
  std::string descr;  ///< NumPy's name of the element type: "<f4"
  bool fortran_order = false;
  std::vector<std::int64_t> shape;
  std::uint64_t element_bytes = 0;
  std::uint64_t data_at = 0;  ///< where the elements begin in the file
};

/// Whether a file begins like one.
bool is_npy(std::string_view file);

/// Reads the header of a whole file's bytes. Throws FileError naming `path`: another version, a
/// header that is not of the format, element types that are not plain numbers.
NpyInfo parse_npy_header(std::string_view file, const std::string& path);
/// The same; the elements must fill the rest exactly. Throws FileError also for sizes that overflow
/// or do not fit the file.
NpyInfo parse_npy(std::string_view file, const std::string& path);

}  // namespace proteus
