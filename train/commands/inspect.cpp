// proteus inspect: what a checkpoint, a tensor file or a text holds. Headers are read and bytes are
// hashed; no tensor is loaded.
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

/// By what it begins with; a name that ends in .safetensors must be one.
ordered_json inspect_file(const std::string& path) {
  if (path.ends_with(".safetensors")) return inspect_safetensors(path);
  const MappedFile file(path);
  if (is_npy(file.view())) return inspect_npy(path, file.view());
  return inspect_data(path, file.view());
}

ordered_json inspect_checkpoint(const std::string& path) {
  const std::string folder = checkpoint_folder(path);
  // Whatever is damaged is told by this, which checks sizes and hashes.
  const Checkpoint texts = load_checkpoint(path, CheckpointPart::texts);
  const SavedModel saved = parse_model_json(texts.config, folder);
  const TrainerState state = parse_trainer_state(texts.state, folder);
  ordered_json json{{"path", folder},          {"kind", "checkpoint"}, {"model", saved.arm},
                    {"vocab", saved.vocab},    {"seed", saved.seed},   {"step", state.step},
                    {"batches", state.batches}};
  json["files"] = ordered_json::array();
  const std::string manifest = (fs::path(folder) / "manifest.json").string();
  const auto stamps = parse_manifest(std::string(MappedFile(manifest).view()), manifest);
  for (const auto& [name, stamp] : stamps) {
    ordered_json file = inspect_file((fs::path(folder) / name).string());
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
  fmt::print("{}: {}, {} bytes, xxh3 {}\n", file["path"].get<std::string>(),
             file["kind"].get<std::string>(), file["bytes"].get<std::uint64_t>(),
             file["xxh3"].get<std::string>());
  for (const char* key : {"dtype", "shape", "order", "lines", "characters"}) {
    if (!file.contains(key) || file[key].is_null()) continue;
    fmt::print("  {}: {}\n", key,
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
  const ordered_json json = file ? inspect_file(path) : inspect_checkpoint(path);
  if (options.output.json) {
    fmt::print("{}\n", json_text(json));
    return 0;
  }
  if (file) {
    print_file(json);
    return 0;
  }
  fmt::print("{}: checkpoint of {}, step {}, vocabulary {}, seed {}; sizes and hashes are right\n",
             json["path"].get<std::string>(), json["model"].get<std::string>(),
             json["step"].get<std::int64_t>(), json["vocab"].get<std::int64_t>(),
             json["seed"].get<std::uint64_t>());
  for (const auto& part : json["files"]) print_file(part);
  return 0;
}

}  // namespace proteus
