// Checkpoints: a folder with model.safetensors, optimizer.safetensors, config.json (what the model
// is and how text becomes ids) and state.json (how far training is). It is written beside its final
// place, synced and renamed, so that an interruption leaves the previous one.
#pragma once

#include <string>

#include "nn/module.h"
#include "train/safetensors.h"

namespace proteus {

struct Checkpoint {
  std::string config;  ///< JSON text
  std::string state;   ///< JSON text
  NamedTensors model;
  NamedTensors optimizer;
};

/// Replaces the folder `path` (parents are made). Throws FileError, OutOfMemory when the disk is
/// full; what was at `path` before is then still there.
void save_checkpoint(const std::string& path, const Checkpoint& checkpoint);
/// Throws FileError when the folder or one of its files is missing or malformed.
Checkpoint load_checkpoint(const std::string& path);

/// Parameters and buffers of a module by name.
NamedTensors module_tensors(const Module& module);
/// Copies values into a module. Every parameter and buffer must be there with its shape and dtype
/// and nothing else may; otherwise throws FileError naming the first difference and `source`, and
/// changes nothing.
void restore_module(Module& module, const NamedTensors& tensors, const std::string& source);

}  // namespace proteus
