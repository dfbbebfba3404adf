#include "train/checkpoint.h"

#include <fmt/format.h>

#include <array>
#include <cstring>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <utility>

#include "tensor/error.h"
#include "tensor/parallel.h"
#include "train/file_ops.h"
#include "train/json_file.h"
#include "train/mapped_file.h"

namespace proteus {
namespace {

namespace fs = std::filesystem;

constexpr int kVersion = 1;  ///< of the folder's layout; a reader refuses a larger one
constexpr const char* kManifest = "manifest.json";
constexpr const char* kConfig = "config.json";
constexpr const char* kState = "state.json";
constexpr const char* kModel = "model.safetensors";
constexpr const char* kOptimizer = "optimizer.safetensors";
constexpr std::array<const char*, 4> kFiles = {kConfig, kState, kModel, kOptimizer};

/// A manifest has four short entries; a larger file is none.
constexpr std::size_t kMaxManifestBytes = 4096;

std::string numbered(const std::string& path, std::int64_t i) {
  return fmt::format("{}.{}", path, i);
}

bool exists(const std::string& path) {
  std::error_code error;
  return fs::exists(path, error);
}

FileStamp write_text(const std::string& path, const std::string& text) {
  OutputFile file(path);
  file.write(text + "\n");
  file.close();
  return {file.bytes(), file.hash()};
}

/// Writes the files into a new folder, all of them on the disk when it returns.
void write_folder(const std::string& folder, const Checkpoint& checkpoint) {
  make_folders(folder);
  const auto in = [&](const char* name) { return (fs::path(folder) / name).string(); };
  const std::pair<const char*, FileStamp> stamps[] = {
      {kConfig, write_text(in(kConfig), checkpoint.config)},
      {kState, write_text(in(kState), checkpoint.state)},
      {kModel, write_safetensors(in(kModel), checkpoint.model)},
      {kOptimizer, write_safetensors(in(kOptimizer), checkpoint.optimizer)}};
  nlohmann::ordered_json manifest{{"version", kVersion}};
  for (const auto& [name, stamp] : stamps) {
    manifest["files"][name] = {{"bytes", stamp.bytes}, {"xxh3", stamp.hash}};
  }
  write_text(in(kManifest), manifest.dump(2));
  sync_folder(folder);
}

/// Gives the folder at `path` and those before it the next number each; no later than `keep`.
void make_room(const std::string& path, std::int64_t keep) {
  if (!exists(path)) return;
  for (std::int64_t i = keep; i >= 0; --i) {
    const std::string from = i == 0 ? path : numbered(path, i);
    if (!exists(from)) continue;
    if (i == keep) {
      remove_path(from);
    } else {
      rename_path(from, numbered(path, i + 1));
    }
  }
}

/// A file that a manifest knows, if it is what the manifest says.
void check_stamp(const std::string& path, std::string_view contents, const FileStamp& expected) {
  if (contents.size() != expected.bytes) {
    throw FileError(fmt::format("{}: damaged: expected {} bytes as in {}, got {}", path,
                                expected.bytes, kManifest, contents.size()));
  }
  if (const std::string hash = file_hash(contents); hash != expected.hash) {
    throw FileError(fmt::format("{}: damaged: expected the hash {} as in {}, got {}", path,
                                expected.hash, kManifest, hash));
  }
}

/// A model alone is enough to be used, not to be trained on.
void check_complete(const std::string& folder) {
  for (const char* name : {kState, kOptimizer}) {
    if (const std::string file = (fs::path(folder) / name).string(); !exists(file)) {
      throw FileError(fmt::format(
          "{}: there is no such file, and --resume and edits of gates need it; what is there is "
          "enough for eval, sample, stream and convert",
          file));
    }
  }
}

Checkpoint read_folder(const std::string& folder, CheckpointPart part) {
  const auto in = [&](const char* name) { return (fs::path(folder) / name).string(); };
  if (part == CheckpointPart::all) check_complete(folder);
  const MappedFile manifest_file(in(kManifest));
  if (manifest_file.view().size() > kMaxManifestBytes) {
    throw FileError(fmt::format("{}: expected at most {} bytes, got {}", in(kManifest),
                                kMaxManifestBytes, manifest_file.view().size()));
  }
  const auto manifest = parse_manifest(std::string(manifest_file.view()), in(kManifest));
  const auto text = [&](const char* name) {
    const MappedFile file(in(name));
    check_stamp(in(name), file.view(), manifest.at(name));
    return std::string(file.view());
  };
  const auto tensors = [&](const char* name) {
    const SafetensorsFile file(in(name));
    check_stamp(in(name), file.contents(), manifest.at(name));
    return all_tensors(file);
  };
  Checkpoint checkpoint{text(kConfig), {}, {}, {}};
  if (exists(in(kState))) checkpoint.state = text(kState);
  if (part != CheckpointPart::texts) checkpoint.model = tensors(kModel);
  if (part == CheckpointPart::all) checkpoint.optimizer = tensors(kOptimizer);
  return checkpoint;
}

/// Memory for values like a tensor's on the CPU: what was there, if it fits.
Tensor room_for(const Tensor& tensor, const NamedTensors& before, std::size_t i) {
  if (i < before.size()) {
    const Tensor& old = before[i].second;
    if (old.shape() == tensor.shape() && old.dtype() == tensor.dtype()) return old;
  }
  return Tensor::empty(tensor.shape(), tensor.dtype());
}

/// Makes `copies` the same tensors with values of their own on the CPU. Copied by all threads:
/// training waits.
void copy_to(NamedTensors& copies, const NamedTensors& tensors) {
  constexpr std::int64_t kPiece = std::int64_t{1} << 18;  // bytes
  struct Piece {
    char* to;
    const char* from;
    std::size_t bytes;
  };
  NamedTensors fresh;
  std::vector<Piece> pieces;
  for (const auto& [name, tensor] : tensors) {
    const Tensor copy = room_for(tensor, copies, fresh.size());
    fresh.emplace_back(name, copy);
    if (tensor.device() != kCpu || !tensor.is_contiguous()) {
      copy.copy_(tensor);
      continue;
    }
    for (std::int64_t at = 0; at < tensor.bytes(); at += kPiece) {
      pieces.push_back({static_cast<char*>(copy.raw()) + at,
                        static_cast<const char*>(tensor.raw()) + at,
                        static_cast<std::size_t>(std::min(kPiece, tensor.bytes() - at))});
    }
  }
  parallel_for(std::ssize(pieces), 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const Piece& p = pieces[static_cast<std::size_t>(i)];
      std::memcpy(p.to, p.from, p.bytes);
    }
  });
  copies = std::move(fresh);
}

}  // namespace

