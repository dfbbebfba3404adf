// proteus stream --checkpoint: a trained model reads a text file of any length.
#pragma once

#include "train/options.h"
#include "train/stream_model.h"

namespace proteus {

/// What a stream keeps, whoever scores it.
ShortlistConfig shortlist_config(const Options& options);
/// The part of the options that a model's stream takes.
StreamModelConfig stream_config(const Options& options);

/// Keeps what --prompt asks for of --file, says what was kept and why, and goes on from the prompt.
int run_stream_text(const Options& options);

}  // namespace proteus
