// proteus doctor: what this machine has and what is missing. As a table or, with --json, as JSON.
#include <fmt/format.h>
#include <unistd.h>
#include <xxhash.h>

#include <CLI/Version.hpp>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "tensor/parallel.h"
#include "train/commands.h"
#include "train/device.h"
#include "train/machine.h"
#include "train/memory.h"
#include "train/report.h"

// Versions of libraries that stay inside other rooms come from CMake.
#ifndef PROTEUS_EIGEN_VERSION
#define PROTEUS_EIGEN_VERSION ""
#endif
#ifndef PROTEUS_ONEDNN_VERSION
#define PROTEUS_ONEDNN_VERSION ""
#endif
#ifndef PROTEUS_OPENMP_VERSION
#define PROTEUS_OPENMP_VERSION ""
#endif
#ifndef PROTEUS_CUDA_VERSION
#define PROTEUS_CUDA_VERSION ""
#endif
#ifndef PROTEUS_TOML_VERSION
#define PROTEUS_TOML_VERSION ""
#endif

namespace proteus {
namespace {

using Json = nlohmann::ordered_json;

/// Vector instructions that kernels use, and whether this program was compiled for them.
struct Feature {
  std::string name;
  bool machine = false;
  bool compiled = false;
};

#ifdef __AVX2__
constexpr bool kAvx2 = true;
#else
constexpr bool kAvx2 = false;
#endif
#ifdef __FMA__
constexpr bool kFma = true;
#else
constexpr bool kFma = false;
#endif
#ifdef __AVX512F__
constexpr bool kAvx512F = true;
#else
constexpr bool kAvx512F = false;
#endif
#ifdef __AVX512BF16__
constexpr bool kAvx512Bf16 = true;
#else
constexpr bool kAvx512Bf16 = false;
#endif
#ifdef __AVX512VNNI__
constexpr bool kAvx512Vnni = true;
#else
constexpr bool kAvx512Vnni = false;
#endif
#ifdef __AMX_BF16__
constexpr bool kAmxBf16 = true;
#else
constexpr bool kAmxBf16 = false;
#endif

std::vector<Feature> features(const CpuInfo& cpu) {
  return {
      {"avx2", cpu.has("avx2"), kAvx2},
      {"fma", cpu.has("fma"), kFma},
      {"avx512f", cpu.has("avx512f"), kAvx512F},
      {"avx512_bf16", cpu.has("avx512_bf16"), kAvx512Bf16},
      {"avx512_vnni", cpu.has("avx512_vnni"), kAvx512Vnni},
      {"amx_bf16", cpu.has("amx_bf16"), kAmxBf16},
  };
}

/// Bytes of a cache, or null when the system does not tell.
Json cache_bytes(int name) {
  const long bytes = ::sysconf(name);
  return bytes > 0 ? Json(bytes) : Json();
}

Json version_or_null(const std::string& version) {
  return version.empty() ? Json() : Json(version);
}

Json libraries() {
  return {
      {"eigen", version_or_null(PROTEUS_EIGEN_VERSION)},
      {"openmp", version_or_null(PROTEUS_OPENMP_VERSION)},
      {"onednn", version_or_null(PROTEUS_ONEDNN_VERSION)},
      {"cuda", version_or_null(PROTEUS_CUDA_VERSION)},
      {"cli11", CLI11_VERSION},
      {"nlohmann_json", fmt::format("{}.{}.{}", NLOHMANN_JSON_VERSION_MAJOR,
                                    NLOHMANN_JSON_VERSION_MINOR, NLOHMANN_JSON_VERSION_PATCH)},
      {"tomlplusplus", version_or_null(PROTEUS_TOML_VERSION)},
      {"fmt",
       fmt::format("{}.{}.{}", FMT_VERSION / 10000, FMT_VERSION / 100 % 100, FMT_VERSION % 100)},
      {"xxhash",
       fmt::format("{}.{}.{}", XXH_VERSION_MAJOR, XXH_VERSION_MINOR, XXH_VERSION_RELEASE)},
  };
}

/// What could be better, each with the way to get it.
std::vector<std::string> missing(const CpuInfo& cpu) {
  std::vector<std::string> list;
  if (std::string(PROTEUS_ONEDNN_VERSION).empty()) {
    list.emplace_back(
        "oneDNN: not compiled in, matrix products use Eigen (apt install libdnnl-dev "
        "ocl-icd-opencl-dev, configure "
        "and "
        "build again)");
  }
  for (const Feature& f : features(cpu)) {
    if (f.machine && !f.compiled) {
      list.push_back(
          fmt::format("{}: the CPU has it, this program was not compiled for it (build with "
                      "-DPROTEUS_ARCH=native)",
                      f.name));
    }
  }
  const bool gpu = !gpu_names().empty();
  if (gpu && !built_with_cuda()) {
    list.emplace_back(
        "CUDA kernels: there is a GPU, but this program was built without them (install the CUDA "
        "toolkit, build with the preset cuda)");
  }
  if (!gpu) list.emplace_back("GPU: no NVIDIA driver on this machine; --device cpu works");
  return list;
}

Json inspect(const Options& options) {
  const CpuInfo cpu = read_cpu();
  const MachineMemory memory = machine_memory();
  Json json{{"command", "doctor"}, {"version", PROTEUS_VERSION}};
  Json flags = Json::object();
  for (const Feature& f : features(cpu)) {
    flags[f.name] = Json{{"machine", f.machine}, {"compiled", f.compiled}};
  }
  json["cpu"] = Json{{"model", cpu.model},
                     {"cores", static_cast<int>(std::thread::hardware_concurrency())},
                     {"usable_cores", usable_cores()},
                     {"threads", num_threads()},
                     {"features", flags}};
  json["caches"] = Json{{"l1d_bytes", cache_bytes(_SC_LEVEL1_DCACHE_SIZE)},
                        {"l2_bytes", cache_bytes(_SC_LEVEL2_CACHE_SIZE)},
                        {"l3_bytes", cache_bytes(_SC_LEVEL3_CACHE_SIZE)}};
  json["memory"] =
      Json{{"total_bytes", memory.total_bytes}, {"available_bytes", memory.available_bytes}};
  json["gpus"] = gpu_names();
  json["device"] = to_string(open_device(options.common.device));
  json["cuda_kernels"] = built_with_cuda();
  json["compiler"] = compiler_name();
  json["libraries"] = libraries();
  json["missing"] = missing(cpu);
  return json;
}

std::string bytes_or_dash(const Json& value) {
  return value.is_number() ? format_bytes(value.get<std::int64_t>()) : "–";
}

void print_table(const Json& json) {
  Table table({"what", "here"});
  const Json& cpu = json["cpu"];
  table.add_row({"CPU", cpu["model"].get<std::string>()});
  table.add_row({"cores", fmt::format("{} ({} usable), {} threads in use", cpu["cores"].get<int>(),
                                      cpu["usable_cores"].get<int>(), cpu["threads"].get<int>())});
  for (const auto& [name, feature] : cpu["features"].items()) {
    const bool machine = feature["machine"].get<bool>();
    const bool compiled = feature["compiled"].get<bool>();
    table.add_row({name, machine
                             ? (compiled ? "yes" : "yes, not compiled in")
                             : (compiled ? "NO, but compiled in: this program may crash" : "no")});
  }
  const Json& caches = json["caches"];
  table.add_row({"caches", fmt::format("L1d {}, L2 {}, L3 {}", bytes_or_dash(caches["l1d_bytes"]),
                                       bytes_or_dash(caches["l2_bytes"]),
                                       bytes_or_dash(caches["l3_bytes"]))});
  table.add_row(
      {"memory", fmt::format("{}, {} available", bytes_or_dash(json["memory"]["total_bytes"]),
                             bytes_or_dash(json["memory"]["available_bytes"]))});
  if (json["gpus"].empty()) table.add_row({"GPU", "none"});
  for (const auto& gpu : json["gpus"]) table.add_row({"GPU", gpu.get<std::string>()});
  table.add_row({"device", json["device"].get<std::string>()});
  table.add_row({"CUDA kernels", json["cuda_kernels"].get<bool>() ? "yes" : "no"});
  table.add_row({"compiler", json["compiler"].get<std::string>()});
  for (const auto& [name, version] : json["libraries"].items()) {
    table.add_row({name, version.is_string() ? version.get<std::string>() : "–"});
  }
  fmt::print("{}", table.text());
  for (const auto& line : json["missing"]) fmt::print("missing: {}\n", line.get<std::string>());
}

}  // namespace

int run_doctor(const Options& options) {
  const Json json = inspect(options);
  if (options.output.json) {
    fmt::print("{}\n", json.dump(2));
  } else {
    print_table(json);
  }
  return 0;
}

}  // namespace proteus
