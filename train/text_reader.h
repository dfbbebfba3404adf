// A text file read once from front to back as ids, piece by piece: a file of any size, or a pipe.
#pragma once

#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include "train/tokenizer.h"

namespace proteus {

class TextReader {
 public:
  /// `path` is a file or a pipe; "-" is standard input. Throws FileError when it cannot be opened.
  /// The tokenizer must outlive the reader.
  TextReader(const Tokenizer& tokenizer, std::string path);
  ~TextReader();
  TextReader(const TextReader&) = delete;
  TextReader& operator=(const TextReader&) = delete;

  /// The ids of the next megabyte or so; empty at the end. They are those of the whole text: a
  /// character is never cut, and what bpe may merge is not either. Throws
  /// FileError naming the file and the offset in it: for a character that has no id or is not
  /// UTF-8, a failed read, and a file that became shorter while it was read.
  std::vector<std::int32_t> next();
  std::int64_t bytes() const { return bytes_; }

 private:
  /// Bytes at the end of a text that what follows may belong to.
  std::size_t unfinished(std::string_view text) const;

  const Tokenizer& tokenizer_;
  std::string path_;
  std::FILE* file_ = nullptr;
  std::int64_t size_ = -1;  // of a regular file when it was opened
  std::int64_t bytes_ = 0;  // that became ids
  std::string rest_;        // read, but not yet ids
  bool ended_ = false;
};

}  // namespace proteus
