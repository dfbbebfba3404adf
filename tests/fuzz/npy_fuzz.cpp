// .npy headers.
#include "tests/fuzz/fuzz.h"
#include "train/npy.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace proteus;
  const std::string_view file = fuzz::text_of(data, size);
  fuzz::accepts([&] {
    const NpyInfo info = parse_npy(file, "fuzz.npy");
    fuzz::require(info.data_at <= size && info.element_bytes > 0);
  });
  return 0;
}
