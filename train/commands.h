// The commands: each takes resolved, valid options and returns an exit code (0 done, 130
// interrupted with its state saved). Errors are thrown; main.cpp turns them into exit codes.
#pragma once

#include "train/options.h"

namespace proteus {

constexpr int kInterrupted = 130;

/// Prints what this machine has: CPU, threads, memory, caches, GPUs, the libraries this program was
/// built with, and what is missing and how to get it.
int run_doctor(const Options& options);

/// Trains several arms on the same text, compares them and samples from each.
int run_duel(const Options& options);
/// Trains one model on text.
int run_train(const Options& options);
/// The validation loss of a checkpoint.
int run_eval(const Options& options);
/// Shows the gates of a checkpoint, or operates on them.
int run_gates(const Options& options);
/// Lists a checkpoint, a tensor file or a text without loading it.
int run_inspect(const Options& options);
/// Text from a checkpoint.
int run_sample(const Options& options);
/// Trains arms on synthetic recall and scores them.
int run_recall(const Options& options);
/// A dense checkpoint as an ASPA one.
int run_convert(const Options& options);
/// Turns text into shards of token ids, or shows shards.
int run_data(const Options& options);
/// Times one attention layer against the length of its sequence.
int run_sweep(const Options& options);
/// Keeps what a prompt asks for of a text of any length, and reads that in a final pass.
int run_stream(const Options& options);

/// Makes a page from run folders.
int run_report(const Options& options);

}  // namespace proteus
