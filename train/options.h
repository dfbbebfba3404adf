// Options of the commands as plain structs, and how they are read. Three sources, the later ones
// win: the preset, the file given with --config (TOML, keys are the option names without dashes in
// front), the command line. Every default below is the preset `tiny`'s.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "train/sampler.h"

namespace proteus {

struct CommonOptions {
  std::string device = "cpu";  ///< see train/device.h
  std::int64_t threads = 0;    ///< 0 = one per core
  std::int64_t seed = 1337;
  std::string dtype = "f32";
  std::string out;  ///< run folder; empty = runs/<command>-<time>
  std::string config;
  bool quiet = false;
};

struct DataOptions {
  std::string file;                ///< empty = the built-in text (train/corpus.h)
  std::string tokenizer = "char";  ///< char, byte, bpe, or a path (Tokenizer::from_path)
  std::int64_t vocab_size = 1024;  ///< of bpe
  std::int64_t shard_tokens = 100'000'000;
  std::int64_t show = 32;
};

struct ModelOptions {
  std::int64_t layers = 4;
  std::int64_t width = 128;
  std::int64_t context = 64;
  std::int64_t heads = 0;        ///< of dense attention; resolved: never 0
  std::int64_t head_width = 32;  ///< of all attention
  std::string mlp = "gelu";
  std::int64_t mlp_width = 0;  ///< hidden width; 0 = the usual one
  std::string norm = "layer";
  std::string positions = "rope";
  bool bias = false;
  double dropout = 0;
  bool recompute = false;
};

struct AspaOptions {
  double alpha = 1;
  std::int64_t shared_heads = 2;
  std::int64_t shared_window = 8;
  std::int64_t routed_heads = 16;
  std::int64_t k = 4;
  double head_top_p = 1;  ///< 1 = always k
  std::int64_t min_heads = 1;
  std::int64_t max_heads = 0;  ///< 0 = all
  double density = 0;          ///< 0 = k stays
  double density_tolerance = 0.05;
  std::int64_t density_every = 50;
  std::string alpha_schedule = "fixed";
  std::int64_t alpha_ramp = 1000;
  std::int64_t dense_until = 0;
  std::int64_t sparse_from = 0;  ///< 0 = alpha does not depend on the length
  double token_keep = 1;         ///< 1 = all tokens
  std::int64_t token_guard = 8;
  std::int64_t token_keep_min = 0;
  std::int64_t window = 32;
  std::int64_t anchors = 4;
  std::int64_t bank_slots = 0;  ///< 0 = no bank
  std::int64_t bank_stride = 256;
  double bank_delta = 0.9;
  double bank_delta_v = 0.9;
  std::string bank_eviction = "score";
  std::int64_t gates_per_head = 4;
  std::int64_t routing_width = 64;
  double lambda = 5;
  std::string rope = "half";
  bool no_prototypes = false;
  bool frozen_router = false;
  bool no_key_shift = false;
  bool no_shared_gate = false;
  bool no_sink = false;
  bool no_query_gate = false;
  bool no_key_bias = false;
  bool no_balance = false;
  double balance_rate = 0.01;
  bool balance_constant = false;
  double role_gap = 0;
  double prototype_ema = 0.99;
  double dead_share = 0.1;
  std::int64_t dead_steps = 200;
  std::int64_t gate_every = 0;  ///< steps between operations of the policy; 0 = none
  double gate_merge_above = 0.98;
  double gate_clone_above = 3;
  std::int64_t most_gates = 0;    ///< 0 = twice those of the start
  std::int64_t experts = 0;       ///< of every MLP; 0 = dense MLPs
  std::int64_t expert_k = 0;      ///< 0 = k
  std::int64_t expert_width = 0;  ///< 0 = half the width of the dense MLP over k
  std::string expert_router = "own";
  std::int64_t add_heads = 0;
  std::int64_t add_heads_at = 0;
  std::int64_t head_ramp = 200;
};

struct TrainingOptions {
  std::int64_t batch = 12;
  std::int64_t steps = 2000;  ///< 0 when epochs are given
  double epochs = 0;          ///< 0 when steps are given
  double lr = 1e-3;
  double min_lr = 1e-4;
  std::int64_t warmup = 100;
  double weight_decay = 0.1;
  double beta1 = 0.9;
  double beta2 = 0.99;
  double clip = 1;  ///< 0 = off
  std::string optimizer = "adamw";
  std::string schedule = "cosine";
  std::int64_t grad_accum = 1;
  std::int64_t freeze_steps = 0;
  std::int64_t log_every = 10;
  std::int64_t eval_every = 500;      ///< 0 = at the end only
  std::int64_t eval_batches = 0;      ///< 0 = all
  std::int64_t checkpoint_every = 0;  ///< 0 = at the end and when interrupted
  std::int64_t keep = 2;              ///< checkpoints, the newest included
};

struct SamplingOptions {
  std::string prompt;
  std::int64_t sample_tokens = 200;
  double temperature = 0.8;
  std::int64_t top_k = 0;  ///< 0 = all
  double top_p = 1;
  std::string top_a = "off";
  double top_a_threshold = 0;
  double top_a_weight = 1;
  double latency_budget = 0;  ///< ms per token; 0 = none
  std::string cache_dtype = "f32";
};

struct DuelOptions {
  std::string preset = "tiny";
  std::vector<std::string> arms = {"dense", "dense_gated", "aspa"};
  std::int64_t seeds = 1;  ///< runs of every arm, with seeds seed, seed + 1, …
};

struct RecallOptions {
  std::string task = "mqar";  ///< see recall_kind; or needle (train/needle_task.h)
  std::int64_t pairs = 16;
  std::int64_t vocab = 1024;
  std::int64_t shortest = 0;  ///< see RecallTaskConfig
  double stop_at = 0;         ///< accuracy of two evaluations in a row that ends a run; 0 = none
  std::int64_t train_length = 256;  ///< needle: tokens of a lesson
  std::int64_t trials = 100;        ///< needle: streams of each kind
  std::vector<std::string> needles = {"single", "distractors", "two_hop"};  ///< see needle_kinds
};

struct SweepOptions {
  std::string lengths = "128..1048576";  ///< see sweep_lengths
  std::vector<std::string> alphas = {"0", "0.5", "1"};
  bool backward = false;
  std::int64_t repeats = 5;
  double point_seconds = 30;  ///< a call that would take longer is left out
};

struct StreamOptions {
  std::int64_t length = 0;        ///< 0 = all of --embeddings; 2^20 random tokens without
  std::string embeddings;         ///< empty = random; "-" = standard input
  std::string file;               ///< a text for checkpoint.checkpoint; "-" = standard input
  std::int64_t score_layer = -1;  ///< of a checkpoint; −1 = the last
  std::int64_t rounds = 1;        ///< passes of a checkpoint
  std::string prompt_embeddings;
  std::int64_t prompt_tokens = 16;  ///< random ones, without prompt_embeddings
  std::int64_t chunk = 65536;
  std::int64_t buffer = 32768;
  std::int64_t per_chunk = 4096;
  double chunk_keep = 0.05;
  double final_keep = 0.5;
  double top_p = 0.9;
  std::int64_t top_a = 0;  ///< 0 = off
  std::int64_t pool = 1;
  std::int64_t span = 4;
  double salience_weight = 0.1;
  std::string ram_limit;  ///< empty = half of what is available
  std::string spill_dir;  ///< empty = the system's folder for temporary files
};

struct CheckpointOptions {
  std::string model = "aspa";  ///< an arm; see arm_named
  std::string checkpoint;      ///< folder; empty = checkpoint/ in the run folder
  bool resume = false;
};

struct ConvertOptions {
  std::string from_gpt2;  ///< a Hugging Face folder to read instead of a checkpoint
  std::string to_gpt2;    ///< one to write instead of a checkpoint
};

struct GatesOptions {
  std::string part = "attention";
  std::string edit;         ///< empty = show
  std::int64_t layer = -1;  ///< −1 = all
  std::int64_t gate = -1;
  std::int64_t other = -1;
  std::int64_t head = -1;
  double noise = 0;
  double most_usage = 0.1;
  std::string save;  ///< empty = the checkpoint itself
};

struct ReportOptions {
  std::vector<std::string> runs;  ///< run folders
  std::string page;               ///< empty = report.html in the first of them
  std::string svg;                ///< folder for figures; empty = none
  std::string text;               ///< of the prototype map; empty = what the run was trained on
};

struct OutputOptions {
  std::string path;  ///< of inspect
  bool json = false;
};

/// Everything; a command reads the parts that it has options for. The length of recall's sequences
/// (--length) is model.context.
struct Options {
  std::string command;
  std::map<std::string, std::string> given;  ///< what the command line itself said, by name
  CommonOptions common;
  DataOptions data;
  ModelOptions model;
  AspaOptions aspa;
  TrainingOptions training;
  SamplingOptions sampling;
  DuelOptions duel;
  RecallOptions recall;
  SweepOptions sweep;
  StreamOptions stream;
  CheckpointOptions checkpoint;
  ConvertOptions convert;
  GatesOptions gates;
  ReportOptions report;
  OutputOptions output;
};

/// Name and one-line summary of every command that parse_options knows.
struct CommandInfo {
  std::string_view name;
  std::string_view summary;
};
std::span<const CommandInfo> command_infos();

struct ParsedOptions {
  Options options;
  std::string help;  ///< not empty: --help was asked for, print this and stop
};

/// Reads the arguments that follow the command's name, resolves what follows from other options
/// (heads and head width) and validates. Throws ConfigError with one line that names the option (or
/// the config's key and line), what was expected and what was given; FileError when the config
/// cannot be read.
ParsedOptions parse_options(std::string_view command, const std::vector<std::string>& args);

/// How the sampling options choose a token.
SamplerConfig sampler_config(const SamplingOptions& options);

/// Throws ConfigError for the first value that makes no sense: option, expected, got.
void validate(const Options& options);

/// The options that a command has, with their values, as TOML that --config reads back to the same
/// options. Left out: where to write (--out), --config, --quiet and --resume.
std::string config_text(const Options& options);

/// What config_text wrote, as options again; `source` is its name in messages. Throws like
/// parse_options.
Options options_from_text(const std::string& command, const std::string& text,
                          const std::string& source);

/// What a resumed run goes on with: the `saved` options of its checkpoint, changed by what the
/// command line of `call` gave (say, more --steps). Throws ConfigError when that would be another
/// model, other text or another seed than the checkpoint's.
Options resumed(const Options& saved, const Options& call);

/// Steps of the whole run: training.steps, or training.epochs passes over `train_tokens`, rounded
/// up.
std::int64_t training_steps(const TrainingOptions& training, std::int64_t context,
                            std::int64_t train_tokens);

/// One of the models that are compared. Flags of the dense ones are controls; those of the ASPA
/// ones take something away.
struct Arm {
  std::string_view name;
  bool aspa = false;
  bool key_shift = false;    ///< dense: keys read x_t + μ ⊙ x_{t−1}
  bool output_gate = false;  ///< dense: heads are multiplied by 2σ(W_g x)
  bool no_prototypes = false;
  bool frozen_router = false;
  bool no_key_shift = false;
  bool shared_only = false;  ///< no routed heads
  /// Heads choose tokens among the whole sequence: NOT causal, to measure what a leak would give.
  /// For duel and recall alone.
  bool leaky = false;
};
std::span<const Arm> arms();
/// Throws ConfigError naming `option` and listing the names when there is no such arm.
const Arm& arm_named(std::string_view name, std::string_view option);
/// How the MLP of an ASPA arm is divided: `k` experts of hidden width `width`, and a shared part
/// that brings a token's hidden width to that of the dense MLP.
struct ExpertWidths {
  std::int64_t k = 0;
  std::int64_t width = 0;
  std::int64_t shared = 0;
};
ExpertWidths expert_widths(const AspaOptions& aspa, const ModelOptions& model);
/// The ASPA options of an arm: the user's, with what the arm takes away.
AspaOptions aspa_options(const AspaOptions& options, const Arm& arm);

}  // namespace proteus