void save_checkpoint(const std::string& path, const Checkpoint& checkpoint, std::int64_t keep) {
  const fs::path parent = fs::path(path).parent_path();
  if (!parent.empty()) make_folders(parent.string());
  const std::string fresh = path + ".new";
  remove_path(fresh);
  try {
    write_folder(fresh, checkpoint);
  } catch (...) {
    std::error_code ignored;  // what is half written helps nobody, and the disk may be full
    fs::remove_all(fresh, ignored);
    throw;
  }
  make_room(path, keep);
  rename_path(fresh, path);
  sync_folder(parent.empty() ? "." : parent.string());
  for (std::int64_t i = keep; exists(numbered(path, i)); ++i) remove_path(numbered(path, i));
}

std::map<std::string, FileStamp> parse_manifest(const std::string& text,
                                                const std::string& source) {
  const auto json = parse_json_file(text, source);
  const auto fail = [&](std::string_view what) {
    throw FileError(fmt::format("{}: {}", source, what));
  };
  const auto is_count = [](const nlohmann::json& object, const char* key) {
    return object.contains(key) && object[key].is_number_unsigned();
  };
  if (!json.is_object() || !is_count(json, "version")) fail("expected an object with \"version\"");
  const auto version = json["version"].get<std::uint64_t>();
  if (version != kVersion) {
    fail(fmt::format("expected version {}, got {}; the checkpoint is of {} version of proteus",
                     kVersion, version, version > kVersion ? "a newer" : "no known"));
  }
  const auto files = json.value("files", nlohmann::json());
  if (!files.is_object() || files.size() != kFiles.size()) fail("expected four \"files\"");
  std::map<std::string, FileStamp> stamps;
  for (const char* name : kFiles) {
    const auto file = files.value(name, nlohmann::json());
    if (!file.is_object() || !is_count(file, "bytes") || !file.contains("xxh3") ||
        !file["xxh3"].is_string()) {
      fail(fmt::format("{}: expected its bytes and xxh3", name));
    }
    stamps[name] = {file["bytes"].get<std::uint64_t>(), file["xxh3"].get<std::string>()};
  }
  return stamps;
}

