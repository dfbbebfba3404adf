#include "train/file_ops.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <utility>

#include "tensor/error.h"

namespace proteus {
namespace {

namespace fs = std::filesystem;

std::function<int(FileOp, const std::string&)>& file_hook() {
  static std::function<int(FileOp, const std::string&)> hook;
  return hook;
}

constexpr std::string_view what_failed(FileOp op) {
  switch (op) {
    case FileOp::create:
    case FileOp::write:
      return "cannot write";
    case FileOp::sync:
      return "cannot sync";
    case FileOp::close:
      return "cannot close";
    case FileOp::rename:
      return "cannot rename";
    case FileOp::make_folder:
      return "cannot make the folder";
    case FileOp::remove:
      return "cannot remove";
  }
  return "failed";
}

[[noreturn]] void fail(FileOp op, const std::string& path, int error) {
  throw_file_error(path, what_failed(op), error);
}

void ask_hook(FileOp op, const std::string& path) {
  if (!file_hook()) return;
  if (const int error = file_hook()(op, path)) fail(op, path, error);
}

/// Some file systems cannot sync, and say EINVAL.
bool synced(int fd) { return ::fsync(fd) == 0 || errno == EINVAL; }

std::string hex(XXH64_hash_t value) { return fmt::format("{:016x}", value); }

}  // namespace

void set_file_hook(std::function<int(FileOp, const std::string& path)> hook) {
  file_hook() = std::move(hook);
}

void throw_file_error(const std::string& path, std::string_view what, int error) {
  const std::string message = fmt::format("{}: {}: {}", path, what, std::strerror(error));
  if (error == ENOSPC || error == EDQUOT) throw OutOfMemory(message + "; free some disk space");
  throw FileError(message);
}

OutputFile::OutputFile(const std::string& path)
    : path_(path), fd_(-1), hash_(XXH3_createState(), [](XXH3_state_s* s) { XXH3_freeState(s); }) {
  ask_hook(FileOp::create, path_);
  if (!hash_ || XXH3_64bits_reset(hash_.get()) != XXH_OK) throw std::bad_alloc();
  fd_ = ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (fd_ < 0) fail(FileOp::create, path_, errno);
}

OutputFile::~OutputFile() {
  if (fd_ >= 0) ::close(fd_);
}

void OutputFile::write(const void* data, std::size_t bytes) {
  ask_hook(FileOp::write, path_);
  const char* p = static_cast<const char*>(data);
  if (bytes > 0) XXH3_64bits_update(hash_.get(), p, bytes);
  bytes_ += bytes;
  while (bytes > 0) {
    const ssize_t n = ::write(fd_, p, bytes);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail(FileOp::write, path_, errno);
    p += n;
    bytes -= static_cast<std::size_t>(n);
  }
}

void OutputFile::close() {
  ask_hook(FileOp::sync, path_);
  if (!synced(fd_)) fail(FileOp::sync, path_, errno);
  ask_hook(FileOp::close, path_);
  if (::close(std::exchange(fd_, -1)) != 0) fail(FileOp::close, path_, errno);
}

std::string OutputFile::hash() const { return hex(XXH3_64bits_digest(hash_.get())); }

std::string file_hash(std::string_view bytes) {
  return hex(XXH3_64bits(bytes.data(), bytes.size()));
}

void sync_folder(const std::string& path) {
  ask_hook(FileOp::sync, path);
  const int fd = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) fail(FileOp::sync, path, errno);
  const bool good = synced(fd);
  const int error = errno;
  ::close(fd);
  if (!good) fail(FileOp::sync, path, error);
}

void rename_path(const std::string& from, const std::string& to) {
  ask_hook(FileOp::rename, to);
  if (::rename(from.c_str(), to.c_str()) != 0) fail(FileOp::rename, to, errno);
}

void make_folders(const std::string& path) {
  ask_hook(FileOp::make_folder, path);
  std::error_code error;
  fs::create_directories(path, error);
  if (error) fail(FileOp::make_folder, path, error.value());
}

void remove_path(const std::string& path) {
  ask_hook(FileOp::remove, path);
  std::error_code error;
  fs::remove_all(path, error);
  if (error) fail(FileOp::remove, path, error.value());
}

void write_file_atomically(const std::string& path, std::string_view text) {
  const std::string temporary = path + ".tmp";
  try {
    OutputFile file(temporary);
    file.write(text);
    file.close();
    rename_path(temporary, path);
  } catch (const Error&) {
    ::unlink(temporary.c_str());
    throw;
  }
}

}  // namespace proteus
