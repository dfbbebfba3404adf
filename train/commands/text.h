// What the commands on text share.
#pragma once

#include <nlohmann/json_fwd.hpp>

#include "train/session.h"

namespace proteus {

/// The data file or shards, or the built-in text (saying so unless quiet), with the tokenizer that
/// the options ask for.
Dataset open_dataset(const Options& options);
/// The same with a checkpoint's tokenizer.
Dataset open_dataset(const Options& options, const Tokenizer& tokenizer);

/// Options with training.steps filled in from --epochs, on the device and dtype asked for. Throws
/// ConfigError for what this build cannot train on.
Options resolved_for(const Options& options, std::int64_t train_tokens);

/// "data" of summary.json.
nlohmann::ordered_json data_json(const Dataset& dataset);
/// command, device, threads of summary.json.
nlohmann::ordered_json summary_head(const Options& options);

/// loss / (ln 2 · bytes per target).
double bits_per_byte(double loss, const Dataset& dataset);

/// Where a checkpoint is read from or written to: --checkpoint, or checkpoint/ in the run folder.
std::string checkpoint_path(const Options& options, const RunFolder& folder);

/// Says on stdout how to go on with an interrupted run; returns exit code 130.
int say_interrupted(const std::string& resume_command);

}  // namespace proteus
