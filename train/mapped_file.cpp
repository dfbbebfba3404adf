#include "train/mapped_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "tensor/error.h"

namespace proteus {

MappedFile::MappedFile(const std::string& path) {
  const auto fail = [&](int fd, std::string_view what) {
    if (fd >= 0) ::close(fd);
    throw FileError(fmt::format("{}: {}", path, what));
  };
  // Without O_NONBLOCK, opening a pipe would wait for somebody to write into it.
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) fail(fd, fmt::format("cannot read: {}", std::strerror(errno)));
  struct stat info {};
  if (::fstat(fd, &info) != 0) fail(fd, fmt::format("cannot read: {}", std::strerror(errno)));
  if (S_ISDIR(info.st_mode)) fail(fd, "is a directory; expected a file");
  if (!S_ISREG(info.st_mode)) fail(fd, "is not a regular file; copy its contents into one");
  size_ = static_cast<std::size_t>(info.st_size);
  if (size_ > 0) {
    data_ = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, fd, 0);
    if (data_ == MAP_FAILED) {
      const int error = errno;
      data_ = nullptr;
      fail(fd, fmt::format("cannot map: {}", std::strerror(error)));
    }
    ::madvise(data_, size_, MADV_SEQUENTIAL);
  }
  ::close(fd);
}

MappedFile::~MappedFile() {
  if (data_) ::munmap(data_, size_);
}

}  // namespace proteus
