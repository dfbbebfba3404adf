// A small checkpoint, and damage to its files.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <string>

#include "train/checkpoint.h"

namespace proteus::testing {

inline constexpr const char* kCheckpointFiles[] = {"config.json", "state.json", "model.safetensors",
                                                   "optimizer.safetensors", "manifest.json"};

inline Checkpoint sample_checkpoint(int number) {
  const Tensor w = Tensor::full({3, 4}, number);
  return {R"({"config":true})",
          R"({"number":)" + std::to_string(number) + "}",
          {{"w", w}, {"steps", Tensor::arange(5)}},
          {{"m.w", w}}};
}

/// Calls `fn(bit)` with each of the first `bits` bits of a file flipped in turn.
template <class F>
void for_each_flip(const std::string& path, std::size_t bits, F&& fn) {
  const int fd = ::open(path.c_str(), O_RDWR | O_CLOEXEC);
  ASSERT_GE(fd, 0);
  for (std::size_t bit = 0; bit < bits; ++bit) {
    const auto at = static_cast<off_t>(bit / 8);
    unsigned char byte = 0;
    ASSERT_EQ(::pread(fd, &byte, 1, at), 1);
    const auto flipped = static_cast<unsigned char>(byte ^ 1u << bit % 8);
    ASSERT_EQ(::pwrite(fd, &flipped, 1, at), 1);
    fn(bit);
    ASSERT_EQ(::pwrite(fd, &byte, 1, at), 1);
  }
  ::close(fd);
}

}  // namespace proteus::testing
