// proteus inspect: what a checkpoint, a tensor file, token ids, a tokenizer or a text hold. Headers
// are read and bytes are hashed; no tensor is loaded.
#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "tensor/error.h"
#include "train/checkpoint.h"
#include "train/commands.h"
#include "train/file_ops.h"
#include "train/mapped_file.h"
#include "train/models.h"
#include "train/npy.h"
#include "train/report.h"
#include "train/safetensors.h"
#include "train/shard.h"
#include "train/tokenizer.h"
#include "train/trainer.h"
#include "train/utf8.h"

namespace proteus {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

template <class Sizes>
ordered_json shape_json(const Sizes& sizes) {
  ordered_json shape = ordered_json::array();
  for (const std::int64_t n : sizes) shape.push_back(n);
  return shape;
}

ordered_json file_json(const std::string& path, std::string_view contents, const char* kind) {
  return {
      {"path", path}, {"kind", kind}, {"bytes", contents.size()}, {"xxh3", file_hash(contents)}};
}

ordered_json inspect_safetensors(const std::string& path) {
  const SafetensorsFile file(path);
  ordered_json json = file_json(path, file.contents(), "safetensors");
  json["metadata"] = ordered_json::object();
  for (const auto& [key, value] : file.metadata()) json["metadata"][key] = value;
  json["tensors"] = ordered_json::array();
  std::uint64_t elements = 0;
  for (std::int64_t i = 0; i < file.count(); ++i) {
    const TensorInfo t = file.info(i);
    elements += (t.end - t.begin) / size_of(t.dtype);
    json["tensors"].push_back({{"name", t.name},
                               {"dtype", name_of(t.dtype)},
                               {"shape", shape_json(t.shape)},
                               {"bytes", t.end - t.begin},
                               {"xxh3", file_hash(file.bytes(i))}});
  }
  json["elements"] = elements;
  return json;
}

ordered_json inspect_npy(const std::string& path, std::string_view contents) {
  const NpyInfo npy = parse_npy(contents, path);
  ordered_json json = file_json(path, contents, "npy");
  json["dtype"] = npy.descr;
  json["shape"] = shape_json(npy.shape);
  json["order"] = npy.fortran_order ? "Fortran" : "C";
  return json;
}

ordered_json inspect_shard(const std::string& path, std::string_view contents) {
  const Shard shard(path);
  ordered_json json = file_json(path, contents, "token ids");
  json["format"] = shard.has_header() ? "llm.c" : "nanoGPT";
  json["dtype"] = shard.bytes_per_id() == 4 ? "u32" : "u16";
  json["tokens"] = shard.tokens();
  const auto [least, largest] = shard.id_range();
  json["smallest_id"] = shard.tokens() > 0 ? ordered_json(least) : ordered_json(nullptr);
  json["largest_id"] = shard.tokens() > 0 ? ordered_json(largest) : ordered_json(nullptr);
  return json;
}

ordered_json inspect_tokenizer(const std::string& path, std::string_view contents,
                               const Tokenizer& tokenizer) {
  ordered_json json = file_json(path, contents, "tokenizer");
  json["tokenizer"] = name_of(tokenizer.kind());
  json["vocab"] = tokenizer.vocab();
  int longest = 0;
  for (std::int64_t id = 0; id < tokenizer.vocab(); ++id) {
    longest = std::max(longest, tokenizer.byte_length(static_cast<std::int32_t>(id)));
  }
  json["longest_token_bytes"] = longest;
  return json;
}

ordered_json inspect_data(const std::string& path, std::string_view contents) {
  std::int64_t characters = 0;
  std::size_t at = 0;
  while (at < contents.size()) {
    const CodePoint c = decode_utf8(contents, at);
    if (c.bytes == 0) break;
    at += static_cast<std::size_t>(c.bytes);
    ++characters;
  }
  const bool text = at == contents.size();
  ordered_json json = file_json(path, contents, text ? "text" : "bytes");
  json["lines"] = std::count(contents.begin(), contents.end(), '\n');
  json["characters"] = text ? ordered_json(characters) : ordered_json(nullptr);
  return json;
}

/// By what it begins with; a name that ends in .safetensors or .bin, tokenizer.json and vocab.json
/// (with merges.txt beside it) must be what the name says.
ordered_json inspect_file(const std::string& path) {
  if (path.ends_with(".safetensors")) return inspect_safetensors(path);
  const MappedFile file(path);
  if (is_npy(file.view())) return inspect_npy(path, file.view());
  if (path.ends_with(".bin")) return inspect_shard(path, file.view());
  const fs::path name = fs::path(path).filename();
  if (name == "tokenizer.json") {
    return inspect_tokenizer(path, file.view(), Tokenizer::from_json(file.view(), path));
  }
  std::error_code error;
  const fs::path merges = fs::path(path).replace_filename("merges.txt");
  if (name == "vocab.json" && fs::exists(merges, error)) {
    const MappedFile pairs(merges.string());
    return inspect_tokenizer(
        path, file.view(),
        Tokenizer::of(Bpe::from_vocab_and_merges(file.view(), pairs.view(), path)));
  }
  return inspect_data(path, file.view());
}

/// Whether a folder holds token ids or a tokenizer and is no checkpoint.
bool is_data_folder(const std::string& path) {
  const auto has = [&](const char* name) {
    std::error_code error;
    return fs::exists(fs::path(path) / name, error);
  };
  std::error_code error;
  if (!fs::is_directory(path, error) || has("config.json")) return false;
  const auto entries = fs::directory_iterator(path, error);
  return has("tokenizer.json") || has("vocab.json") ||
         std::any_of(fs::begin(entries), fs::end(entries),
                     [](const auto& entry) { return entry.path().extension() == ".bin"; });
}

ordered_json inspect_data_folder(const std::string& path) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(path)) {
    const fs::path& file = entry.path();
    const bool known = file.extension() == ".bin" || file.filename() == "tokenizer.json" ||
                       file.filename() == "vocab.json";
    if (known) names.push_back(file.string());
  }
  std::sort(names.begin(), names.end());
  ordered_json json{{"path", path}, {"kind", "data"}, {"files", ordered_json::array()}};
  for (const std::string& name : names) json["files"].push_back(inspect_file(name));
  return json;
}