std::string checkpoint_folder(const std::string& path) {
  const std::string folder = exists(path) || !exists(numbered(path, 1)) ? path : numbered(path, 1);
  std::error_code error;
  if (!fs::is_directory(folder, error)) {
    throw FileError("checkpoint " + path +
                    ": no such folder; name one that training wrote, for example "
                    "runs/train/checkpoint");
  }
  if (!exists(folder + "/" + kConfig)) {
    std::string inside;  // a run folder is easily taken for its checkpoint
    for (const auto& entry : fs::directory_iterator(folder, error)) {
      if (!exists((entry.path() / kConfig).string())) continue;
      inside += (inside.empty() ? "" : " or ") + entry.path().string();
    }
    throw FileError("checkpoint " + path + ": no config.json here; name " +
                    (inside.empty() ? "a folder that training wrote" : inside));
  }
  return folder;
}

Checkpoint load_checkpoint(const std::string& path, CheckpointPart part) {
  const std::string folder = checkpoint_folder(path);
  try {
    return read_folder(folder, part);
  } catch (const FileError& error) {
    if (folder != path || !exists(numbered(path, 1))) throw;
    throw FileError(
        fmt::format("{}; {} is the checkpoint before it", error.what(), numbered(path, 1)));
  }
}

void check_resumable(const std::string& path) { check_complete(checkpoint_folder(path)); }

CheckpointWriter::~CheckpointWriter() {
  if (thread_.joinable()) thread_.join();
}

void CheckpointWriter::prepare(const NamedTensors& model, const NamedTensors& optimizer) {
  finish();
  copy_to(copy_.model, model);
  copy_to(copy_.optimizer, optimizer);
}

void CheckpointWriter::save(const Checkpoint& checkpoint) {
  prepare(checkpoint.model, checkpoint.optimizer);
  copy_.config = checkpoint.config;
  copy_.state = checkpoint.state;
  done_ = false;
  thread_ = std::thread([this] {
    try {
      save_checkpoint(path_, copy_, keep_);
    } catch (...) {
      error_ = std::current_exception();
    }
    done_ = true;
  });
}

void CheckpointWriter::check() {
  if (done_) finish();
}

void CheckpointWriter::finish() {
  if (thread_.joinable()) thread_.join();
  if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
}

NamedTensors module_tensors(const Module& module) {
  NamedTensors tensors;
  for (const Parameter& p : module.parameters()) tensors.emplace_back(p.name, p.variable.value());
  for (const Buffer& b : module.buffers()) tensors.emplace_back(b.name, b.tensor);
  return tensors;
}

void restore_module(Module& module, const NamedTensors& tensors, const std::string& source) {
  std::map<std::string, Tensor> given(tensors.begin(), tensors.end());
  const NamedTensors own = module_tensors(module);
  for (const auto& [name, tensor] : own) {
    const auto found = given.find(name);
    if (found == given.end()) throw FileError(source + ": \"" + name + "\" is missing");
    if (found->second.shape() != tensor.shape() || found->second.dtype() != tensor.dtype()) {
      throw FileError(source + ": \"" + name + "\": expected " + describe(tensor) + ", got " +
                      describe(found->second));
    }
  }
  if (given.size() != own.size()) {
    for (const auto& [name, tensor] : own) given.erase(name);
    throw FileError(source + ": \"" + given.begin()->first + "\" belongs to no part of the model");
  }
  for (const auto& [name, tensor] : own) tensor.copy_(given.at(name));
}

}  // namespace proteus
