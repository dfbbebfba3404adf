// Token ids in .bin files, as llm.c and nanoGPT have them: 1,024 bytes of header (256 × i32: magic,
// version, number of ids) and then u16 or u32 ids; or u16 ids alone. Files are memory-mapped.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "train/mapped_file.h"

namespace proteus {

class Shard {
 public:
  /// Throws FileError when the header, the length or the number of ids do not agree.
  explicit Shard(const std::string& path);

  const std::string& path() const { return path_; }
  std::int64_t tokens() const { return tokens_; }
  int bytes_per_id() const { return wide_ ? 4 : 2; }
  /// ids[first, first + n) to `out`. Throws FileError naming the token when an id is not in
  /// [0, vocab).
  void copy(std::int64_t first, std::int64_t n, std::int64_t vocab, std::int32_t* out) const;

 private:
  std::string path_;
  std::shared_ptr<const MappedFile> file_;
  const char* ids_ = nullptr;
  std::int64_t tokens_ = 0;
  bool wide_ = false;
};

/// The .bin files of `path`: itself, or those of a folder in order of their names. Throws FileError
/// when there is none.
std::vector<std::string> shard_paths(const std::string& path);
/// Whether `path` is a .bin file or a folder.
bool is_shard_path(const std::string& path);
/// Whether a file's name says that it is for validation ("val.bin", "corpus_val_000000.bin").
bool is_validation_shard(const std::string& path);
/// The tokenizer beside shards: tokenizer.json in their folder; empty if there is none.
std::string tokenizer_beside(const std::string& path);

/// Writes ids with a header, u16 where the vocabulary allows. Throws FileError, OutOfMemory when
/// the disk is full.
void write_shard(const std::string& path, std::span<const std::int32_t> ids, std::int64_t vocab);

}  // namespace proteus
