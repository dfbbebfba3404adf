// The safetensors file format: an 8-byte little-endian header length, a JSON header that maps names
// to {dtype, shape, data_offsets}, then the raw data.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "tensor/tensor.h"

namespace proteus {

using NamedTensors = std::vector<std::pair<std::string, Tensor>>;

/// Writes contiguous copies of CPU or device tensors and syncs the file. Names must be unique.
/// Throws FileError, or OutOfMemory when the disk is full.
void write_safetensors(const std::string& path, const NamedTensors& tensors);

/// Reads every tensor into memory, in the order of the file. Throws FileError on anything that is
/// not a well-formed file: header out of bounds, unknown dtype, sizes that overflow or do not match
/// the offsets, overlaps, holes, duplicate names.
NamedTensors read_safetensors(const std::string& path);

}  // namespace proteus
