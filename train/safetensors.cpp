#include "train/safetensors.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "tensor/error.h"

namespace proteus {
namespace {

using nlohmann::json;
constexpr std::uint64_t kMaxHeader = std::uint64_t{100} << 20;

constexpr std::pair<DType, const char*> kNames[] = {{DType::f64, "F64"},   {DType::f32, "F32"},
                                                    {DType::bf16, "BF16"}, {DType::i8, "I8"},
                                                    {DType::i32, "I32"},   {DType::i64, "I64"}};

std::string file_name(DType dtype) {
  for (const auto& [d, name] : kNames) {
    if (d == dtype) return name;
  }
  return "?";
}

class OutputFile {
 public:
  explicit OutputFile(const std::string& path)
      : path_(path), fd_(::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644)) {
    if (fd_ < 0) fail("cannot be created");
  }
  ~OutputFile() {
    if (fd_ >= 0) ::close(fd_);
  }
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;

  void write(const void* data, std::size_t bytes) {
    const char* p = static_cast<const char*>(data);
    while (bytes > 0) {
      const ssize_t n = ::write(fd_, p, bytes);
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) fail("cannot be written");
      p += n;
      bytes -= static_cast<std::size_t>(n);
    }
  }
  void close() {
    if (::fsync(fd_) != 0) fail("cannot be synced");
    const int fd = std::exchange(fd_, -1);
    if (::close(fd) != 0) fail("cannot be closed");
  }

 private:
  [[noreturn]] void fail(const char* what) const {
    const std::string text = path_ + ": " + what + ": " + std::strerror(errno);
    if (errno == ENOSPC || errno == EDQUOT) throw OutOfMemory(text + "; free some space");
    throw FileError(text);
  }
  std::string path_;
  int fd_;
};

[[noreturn]] void malformed(const std::string& path, const std::string& why) {
  throw FileError(path + ": not a valid safetensors file: " + why);
}

struct Entry {
  std::string name;
  DType dtype;
  Shape shape;
  std::uint64_t begin, end;
};

Entry parse_entry(const std::string& path, const std::string& name, const json& value) {
  if (!value.is_object() || !value.contains("dtype") || !value.contains("shape") ||
      !value.contains("data_offsets") || !value["dtype"].is_string() ||
      !value["shape"].is_array() || !value["data_offsets"].is_array() ||
      value["data_offsets"].size() != 2) {
    malformed(path, "\"" + name + "\" lacks dtype, shape or data_offsets");
  }
  const std::string dtype = value["dtype"];
  const auto* found = std::find_if(std::begin(kNames), std::end(kNames),
                                   [&](const auto& n) { return dtype == n.second; });
  if (found == std::end(kNames)) malformed(path, "\"" + name + "\" has dtype " + dtype);
  if (value["shape"].size() > kMaxRank) malformed(path, "\"" + name + "\" has too many dimensions");
  Entry entry{name, found->first, {}, 0, 0};
  std::uint64_t bytes = size_of(entry.dtype);
  for (const json& size : value["shape"]) {
    if (!size.is_number_unsigned()) malformed(path, "\"" + name + "\" has a bad shape");
    const auto n = size.get<std::uint64_t>();
    const auto limit = static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());
    if (n > limit || (n > 0 && bytes > limit / n)) {
      malformed(path, "\"" + name + "\" has a shape that overflows");
    }
    bytes *= n;
    entry.shape.push_back(static_cast<std::int64_t>(n));
  }
  for (const json& offset : value["data_offsets"]) {
    if (!offset.is_number_unsigned()) malformed(path, "\"" + name + "\" has bad data_offsets");
  }
  entry.begin = value["data_offsets"][0];
  entry.end = value["data_offsets"][1];
  if (entry.end < entry.begin || entry.end - entry.begin != bytes) {
    malformed(path, "\"" + name + "\": its data_offsets do not fit its shape");
  }
  return entry;
}

// nlohmann's parser keeps the last of two equal keys; the format forbids them.
json parse_header(const std::string& path, const std::string& text) {
  std::set<std::string> seen;
  const auto callback = [&](int depth, json::parse_event_t event, json& parsed) {
    if (event == json::parse_event_t::key && depth == 1 &&
        !seen.insert(parsed.get<std::string>()).second) {
      malformed(path, "name \"" + parsed.get<std::string>() + "\" twice");
    }
    return true;
  };
  try {
    json header = json::parse(text, callback);
    if (!header.is_object()) malformed(path, "the header is not an object");
    return header;
  } catch (const json::exception&) {
    malformed(path, "the header is not JSON");
  }
}

}  // namespace

void write_safetensors(const std::string& path, const NamedTensors& tensors) {
  json header = json::object();
  std::uint64_t at = 0;
  for (const auto& [name, tensor] : tensors) {
    const auto bytes = static_cast<std::uint64_t>(tensor.bytes());
    const std::vector<std::int64_t> shape(tensor.shape().begin(), tensor.shape().end());
    header[name] = {
        {"dtype", file_name(tensor.dtype())}, {"shape", shape}, {"data_offsets", {at, at + bytes}}};
    at += bytes;
  }
  if (header.size() != tensors.size()) throw FileError(path + ": two tensors have the same name");
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');  // keeps the data aligned
  OutputFile file(path);
  std::uint64_t length = text.size();
  char prefix[8];
  for (char& byte : prefix) {
    byte = static_cast<char>(length & 0xff);
    length >>= 8;
  }
  file.write(prefix, sizeof prefix);
  file.write(text.data(), text.size());
  for (const auto& [name, tensor] : tensors) {
    const Tensor host = tensor.to(kCpu).contiguous();
    file.write(host.raw(), static_cast<std::size_t>(host.bytes()));
  }
  file.close();
}

NamedTensors read_safetensors(const std::string& path) {
  struct stat info {};
  if (::stat(path.c_str(), &info) != 0) throw FileError(path + ": " + std::strerror(errno));
  if (!S_ISREG(info.st_mode)) throw FileError(path + ": not a regular file");
  const auto file_bytes = static_cast<std::uint64_t>(info.st_size);
  std::ifstream file(path, std::ios::binary);
  unsigned char prefix[8];
  if (!file.read(reinterpret_cast<char*>(prefix), sizeof prefix)) malformed(path, "too short");
  std::uint64_t length = 0;
  for (int i = 7; i >= 0; --i) length = length << 8 | prefix[i];
  if (length > kMaxHeader || length > file_bytes - 8)
    malformed(path, "header length out of bounds");
  std::string text(static_cast<std::size_t>(length), '\0');
  if (!file.read(text.data(), static_cast<std::streamsize>(length))) malformed(path, "truncated");

  std::vector<Entry> entries;
  const json header = parse_header(path, text);
  for (const auto& [name, value] : header.items()) {
    if (name != "__metadata__") entries.push_back(parse_entry(path, name, value));
  }
  std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  std::uint64_t at = 0;
  for (const Entry& entry : entries) {
    if (entry.begin != at) malformed(path, "\"" + entry.name + "\" overlaps or leaves a hole");
    at = entry.end;
  }
  if (at != file_bytes - 8 - length) malformed(path, "the data has another size than declared");

  NamedTensors tensors;
  for (const Entry& entry : entries) {
    Tensor tensor = Tensor::empty(entry.shape, entry.dtype);
    if (tensor.bytes() > 0 && !file.read(static_cast<char*>(tensor.raw()),
                                         static_cast<std::streamsize>(tensor.bytes()))) {
      malformed(path, "truncated");
    }
    tensors.emplace_back(entry.name, tensor);
  }
  return tensors;
}

}  // namespace proteus
