#include "train/staging.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "tensor/error.h"

namespace proteus {
namespace {

// A text of unknown length takes its disk space in such steps.
constexpr std::int64_t kReserve = std::int64_t{256} << 20;

}  // namespace

Staging::Staging(const StagingConfig& config) : config_(config) {
  if (config.rows * config.row_bytes > config.ram_limit) spill();
}

Staging::Staging(const StagingConfig& config, std::shared_ptr<RowFile> file)
    : config_(config), ours_(false), file_(std::move(file)) {}

Staging::~Staging() {
  for (auto& writing : writing_) {
    if (writing.valid()) writing.wait();
  }
}

Tensor Staging::room() {
  const auto taken = static_cast<std::int64_t>(next_ + 1) * block_bytes();
  if (!file_ && config_.rows < 0 && taken > config_.ram_limit) spill();
  const std::size_t at = file_ ? next_ % kBlocks : next_;
  ++next_;
  if (file_ && writing_[at].valid()) writing_[at].get();
  if (at == blocks_.size()) {
    blocks_.push_back(Tensor::empty({config_.block_rows, config_.row_bytes}, DType::i8));
  }
  return blocks_[at];
}

void Staging::commit(std::int64_t rows) {
  const std::int64_t first = rows_;
  rows_ += rows;
  if (!file_ || !ours_ || rows == 0) return;
  const std::size_t at = (next_ - 1) % kBlocks;
  reserve(rows_ * config_.row_bytes);
  writing_[at] = std::async(std::launch::async, [this, first, rows, block = blocks_[at]] {
    file_->write(first * config_.row_bytes, block.raw(), rows * config_.row_bytes);
  });
  spilled_ = rows_ * config_.row_bytes;
}

void Staging::reserve(std::int64_t bytes) {
  if (bytes <= reserved_) return;
  reserved_ = std::max(bytes, config_.rows < 0 ? reserved_ + kReserve : bytes);
  file_->reserve(reserved_);
}

void Staging::spill() {
  file_ = RowFile::temporary(config_.spill_dir);
  reserve(std::max(config_.rows, rows_) * config_.row_bytes);
  std::int64_t left = rows_ * config_.row_bytes;
  for (std::size_t i = 0; i < blocks_.size() && left > 0; ++i) {
    const std::int64_t bytes = std::min(left, block_bytes());
    file_->write(static_cast<std::int64_t>(i) * block_bytes(), blocks_[i].raw(), bytes);
    left -= bytes;
  }
  spilled_ = rows_ * config_.row_bytes;
  blocks_.clear();
  next_ = 0;
  release_cached_memory();
}

void Staging::read(std::int64_t first, std::int64_t n, void* out) {
  if (first < 0 || n < 0 || first + n > rows_) {
    throw ConfigError(fmt::format("staging: rows [{}, {}) of {}", first, first + n, rows_));
  }
  for (auto& writing : writing_) {
    if (writing.valid()) writing.get();
  }
  if (file_) return file_->read(first * config_.row_bytes, out, n * config_.row_bytes);
  auto* to = static_cast<char*>(out);
  while (n > 0) {
    const std::int64_t inside = first % config_.block_rows;
    const std::int64_t part = std::min(n, config_.block_rows - inside);
    const Tensor& block = blocks_[static_cast<std::size_t>(first / config_.block_rows)];
    const auto bytes = static_cast<std::size_t>(part * config_.row_bytes);
    std::memcpy(to, static_cast<const char*>(block.raw()) + inside * config_.row_bytes, bytes);
    to += bytes;
    first += part;
    n -= part;
  }
}

}  // namespace proteus
