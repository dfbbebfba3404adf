#include "train/row_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>

#include "tensor/error.h"

namespace proteus {

std::shared_ptr<RowFile> RowFile::existing(const std::string& path, std::int64_t offset) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) throw FileError(fmt::format("{}: cannot read: {}", path, std::strerror(errno)));
  struct stat info {};
  if (::fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
    ::close(fd);
    throw FileError(fmt::format("{}: is not a regular file; give a pipe as -", path));
  }
  ::posix_fadvise(fd, 0, 0, POSIX_FADV_SEQUENTIAL);
  return std::shared_ptr<RowFile>(new RowFile(fd, path, offset));
}

std::shared_ptr<RowFile> RowFile::temporary(const std::string& folder) {
  std::string path = (std::filesystem::path(folder) / "proteus-spill-XXXXXX").string();
  const int fd = ::mkostemp(path.data(), O_CLOEXEC);
  if (fd < 0) {
    throw OutOfMemory(
        fmt::format("--spill-dir {}: cannot make a file: {}; choose another --spill-dir or a "
                    "larger --ram-limit",
                    folder, std::strerror(errno)));
  }
  ::unlink(path.c_str());
  return std::shared_ptr<RowFile>(new RowFile(fd, "--spill-dir " + folder, 0));
}

RowFile::~RowFile() { ::close(fd_); }

std::int64_t RowFile::bytes() const {
  struct stat info {};
  return ::fstat(fd_, &info) == 0 ? std::int64_t{info.st_size} - offset_ : 0;
}

void RowFile::throw_no_space(int error) const {
  throw OutOfMemory(
      fmt::format("{}: cannot write: {}; free some disk space, choose another --spill-dir or a "
                  "larger --ram-limit",
                  name_, std::strerror(error)));
}

void RowFile::reserve(std::int64_t bytes) {
  const int error = ::posix_fallocate(fd_, offset_, bytes);
  if (error != 0 && error != EINVAL && error != EOPNOTSUPP) throw_no_space(error);
}

void RowFile::read(std::int64_t at, void* out, std::int64_t bytes) const {
  auto* to = static_cast<char*>(out);
  while (bytes > 0) {
    const ssize_t n = ::pread(fd_, to, static_cast<std::size_t>(bytes), offset_ + at);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) throw FileError(fmt::format("{}: cannot read: {}", name_, std::strerror(errno)));
    if (n == 0) {
      throw FileError(
          fmt::format("{}: ends at byte {}, {} bytes early; did it shrink while it was "
                      "read?",
                      name_, offset_ + at, bytes));
    }
    to += n;
    at += n;
    bytes -= n;
  }
}

void RowFile::write(std::int64_t at, const void* data, std::int64_t bytes) {
  const auto* from = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t n = ::pwrite(fd_, from, static_cast<std::size_t>(bytes), offset_ + at);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) throw_no_space(n < 0 ? errno : ENOSPC);
    from += n;
    at += n;
    bytes -= n;
  }
}

}  // namespace proteus
