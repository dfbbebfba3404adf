#include "train/option_table.h"

#include <fmt/format.h>

#include <algorithm>

#include "tensor/error.h"

namespace proteus::detail {
namespace {

#define PROTEUS_FIELD(member) [](Options& o) -> Field { return &o.member; }

using Specs = std::vector<OptionSpec>;

Specs common_options() {
  constexpr Group g = Group::common;
  return {
      {"device", "DEVICE", "cpu, cuda or cuda:N", g, PROTEUS_FIELD(common.device)},
      {"threads", "N", "CPU threads; 0 = one per core", g, PROTEUS_FIELD(common.threads)},
      {"seed", "N", "of all random numbers", g, PROTEUS_FIELD(common.seed)},
      {"dtype", "TYPE", "of activations: f32, or bf16 beside weights in f32", g,
       PROTEUS_FIELD(common.dtype)},
      {"out", "DIR", "run folder; default runs/<command>-<time>", g, PROTEUS_FIELD(common.out)},
      {"config", "FILE", "TOML file of options; the command line wins", g,
       PROTEUS_FIELD(common.config)},
      {"quiet", "", "print the last table only", g, PROTEUS_FIELD(common.quiet)},
  };
}

Specs data_options() {
  constexpr Group g = Group::data;
  return {
      {"data", "FILE", "text, .bin file or folder of .bin files; default: a built-in text", g,
       PROTEUS_FIELD(data.file)},
      {"tokenizer", "KIND", "char (Unicode characters), byte, bpe (learned), or the path of one", g,
       PROTEUS_FIELD(data.tokenizer)},
      {"vocab-size", "N", "ids that --tokenizer bpe learns", g, PROTEUS_FIELD(data.vocab_size)},
      {"shard-tokens", "N", "most tokens of a file", Group::shards,
       PROTEUS_FIELD(data.shard_tokens)},
      {"show", "N", "first tokens to show", Group::shards, PROTEUS_FIELD(data.show)},
  };
}

Specs model_options() {
  constexpr Group g = Group::model;
  return {
      {"layers", "N", "transformer blocks", g, PROTEUS_FIELD(model.layers)},
      {"width", "N", "model width C", g, PROTEUS_FIELD(model.width)},
      {"context", "N", "tokens of a sequence T", g, PROTEUS_FIELD(model.context)},
      {"length", "N", "tokens of a sequence T", Group::recall, PROTEUS_FIELD(model.context)},
      {"heads", "N", "heads of dense attention, of stream's layer; default width / head-width", g,
       PROTEUS_FIELD(model.heads)},
      {"head-width", "N", "width D of a head, dense and ASPA", g, PROTEUS_FIELD(model.head_width)},
      {"mlp", "KIND", "gelu or swiglu", g, PROTEUS_FIELD(model.mlp)},
      {"mlp-width", "N", "hidden width of an MLP; 0 = 4 times the width, of swiglu 8/3", g,
       PROTEUS_FIELD(model.mlp_width)},
      {"norm", "KIND", "layer or rms", g, PROTEUS_FIELD(model.norm)},
      {"positions", "KIND", "rope (rotary), or learned: one vector per token of the context", g,
       PROTEUS_FIELD(model.positions)},
      {"bias", "", "biases in norms, attention and MLPs", g, PROTEUS_FIELD(model.bias)},
      {"dropout", "X", "share of activations dropped in training", g, PROTEUS_FIELD(model.dropout)},
      {"recompute", "", "save memory: recompute activations in the backward pass", g,
       PROTEUS_FIELD(model.recompute)},
  };
}

Specs aspa_specs() {
  constexpr Group g = Group::aspa;
  return {
      {"alpha", "X", "from exact dense attention (0) to linear time (1)", g,
       PROTEUS_FIELD(aspa.alpha)},
      {"shared-heads", "N", "heads that are always on", g, PROTEUS_FIELD(aspa.shared_heads)},
      {"shared-window", "N", "tokens that a shared head sees", g,
       PROTEUS_FIELD(aspa.shared_window)},
      {"routed-heads", "N", "heads that tokens are routed to", g, PROTEUS_FIELD(aspa.routed_heads)},
      {"k", "N", "routed heads that a token enters", g, PROTEUS_FIELD(aspa.k)},
      {"head-top-p", "X", "enter the fewest heads that reach this probability, up to k; 1 = off", g,
       PROTEUS_FIELD(aspa.head_top_p)},
      {"min-heads", "N", "with --head-top-p or --density: fewest routed heads of a token", g,
       PROTEUS_FIELD(aspa.min_heads)},
      {"max-heads", "N", "with --density: most routed heads of a token; 0 = all", g,
       PROTEUS_FIELD(aspa.max_heads)},
      {"density", "X", "move k towards this share of the routed heads; 0 = k stays", g,
       PROTEUS_FIELD(aspa.density)},
      {"density-tolerance", "X", "how far the density may be from it", g,
       PROTEUS_FIELD(aspa.density_tolerance)},
      {"density-every", "N", "steps between moves of k", g, PROTEUS_FIELD(aspa.density_every)},
      {"alpha-schedule", "KIND", "fixed, ramp (from 0) or sample (anew each step, up to alpha)", g,
       PROTEUS_FIELD(aspa.alpha_schedule)},
      {"alpha-ramp", "N", "steps of the ramp", g, PROTEUS_FIELD(aspa.alpha_ramp)},
      {"dense-until", "N", "with --sparse-from: alpha is 0 up to this context", g,
       PROTEUS_FIELD(aspa.dense_until)},
      {"sparse-from", "N", "alpha grows with the context, whole from this one on; 0 = off", g,
       PROTEUS_FIELD(aspa.sparse_from)},
      {"token-keep", "X", "share of the tokens that enter routed heads; 1 = all", g,
       PROTEUS_FIELD(aspa.token_keep)},
      {"token-guard", "N", "with --token-keep: first tokens of a sequence, always kept", g,
       PROTEUS_FIELD(aspa.token_guard)},
      {"token-keep-min", "N", "with --token-keep: at least so many kept, the guard if it is less",
       g, PROTEUS_FIELD(aspa.token_keep_min)},
      {"window", "N", "entries of a routed head's packed stream that a query sees", g,
       PROTEUS_FIELD(aspa.window)},
      {"anchors", "N", "first tokens that stay visible", g, PROTEUS_FIELD(aspa.anchors)},
      {"bank-slots", "N", "entries per routed head that stay visible behind the window; 0 = none",
       g, PROTEUS_FIELD(aspa.bank_slots)},
      {"bank-stride", "N", "with --bank-slots: tokens between refreshes of the bank", g,
       PROTEUS_FIELD(aspa.bank_stride)},
      {"bank-delta", "X", "keys above this cosine share a slot", g, PROTEUS_FIELD(aspa.bank_delta)},
      {"bank-delta-v", "X", "and their values above this one", g, PROTEUS_FIELD(aspa.bank_delta_v)},
      {"bank-eviction", "KIND", "who leaves a full bank: score, fifo or random", g,
       PROTEUS_FIELD(aspa.bank_eviction)},
      {"gates-per-head", "N", "gates of each routed head", g, PROTEUS_FIELD(aspa.gates_per_head)},
      {"routing-width", "N", "width R of the router", g, PROTEUS_FIELD(aspa.routing_width)},
      {"lambda", "X", "initial weight of the prototypes", g, PROTEUS_FIELD(aspa.lambda)},
      {"rope", "PART", "rotated part of routed heads, with --positions rope: half, full or none", g,
       PROTEUS_FIELD(aspa.rope)},
      {"no-prototypes", "", "route without prototypes", g, PROTEUS_FIELD(aspa.no_prototypes)},
      {"frozen-router", "", "leave the router as drawn", g, PROTEUS_FIELD(aspa.frozen_router)},
      {"no-key-shift", "", "keys do not see the token before", g, PROTEUS_FIELD(aspa.no_key_shift)},
      {"no-shared-gate", "", "no output gate on shared heads", g,
       PROTEUS_FIELD(aspa.no_shared_gate)},
      {"no-sink", "", "no learned sink in the softmax", g, PROTEUS_FIELD(aspa.no_sink)},
      {"no-query-gate", "", "no gate on routed outputs", g, PROTEUS_FIELD(aspa.no_query_gate)},
      {"no-key-bias", "", "no bias on routed keys", g, PROTEUS_FIELD(aspa.no_key_bias)},
      {"no-balance", "", "do not balance the heads' loads", g, PROTEUS_FIELD(aspa.no_balance)},
      {"balance-rate", "X", "step u of the balancing thresholds", g,
       PROTEUS_FIELD(aspa.balance_rate)},
      {"balance-constant", "", "the balancing step does not follow the learning rate", g,
       PROTEUS_FIELD(aspa.balance_constant)},
      {"role-gap", "X", "largest difference of a head's two thresholds; 0 = one for both roles", g,
       PROTEUS_FIELD(aspa.role_gap)},
      {"prototype-ema", "X", "weight of the past in the prototypes", g,
       PROTEUS_FIELD(aspa.prototype_ema)},
      {"dead-share", "X", "a gate under this share of the mean use is starving", g,
       PROTEUS_FIELD(aspa.dead_share)},
      {"dead-steps", "N", "steps of starving after which a gate is reseeded", g,
       PROTEUS_FIELD(aspa.dead_steps)},
      {"gate-every", "N", "operate on gates (prune, merge, clone) every N steps; 0 = never", g,
       PROTEUS_FIELD(aspa.gate_every)},
      {"gate-merge-above", "X", "merge two gates of a head whose w and p have this cosine", g,
       PROTEUS_FIELD(aspa.gate_merge_above)},
      {"gate-clone-above", "X", "clone a gate that is used so many times the mean", g,
       PROTEUS_FIELD(aspa.gate_clone_above)},
      {"most-gates", "N", "gates of a layer that cloning stops at; 0 = twice the first", g,
       PROTEUS_FIELD(aspa.most_gates)},
      {"experts", "N", "experts of every MLP, behind gates; 0 = dense MLPs", g,
       PROTEUS_FIELD(aspa.experts)},
      {"expert-k", "N", "experts that a token enters; 0 = --k", g, PROTEUS_FIELD(aspa.expert_k)},
      {"expert-width", "N", "hidden width of an expert; 0 = half the dense MLP's / --expert-k", g,
       PROTEUS_FIELD(aspa.expert_width)},
      {"expert-router", "KIND", "whose gates: own, or attention (expert e beside head e)", g,
       PROTEUS_FIELD(aspa.expert_router)},
      {"add-heads", "N", "routed heads that every layer gets during training", g,
       PROTEUS_FIELD(aspa.add_heads)},
      {"add-heads-at", "STEP", "step after which it gets them", g,
       PROTEUS_FIELD(aspa.add_heads_at)},
      {"head-ramp", "N", "steps for which a new head comes beside the k", g,
       PROTEUS_FIELD(aspa.head_ramp)},
  };
}

Specs training_options() {
  constexpr Group g = Group::training;
  return {
      {"batch", "N", "sequences of a batch", g, PROTEUS_FIELD(training.batch)},
      {"steps", "N", "optimizer steps", g, PROTEUS_FIELD(training.steps)},
      {"epochs", "X", "instead of --steps: passes over the training part", g,
       PROTEUS_FIELD(training.epochs)},
      {"lr", "X", "largest learning rate", g, PROTEUS_FIELD(training.lr)},
      {"min-lr", "X", "learning rate at the end of the cosine", g, PROTEUS_FIELD(training.min_lr)},
      {"warmup", "N", "steps of linear warm-up", g, PROTEUS_FIELD(training.warmup)},
      {"weight-decay", "X", "decoupled, on matrices", g, PROTEUS_FIELD(training.weight_decay)},
      {"beta1", "X", "of AdamW; momentum of SGD", g, PROTEUS_FIELD(training.beta1)},
      {"beta2", "X", "of AdamW", g, PROTEUS_FIELD(training.beta2)},
      {"clip", "X", "largest global gradient norm; 0 = off", g, PROTEUS_FIELD(training.clip)},
      {"optimizer", "KIND", "adamw or sgd", g, PROTEUS_FIELD(training.optimizer)},
      {"schedule", "KIND", "cosine or constant", g, PROTEUS_FIELD(training.schedule)},
      {"grad-accum", "N", "batches whose gradients make one step", g,
       PROTEUS_FIELD(training.grad_accum)},
      {"freeze-steps", "N", "first steps, of ASPA alone: at full alpha, only what routes learns", g,
       PROTEUS_FIELD(training.freeze_steps)},
      {"log-every", "N", "steps between lines of metrics.jsonl", g,
       PROTEUS_FIELD(training.log_every)},
      {"eval-every", "N", "steps between evaluations; 0 = at the end only", g,
       PROTEUS_FIELD(training.eval_every)},
      {"eval-batches", "N", "batches of an evaluation; 0 = the whole validation part", g,
       PROTEUS_FIELD(training.eval_batches)},
      {"checkpoint-every", "N", "steps between checkpoints; 0 = at the end and when interrupted", g,
       PROTEUS_FIELD(training.checkpoint_every)},
      {"keep", "N", "checkpoints that stay: DIR, before it DIR.1, DIR.2, …", g,
       PROTEUS_FIELD(training.keep)},
  };
}

Specs stream_options() {
  constexpr Group g = Group::stream;
  return {
      {"length", "N", "tokens; 0 = all of --embeddings, 1048576 random ones without", g,
       PROTEUS_FIELD(stream.length)},
      {"embeddings", "FILE", ".npy or .safetensors [length, width]; - = raw f32 from a pipe", g,
       PROTEUS_FIELD(stream.embeddings)},
      {"file", "FILE", "with --checkpoint: a text; - = from a pipe", g, PROTEUS_FIELD(stream.file)},
      {"score-layer", "N", "layer of a model that scores; -1 = the last", g,
       PROTEUS_FIELD(stream.score_layer)},
      {"rounds", "N", "passes of a model; what one finds the next asks for, too", g,
       PROTEUS_FIELD(stream.rounds)},
      {"prompt-embeddings", "FILE", "the prompt in such a file; without it, random", g,
       PROTEUS_FIELD(stream.prompt_embeddings)},
      {"prompt-tokens", "N", "tokens of a random prompt", g, PROTEUS_FIELD(stream.prompt_tokens)},
      {"chunk", "N", "tokens of a chunk", g, PROTEUS_FIELD(stream.chunk)},
      {"buffer", "N", "tokens that are kept of the whole text", g, PROTEUS_FIELD(stream.buffer)},
      {"per-chunk", "N", "most winners of a chunk", g, PROTEUS_FIELD(stream.per_chunk)},
      {"chunk-keep", "X", "and at most this share of its tokens", g,
       PROTEUS_FIELD(stream.chunk_keep)},
      {"top-p", "X", "of a chunk, the fewest tokens whose probabilities reach p", g,
       PROTEUS_FIELD(stream.top_p)},
      {"top-a", "N", "drop winners that fewer heads agree on; 0 = off", g,
       PROTEUS_FIELD(stream.top_a)},
      {"pool", "N", "a score is the mean over N neighbours on either side, too", g,
       PROTEUS_FIELD(stream.pool)},
      {"span", "N", "tokens kept on either side of a winner", g, PROTEUS_FIELD(stream.span)},
      {"salience-weight", "X", "weight of the layer's token salience in a score", g,
       PROTEUS_FIELD(stream.salience_weight)},
      {"final-keep", "X", "share of the kept tokens that enter routed heads in the final pass", g,
       PROTEUS_FIELD(stream.final_keep)},
      {"ram-limit", "SIZE", "rows in memory, as 256M or 4G; default half of what is available", g,
       PROTEUS_FIELD(stream.ram_limit)},
      {"spill-dir", "DIR", "where longer texts wait; default the folder for temporary files", g,
       PROTEUS_FIELD(stream.spill_dir)},
  };
}

Specs other_options() {
  return {
      {"prompt", "TEXT", "text to go on from", Group::sampling, PROTEUS_FIELD(sampling.prompt)},
      {"sample-tokens", "N", "tokens to sample", Group::sampling,
       PROTEUS_FIELD(sampling.sample_tokens)},
      {"temperature", "X", "of the softmax; 0 = always the likeliest", Group::sampling,
       PROTEUS_FIELD(sampling.temperature)},
      {"top-k", "N", "keep the k likeliest tokens; 0 = all", Group::sampling,
       PROTEUS_FIELD(sampling.top_k)},
      {"top-p", "X", "keep the fewest tokens whose probabilities reach p", Group::sampling,
       PROTEUS_FIELD(sampling.top_p)},
      {"top-a", "KIND", "do routed heads agree with a token? off, filter or blend", Group::sampling,
       PROTEUS_FIELD(sampling.top_a)},
      {"top-a-threshold", "X", "with filter: keep tokens with this cosine to the heads' consensus",
       Group::sampling, PROTEUS_FIELD(sampling.top_a_threshold)},
      {"top-a-weight", "X", "with blend: add so many times the cosine to the logits",
       Group::sampling, PROTEUS_FIELD(sampling.top_a_weight)},
      {"latency-budget", "MS", "move alpha and the window towards this time per token; 0 = off",
       Group::sampling, PROTEUS_FIELD(sampling.latency_budget)},
      {"cache-dtype", "TYPE", "of keys and values that are remembered: f32 or int8",
       Group::sampling, PROTEUS_FIELD(sampling.cache_dtype)},
      {"preset", "NAME", "tiny, baby or gpt2", Group::duel, PROTEUS_FIELD(duel.preset)},
      {"arms", "LIST", "models to compare, with commas", Group::duel, PROTEUS_FIELD(duel.arms)},
      {"seeds", "N", "runs of every arm, with seeds seed, seed+1, …", Group::duel,
       PROTEUS_FIELD(duel.seeds)},
      {"task", "NAME",
       "mqar, mqar_rebind (half of the keys change), stream (asked at the end) or needle",
       Group::recall, PROTEUS_FIELD(recall.task)},
      {"pairs", "N", "key-value pairs of a sequence", Group::recall, PROTEUS_FIELD(recall.pairs)},
      {"vocab", "N", "ids: half keys, half values", Group::recall, PROTEUS_FIELD(recall.vocab)},
      {"shortest", "N",
       "train on N, 2N, … up to --length tokens, with fewer pairs; 0 = --length only",
       Group::recall, PROTEUS_FIELD(recall.shortest)},
      {"train-length", "N", "needle: tokens of a lesson; --length is that of the stream",
       Group::recall, PROTEUS_FIELD(recall.train_length)},
      {"needles", "LIST", "needle: single, distractors, two_hop", Group::recall,
       PROTEUS_FIELD(recall.needles)},
      {"top-p", "X", "needle: of a chunk, the fewest tokens whose probabilities reach p",
       Group::recall, PROTEUS_FIELD(stream.top_p)},
      {"trials", "N", "needle: streams of each kind", Group::recall, PROTEUS_FIELD(recall.trials)},
      {"stop-at", "X", "stop when two evaluations in a row reach this accuracy; 0 = never",
       Group::recall, PROTEUS_FIELD(recall.stop_at)},
      {"lengths", "LIST", "lengths T: 128..1048576 doubles, commas between others", Group::sweep,
       PROTEUS_FIELD(sweep.lengths)},
      {"alphas", "LIST", "alphas of the ASPA layer, with commas", Group::sweep,
       PROTEUS_FIELD(sweep.alphas)},
      {"backward", "", "time forward with backward too", Group::sweep,
       PROTEUS_FIELD(sweep.backward)},
      {"repeats", "N", "calls of a point whose median counts, up to two seconds in all",
       Group::sweep, PROTEUS_FIELD(sweep.repeats)},
      {"point-seconds", "X", "leave out lengths at which a call would take longer", Group::sweep,
       PROTEUS_FIELD(sweep.point_seconds)},
      {"model", "ARM", "dense, aspa or another arm of duel", Group::checkpoint,
       PROTEUS_FIELD(checkpoint.model)},
      {"checkpoint", "DIR", "checkpoint folder", Group::checkpoint,
       PROTEUS_FIELD(checkpoint.checkpoint)},
      {"resume", "", "go on from the checkpoint", Group::checkpoint,
       PROTEUS_FIELD(checkpoint.resume)},
      {"from-gpt2", "DIR", "read a Hugging Face folder of a GPT-2 instead of a checkpoint",
       Group::convert, PROTEUS_FIELD(convert.from_gpt2)},
      {"to-gpt2", "DIR", "write such a folder instead of a checkpoint", Group::convert,
       PROTEUS_FIELD(convert.to_gpt2)},
      {"part", "NAME", "gates of attention or mlp", Group::gates, PROTEUS_FIELD(gates.part)},
      {"edit", "NAME", "clone, merge, prune, re-home, add-head or prune-head; default: show",
       Group::gates, PROTEUS_FIELD(gates.edit)},
      {"layer", "N", "the layer; default: show all", Group::gates, PROTEUS_FIELD(gates.layer)},
      {"gate", "N", "the gate to operate on", Group::gates, PROTEUS_FIELD(gates.gate)},
      {"other", "N", "the gate to merge into it", Group::gates, PROTEUS_FIELD(gates.other)},
      {"head", "N", "the head to move it to, or to prune", Group::gates, PROTEUS_FIELD(gates.head)},
      {"noise", "X", "on a clone's direction, as a share of it", Group::gates,
       PROTEUS_FIELD(gates.noise)},
      {"most-usage", "X", "prune a head only if it is used at most so many times the mean",
       Group::gates, PROTEUS_FIELD(gates.most_usage)},
      {"save", "DIR", "where the edited checkpoint goes; default: in place", Group::gates,
       PROTEUS_FIELD(gates.save)},
      {"path", "PATH", "what to look at; may stand alone, without --path", Group::inspect,
       PROTEUS_FIELD(output.path)},
      {"runs", "LIST", "run folders; they may stand alone, without --runs", Group::report,
       PROTEUS_FIELD(report.runs)},
      {"page", "FILE", "the page; default: report.html in the first run folder", Group::report,
       PROTEUS_FIELD(report.page)},
      {"svg", "DIR", "write every figure as an SVG file, too", Group::report,
       PROTEUS_FIELD(report.svg)},
      {"text", "FILE", "text of the prototype map; default: what the run was trained on",
       Group::report, PROTEUS_FIELD(report.text)},
      {"json", "", "print JSON instead of a table", Group::output, PROTEUS_FIELD(output.json)},
  };
}

#undef PROTEUS_FIELD

std::size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  for (std::size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (std::size_t i = 1; i <= a.size(); ++i) {
    std::size_t diagonal = row[0];
    row[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t change = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, change});
    }
  }
  return row[b.size()];
}

