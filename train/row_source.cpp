#include "train/row_source.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <string_view>

#include "tensor/error.h"
#include "tensor/parallel.h"
#include "train/random_rows.h"
#include "train/signals.h"

namespace proteus {
namespace {

constexpr std::int64_t kConvertGrain = 1 << 16;  // elements
constexpr int kPollMs = 100;  // a pipe that gives nothing must not keep Ctrl-C waiting

// An array of a file, and where its rows begin.
struct ArrayHeader {
  RowFormat format = RowFormat::f32;
  std::vector<std::int64_t> shape;
  std::int64_t begin = 0;
};

[[noreturn]] void throw_bad(const std::string& path, const std::string& why) {
  throw FileError(fmt::format("{}: {}", path, why));
}

// IEEE half: 1 sign, 5 exponent and 10 fraction bits. Multiplying by 2^112 moves the exponent, and
// makes subnormal numbers right as well.
float half_to_float(std::uint16_t half) {
  const std::uint32_t sign = std::uint32_t{half & 0x8000u} << 16;
  const std::uint32_t rest = std::uint32_t{half & 0x7fffu} << 13;
  const bool special = rest >= 0x0f800000u;  // inf, NaN
  const float scaled = std::bit_cast<float>(rest) * 0x1p112f;
  const std::uint32_t bits = special ? rest | 0x7f800000u : std::bit_cast<std::uint32_t>(scaled);
  return std::bit_cast<float>(sign | bits);
}

std::string text_at(const RowFile& file, std::int64_t at, std::int64_t bytes) {
  std::string text(static_cast<std::size_t>(bytes), '\0');
  file.read(at, text.data(), bytes);
  return text;
}

std::uint64_t little_endian(std::string_view bytes) {
  std::uint64_t value = 0;
  for (std::size_t i = bytes.size(); i-- > 0;) {
    value = value << 8 | static_cast<unsigned char>(bytes[i]);
  }
  return value;
}

// What follows 'key': in the header, a Python dictionary that numpy always writes alike.
std::string_view after_key(std::string_view header, std::string_view key) {
  const auto at = header.find(fmt::format("'{}':", key));
  if (at == std::string_view::npos) return {};
  const std::string_view rest = header.substr(at + key.size() + 3);
  const auto first = rest.find_first_not_of(' ');
  return first == std::string_view::npos ? std::string_view() : rest.substr(first);
}

// The .npy format: "\x93NUMPY", two version bytes, the header's length in 2 bytes (4 from version
// 2 on), and the header.
ArrayHeader read_npy(const RowFile& file, const std::string& path) {
  const std::int64_t size = file.bytes();
  const std::string start = text_at(file, 0, std::min<std::int64_t>(size, 12));
  if (start.size() < 12 || start.compare(0, 6, "\x93NUMPY") != 0) {
    throw_bad(path, "not an .npy file");
  }
  const int length_bytes = start[6] == 1 ? 2 : 4;
  const auto length = static_cast<std::int64_t>(
      little_endian(std::string_view(start).substr(8, static_cast<std::size_t>(length_bytes))));
  ArrayHeader out;
  out.begin = 8 + length_bytes + length;
  if (out.begin > size) throw_bad(path, "not a whole .npy file: its header is cut off");
  const std::string header = text_at(file, 8 + length_bytes, length);
  const std::string_view type = after_key(header, "descr");
  if (type.starts_with("'<f2'")) {
    out.format = RowFormat::f16;
  } else if (!type.starts_with("'<f4'")) {
    throw_bad(path, fmt::format("expected an array of f32 or f16 ('<f4', '<f2'), got {}",
                                type.substr(0, std::min(type.find(','), type.size()))));
  }
  if (!after_key(header, "fortran_order").starts_with("False")) {
    throw_bad(path, "expected rows one after the other, got an array in Fortran order");
  }
  std::string_view shape = after_key(header, "shape");
  if (shape.starts_with("(")) shape.remove_prefix(1);
  while (!shape.empty() && shape.front() != ')') {
    std::int64_t n = 0;
    std::size_t digits = 0;
    while (digits < shape.size() && shape[digits] >= '0' && shape[digits] <= '9' && digits < 18) {
      n = 10 * n + (shape[digits++] - '0');
    }
    if (digits == 0) throw_bad(path, "its header has no shape");
    out.shape.push_back(n);
    shape.remove_prefix(std::min(shape.find_first_not_of(", ", digits), shape.size()));
  }
  return out;
}

ArrayHeader read_safetensors_array(const RowFile& file, const std::string& path) {
  const std::int64_t size = file.bytes();
  if (size < 8) throw_bad(path, "not a valid safetensors file: too short");
  const std::uint64_t length = little_endian(text_at(file, 0, 8));
  if (length > static_cast<std::uint64_t>(size - 8)) {
    throw_bad(path, "not a valid safetensors file: header length out of bounds");
  }
  const std::string text = text_at(file, 8, static_cast<std::int64_t>(length));
  auto json = nlohmann::json::parse(text, nullptr, false);
  if (!json.is_object()) throw_bad(path, "not a valid safetensors file: the header is not JSON");
  json.erase("__metadata__");
  if (json.size() != 1) {
    throw_bad(path, fmt::format("expected one tensor [rows, width], got {}", json.size()));
  }
  const auto& entry = *json.begin();
  ArrayHeader out;
  try {
    const std::string type = entry.at("dtype");
    if (type != "F32" && type != "F16" && type != "BF16") {
      throw_bad(path, fmt::format("expected a tensor of F32, F16 or BF16, got {}", type));
    }
    out.format = type == "F32" ? RowFormat::f32 : type == "F16" ? RowFormat::f16 : RowFormat::bf16;
    out.shape = entry.at("shape").get<std::vector<std::int64_t>>();
    out.begin =
        8 + static_cast<std::int64_t>(length) + entry.at("data_offsets").at(0).get<std::int64_t>();
  } catch (const nlohmann::json::exception&) {
    throw_bad(path, "not a valid safetensors file: its tensor lacks dtype, shape or data_offsets");
  }
  return out;
}

void check_shape(const ArrayHeader& header, std::int64_t width, const std::string& path,
                 std::int64_t bytes) {
  if (header.shape.size() != 2 || header.shape[1] != width) {
    throw_bad(path, fmt::format("expected [rows, {}] (= --width), got [{}]", width,
                                fmt::join(header.shape, ", ")));
  }
  const std::int64_t row_bytes = width * bytes_of(header.format);
  const std::int64_t rows = header.shape[0];
  const std::int64_t most = std::numeric_limits<std::int64_t>::max() / row_bytes;
  if (rows < 1) throw_bad(path, "has no rows");
  if (rows > most || header.begin < 0 || rows * row_bytes > bytes - header.begin) {
    throw_bad(path, fmt::format("its header promises {} rows of {} bytes, but {} bytes follow",
                                rows, row_bytes, bytes - header.begin));
  }
}

std::int64_t read_pipe(int fd, void* out, std::int64_t n, std::int64_t row_bytes) {
  auto* to = static_cast<char*>(out);
  std::int64_t got = 0;
  while (got < n * row_bytes) {
    pollfd ready{.fd = fd, .events = POLLIN, .revents = 0};
    const int waited = ::poll(&ready, 1, kPollMs);
    if (interrupted()) return 0;
    if (waited <= 0) continue;
    const ssize_t part = ::read(fd, to + got, static_cast<std::size_t>(n * row_bytes - got));
    if (part < 0 && errno == EINTR) continue;
    if (part < 0) throw_bad("standard input", fmt::format("cannot read: {}", std::strerror(errno)));
    if (part == 0) break;
    got += part;
  }
  if (got % row_bytes != 0) {
    throw_bad("standard input",
              fmt::format("ends inside a row; expected f32 rows of {} bytes", row_bytes));
  }
  return got / row_bytes;
}

}  // namespace

std::int64_t bytes_of(RowFormat format) { return format == RowFormat::f32 ? 4 : 2; }

RowSource random_source(RngKey key, std::int64_t rows, std::int64_t width) {
  RowSource source{.width = width, .rows = rows};
  source.read = [=, at = std::int64_t{0}](void* out, std::int64_t n) mutable {
    n = std::min(n, rows - at);
    normal_rows(key, at, n, width, static_cast<float*>(out));
    at += n;
    return n;
  };
  return source;
}

RowSource embedding_source(const std::string& path, std::int64_t width) {
  RowSource source{.width = width, .waits = true};
  if (path == "-") {
    source.read = [row_bytes = source.row_bytes()](void* out, std::int64_t n) {
      return read_pipe(STDIN_FILENO, out, n, row_bytes);
    };
    return source;
  }
  const auto whole = RowFile::existing(path, 0);
  const bool npy = path.ends_with(".npy");
  if (!npy && !path.ends_with(".safetensors")) {
    throw_bad(path, "expected a file .npy or .safetensors, or - for raw f32 on standard input");
  }
  const ArrayHeader header = npy ? read_npy(*whole, path) : read_safetensors_array(*whole, path);
  check_shape(header, width, path, whole->bytes());
  source.format = header.format;
  source.rows = header.shape[0];
  source.file = RowFile::existing(path, header.begin);
  source.read = [file = source.file, rows = source.rows, row_bytes = source.row_bytes(),
                 at = std::int64_t{0}](void* out, std::int64_t n) mutable {
    n = std::min(n, rows - at);
    file->read(at * row_bytes, out, n * row_bytes);
    at += n;
    return n;
  };
  return source;
}

RowSource first_rows(RowSource source, std::int64_t rows, const std::string& name) {
  const auto too_few = [rows, name](std::int64_t has) {
    throw_bad(name, fmt::format("has {} rows; expected at least {} (= --length)", has, rows));
  };
  if (source.rows >= 0 && source.rows < rows) too_few(source.rows);
  source.rows = rows;
  source.read = [=, read = std::move(source.read), at = std::int64_t{0}](void* out,
                                                                         std::int64_t n) mutable {
    const std::int64_t wanted = std::min(n, rows - at);
    const std::int64_t got = wanted > 0 ? read(out, wanted) : 0;
    at += got;
    if (got < wanted && !interrupted()) too_few(at);
    return got;
  };
  return source;
}

Tensor rows_of(const Tensor& block, std::int64_t n, std::int64_t width, RowFormat format) {
  const Shape shape{n, width};
  if (format == RowFormat::f32) return {block.storage(), DType::f32, Layout::contiguous(shape)};
  if (format == RowFormat::bf16) {
    return Tensor(block.storage(), DType::bf16, Layout::contiguous(shape)).to(DType::f32);
  }
  Tensor out = Tensor::empty(shape);
  const auto* from = static_cast<const std::uint16_t*>(block.raw());
  auto* to = out.data<float>();
  parallel_for(out.numel(), kConvertGrain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) to[i] = half_to_float(from[i]);
  });
  return out;
}

}  // namespace proteus
