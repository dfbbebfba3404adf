#include "train/safetensors.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <numeric>

#include "tensor/error.h"
#include "train/file_ops.h"
#include "train/half.h"

namespace proteus {
namespace {

constexpr std::size_t kPrefixBytes = 8;
constexpr std::int64_t kChunk = 1 << 16;  ///< elements that are converted at once

[[noreturn]] void malformed(const std::string& path, const std::string& why) {
  throw FileError(fmt::format("{}: not a valid safetensors file: {}", path, why));
}

/// The JSON header: what is behind the prefix and before the data.
std::string_view header_text(std::string_view file, const std::string& path) {
  if (file.size() < kPrefixBytes) {
    malformed(path, fmt::format("{} bytes are too short for one", file.size()));
  }
  std::uint64_t length = 0;
  for (std::size_t i = kPrefixBytes; i-- > 0;) {
    length = length << 8 | static_cast<unsigned char>(file[i]);
  }
  const std::uint64_t behind = file.size() - kPrefixBytes;
  if (length > std::min(kMaxHeaderBytes, behind)) {
    malformed(path, fmt::format("a header of {} bytes, expected at most {}", length,
                                std::min(kMaxHeaderBytes, behind)));
  }
  return file.substr(kPrefixBytes, static_cast<std::size_t>(length));
}

/// Elements of a file's type, which need not be aligned, as those of a tensor.
template <class From, class To, class Convert>
void widen(std::string_view bytes, const Tensor& out, Convert convert) {
  To* to = out.data<To>();
  for (std::int64_t i = 0; i < out.numel(); ++i) {
    From value;
    std::memcpy(&value, bytes.data() + i * static_cast<std::int64_t>(sizeof value), sizeof value);
    to[i] = convert(value);
  }
}

template <class From, class To>
Tensor widened(std::string_view bytes, const Shape& shape) {
  const Tensor out = Tensor::empty(shape, dtype_of<To>());
  widen<From, To>(bytes, out, [](From value) { return static_cast<To>(value); });
  return out;
}

Tensor copied(std::string_view bytes, const Shape& shape, DType dtype) {
  const Tensor out = Tensor::empty(shape, dtype);
  if (!bytes.empty()) std::memcpy(out.raw(), bytes.data(), bytes.size());
  return out;
}

Tensor halves(std::string_view bytes, const Shape& shape) {
  const Tensor out = Tensor::empty(shape, DType::f32);
  widen<std::uint16_t, float>(bytes, out, float_of_half);
  return out;
}

Tensor bools(std::string_view bytes, const Shape& shape) {
  const Tensor out = Tensor::empty(shape, DType::i32);
  widen<std::uint8_t, std::int32_t>(bytes, out, [](std::uint8_t b) { return b != 0 ? 1 : 0; });
  return out;
}

Tensor tensor_of(FileDType dtype, std::string_view bytes, const Shape& shape) {
  switch (dtype) {
    case FileDType::f64:
      return copied(bytes, shape, DType::f64);
    case FileDType::f32:
      return copied(bytes, shape, DType::f32);
    case FileDType::bf16:
      return copied(bytes, shape, DType::bf16);
    case FileDType::i64:
      return copied(bytes, shape, DType::i64);
    case FileDType::i32:
      return copied(bytes, shape, DType::i32);
    case FileDType::i8:
      return copied(bytes, shape, DType::i8);
    case FileDType::f16:
      return halves(bytes, shape);
    case FileDType::i16:
      return widened<std::int16_t, std::int32_t>(bytes, shape);
    case FileDType::u16:
      return widened<std::uint16_t, std::int32_t>(bytes, shape);
    case FileDType::u8:
      return widened<std::uint8_t, std::int32_t>(bytes, shape);
    case FileDType::boolean:
      return bools(bytes, shape);
    case FileDType::u32:
      return widened<std::uint32_t, std::int64_t>(bytes, shape);
    default:
      return {};
  }
}

/// Appends `n` elements from `first` on as another type; the tensor is contiguous on the CPU.
template <class To>
void append_as(const Tensor& tensor, std::int64_t first, std::int64_t n, std::string& out,
               const std::string& what) {
  dispatch_all(tensor.dtype(), "write_safetensors(tensors)", [&](auto tag) {
    using From = typename decltype(tag)::type;
    const From* from = tensor.data<From>() + first;
    for (std::int64_t i = 0; i < n; ++i) {
      To value;
      if constexpr (std::is_floating_point_v<To>) {
        value = static_cast<To>(from[i]);
      } else {
        const auto wide = static_cast<double>(from[i]);
        // Not every i64 is a double; those that are not stay what they are.
        const bool fits = std::is_integral_v<From>
                              ? std::in_range<To>(static_cast<std::int64_t>(from[i]))
                              : wide == std::trunc(wide) && std::abs(wide) <= 0x1p53 &&
                                    std::in_range<To>(static_cast<std::int64_t>(wide));
        if (!fits) throw FileError(fmt::format("{}: {} does not fit", what, wide));
        value = static_cast<To>(from[i]);
      }
      out.append(reinterpret_cast<const char*>(&value), sizeof value);
    }
  });
}

void append_halves(const Tensor& tensor, std::int64_t first, std::int64_t n, std::string& out) {
  const Tensor wide = tensor.reshape({-1}).slice(0, first, first + n).to(DType::f32);
  for (std::int64_t i = 0; i < n; ++i) {
    const std::uint16_t half = half_of_float(wide.data<float>()[i]);
    out.append(reinterpret_cast<const char*>(&half), sizeof half);
  }
}

void append_bf16(const Tensor& tensor, std::int64_t first, std::int64_t n, std::string& out) {
  const Tensor narrow = tensor.reshape({-1}).slice(0, first, first + n).to(DType::bf16);
  out.append(static_cast<const char*>(narrow.raw()), static_cast<std::size_t>(narrow.bytes()));
}

void append_bools(const Tensor& tensor, std::int64_t first, std::int64_t n, std::string& out,
                  const std::string& what) {
  const std::size_t begin = out.size();
  append_as<std::uint8_t>(tensor, first, n, out, what);
  for (std::size_t i = begin; i < out.size(); ++i) {
    if (out[i] != 0 && out[i] != 1) throw FileError(what + ": expected 0 and 1 alone");
  }
}

void append_chunk(const Tensor& tensor, FileDType dtype, std::int64_t first, std::int64_t n,
                  std::string& out, const std::string& what) {
  switch (dtype) {
    case FileDType::f64:
      return append_as<double>(tensor, first, n, out, what);
    case FileDType::f32:
      return append_as<float>(tensor, first, n, out, what);
    case FileDType::bf16:
      return append_bf16(tensor, first, n, out);
    case FileDType::f16:
      return append_halves(tensor, first, n, out);
    case FileDType::i64:
      return append_as<std::int64_t>(tensor, first, n, out, what);
    case FileDType::i32:
      return append_as<std::int32_t>(tensor, first, n, out, what);
    case FileDType::i16:
      return append_as<std::int16_t>(tensor, first, n, out, what);
    case FileDType::i8:
      return append_as<std::int8_t>(tensor, first, n, out, what);
    case FileDType::u64:
      return append_as<std::uint64_t>(tensor, first, n, out, what);
    case FileDType::u32:
      return append_as<std::uint32_t>(tensor, first, n, out, what);
    case FileDType::u16:
      return append_as<std::uint16_t>(tensor, first, n, out, what);
    case FileDType::u8:
      return append_as<std::uint8_t>(tensor, first, n, out, what);
    case FileDType::boolean:
      return append_bools(tensor, first, n, out, what);
    case FileDType::f8_e4m3:
    case FileDType::f8_e5m2:
      throw FileError(what + ": this type is not written");
  }
}

void write_tensor(OutputFile& file, const OutputTensor& t, const std::string& path) {
  const Tensor host = t.tensor.to(kCpu).contiguous();
  if (file_dtype(host.dtype()) == t.dtype) {
    file.write(host.raw(), static_cast<std::size_t>(host.bytes()));
    return;
  }
  const std::string what = fmt::format("{}: \"{}\" as {}", path, t.name, name_of(t.dtype));
  std::string chunk;
  for (std::int64_t first = 0; first < host.numel(); first += kChunk) {
    chunk.clear();
    append_chunk(host, t.dtype, first, std::min(kChunk, host.numel() - first), chunk, what);
    file.write(chunk);
  }
}

std::string quoted(const std::string& text, const std::string& path) {
  try {
    return nlohmann::json(text).dump();
  } catch (const nlohmann::json::exception&) {
    throw FileError(path + ": the name or text \"" + text + "\" is not UTF-8");
  }
}

/// The header, padded so that the data behind it is aligned.
std::string header_of(const std::vector<OutputTensor>& tensors, const Metadata& metadata,
                      const std::string& path) {
  std::string text = "{";
  const auto separate = [&] { text += text.size() > 1 ? "," : ""; };
  if (!metadata.empty()) {
    std::string inside;
    for (const auto& [key, value] : metadata) {
      inside +=
          fmt::format("{}{}:{}", inside.empty() ? "" : ",", quoted(key, path), quoted(value, path));
    }
    text += fmt::format("\"__metadata__\":{{{}}}", inside);
  }
  std::uint64_t at = 0;
  for (const OutputTensor& t : tensors) {
    if (t.name == "__metadata__") throw FileError(path + ": a tensor named __metadata__");
    const auto bytes = static_cast<std::uint64_t>(t.tensor.numel()) * size_of(t.dtype);
    separate();
    text += fmt::format(R"({}:{{"dtype":"{}","shape":[{}],"data_offsets":[{},{}]}})",
                        quoted(t.name, path), name_of(t.dtype),
                        fmt::join(t.tensor.shape().begin(), t.tensor.shape().end(), ","), at,
                        at + bytes);
    at += bytes;
  }
  text += '}';
  text.resize((text.size() + kPrefixBytes - 1) / kPrefixBytes * kPrefixBytes, ' ');
  if (text.size() > kMaxHeaderBytes) malformed(path, "the header would be too long");
  // What no reader takes is not written: names that come twice, or with control characters.
  detail::parse_safetensors_header(text, at, path);
  return text;
}

}  // namespace

SafetensorsFile::SafetensorsFile(const std::string& path) : path_(path), file_(path) {
  const std::string_view text = header_text(file_.view(), path_);
  data_ = file_.view().substr(kPrefixBytes + text.size());
  header_ = detail::parse_safetensors_header(text, data_.size(), path_);
  by_name_.resize(header_.entries.size());
  std::iota(by_name_.begin(), by_name_.end(), 0u);
  std::sort(by_name_.begin(), by_name_.end(), [&](std::uint32_t a, std::uint32_t b) {
    return header_.entries[a].name < header_.entries[b].name;
  });
}

TensorInfo SafetensorsFile::info(std::int64_t i) const {
  const detail::HeaderEntry& entry = header_.entries.at(static_cast<std::size_t>(i));
  TensorInfo info{std::string(entry.name), entry.dtype, {}, entry.begin, entry.end};
  for (std::size_t d = 0; d < entry.rank; ++d) {
    info.shape.push_back(header_.sizes[entry.shape_at + d]);
  }
  return info;
}

std::int64_t SafetensorsFile::find(std::string_view name) const {
  const auto name_at = [&](std::uint32_t i) { return header_.entries[i].name; };
  const auto it =
      std::lower_bound(by_name_.begin(), by_name_.end(), name,
                       [&](std::uint32_t i, std::string_view n) { return name_at(i) < n; });
  if (it == by_name_.end() || name_at(*it) != name) return -1;
  return *it;
}

std::string_view SafetensorsFile::bytes(std::int64_t i) const {
  const detail::HeaderEntry& entry = header_.entries.at(static_cast<std::size_t>(i));
  return data_.substr(entry.begin, entry.end - entry.begin);
}

Tensor SafetensorsFile::read(std::int64_t i) const {
  const TensorInfo about = info(i);
  const Tensor tensor = tensor_of(about.dtype, bytes(i), about.shape);
  if (tensor.defined()) return tensor;
  throw FileError(fmt::format("{}: \"{}\" is of dtype {}, which tensors here cannot hold", path_,
                              about.name, name_of(about.dtype)));
}

Tensor SafetensorsFile::read(std::string_view name) const {
  const std::int64_t i = find(name);
  if (i < 0) throw FileError(fmt::format("{}: \"{}\" is missing", path_, name));
  return read(i);
}

NamedTensors all_tensors(const SafetensorsFile& file) {
  NamedTensors tensors;
  for (std::int64_t i = 0; i < file.count(); ++i) {
    tensors.emplace_back(file.info(i).name, file.read(i));
  }
  return tensors;
}

NamedTensors read_safetensors(const std::string& path) {
  return all_tensors(SafetensorsFile(path));
}

FileStamp write_safetensors(const std::string& path, const std::vector<OutputTensor>& tensors,
                            const Metadata& metadata) {
  const std::string text = header_of(tensors, metadata, path);
  OutputFile file(path);
  std::uint64_t length = text.size();
  std::string prefix;
  for (std::size_t i = 0; i < kPrefixBytes; ++i) {
    prefix += static_cast<char>(length & 0xFF);
    length >>= 8;
  }
  file.write(prefix + text);
  for (const OutputTensor& t : tensors) write_tensor(file, t, path);
  file.close();
  return {file.bytes(), file.hash()};
}

FileStamp write_safetensors(const std::string& path, const NamedTensors& tensors,
                            const Metadata& metadata) {
  std::vector<OutputTensor> list;
  for (const auto& [name, tensor] : tensors) {
    list.push_back({name, tensor, file_dtype(tensor.dtype())});
  }
  return write_safetensors(path, list, metadata);
}

}  // namespace proteus