bool contains(const std::vector<std::string_view>& names, std::string_view name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

}  // namespace

std::string_view title_of(Group group) {
  constexpr std::string_view kTitles[] = {"Common",   "Data",       "Shards",  "Model",  "ASPA",
                                          "Training", "Sampling",   "Duel",    "Recall", "Sweep",
                                          "Stream",   "Checkpoint", "Convert", "Gates",  "Inspect",
                                          "Report",   "Doctor"};
  return kTitles[static_cast<std::size_t>(group)];
}

const std::vector<OptionSpec>& option_specs() {
  static const Specs specs = [] {
    Specs all;
    for (const auto make : {common_options, data_options, model_options, aspa_specs,
                            training_options, stream_options, other_options}) {
      for (const OptionSpec& spec : make()) all.push_back(spec);
    }
    return all;
  }();
  return specs;
}

const std::vector<CommandSpec>& command_specs() {
  using enum Group;
  static const std::vector<CommandSpec> specs = {
      {{"duel", "train dense and ASPA models on the same data and compare them"},
       "proteus duel --preset tiny --data shakespeare.txt --arms dense,aspa --out runs/first",
       {common, data, duel, model, aspa, training, sampling},
       {},
       {}},
      {{"train", "train one model"},
       "proteus train --model aspa --preset tiny --data shakespeare.txt --out runs/aspa",
       {common, data, checkpoint, model, aspa, training},
       {"preset"},
       {}},
      {{"eval", "loss of a checkpoint over the whole validation part"},
       "proteus eval --checkpoint runs/aspa/checkpoint --data shakespeare.txt",
       {common, data},
       {"checkpoint", "batch", "eval-batches", "alpha"},
       {"tokenizer", "vocab-size"}},
      {{"sample", "write text with a checkpoint"},
       "proteus sample --checkpoint runs/aspa/checkpoint --prompt \"ROMEO:\" --temperature 0.8",
       {common, sampling},
       {"checkpoint"},
       {}},
      {{"recall", "train and score models on a synthetic recall task"},
       "proteus recall --task mqar --length 128 --pairs 16 --arms dense,dense_shift,aspa",
       {common, recall, model, aspa, training},
       {"arms", "seeds", "checkpoint", "chunk", "buffer", "per-chunk", "chunk-keep", "pool", "span",
        "score-layer", "rounds"},
       {"context", "epochs"}},
      {{"sweep", "time and memory of one attention layer against length, dense and ASPA"},
       "proteus sweep --lengths 128..65536 --alphas 0,0.5,1 --backward",
       {common, sweep, aspa},
       {"width", "heads", "head-width", "batch"},
       {"alpha", "alpha-schedule", "alpha-ramp", "dense-until", "sparse-from", "density",
        "density-tolerance", "density-every", "gate-every", "gate-merge-above", "gate-clone-above",
        "most-gates", "experts", "expert-k", "expert-width", "expert-router", "add-heads",
        "add-heads-at", "head-ramp"}},
      {{"stream", "keep what a prompt asks for of a text of any length, and read that"},
       "proteus stream --length 1048576 --width 512 --chunk 65536 --buffer 32768 --heads 8",
       {common, stream},
       {"width", "heads", "head-width", "alpha", "shared-heads", "shared-window", "k", "window",
        "anchors", "checkpoint", "prompt", "sample-tokens", "temperature"},
       {"dtype"}},
      {{"convert", "a dense checkpoint as an ASPA one, or GPT-2 in and out"},
       "proteus convert --checkpoint runs/dense/checkpoint --save runs/aspa/checkpoint "
       "--alpha-schedule ramp",
       {common, convert, aspa},
       {"checkpoint", "save", "context", "tokenizer"},
       {"experts", "expert-k", "expert-width", "expert-router"}},
      {{"data", "turn text into files of token ids, or show such files"},
       "proteus data --data shakespeare.txt --tokenizer bpe --vocab-size 1024 --out data/bpe",
       {common, data, shards},
       {},
       {"dtype"}},
      {{"gates", "show the gates of a checkpoint, or operate on them"},
       "proteus gates --checkpoint runs/aspa/checkpoint --edit clone --layer 0 --gate 3",
       {gates},
       {"checkpoint", "device", "threads", "seed", "json"},
       {}},
      {{"inspect",
        "list a checkpoint, a tensor file, token ids, a tokenizer or a text without loading it"},
       "proteus inspect runs/aspa/checkpoint",
       {inspect},
       {"json", "device", "threads"},
       {},
       "path"},
      {{"report", "one page with curves, maps and samples from run folders"},
       "proteus report runs/duel runs/sweep --page report.html --svg figures",
       {report},
       {"device", "threads"},
       {},
       "runs"},
      {{"doctor", "what this machine has and what is missing"},
       "proteus doctor --json",
       {output},
       {"device", "threads"},
       {}},
  };
  return specs;
}

const CommandSpec& command_spec(std::string_view command) {
  std::vector<std::string_view> names;
  for (const CommandSpec& spec : command_specs()) {
    if (spec.info.name == command) return spec;
    names.push_back(spec.info.name);
  }
  throw ConfigError(
      fmt::format("unknown command '{}'; expected one of {}", command, joined(names, ", ")));
}

std::vector<const OptionSpec*> options_of(const CommandSpec& command) {
  std::vector<const OptionSpec*> list;
  for (const OptionSpec& spec : option_specs()) {
    const auto& groups = command.groups;
    const bool in_group = std::find(groups.begin(), groups.end(), spec.group) != groups.end();
    if ((in_group && !contains(command.without, spec.name)) || contains(command.also, spec.name)) {
      list.push_back(&spec);
    }
  }
  return list;
}

std::string nearest_name(std::string_view name, const std::vector<const OptionSpec*>& specs) {
  std::string best;
  std::size_t least = std::min<std::size_t>(2, name.size() / 2) + 1;  // a slip or two
  for (const OptionSpec* spec : specs) {
    const std::size_t distance = edit_distance(name, spec->name);
    if (distance < least) {
      least = distance;
      best = spec->name;
    }
  }
  return best;
}

}  // namespace proteus::detail
