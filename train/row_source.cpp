#include "train/row_source.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <limits>

#include "tensor/error.h"
#include "tensor/parallel.h"
#include "train/half.h"
#include "train/mapped_file.h"
#include "train/npy.h"
#include "train/random_rows.h"
#include "train/safetensors.h"
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

ArrayHeader read_npy(const std::string& path) {
  const MappedFile file(path);
  if (!is_npy(file.view())) throw_bad(path, "not an .npy file");
  const NpyInfo info = parse_npy_header(file.view(), path);
  if (info.descr != "<f4" && info.descr != "<f2") {
    throw_bad(path,
              fmt::format("expected an array of f32 or f16 ('<f4', '<f2'), got '{}'", info.descr));
  }
  if (info.fortran_order) {
    throw_bad(path, "expected rows one after the other, got an array in Fortran order");
  }
  return {info.descr == "<f2" ? RowFormat::f16 : RowFormat::f32, info.shape,
          static_cast<std::int64_t>(info.data_at)};
}

ArrayHeader read_safetensors_array(const std::string& path) {
  const SafetensorsFile file(path);
  if (file.count() != 1) {
    throw_bad(path, fmt::format("expected one tensor [rows, width], got {}", file.count()));
  }
  const TensorInfo info = file.info(0);
  if (info.dtype != FileDType::f32 && info.dtype != FileDType::f16 &&
      info.dtype != FileDType::bf16) {
    throw_bad(path,
              fmt::format("expected a tensor of F32, F16 or BF16, got {}", name_of(info.dtype)));
  }
  const RowFormat format = info.dtype == FileDType::f32   ? RowFormat::f32
                           : info.dtype == FileDType::f16 ? RowFormat::f16
                                                          : RowFormat::bf16;
  return {format,
          {info.shape.begin(), info.shape.end()},
          file.bytes(0).data() - file.contents().data()};
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
  const ArrayHeader header = npy ? read_npy(path) : read_safetensors_array(path);
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
    for (std::int64_t i = begin; i < end; ++i) to[i] = float_of_half(from[i]);
  });
  return out;
}

}  // namespace proteus