ordered_json inspect_checkpoint(const std::string& path) {
  const std::string folder = checkpoint_folder(path);
  // Whatever is damaged is told by this, which checks sizes and hashes.
  const Checkpoint texts = load_checkpoint(path, CheckpointPart::texts);
  const SavedModel saved = parse_model_json(texts.config, folder);
  ordered_json json{{"path", folder},
                    {"kind", "checkpoint"},
                    {"model", saved.arm},
                    {"vocab", saved.vocab},
                    {"seed", saved.seed},
                    {"attention", attention_path(saved.options, arm_named(saved.arm, "arm"))}};
  json["step"] = nullptr;
  json["batches"] = nullptr;
  if (!texts.state.empty()) {
    const TrainerState state = parse_trainer_state(texts.state, folder);
    json["step"] = state.step;
    json["batches"] = state.batches;
  }
  json["files"] = ordered_json::array();
  const std::string manifest = (fs::path(folder) / "manifest.json").string();
  const auto stamps = parse_manifest(std::string(MappedFile(manifest).view()), manifest);
  for (const auto& [name, stamp] : stamps) {
    const std::string here = (fs::path(folder) / name).string();
    const bool needed = name != "state.json" && name != "optimizer.safetensors";
    if (std::error_code error; !needed && !fs::exists(here, error)) {
      json["files"].push_back({{"path", here}, {"kind", "absent"}});
      continue;
    }
    const ordered_json file = inspect_file(here);
    if (file["bytes"] != stamp.bytes || file["xxh3"] != stamp.hash) {
      throw FileError(fmt::format("{}: damaged: it is not what manifest.json says",
                                  file["path"].get<std::string>()));
    }
    json["files"].push_back(file);
  }
  return json;
}

std::string shape_text(const ordered_json& shape) { return shape.dump(); }

void print_file(const ordered_json& file) {
  if (file["kind"] == "absent") {
    fmt::print("{}: not there; --resume and edits of gates need it\n",
               file["path"].get<std::string>());
    return;
  }
  fmt::print("{}: {}, {} bytes, xxh3 {}\n", file["path"].get<std::string>(),
             file["kind"].get<std::string>(), file["bytes"].get<std::uint64_t>(),
             file["xxh3"].get<std::string>());
  for (const char* key :
       {"format", "dtype", "shape", "order", "lines", "characters", "tokens", "smallest_id",
        "largest_id", "tokenizer", "vocab", "longest_token_bytes"}) {
    if (!file.contains(key) || file[key].is_null()) continue;
    std::string words = key;
    std::replace(words.begin(), words.end(), '_', ' ');
    fmt::print("  {}: {}\n", words,
               file[key].is_string() ? file[key].get<std::string>() : file[key].dump());
  }
  if (!file.contains("tensors")) return;
  for (const auto& [key, value] : file["metadata"].items()) {
    fmt::print("  {}: {}\n", key, value.dump());
  }
  Table table({"tensor", "dtype", "shape", "bytes", "xxh3"});
  for (const auto& t : file["tensors"]) {
    table.add_row({t["name"], t["dtype"], shape_text(t["shape"]),
                   fmt::to_string(t["bytes"].get<std::uint64_t>()), t["xxh3"]});
  }
  fmt::print("{}{} tensors, {} elements\n", table.text(), file["tensors"].size(),
             file["elements"].get<std::uint64_t>());
}

}  // namespace

int run_inspect(const Options& options) {
  const std::string& path = options.output.path;
  std::error_code error;
  const bool file = fs::exists(path, error) && !fs::is_directory(path, error);
  const ordered_json json = file                   ? inspect_file(path)
                            : is_data_folder(path) ? inspect_data_folder(path)
                                                   : inspect_checkpoint(path);
  if (options.output.json) {
    fmt::print("{}\n", json_text(json));
    return 0;
  }
  if (file) {
    print_file(json);
    return 0;
  }
  if (json["kind"] == "checkpoint") {
    fmt::print(
        "{}: checkpoint of {}, step {}, vocabulary {}, seed {}, attention {}; sizes and hashes are "
        "right\n",
        json["path"].get<std::string>(), json["model"].get<std::string>(),
        json["step"].is_null() ? "unknown" : json["step"].dump(), json["vocab"].get<std::int64_t>(),
        json["seed"].get<std::uint64_t>(), json["attention"].get<std::string>());
  }
  for (const auto& part : json["files"]) print_file(part);
  return 0;
}

}  // namespace proteus
