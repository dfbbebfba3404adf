// Checkpoints: a folder with model.safetensors, optimizer.safetensors, config.json (what the model
// is and how text becomes ids), state.json (how far training is) and manifest.json (the size and
// hash of the others, checked when they are read). It is written beside its final place, synced and
// renamed, so that an interruption at any moment leaves the previous one.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <map>
#include <string>
#include <thread>

#include "nn/module.h"
#include "train/safetensors.h"

namespace proteus {

struct Checkpoint {
  std::string config;  ///< JSON text
  std::string state;   ///< JSON text
  NamedTensors model;
  NamedTensors optimizer;
};

/// Puts a checkpoint at the folder `path` (parents are made). What was there becomes `path`.1, what
/// was at `path`.1 becomes `path`.2, …; of all of them `keep` stay. Throws FileError, or
/// OutOfMemory when the disk is full; what was at `path` before can then still be loaded from it.
void save_checkpoint(const std::string& path, const Checkpoint& checkpoint, std::int64_t keep = 1);

/// How much of a checkpoint is read: the JSON texts, the model too, or all that training goes on
/// from. Only the last needs state.json (otherwise an empty text where there is none) and
/// optimizer.safetensors.
enum class CheckpointPart : std::uint8_t { texts, model, all };

/// Throws FileError when the folder or one of the files it needs is missing, malformed, of another
/// size or hash than its manifest says, or of a newer version.
Checkpoint load_checkpoint(const std::string& path, CheckpointPart part = CheckpointPart::all);
/// The folder that load_checkpoint(path) reads: `path`, or `path`.1 where an interruption came
/// between the two renames that put a new checkpoint in its place. Throws FileError.
std::string checkpoint_folder(const std::string& path);

/// Throws FileError naming the file when training cannot go on from a checkpoint because its state
/// or its moments were left out.
void check_resumable(const std::string& path);

/// manifest.json: file names with what they are known by. Throws FileError naming `source` on
/// anything but a manifest of this version with exactly the files of a checkpoint.
std::map<std::string, FileStamp> parse_manifest(const std::string& text, const std::string& source);

/// Saves checkpoints in a thread of its own, from copies of the tensors, whose memory it keeps.
class CheckpointWriter {
 public:
  CheckpointWriter(std::string path, std::int64_t keep) : path_(std::move(path)), keep_(keep) {}
  /// Waits for the writing; what it throws is lost.
  ~CheckpointWriter();
  CheckpointWriter(const CheckpointWriter&) = delete;
  CheckpointWriter& operator=(const CheckpointWriter&) = delete;

  /// Takes the memory of the copies and touches it: memory that is touched for the first time costs
  /// several times the copying, and the first save would hold training up as much longer.
  void prepare(const NamedTensors& model, const NamedTensors& optimizer);
  /// Copies the tensors, then writes while the caller goes on and changes them. Waits first for the
  /// save before, and throws what that one met.
  void save(const Checkpoint& checkpoint);
  /// Whether the last save is still being written.
  bool busy() const { return thread_.joinable() && !done_; }
  /// Throws what the last save met, if it is over; does not wait.
  void check();
  /// Waits for the last save and throws what it met.
  void finish();

 private:
  std::string path_;
  std::int64_t keep_;
  Checkpoint copy_;  // the thread's while it writes
  std::thread thread_;
  std::atomic<bool> done_ = false;
  std::exception_ptr error_;
};

/// Parameters and buffers of a module by name.
NamedTensors module_tensors(const Module& module);
/// Copies values into a module. Every parameter and buffer must be there with its shape and dtype
/// and nothing else may; otherwise throws FileError naming the first difference and `source`, and
/// changes nothing.
void restore_module(Module& module, const NamedTensors& tensors, const std::string& source);

}  // namespace proteus
