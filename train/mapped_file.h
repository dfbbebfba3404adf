// A file's bytes, mapped read-only into memory.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace proteus {

class MappedFile {
 public:
  /// Throws FileError when `path` is missing, unreadable, a directory or anything but a regular
  /// file. An empty file gives an empty view.
  explicit MappedFile(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::string_view view() const { return {static_cast<const char*>(data_), size_}; }

 private:
  void* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace proteus
