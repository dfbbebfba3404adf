// Fixed-size rows in a file: one that is there already, or one that a run spills into. Reads and
// writes are whole or they throw.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

namespace proteus {

class RowFile {
 public:
  /// Rows begin at byte `offset` of a regular file. Throws FileError.
  static std::shared_ptr<RowFile> existing(const std::string& path, std::int64_t offset);
  /// A file without a name in `folder`: however the program ends, nothing stays. Throws OutOfMemory
  /// where there can be no such file.
  static std::shared_ptr<RowFile> temporary(const std::string& folder);
  ~RowFile();
  RowFile(const RowFile&) = delete;
  RowFile& operator=(const RowFile&) = delete;

  /// Bytes after `offset`.
  std::int64_t bytes() const;
  /// Takes the disk space of the first `bytes`, so that a full disk is found before the work is
  /// done. Throws OutOfMemory.
  void reserve(std::int64_t bytes);
  /// Throws FileError when the file ends before.
  void read(std::int64_t at, void* out, std::int64_t bytes) const;
  /// Throws OutOfMemory.
  void write(std::int64_t at, const void* data, std::int64_t bytes);

 private:
  RowFile(int fd, std::string name, std::int64_t offset)
      : fd_(fd), name_(std::move(name)), offset_(offset) {}
  [[noreturn]] void throw_no_space(int error) const;

  int fd_;
  std::string name_;
  std::int64_t offset_;
};

}  // namespace proteus
