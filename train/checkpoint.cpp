#include "train/checkpoint.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>

#include "tensor/error.h"

namespace proteus {
namespace {

namespace fs = std::filesystem;

void write_text(const fs::path& path, const std::string& text) {
  std::ofstream file(path, std::ios::binary);
  file << text << '\n';
  file.close();
  if (!file) throw FileError(path.string() + ": cannot be written: " + std::strerror(errno));
}

std::string read_text(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw FileError(path.string() + ": " + std::strerror(errno));
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

void sync_path(const fs::path& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) throw FileError(path.string() + ": " + std::strerror(errno));
  const int result = ::fsync(fd);
  ::close(fd);
  if (result != 0) throw FileError(path.string() + ": cannot be synced: " + std::strerror(errno));
}

}  // namespace

void save_checkpoint(const std::string& path, const Checkpoint& checkpoint) {
  const fs::path target(path);
  const fs::path fresh(path + ".new");
  const fs::path old(path + ".old");
  try {
    if (target.has_parent_path()) fs::create_directories(target.parent_path());
    fs::remove_all(fresh);
    fs::create_directory(fresh);
    write_safetensors(fresh / "model.safetensors", checkpoint.model);
    write_safetensors(fresh / "optimizer.safetensors", checkpoint.optimizer);
    write_text(fresh / "config.json", checkpoint.config);
    write_text(fresh / "state.json", checkpoint.state);
    sync_path(fresh / "config.json");
    sync_path(fresh / "state.json");
    sync_path(fresh);
    if (fs::exists(target)) {
      fs::remove_all(old);
      fs::rename(target, old);
    }
    fs::rename(fresh, target);
    sync_path(target.has_parent_path() ? target.parent_path() : fs::path("."));
    fs::remove_all(old);
  } catch (const fs::filesystem_error& error) {
    throw FileError("checkpoint " + path + ": cannot be written: " + error.code().message());
  }
}

Checkpoint load_checkpoint(const std::string& path) {
  fs::path folder(path);
  // A crash between the two renames of save_checkpoint leaves the previous folder under this name.
  if (!fs::exists(folder) && fs::exists(path + ".old")) folder = path + ".old";
  if (!fs::is_directory(folder)) {
    throw FileError("checkpoint " + path +
                    ": no such folder; name one that training wrote, for example "
                    "runs/train/checkpoint");
  }
  if (!fs::exists(folder / "config.json")) {
    std::string inside;  // a run folder is easily taken for its checkpoint
    for (const auto& entry : fs::directory_iterator(folder)) {
      if (!fs::exists(entry.path() / "config.json")) continue;
      inside += (inside.empty() ? "" : " or ") + entry.path().string();
    }
    throw FileError("checkpoint " + path + ": no config.json here; name " +
                    (inside.empty() ? "a folder that training wrote" : inside));
  }
  return {read_text(folder / "config.json"), read_text(folder / "state.json"),
          read_safetensors(folder / "model.safetensors"),
          read_safetensors(folder / "optimizer.safetensors")};
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
