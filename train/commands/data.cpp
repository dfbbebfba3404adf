// proteus data: text into .bin files of token ids with their tokenizer beside them, or what such
// files hold.
#include <fmt/format.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "tensor/error.h"
#include "train/commands.h"
#include "train/commands/text.h"
#include "train/file_ops.h"
#include "train/memory.h"
#include "train/report.h"
#include "train/utf8.h"

namespace proteus {
namespace {

std::vector<std::int32_t> ids_of(const Dataset& dataset, std::int64_t first, std::int64_t n) {
  std::vector<std::int32_t> ids(static_cast<std::size_t>(n));
  if (n > 0) dataset.copy_ids(first, n, ids.data());
  return ids;
}

// tokenizer.json, train_000000.bin …, val_000000.bin …
void write_shards(const Dataset& dataset, const RunFolder& folder, std::int64_t most) {
  write_file_atomically(folder.file("tokenizer.json"), dataset.tokenizer().to_json());
  for (const Split split : {Split::train, Split::validation}) {
    const std::string_view name = split == Split::train ? "train" : "val";
    const std::int64_t tokens = dataset.tokens(split);
    for (std::int64_t i = 0; i * most < tokens; ++i) {
      const auto ids =
          ids_of(dataset, dataset.begin_of(split) + i * most, std::min(most, tokens - i * most));
      write_shard(folder.file(fmt::format("{}_{:06}.bin", name, i)), ids,
                  dataset.tokenizer().vocab());
    }
  }
}

void print_dataset(const Dataset& dataset) {
  Table table({"part", "tokens", "bytes/token"});
  for (const Split split : {Split::train, Split::validation}) {
    table.add_row({std::string(name_of(split)), fmt::to_string(dataset.tokens(split)),
                   format_number(dataset.bytes_per_target(split), 3)});
  }
  fmt::print("{}: tokenizer {}, {} ids\n{}", dataset.source(), name_of(dataset.tokenizer().kind()),
             dataset.tokenizer().vocab(), table.text());
}

void print_files(const std::string& path) {
  Table table({"file", "part", "tokens", "bytes/id"});
  for (const std::string& file : shard_paths(path)) {
    const Shard shard(file);
    table.add_row({std::filesystem::path(file).filename().string(),
                   is_validation_shard(file) ? "validation" : "training",
                   fmt::to_string(shard.tokens()), fmt::to_string(shard.bytes_per_id())});
  }
  fmt::print("{}", table.text());
}

void print_tokens(const Dataset& dataset, std::int64_t most) {
  const auto ids = ids_of(dataset, 0, std::min(most, dataset.tokens()));
  for (const std::int32_t id : ids) {
    const std::string text = repaired_utf8(dataset.tokenizer().decode({&id, 1}));
    fmt::print("{:>8} {}\n", id, nlohmann::json(text).dump());
  }
}

}  // namespace

int run_data(const Options& options) {
  const Dataset dataset = open_dataset(options);
  const bool shards = !options.data.file.empty() && is_shard_path(options.data.file);
  std::optional<RunFolder> folder;
  if (!shards || !options.common.out.empty()) {
    folder.emplace(options);
    write_shards(dataset, *folder, options.data.shard_tokens);
    nlohmann::ordered_json json{{"command", options.command}, {"data", data_json(dataset)}};
    json["data"]["train_tokens"] = dataset.tokens(Split::train);
    json["data"]["val_tokens"] = dataset.tokens(Split::validation);
    json["data"]["tokenizer"] = name_of(dataset.tokenizer().kind());
    folder->write_summary(json);
  }
  print_dataset(dataset);
  print_files(folder ? folder->path() : options.data.file);
  if (!options.common.quiet) print_tokens(dataset, options.data.show);
  if (folder) fmt::print("Written to {}\n", folder->path());
  return 0;
}

}  // namespace proteus
