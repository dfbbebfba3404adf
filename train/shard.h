// Token ids in .bin files, as llm.c and nanoGPT have them: 1,024 bytes of header (256 × i32: magic,
// version, number of ids) and then u16 or u32 ids; or u16 ids alone. Files are memory-mapped.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "train/mapped_file.h"

namespace proteus {

/// What a shard's bytes say of themselves.
struct ShardHeader {
  std::int64_t tokens = 0;
  bool wide = false;        ///< u32 ids, otherwise u16
  std::size_t data_at = 0;  ///< where the ids begin
};
/// Throws FileError naming `path` when the header, the length or the number of ids do not agree.
ShardHeader parse_shard(std::string_view bytes, const std::string& path);

class Shard {
 public:
  /// Throws FileError like MappedFile and parse_shard.
  explicit Shard(const std::string& path);

  const std::string& path() const { return path_; }
  std::int64_t tokens() const { return header_.tokens; }
  int bytes_per_id() const { return header_.wide ? 4 : 2; }
  /// Whether the file says what it is, as those of llm.c do; those of nanoGPT are ids alone.
  bool has_header() const { return header_.data_at > 0; }
  /// The smallest and the largest id; {0, 0} of none.
  std::pair<std::uint32_t, std::uint32_t> id_range() const;
  /// ids[first, first + n) to `out`. Throws FileError naming the token when an id is not in
  /// [0, vocab).
  void copy(std::int64_t first, std::int64_t n, std::int64_t vocab, std::int32_t* out) const;

 private:
  std::string path_;
  std::shared_ptr<const MappedFile> file_;
  ShardHeader header_;
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
