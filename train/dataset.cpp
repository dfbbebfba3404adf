#include "train/dataset.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <type_traits>

#include "tensor/error.h"
#include "train/draw.h"
#include "train/mapped_file.h"

namespace proteus {
namespace {

/// A text whose parts cannot hold this many tokens is called too small; above it, it is the context
/// that is too long.
constexpr std::int64_t kSmallestUsualContext = 64;

std::int64_t train_share(std::int64_t tokens) {
  return tokens / 10 * 9 + tokens % 10 * 9 / 10;  // ⌊0.9·n⌋ without overflow
}

/// Keeps random batches apart from other users of the same seed.
constexpr std::uint64_t kBatchSalt = 0x6261'7463'6865'7301;

}  // namespace

std::string_view name_of(Split split) {
  return split == Split::train ? "training part (first 90%)" : "validation part (last 10%)";
}

Dataset Dataset::from_file(const std::string& path, TokenizerKind kind) {
  const MappedFile file(path);
  return from_text(file.view(), kind, path);
}

Dataset Dataset::from_file(const std::string& path, const Tokenizer& tokenizer) {
  const MappedFile file(path);
  return from_text(file.view(), tokenizer, path);
}

Dataset Dataset::from_text(std::string_view text, TokenizerKind kind, const std::string& source) {
  return from_text(
      text, kind == TokenizerKind::bytes ? Tokenizer::bytes() : Tokenizer::chars_of(text, source),
      source);
}

Dataset Dataset::from_text(std::string_view text, const Tokenizer& tokenizer,
                           const std::string& source) {
  if (text.empty()) {
    throw FileError(fmt::format("{}: the file is empty; expected text to train on", source));
  }
  Dataset dataset(tokenizer);
  dataset.source_ = source;
  dataset.bytes_ = static_cast<std::int64_t>(text.size());
  std::vector<std::int32_t> ids = tokenizer.encode(text, source);
  dataset.train_tokens_ = train_share(static_cast<std::int64_t>(ids.size()));
  if (tokenizer.vocab() <= std::numeric_limits<std::uint16_t>::max() + 1) {
    dataset.ids_ = std::vector<std::uint16_t>(ids.begin(), ids.end());
  } else {
    dataset.ids_ = std::move(ids);
  }
  return dataset;
}

Dataset Dataset::from_shards(const std::string& path, const Tokenizer& tokenizer) {
  std::vector<Shard> train, validation;
  for (const std::string& file : shard_paths(path)) {
    (is_validation_shard(file) ? validation : train).emplace_back(file);
  }
  if (train.empty()) {
    throw FileError(
        fmt::format("{}: every shard is for validation; expected some to train on", path));
  }
  Dataset dataset(tokenizer);
  dataset.source_ = path;
  for (const Shard& shard : train) dataset.train_tokens_ += shard.tokens();
  if (validation.empty()) dataset.train_tokens_ = train_share(dataset.train_tokens_);
  train.insert(train.end(), validation.begin(), validation.end());
  for (const Shard& shard : train) dataset.bytes_ += shard.tokens() * shard.bytes_per_id();
  dataset.ids_ = std::move(train);
  return dataset;
}

std::int64_t Dataset::tokens() const {
  if (const auto* shards = std::get_if<std::vector<Shard>>(&ids_)) {
    std::int64_t tokens = 0;
    for (const Shard& shard : *shards) tokens += shard.tokens();
    return tokens;
  }
  return std::visit([](const auto& ids) { return static_cast<std::int64_t>(ids.size()); }, ids_);
}

std::int64_t Dataset::tokens(Split split) const {
  return split == Split::train ? train_tokens_ : tokens() - train_tokens_;
}

std::int64_t Dataset::begin_of(Split split) const {
  return split == Split::train ? 0 : train_tokens_;
}

double Dataset::bytes_per_target(Split split) const {
  const std::int64_t n = tokens(split);
  if (n < 2) return 0;
  std::vector<std::int64_t> lengths(static_cast<std::size_t>(tokenizer_.vocab()));
  for (std::size_t id = 0; id < lengths.size(); ++id) {
    lengths[id] = tokenizer_.byte_length(static_cast<std::int32_t>(id));
  }
  constexpr std::int64_t kBlock = 65536;
  std::vector<std::int32_t> ids(kBlock);
  std::int64_t bytes = 0;
  for (std::int64_t at = 1; at < n; at += kBlock) {  // the first token of a part is never a target
    const std::int64_t count = std::min(kBlock, n - at);
    copy_ids(begin_of(split) + at, count, ids.data());
    for (std::int64_t i = 0; i < count; ++i) {
      bytes += lengths[static_cast<std::size_t>(ids[static_cast<std::size_t>(i)])];
    }
  }
  return static_cast<double>(bytes) / static_cast<double>(n - 1);
}

void Dataset::check_context(std::int64_t context) const {
  if (context < 1) {
    throw ConfigError(fmt::format("--context: expected at least 1, got {}", context));
  }
  // The validation part is the smaller one, except in texts of a few tokens.
  const Split split = tokens(Split::train) < tokens(Split::validation) ? Split::train  //
                                                                       : Split::validation;
  const std::int64_t most = tokens(split) - 1;
  if (context <= most) return;
  const std::string counts =
      fmt::format("{}: {} tokens, of which the {} has {}; --context {} needs at least {} there",
                  source_, tokens(), name_of(split), tokens(split), context, context + 1);
  if (most < kSmallestUsualContext) {
    throw FileError(fmt::format("{}; use a longer text{}", counts,
                                most >= 1 ? fmt::format(" or --context {}", most) : ""));
  }
  throw ConfigError(fmt::format("{}; use --context {} or less, or a longer text", counts, most));
}

void Dataset::copy_ids(std::int64_t first, std::int64_t n, std::int32_t* out) const {
  const auto* shards = std::get_if<std::vector<Shard>>(&ids_);
  if (!shards) {
    std::visit(
        [&](const auto& ids) {
          if constexpr (!std::is_same_v<std::decay_t<decltype(ids)>, std::vector<Shard>>) {
            std::copy_n(ids.begin() + first, n, out);
          }
        },
        ids_);
    return;
  }
  for (const Shard& shard : *shards) {
    const std::int64_t here = std::min(n, shard.tokens() - first);
    if (here > 0) {
      shard.copy(first, here, tokenizer_.vocab(), out);
      out += here;
      n -= here;
    }
    if (n == 0) return;
    first = std::max<std::int64_t>(0, first - shard.tokens());
  }
}

Batch Dataset::random_batch(std::uint64_t seed, std::uint64_t step, std::int64_t rows,
                            std::int64_t context) const {
  check_context(context);
  Batch batch{Tensor::empty({rows, context}, DType::i32),
              Tensor::empty({rows, context}, DType::i32)};
  auto* x = batch.inputs.data<std::int32_t>();
  auto* y = batch.targets.data<std::int32_t>();
  Draw draw({seed ^ kBatchSalt, step});
  for (std::int64_t r = 0; r < rows; ++r) {
    const std::int64_t start = draw.below(train_tokens_ - context);
    copy_ids(start, context, x + r * context);
    copy_ids(start + 1, context, y + r * context);
  }
  return batch;
}

std::int64_t Dataset::sequential_batches(Split split, std::int64_t rows,
                                         std::int64_t context) const {
  const std::int64_t targets = std::max<std::int64_t>(tokens(split) - 1, 0);
  const std::int64_t sequences = targets / context;
  return (sequences + rows - 1) / rows + (targets % context > 0 ? 1 : 0);
}

Batch Dataset::sequential_batch(Split split, std::int64_t index, std::int64_t rows,
                                std::int64_t context) const {
  const std::int64_t count = sequential_batches(split, rows, context);
  if (index < 0 || index >= count) {
    throw ConfigError(
        fmt::format("sequential_batch(split, index, rows, context): index: expected "
                    "a number in [0, {}), got {}",
                    count, index));
  }
  const std::int64_t targets = tokens(split) - 1;
  const std::int64_t sequences = targets / context;
  const std::int64_t first = index * rows;
  const bool rest = first >= sequences;
  const std::int64_t n = rest ? 1 : std::min(rows, sequences - first);
  const std::int64_t length = rest ? targets % context : context;
  const std::int64_t start = begin_of(split) + (rest ? sequences * context : first * context);
  Batch batch{Tensor::empty({n, length}, DType::i32), Tensor::empty({n, length}, DType::i32)};
  copy_ids(start, n * length, batch.inputs.data<std::int32_t>());
  copy_ids(start + 1, n * length, batch.targets.data<std::int32_t>());
  return batch;
}

}  // namespace proteus
