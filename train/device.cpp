#include "train/device.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <fstream>

#include "tensor/error.h"
#ifdef PROTEUS_HAVE_CUDA
#include "cuda/device.h"
#endif

namespace proteus {

Device parse_device(std::string_view text) {
  if (text == "cpu") return kCpu;
  if (text == "cuda") return {DeviceType::cuda, 0};
  constexpr std::string_view kPrefix = "cuda:";
  int index = 0;
  if (text.starts_with(kPrefix)) {
    const char* end = text.data() + text.size();
    const auto [stop, error] = std::from_chars(text.data() + kPrefix.size(), end, index);
    if (error == std::errc() && stop == end && index >= 0) return {DeviceType::cuda, index};
  }
  throw ConfigError(fmt::format("--device: expected cpu, cuda or cuda:N, got '{}'", text));
}

Device open_device(std::string_view text) {
  const Device device = parse_device(text);
  if (device_installed(device.type)) return device;
#ifdef PROTEUS_HAVE_CUDA
  return cuda::device(device.index);
#else
  throw DeviceError(
      fmt::format("--device {}: this program was built without CUDA kernels; use --device cpu, or "
                  "install the CUDA toolkit and build with the preset cuda",
                  text));
#endif
}

bool built_with_cuda() {
#ifdef PROTEUS_HAVE_CUDA
  return true;
#else
  return false;
#endif
}

std::vector<std::string> gpu_names() {
  // The driver's own listing; it needs neither the CUDA libraries nor a working context.
  const std::filesystem::path folder = "/proc/driver/nvidia/gpus";
  std::vector<std::string> names;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(folder, error)) {
    std::ifstream in(entry.path() / "information");
    constexpr std::string_view kModel = "Model:";
    for (std::string line; std::getline(in, line);) {
      if (!line.starts_with(kModel)) continue;
      const auto first = line.find_first_not_of(" \t", kModel.size());
      names.push_back(first == std::string::npos ? "unknown" : line.substr(first));
    }
  }
  std::sort(names.begin(), names.end());
  return names;
}

}  // namespace proteus
