// Where the rows of a streamed text wait until they are read again: in memory up to a limit, beyond
// it in a file. Rows are bytes: embeddings, or token ids where a model can make embeddings again.
#pragma once

#include <array>
#include <cstdint>
#include <future>
#include <memory>
#include <string>
#include <vector>

#include "tensor/tensor.h"
#include "train/row_file.h"

namespace proteus {

struct StagingConfig {
  std::int64_t row_bytes = 0;
  std::int64_t block_rows = 4096;  ///< rows that come at once
  std::int64_t ram_limit = 0;      ///< bytes of rows that may stay in memory
  std::string spill_dir;
  std::int64_t rows = -1;  ///< of the whole text, −1 where nobody knows
};

/// Rows are put into room(), a block at a time, and are part of the text after commit(). A text
/// that is known to be over the limit goes to the file from the start, another one as a whole when
/// the limit is reached; in memory there are then a few blocks, written by a thread of their own.
class Staging {
 public:
  /// Throws OutOfMemory when the file cannot be made as large as it must be.
  explicit Staging(const StagingConfig& config);
  /// Over rows that are in a file already: nothing is written.
  Staging(const StagingConfig& config, std::shared_ptr<RowFile> file);
  /// Waits for what is being written.
  ~Staging();
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;

  /// i8 [block_rows, row_bytes] for the next block. Its rows can be read until room() has been
  /// called kBlocks − 1 more times. Throws OutOfMemory, also for an earlier block that could not be
  /// written.
  Tensor room();
  /// The first `rows` of the last room() belong to the text now; fewer than a block only at its
  /// end.
  void commit(std::int64_t rows);
  /// Rows [first, first + n) of the text. Throws FileError, OutOfMemory, ConfigError beyond its
  /// end.
  void read(std::int64_t first, std::int64_t n, void* out);

  std::int64_t rows() const { return rows_; }
  bool on_disk() const { return file_ != nullptr; }
  std::int64_t spilled_bytes() const { return spilled_; }

  static constexpr std::size_t kBlocks = 3;  ///< one is filled, one is read, one is written

 private:
  std::int64_t block_bytes() const { return config_.block_rows * config_.row_bytes; }
  void spill();
  void reserve(std::int64_t bytes);
  void write(std::int64_t at, const Tensor& block, std::int64_t bytes);

  StagingConfig config_;
  std::int64_t rows_ = 0;
  std::int64_t spilled_ = 0;
  std::int64_t reserved_ = 0;
  bool ours_ = true;  // the file is to be written
  std::shared_ptr<RowFile> file_;
  std::vector<Tensor> blocks_;  // all of them in memory; with a file, kBlocks in turns
  std::size_t next_ = 0;        // blocks handed out
  std::array<std::future<void>, kBlocks> writing_;
};

}  // namespace proteus
