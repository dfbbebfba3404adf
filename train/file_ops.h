// Writing files that are whole or not there: the system calls behind checkpoints and summaries, in
// one place, where a test can make any one of them fail.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

struct XXH3_state_s;

namespace proteus {

enum class FileOp : std::uint8_t { create, write, sync, close, rename, make_folder, remove };

/// Asked before every operation on a file that is written; an errno makes it fail, 0 lets it go on.
/// For tests; an empty function takes the hook away. Not to be changed while files are written.
void set_file_hook(std::function<int(FileOp, const std::string& path)> hook);

/// Throws OutOfMemory when `error` says that the disk is full, otherwise FileError:
/// "path: cannot write: No space left on device; free some disk space".
[[noreturn]] void throw_file_error(const std::string& path, std::string_view what, int error);

/// A new file, written from its start. All functions throw FileError, or OutOfMemory when the disk
/// is full.
class OutputFile {
 public:
  /// Replaces a file of that name.
  explicit OutputFile(const std::string& path);
  ~OutputFile();
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;

  void write(const void* data, std::size_t bytes);
  void write(std::string_view text) { write(text.data(), text.size()); }
  /// Waits until the bytes are on the disk, and closes. A file that is not closed is not complete.
  void close();

  std::uint64_t bytes() const { return bytes_; }
  /// Of what was written: XXH3, as file_hash() makes it.
  std::string hash() const;

 private:
  std::string path_;
  int fd_;
  std::uint64_t bytes_ = 0;
  std::unique_ptr<XXH3_state_s, void (*)(XXH3_state_s*)> hash_;
};

/// XXH3 (64 bits) of bytes, as 16 hexadecimal digits.
std::string file_hash(std::string_view bytes);

/// Puts the names in a folder on the disk. Does nothing on file systems that cannot.
void sync_folder(const std::string& path);
/// In one step: whoever looks sees the old name or the new one.
void rename_path(const std::string& from, const std::string& to);
/// With its parents; it may be there already.
void make_folders(const std::string& path);
/// A file or a folder with all that is in it; it may be absent.
void remove_path(const std::string& path);

/// Writes a whole file by way of a temporary one beside it, synced and renamed: readers see the old
/// file or the new one. Throws FileError, OutOfMemory when the disk is full.
void write_file_atomically(const std::string& path, std::string_view text);

}  // namespace proteus
