// train/options.h: the three sources, their order, and the message for every bad value.
#include "train/options.h"

#include <gtest/gtest.h>

#include "tensor/error.h"
#include "tests/error_text.h"
#include "tests/temporary_folder.h"

namespace proteus {
namespace {

using testing::message_of;
using testing::TemporaryFolder;
using Args = std::vector<std::string>;

Options parse(std::string_view command, const Args& args) {
  const ParsedOptions parsed = parse_options(command, args);
  EXPECT_TRUE(parsed.help.empty());
  return parsed.options;
}

std::string refusal(std::string_view command, const Args& args) {
  return message_of<ConfigError>([&] { parse_options(command, args); });
}

TEST(Options, TinyIsTheDefault) {
  const Options o = parse("duel", {});
  EXPECT_EQ(o.command, "duel");
  EXPECT_EQ(o.duel.preset, "tiny");
  EXPECT_EQ(o.model.layers, 4);
  EXPECT_EQ(o.model.width, 128);
  EXPECT_EQ(o.model.context, 64);
  EXPECT_EQ(o.model.heads, 4);
  EXPECT_EQ(o.model.head_width, 32);
  EXPECT_EQ(o.training.batch, 12);
  EXPECT_EQ(o.training.steps, 2000);
  EXPECT_EQ(o.model.dropout, 0);
}

TEST(Options, BabyIsThePresetOfTheGpu) {
  const Options o = parse("train", {"--preset", "baby"});
  EXPECT_EQ(o.model.layers, 6);
  EXPECT_EQ(o.model.width, 384);
  EXPECT_EQ(o.model.context, 256);
  EXPECT_EQ(o.model.heads, 6);
  EXPECT_EQ(o.model.head_width, 64);
  EXPECT_EQ(o.model.dropout, 0.2);
  EXPECT_EQ(o.training.batch, 64);
  EXPECT_EQ(o.training.steps, 5000);
  EXPECT_EQ(o.training.lr, 1e-3);
  EXPECT_EQ(o.training.min_lr, 1e-4);
  EXPECT_EQ(o.training.beta2, 0.99);
  EXPECT_EQ(o.training.weight_decay, 0.1);
  EXPECT_EQ(o.aspa.shared_heads, 2);
  EXPECT_EQ(o.aspa.shared_window, 64);
  EXPECT_EQ(o.aspa.routed_heads, 16);
  EXPECT_EQ(o.aspa.k, 2);
  EXPECT_EQ(o.aspa.alpha, 1);
}

TEST(Options, Gpt2IsThePresetOfThatShape) {
  const Options o = parse("train", {"--preset", "gpt2", "--model", "dense"});
  EXPECT_EQ(o.model.layers, 12);
  EXPECT_EQ(o.model.width, 768);
  EXPECT_EQ(o.model.context, 1024);
  EXPECT_EQ(o.model.heads, 12);
  EXPECT_EQ(o.model.positions, "learned");
  EXPECT_TRUE(o.model.bias);
  EXPECT_EQ(o.data.tokenizer, "bpe");
  EXPECT_EQ(o.data.vocab_size, 50257);
}

TEST(Options, RecallHasItsOwnDefaults) {
  const Options o = parse("recall", {"--length", "256", "--pairs", "32"});
  EXPECT_EQ(o.model.context, 256);
  EXPECT_EQ(o.recall.pairs, 32);
  EXPECT_EQ(o.model.layers, 2);
  EXPECT_EQ(o.training.batch, 128);
  EXPECT_EQ(o.training.steps, 3000);
  EXPECT_EQ(o.duel.arms, (Args{"dense", "dense_shift", "aspa", "aspa_no_prototypes"}));
}

TEST(Options, TheCommandLineWinsOverTheConfigOverThePreset) {
  const TemporaryFolder folder;
  const std::string config = folder.write("run.toml",
                                          "# a run\n"
                                          "preset = \"baby\"\n"
                                          "layers = 3\n"
                                          "batch = 8\n"
                                          "lr = 1\n"
                                          "head-width = 32\n"
                                          "no-prototypes = true\n"
                                          "arms = [\"dense\", \"aspa\"]\n");
  const Options o = parse("duel", {"--config", config, "--batch=5", "--no-prototypes=false"});
  EXPECT_EQ(o.model.width, 384) << "preset";
  EXPECT_EQ(o.model.layers, 3) << "config";
  EXPECT_EQ(o.training.batch, 5) << "command line";
  EXPECT_EQ(o.training.lr, 1.0);
  EXPECT_EQ(o.model.heads, 12) << "follows from the width of a head";
  EXPECT_FALSE(o.aspa.no_prototypes);
  EXPECT_EQ(o.duel.arms, (Args{"dense", "aspa"}));
  EXPECT_EQ(parse("duel", {"--config", config, "--preset", "tiny"}).model.width, 128);
}

TEST(Options, ReadsEveryType) {
  const Options o = parse("train", {"--lr", "2.5e-4", "--seed", "0", "--quiet", "--frozen-router",
                                    "--mlp", "swiglu", "--model", "dense_gated"});
  EXPECT_EQ(o.training.lr, 2.5e-4);
  EXPECT_EQ(o.common.seed, 0);
  EXPECT_TRUE(o.common.quiet);
  EXPECT_TRUE(o.aspa.frozen_router);
  EXPECT_EQ(o.model.mlp, "swiglu");
  EXPECT_EQ(o.checkpoint.model, "dense_gated");
  const Options s = parse("sample", {"--checkpoint", "c", "--prompt", "-- to be\n", "--top-p=0.9"});
  EXPECT_EQ(s.sampling.prompt, "-- to be\n");
  EXPECT_EQ(s.sampling.top_p, 0.9);
  EXPECT_EQ(parse("sample", {"--checkpoint", "c", "--prompt", ""}).sampling.prompt, "");
}

TEST(Options, HeadsAndTheirWidthFollowEachOther) {
  EXPECT_EQ(parse("duel", {"--heads", "8"}).model.head_width, 16);
  EXPECT_EQ(parse("duel", {"--width", "256"}).model.heads, 8);
  const Options both = parse("duel", {"--heads", "3", "--head-width", "32"});
  EXPECT_EQ(both.model.heads, 3);
  EXPECT_EQ(both.model.head_width, 32);
  EXPECT_EQ(refusal("duel", {"--heads", "3"}),
            "--heads: expected a divisor of --width 128, got 3; or give --heads and --head-width "
            "together");
  EXPECT_EQ(refusal("duel", {"--width", "100"}),
            "--head-width: expected a divisor of --width 100, got 32; or give --heads and "
            "--head-width together");
  EXPECT_EQ(refusal("duel", {"--heads", "0"}), "--heads: expected at least 1, got 0");
}

TEST(Options, ExpertsDivideTheWidthOfTheDenseMlp) {
  const auto widths = [](const Args& args) {
    const Options o = parse("train", args);
    return expert_widths(o.aspa, o.model);
  };
  const ExpertWidths usual = widths({"--experts", "16"});
  EXPECT_EQ(usual.k, 4);
  EXPECT_EQ(usual.width, 64);
  EXPECT_EQ(usual.shared, 256);
  const ExpertWidths all = widths({"--experts", "8", "--expert-k", "2", "--expert-width", "256"});
  EXPECT_EQ(all.k, 2);
  EXPECT_EQ(all.shared, 0);
}

TEST(Options, StepsOrEpochs) {
  const Options o = parse("train", {"--epochs", "2"});
  EXPECT_EQ(o.training.steps, 0);
  EXPECT_EQ(training_steps(o.training, 64, 12 * 64 * 10 + 1), 21);
  EXPECT_EQ(training_steps(parse("train", {}).training, 64, 1000), 2000);
  EXPECT_EQ(refusal("train", {"--epochs", "2", "--steps", "5"}),
            "--epochs: not together with --steps; give one of them");
  EXPECT_EQ(refusal("train", {"--epochs", "0"}), "--epochs: expected a number above 0, got 0");
  const TemporaryFolder folder;
  const std::string config = folder.write("run.toml", "epochs = 3\n");
  EXPECT_EQ(parse("train", {"--config", config}).training.epochs, 3);
  EXPECT_EQ(parse("train", {"--config", config, "--steps", "7"}).training.steps, 7);
  EXPECT_EQ(parse("train", {"--config", config, "--steps", "7"}).training.epochs, 0);
}

TEST(Options, ASmallLearningRateTakesTheSmallestDownWithIt) {
  EXPECT_EQ(parse("train", {"--lr", "1e-5"}).training.min_lr, 1e-5);
  EXPECT_EQ(refusal("train", {"--lr", "1e-5", "--min-lr", "1e-4"}),
            "--min-lr: expected at most 1e-05 (= --lr), got 0.0001");
}

TEST(Options, RefusesUnknownOptions) {
  EXPECT_EQ(refusal("train", {"--stpes", "5"}),
            "unknown option --stpes, did you mean --steps?; proteus train --help lists them");
  EXPECT_EQ(refusal("duel", {"--xyzzy=5"}),
            "unknown option --xyzzy; proteus duel --help lists them");
  EXPECT_EQ(refusal("sample", {"--checkpoint", "c", "--lr", "1"}),
            "unknown option --lr; proteus sample --help lists them");
  EXPECT_EQ(refusal("doctor", {"now"}),
            "unexpected argument 'now'; options begin with --, as in: proteus doctor --json");
  for (const char* later : {"--per-chunk", "--buffer"}) {
    EXPECT_NE(refusal("duel", {later, "1"}).find("unknown option"), std::string::npos) << later;
  }
  EXPECT_EQ(refusal("fly", {}),
            "unknown command 'fly'; expected one of duel, train, eval, sample, recall, sweep, "
            "stream, convert, data, gates, inspect, report, doctor");
  EXPECT_NE(refusal("train", {"--steps"}).find("--steps"), std::string::npos);
  EXPECT_NE(refusal("train", {"--steps", "5", "--steps", "6"}).find("--steps"), std::string::npos);
}

TEST(Options, RefusesTextThatIsNotOfTheType) {
  EXPECT_EQ(refusal("train", {"--steps", "2k"}), "--steps: expected an integer, got '2k'");
  EXPECT_EQ(refusal("train", {"--steps", "2.5"}), "--steps: expected an integer, got '2.5'");
  EXPECT_EQ(refusal("train", {"--steps", "99999999999999999999"}),
            "--steps: expected an integer, got '99999999999999999999'");
  EXPECT_EQ(refusal("train", {"--lr", "fast"}), "--lr: expected a number, got 'fast'");
  EXPECT_EQ(refusal("train", {"--lr", ""}), "--lr: expected a number, got ''");
}

struct BadValue {
  const char* command;
  Args args;
  const char* message;
};

TEST(Options, RefusesValuesThatMakeNoSense) {
  const BadValue cases[] = {
      {"duel", {"--alpha", "1.5"}, "--alpha: expected a number in [0, 1], got 1.5"},
      {"duel", {"--alpha", "-0.1"}, "--alpha: expected a number in [0, 1], got -0.1"},
      {"duel", {"--alpha", "nan"}, "--alpha: expected a number in [0, 1], got nan"},
      {"duel", {"--k", "17"}, "--k: expected at most 16 (= --routed-heads), got 17"},
      {"duel", {"--k", "0"}, "--k: expected at least 1, got 0"},
      {"duel", {"--bank-slots", "-1"}, "--bank-slots: expected at least 0, got -1"},
      {"duel", {"--bank-stride", "0"}, "--bank-stride: expected at least 1, got 0"},
      {"recall", {"--bank-delta", "2"}, "--bank-delta: expected a number in [0, 1], got 2"},
      {"train", {"--bank-delta-v", "-1"}, "--bank-delta-v: expected a number in [0, 1], got -1"},
      {"train",
       {"--bank-eviction", "lru"},
       "--bank-eviction: expected score or fifo or random, got 'lru'"},
      {"sample",
       {"--checkpoint", "c", "--cache-dtype", "int4"},
       "--cache-dtype: expected f32 or int8, got 'int4'"},
      {"duel",
       {"--shared-heads", "0", "--routed-heads", "0"},
       "--routed-heads: expected at least 1 when --shared-heads is 0, got 0; a layer needs a head"},
      {"train", {"--positions", "none"}, "--positions: expected rope or learned, got 'none'"},
      {"duel",
       {"--experts", "8", "--bias"},
       "--experts: expected 0 with --bias, got 8; experts have no biases"},
      {"train",
       {"--model", "dense", "--freeze-steps", "5"},
       "--freeze-steps: expected 0 with --model dense, which has no router that could learn, got "
       "5"},
      {"convert",
       {"--save", "a"},
       "--checkpoint: expected the folder of a trained model or --from-gpt2 DIR, got nothing; "
       "proteus train makes one"},
      {"convert",
       {"--checkpoint", "a", "--from-gpt2", "b", "--save", "c"},
       "--checkpoint: expected the folder of a trained model or --from-gpt2 DIR, got both; "
       "proteus train makes one"},
      {"convert",
       {"--checkpoint", "a"},
       "--save: expected the folder of the new checkpoint or --to-gpt2 DIR, got nothing"},
      {"convert",
       {"--from-gpt2", "a", "--to-gpt2", "b"},
       "--to-gpt2: expected --checkpoint with it, got --from-gpt2; that is one already"},
      {"duel",
       {"--experts", "8", "--expert-k", "9"},
       "--expert-k: expected at most 8 (= --experts), got 9"},
      {"duel", {"--experts", "3"}, "--expert-k: expected at most 3 (= --experts), got 4"},
      {"duel",
       {"--experts", "8", "--expert-width", "129"},
       "--expert-width: expected 1 to 128 (= hidden width 512 of the dense MLP / --expert-k 4), "
       "got 129"},
      {"duel",
       {"--experts", "8", "--expert-router", "attention"},
       "--experts: expected 16 (= --routed-heads, whose gates they share), got 8; or use "
       "--expert-router own"},
      {"duel",
       {"--experts", "16", "--expert-k", "2", "--expert-router", "attention"},
       "--expert-k: expected 4 (= --k of the heads whose gates they share), got 2; or use "
       "--expert-router own"},
      {"duel",
       {"--expert-router", "mine"},
       "--expert-router: expected own or attention, got 'mine'"},
      {"gates", {"--part", "norm"}, "--part: expected attention or mlp, got 'norm'"},
      {"duel", {"--layers", "0"}, "--layers: expected at least 1, got 0"},
      {"duel", {"--width", "-5"}, "--width: expected at least 1, got -5"},
      {"duel", {"--context", "0"}, "--context: expected at least 1, got 0"},
      {"duel", {"--batch", "0"}, "--batch: expected at least 1, got 0"},
      {"duel", {"--steps", "0"}, "--steps: expected at least 1, got 0"},
      {"duel", {"--dropout", "1"}, "--dropout: expected a number in [0, 1), got 1"},
      {"duel", {"--lr", "0"}, "--lr: expected a number above 0, got 0"},
      {"duel", {"--lr", "inf"}, "--lr: expected a number above 0, got inf"},
      {"duel", {"--beta2", "1"}, "--beta2: expected a number in [0, 1), got 1"},
      {"duel", {"--clip", "-1"}, "--clip: expected a number of at least 0, got -1"},
      {"duel", {"--seed", "-1"}, "--seed: expected at least 0, got -1"},
      {"duel", {"--threads", "-1"}, "--threads: expected at least 0, got -1"},
      {"duel", {"--dtype", "f16"}, "--dtype: expected f32 or bf16, got 'f16'"},
      {"duel", {"--mlp", "relu"}, "--mlp: expected gelu or swiglu, got 'relu'"},
      {"duel",
       {"--tokenizer", "word"},
       "--tokenizer: expected char, byte, bpe or the path of a tokenizer, got 'word'"},
      {"duel", {"--preset", "huge"}, "--preset: expected tiny, baby or gpt2, got 'huge'"},
      {"duel", {"--device", "gpu"}, "--device: expected cpu, cuda or cuda:N, got 'gpu'"},
      {"duel", {"--device", "cuda:x"}, "--device: expected cpu, cuda or cuda:N, got 'cuda:x'"},
      {"duel", {"--top-p", "0"}, "--top-p: expected a number in (0, 1], got 0"},
      {"duel", {"--top-a", "on"}, "--top-a: expected off or filter or blend, got 'on'"},
      {"duel",
       {"--top-a-threshold", "1.5"},
       "--top-a-threshold: expected a number in [-1, 1], got 1.5"},
      {"duel", {"--top-a-weight", "-1"}, "--top-a-weight: expected a number of at least 0, got -1"},
      {"duel",
       {"--top-a", "filter"},
       "--top-a: expected --arms whose heads are routed, got 'dense'; leave it out of --arms or "
       "use --top-a off"},
      {"duel",
       {"--top-a", "blend", "--arms", "aspa", "--routed-heads", "0", "--k", "1"},
       "--top-a: expected --arms whose heads are routed, got 'aspa'; leave it out of --arms or use "
       "--top-a off"},
      {"duel", {"--arms", "dense,dense"}, "--arms: expected every arm once, got 'dense' twice"},
      {"duel",
       {"--arms", "dense,sparse"},
       "--arms: expected one of dense, dense_gated, dense_shift, dense_shift_gated, aspa, "
       "aspa_no_prototypes, aspa_frozen, aspa_no_shift, aspa_shared, aspa_leak, got 'sparse'"},
      {"train",
       {"--model", "aspa_leak"},
       "--model: expected a causal arm, got 'aspa_leak', which selects with the whole sequence in "
       "view; only duel and recall measure it"},
      {"duel", {"--heads", "128"}, "--head-width: expected at least 2, got 1"},
      {"recall",
       {"--length", "32"},
       "--pairs: expected at most 10 (= --length 32 / 3: key, value and query), got 16"},
      {"duel", {"--mlp-width", "-1"}, "--mlp-width: expected at least 0, got -1"},
      {"duel",
       {"--experts", "8", "--mlp-width", "64", "--expert-width", "17"},
       "--expert-width: expected 1 to 16 (= hidden width 64 of the dense MLP / --expert-k 4), "
       "got 17"},
      {"recall",
       {"--length", "96", "--shortest", "32"},
       "--shortest: expected 0 or --length 96 halved some times, at least 3, got 32"},
      {"recall",
       {"--task", "copy"},
       "--task: expected mqar, mqar_rebind, stream or needle, got 'copy'"},
      {"recall",
       {"--task", "needle", "--length", "100"},
       "--length: expected at least 120 (= room for 9 needles), got 100"},
      {"recall",
       {"--task", "needle", "--train-length", "100"},
       "--pairs: expected from 1 to 11 (= --train-length 100 / 9: needle, question and as much "
       "hay), "
       "got 16"},
      {"recall",
       {"--task", "needle", "--needles", "single,many"},
       "--needles: expected some of single, distractors and two_hop, got 'many'"},
      {"recall", {"--task", "needle", "--trials", "0"}, "--trials: expected at least 1, got 0"},
      {"recall",
       {"--task", "needle", "--seeds", "2"},
       "--seeds: expected 1 with --task needle, got 2; give one --seed after another"},
      {"stream",
       {"--checkpoint", "a"},
       "--checkpoint: expected it together with --file: a model reads a text"},
      {"stream",
       {"--file", "a"},
       "--file: expected it together with --checkpoint: a model reads a text"},
      {"stream",
       {"--file", "a", "--checkpoint", "b", "--device", "cuda"},
       "--device: expected cpu, got 'cuda'; a model reads a stream on the CPU, wherever it was "
       "trained"},
      {"stream", {"--rounds", "0"}, "--rounds: expected at least 1, got 0"},
      {"recall", {"--stop-at", "1.1"}, "--stop-at: expected a number in [0, 1], got 1.1"},
      {"sample",
       {},
       "--checkpoint: expected the folder of a trained model, got nothing; proteus train makes "
       "one"},
      {"train",
       {"--frozen-router", "--add-heads", "2"},
       "--add-heads: expected 0 with --frozen-router, got 2; a frozen router's gates stay as they "
       "are"},
  };
  for (const BadValue& bad : cases) EXPECT_EQ(refusal(bad.command, bad.args), bad.message);
}

TEST(Options, TextIsDecodedOnADevice) {
  const auto parsed = parse_options("sample", {"--checkpoint", "x", "--device", "cuda"});
  EXPECT_EQ(parsed.options.common.device, "cuda");
}

TEST(Options, RefusesBadConfigs) {
  const TemporaryFolder folder;
  const auto refused = [&](std::string_view text) {
    const std::string path = folder.write("run.toml", text);
    const std::string message = refusal("train", {"--config", path});
    EXPECT_TRUE(message.starts_with(path)) << message;
    return message.substr(std::min(path.size(), message.size()));
  };
  EXPECT_EQ(
      refused("steps = 5\nstpes = 6\n"),
      ": line 2: unknown key 'stpes', did you mean 'steps'?; proteus train --help lists them");
  EXPECT_EQ(refused("[shape]\nlayers = 3\n"),
            ": line 1: unknown key 'shape'; proteus train --help lists them");
  EXPECT_EQ(refused("steps = \"many\"\n"), ": line 1: steps: expected an integer, got a string");
  EXPECT_EQ(refused("steps = 2.5\n"), ": line 1: steps: expected an integer, got a number");
  EXPECT_EQ(refused("lr = true\n"), ": line 1: lr: expected a number, got a boolean");
  EXPECT_EQ(refused("quiet = 1\n"), ": line 1: quiet: expected true or false, got an integer");
  EXPECT_EQ(refused("\nmlp = 3\n"), ": line 2: mlp: expected a string, got an integer");
  EXPECT_EQ(refused("config = \"other.toml\"\n").find(": line 1: unknown key 'config'"), 0u);
  EXPECT_EQ(refused("steps = = 5\n").find(": line 1: "), 0u);
  const std::string absent = folder.file("absent.toml");
  EXPECT_EQ(message_of<FileError>([&] {
              parse_options("train", {"--config", absent});
            }),
            absent + ": cannot read: No such file or directory");
}

TEST(Options, ConfigTextReadsBackToTheSame) {
  const TemporaryFolder folder;
  const std::vector<std::pair<std::string, Args>> runs = {
      {"duel", {}},
      {"duel",
       {"--preset", "baby", "--arms", "aspa,dense", "--lr", "1e-7", "--prompt", "a\"\\\n\tü"}},
      {"train", {"--epochs", "0.5", "--heads", "8", "--no-key-shift", "--model", "dense"}},
      {"train", {"--preset", "gpt2", "--freeze-steps", "7"}},
      {"train", {"--heads", "3", "--head-width", "32", "--device", "cuda:1"}},
      {"eval", {"--checkpoint", "runs/a/checkpoint", "--data", "x.txt"}},
      {"sample", {"--checkpoint", "c", "--temperature", "0"}},
      {"recall", {"--seeds", "3", "--balance-constant", "--shortest", "64"}},
  };
  for (const auto& [command, args] : runs) {
    const std::string text = config_text(parse(command, args));
    const Options back = options_from_text(command, text, "config.toml");
    EXPECT_EQ(config_text(back), text);
    const std::string path = folder.write("config.toml", text);
    EXPECT_EQ(config_text(parse(command, {"--config", path})), text);
  }
  const std::string text = config_text(parse("duel", {"--out", "x", "--quiet", "--lr", "1"}));
  EXPECT_EQ(text.find("\nout"), std::string::npos);
  EXPECT_EQ(text.find("\nquiet"), std::string::npos);
  EXPECT_NE(text.find("\nlr = 1.0\n"), std::string::npos);
  EXPECT_NE(text.find("\narms = [\"dense\", \"dense_gated\", \"aspa\"]\n"), std::string::npos);
}

TEST(Options, AResumedRunIsTheSavedOneWithWhatTheCommandLineGives) {
  const Options saved =
      parse("duel", {"--layers", "3", "--steps", "77", "--seed", "5", "--lr", "0.5"});
  const auto resume = [&](std::vector<std::string> args) {
    args.insert(args.begin(), {"--resume", "--checkpoint", "c"});
    return resumed(saved, parse("train", args));
  };
  const Options o = resume({"--steps", "99", "--threads", "1", "--layers", "3"});
  EXPECT_EQ(o.command, "train");
  EXPECT_EQ(o.model.layers, 3);
  EXPECT_EQ(o.training.steps, 99);
  EXPECT_EQ(o.training.lr, 0.5);
  EXPECT_EQ(o.common.seed, 5);
  EXPECT_EQ(o.common.threads, 1);
  EXPECT_EQ(o.checkpoint.checkpoint, "c");
  EXPECT_EQ(resume({}).training.steps, 77);
  EXPECT_EQ(resume({"--epochs", "2"}).training.steps, 0);
  EXPECT_EQ(resume({"--context", "128"}).model.context, 128) << "rotary positions reach anywhere";
  const auto message = [&](const std::vector<std::string>& args) {
    return message_of<ConfigError>([&] { resume(args); });
  };
  EXPECT_EQ(message({"--layers", "4"}),
            "--layers: expected 3, as in the checkpoint that is resumed, got 4");
  EXPECT_NE(message({"--seed", "6"}).find("--seed"), std::string::npos);
  const Options learned = parse("train", {"--positions", "learned", "--model", "dense"});
  EXPECT_EQ(message_of<ConfigError>([&] {
              resumed(learned, parse("train", {"--resume", "--out", "o", "--context", "128"}));
            }),
            "--context: expected 64, as in the checkpoint that is resumed, got 128");
  EXPECT_NE(message({"--lr", "-1"}).find("--lr"), std::string::npos);
  EXPECT_THROW(parse_options("train", {"--resume"}), ConfigError);
}

TEST(Options, HelpListsOptionsAndAnExample) {
  for (const CommandInfo& command : command_infos()) {
    const std::string help = parse_options(command.name, {"--help"}).help;
    EXPECT_NE(help.find("Example:\n  proteus " + std::string(command.name)), std::string::npos);
    EXPECT_NE(help.find("--device"), std::string::npos) << command.name;
  }
  const std::string help = parse_options("duel", {"--help"}).help;
  for (const char* name : {"--data", "--arms", "--preset", "--alpha", "--routed-heads", "--steps",
                           "--epochs", "--top-p", "--config"}) {
    EXPECT_NE(help.find(name), std::string::npos) << name;
  }
  EXPECT_EQ(help.find("--pairs"), std::string::npos) << "another command's";
}

TEST(Options, ExamplesInTheHelpAreValid) {
  for (const CommandInfo& command : command_infos()) {
    const std::string help = parse_options(command.name, {"--help"}).help;
    std::string line = help.substr(help.find("Example:\n  ") + 11);
    line = line.substr(0, line.find('\n'));
    Args args(1);
    for (const char c : line) {
      if (c == ' ') {
        args.emplace_back();
      } else if (c != '"') {
        args.back() += c;
      }
    }
    ASSERT_EQ(args[1], command.name);
    EXPECT_NO_THROW(parse_options(args[1], {args.begin() + 2, args.end()})) << line;
  }
}

TEST(Arms, TakeAwayFromTheUsersOptions) {
  AspaOptions options;
  options.alpha = 0.5;
  const AspaOptions arm = aspa_options(options, arm_named("aspa_no_prototypes", "--arms"));
  EXPECT_TRUE(arm.no_prototypes);
  EXPECT_FALSE(arm.frozen_router);
  EXPECT_EQ(arm.alpha, 0.5);
  options.no_prototypes = true;
  EXPECT_TRUE(aspa_options(options, arm_named("aspa", "--arms")).no_prototypes);
  EXPECT_TRUE(arm_named("dense_shift", "--arms").key_shift);
  EXPECT_TRUE(arm_named("dense_gated", "--arms").output_gate);
  EXPECT_FALSE(arm_named("dense", "--arms").aspa);
}

}  // namespace
}  // namespace proteus
