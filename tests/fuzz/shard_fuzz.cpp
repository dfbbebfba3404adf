// Headers of .bin files of token ids: what is taken fits into the file.
#include "tests/fuzz/fuzz.h"
#include "train/shard.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace proteus;
  const std::string_view file = fuzz::text_of(data, size);
  fuzz::accepts([&] {
    const ShardHeader header = parse_shard(file, "fuzz.bin");
    const std::size_t id_bytes = header.wide ? 4 : 2;
    fuzz::require(header.tokens >= 0 &&
                  header.data_at + static_cast<std::size_t>(header.tokens) * id_bytes == size);
  });
  return 0;
}
