// Embeddings that are streamed: .npy or .safetensors by what the input begins with. All rows that a
// file promises are there to be read.
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <string>
#include <vector>

#include "tests/fuzz/fuzz.h"
#include "train/npy.h"
#include "train/row_source.h"

using namespace proteus;

/// A file that goes with the process.
class ScratchFile {
 public:
  explicit ScratchFile(const std::string& suffix)
      : path_(std::filesystem::temp_directory_path() /
              ("proteus-fuzz-" + std::to_string(::getpid()) + suffix)) {}
  ~ScratchFile() { std::remove(path_.c_str()); }
  ScratchFile(const ScratchFile&) = delete;
  ScratchFile& operator=(const ScratchFile&) = delete;

  const std::string& holding(std::string_view contents) const {
    std::FILE* file = std::fopen(path_.c_str(), "wb");
    fuzz::require(file &&
                  std::fwrite(contents.data(), 1, contents.size(), file) == contents.size());
    fuzz::require(std::fclose(file) == 0);
    return path_;
  }

 private:
  std::string path_;
};

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  constexpr std::int64_t kWidth = 4;
  static const ScratchFile npy(".npy"), safetensors(".safetensors");
  const std::string_view contents = fuzz::text_of(data, size);
  const std::string& path = (is_npy(contents) ? npy : safetensors).holding(contents);
  const auto source = fuzz::accepted([&] { return embedding_source(path, kWidth); });
  if (!source) return 0;
  fuzz::require(source->rows > 0 &&
                source->rows * source->row_bytes() <= static_cast<std::int64_t>(size));
  std::vector<char> rows(static_cast<std::size_t>(source->rows * source->row_bytes()));
  fuzz::require(source->read(rows.data(), source->rows) == source->rows);
  fuzz::require(source->read(rows.data(), 1) == 0);
  return 0;
}
