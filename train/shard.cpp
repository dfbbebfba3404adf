#include "train/shard.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <filesystem>
#include <limits>

#include "tensor/error.h"
#include "train/file_ops.h"

namespace proteus {
namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kHeaderBytes = 1024;
constexpr std::int32_t kMagic16 = 20240520;
constexpr std::int32_t kVersion16 = 1;
constexpr std::int32_t kMagic32 = 20240801;
constexpr std::int32_t kVersion32 = 7;
constexpr std::int64_t kMost16 = 1 << 16;

template <class Id>
std::pair<std::uint32_t, std::uint32_t> range_of(const char* ids, std::int64_t n) {
  if (n == 0) return {0, 0};
  Id least = std::numeric_limits<Id>::max();
  Id largest = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    Id id = 0;
    std::memcpy(&id, ids + i * static_cast<std::int64_t>(sizeof id), sizeof id);
    least = std::min(least, id);
    largest = std::max(largest, id);
  }
  return {least, largest};
}

std::int32_t word(std::string_view bytes, std::size_t i) {
  std::int32_t value = 0;
  std::memcpy(&value, bytes.data() + 4 * i, 4);
  return value;
}

}  // namespace

ShardHeader parse_shard(std::string_view bytes, const std::string& path) {
  const auto size = static_cast<std::int64_t>(bytes.size());
  const auto fail = [&](const std::string& what) {
    throw FileError(fmt::format("{}: {}", path, what));
  };
  ShardHeader header;
  const std::int32_t magic = size >= 4 ? word(bytes, 0) : 0;
  if (magic != kMagic16 && magic != kMagic32) {
    if (size == 0 || size % 2 != 0) {
      fail(fmt::format("expected u16 ids, or a header and ids, got {} bytes", size));
    }
    header.tokens = size / 2;
    return header;
  }
  header.wide = magic == kMagic32;
  header.data_at = kHeaderBytes;
  if (size < kHeaderBytes) fail(fmt::format("the header is cut off at {} bytes", size));
  const std::int32_t version = word(bytes, 1);
  const std::int32_t expected = header.wide ? kVersion32 : kVersion16;
  if (version != expected) fail(fmt::format("version {}, expected {}", version, expected));
  header.tokens = word(bytes, 2);
  const std::int64_t id_bytes = header.wide ? 4 : 2;
  if (header.tokens < 0 || size != kHeaderBytes + header.tokens * id_bytes) {
    fail(fmt::format("the header says {} ids of {} bytes, the file has {} bytes of them",
                     header.tokens, id_bytes, size - kHeaderBytes));
  }
  return header;
}

Shard::Shard(const std::string& path)
    : path_(path),
      file_(std::make_shared<const MappedFile>(path)),
      header_(parse_shard(file_->view(), path)) {}

std::pair<std::uint32_t, std::uint32_t> Shard::id_range() const {
  const char* ids = file_->view().data() + header_.data_at;
  return header_.wide ? range_of<std::uint32_t>(ids, header_.tokens)
                      : range_of<std::uint16_t>(ids, header_.tokens);
}

void Shard::copy(std::int64_t first, std::int64_t n, std::int64_t vocab, std::int32_t* out) const {
  const char* ids = file_->view().data() + header_.data_at;
  if (header_.wide) {
    std::memcpy(out, ids + 4 * first, static_cast<std::size_t>(4 * n));
  } else {
    for (std::int64_t i = 0; i < n; ++i) {
      std::uint16_t id = 0;
      std::memcpy(&id, ids + 2 * (first + i), 2);
      out[i] = id;
    }
  }
  for (std::int64_t i = 0; i < n; ++i) {
    if (out[i] >= 0 && out[i] < vocab) continue;
    throw FileError(
        fmt::format("{}: token {} is id {}, expected one in [0, {}) (= the tokenizer's vocab); are "
                    "these ids of "
                    "another tokenizer?",
                    path_, first + i, static_cast<std::uint32_t>(out[i]), vocab));
  }
}

std::vector<std::string> shard_paths(const std::string& path) {
  std::error_code error;
  if (!fs::is_directory(path, error)) return {path};
  std::vector<std::string> paths;
  for (const auto& entry : fs::directory_iterator(path, error)) {
    if (entry.path().extension() == ".bin") paths.push_back(entry.path().string());
  }
  if (error) throw FileError(fmt::format("{}: cannot read: {}", path, error.message()));
  if (paths.empty()) {
    throw FileError(
        fmt::format("{}: is a directory without .bin files; expected a text, or shards", path));
  }
  std::sort(paths.begin(), paths.end());
  return paths;
}

bool is_shard_path(const std::string& path) {
  std::error_code ignored;
  return fs::is_directory(path, ignored) || fs::path(path).extension() == ".bin";
}

bool is_validation_shard(const std::string& path) {
  return fs::path(path).stem().string().find("val") != std::string::npos;
}

std::string tokenizer_beside(const std::string& path) {
  std::error_code ignored;
  const fs::path folder =
      fs::is_directory(path, ignored) ? fs::path(path) : fs::path(path).parent_path();
  const fs::path file = folder / "tokenizer.json";
  return fs::exists(file, ignored) ? file.string() : std::string();
}

void write_shard(const std::string& path, std::span<const std::int32_t> ids, std::int64_t vocab) {
  const bool wide = vocab > kMost16;
  std::array<std::int32_t, kHeaderBytes / 4> header{};
  header[0] = wide ? kMagic32 : kMagic16;
  header[1] = wide ? kVersion32 : kVersion16;
  header[2] = static_cast<std::int32_t>(ids.size());
  std::string bytes(reinterpret_cast<const char*>(header.data()), kHeaderBytes);
  if (wide) {
    bytes.append(reinterpret_cast<const char*>(ids.data()), ids.size_bytes());
  } else {
    for (const std::int32_t id : ids) {
      const auto narrow = static_cast<std::uint16_t>(id);
      bytes.append(reinterpret_cast<const char*>(&narrow), 2);
    }
  }
  write_file_atomically(path, bytes);
}

}  // namespace proteus
