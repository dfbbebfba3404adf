// What tensors stand on: allocator counters, random numbers, threads, kernel slots, devices.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <stdexcept>
#include <thread>

#include "tensor/error.h"
#include "tensor/ops/copy.h"
#include "tensor/parallel.h"
#include "tensor/rng.h"
#include "tensor/slot.h"
#include "tensor/tensor.h"
#include "tests/fake_device.h"

namespace proteus::testing {
namespace {

MemoryStats cpu() { return memory_stats(DeviceType::cpu); }

TEST(Allocator, CountsLiveAndPeakBytes) {
  const auto live = cpu().live_bytes;
  reset_peak_memory(DeviceType::cpu);
  EXPECT_EQ(cpu().peak_bytes, live);
  {
    const Tensor a = Tensor::empty({1000});
    EXPECT_EQ(cpu().live_bytes, live + 4000);
    {
      const Tensor b = Tensor::empty({500}, DType::f64);
      EXPECT_EQ(cpu().live_bytes, live + 8000);
      const Tensor view = a.slice(0, 1, 5);
      EXPECT_EQ(cpu().live_bytes, live + 8000) << "a view owns nothing";
    }
    EXPECT_EQ(cpu().live_bytes, live + 4000);
    EXPECT_EQ(cpu().peak_bytes, live + 8000);
  }
  EXPECT_EQ(cpu().live_bytes, live);
  EXPECT_EQ(cpu().peak_bytes, live + 8000);
  reset_peak_memory(DeviceType::cpu);
  EXPECT_EQ(cpu().peak_bytes, live);
}

TEST(Allocator, KeepsFreedBlocksForReuse) {
  release_cached_memory();
  EXPECT_EQ(cpu().cached_bytes, 0);
  const void* first = nullptr;
  {
    const Tensor a = Tensor::empty({10000});
    first = a.raw();
  }
  if (cpu().cached_bytes == 0) GTEST_SKIP() << "no cache under AddressSanitizer";
  EXPECT_GE(cpu().cached_bytes, 40000);
  EXPECT_LE(cpu().cached_bytes, 50000) << "a block wastes a quarter at most";
  const Tensor b = Tensor::empty({10000});
  EXPECT_EQ(b.raw(), first);
  EXPECT_EQ(cpu().cached_bytes, 0);
}

TEST(Allocator, BlocksAreAligned) {
  for (const std::int64_t n : {0, 1, 3, 17, 1000, 4097}) {
    const Tensor t = Tensor::empty({n}, DType::i8);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(t.raw()) % 64, 0u) << n;
  }
}

TEST(Allocator, SaysWhenTheSystemHasNoMore) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "a sanitizer ends the program instead";
#endif
  const auto live = cpu().live_bytes;
  try {
    const Tensor t = Tensor::empty({std::int64_t{1} << 46}, DType::f64);
    FAIL() << "half a petabyte was allocated";
  } catch (const OutOfMemory& error) {
    EXPECT_NE(std::string(error.what()).find("allocate: cpu: wanted"), std::string::npos);
  }
  EXPECT_EQ(cpu().live_bytes, live);
}

// Known-answer vectors of Random123 (philox4x32, 10 rounds).
TEST(Philox, KnownAnswers) {
  const auto expect = [](const Philox4& got, const std::array<std::uint32_t, 4>& wanted) {
    for (std::size_t i = 0; i < 4; ++i) EXPECT_EQ(got.v[i], wanted[i]) << i;
  };
  constexpr std::uint64_t kOnes = ~std::uint64_t{0};
  expect(philox(0, 0, 0), {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
  expect(philox(0, 0, 0, 7), {0x5f6fb709, 0x0d893f64, 0x4f121f81, 0x4f730a48});
  expect(philox(kOnes, kOnes, kOnes, 7), {0x5207ddc2, 0x45165e59, 0x4d8ee751, 0x8c52f662});
  expect(philox(kOnes, kOnes, kOnes), {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
  expect(philox(0x299f31d0a4093822, 0x85a308d3243f6a88, 0x0370734413198a2e),
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
}

TEST(Philox, NumbersAndThresholds) {
  EXPECT_EQ(unit_float(0), 0.0f);
  EXPECT_LT(unit_float(~0u), 1.0f);
  EXPECT_EQ(drop_threshold(0), 0u);
  EXPECT_EQ(drop_threshold(0.5), 0x80000000u);
  EXPECT_EQ(drop_threshold(1), 0xffffffffu);
  const RngKey key{3, 4};
  EXPECT_EQ(random_u32(key, 6), philox(3, 1, 4).v[2]);
  EXPECT_TRUE(std::isfinite(normal_pair(0, 0)[0])) << "log of zero";
}

TEST(Generator, HandsOutStreamsAndResumes) {
  Generator g(7);
  EXPECT_EQ(g.next().stream, 0u);
  EXPECT_EQ(g.next().stream, 1u);
  Generator resumed(g.seed(), g.stream());
  EXPECT_EQ(resumed.next().stream, g.next().stream);
}

class Parallel : public ::testing::Test {
 protected:
  ~Parallel() override { set_num_threads(0); }
};

TEST_F(Parallel, ChunksDependOnSizeAndGrainAlone) {
  for (const std::int64_t n : {0, 1, 7, 8, 9, 100}) {
    std::vector<std::vector<std::pair<std::int64_t, std::int64_t>>> seen;
    for (const int threads : {1, 2, 4}) {
      set_num_threads(threads);
      EXPECT_EQ(num_threads(), threads);
      std::vector<std::pair<std::int64_t, std::int64_t>> chunks;
      std::mutex mutex;
      parallel_for(n, 8, [&](std::int64_t begin, std::int64_t end) {
        const std::lock_guard lock(mutex);
        chunks.emplace_back(begin, end);
      });
      std::sort(chunks.begin(), chunks.end());
      std::int64_t at = 0;
      for (const auto& [begin, end] : chunks) {
        EXPECT_EQ(begin, at);
        EXPECT_EQ(end, std::min(n, begin + 8));
        at = end;
      }
      EXPECT_EQ(at, n);
      seen.push_back(chunks);
    }
    EXPECT_EQ(seen[0], seen[1]);
    EXPECT_EQ(seen[0], seen[2]);
  }
}

TEST_F(Parallel, UsesSeveralThreads) {
  set_num_threads(3);
  std::atomic<int> inside{0};
  std::atomic<int> most{0};
  parallel_for(3, 1, [&](std::int64_t, std::int64_t) {
    const int now = ++inside;
    int before = most;
    while (before < now && !most.compare_exchange_weak(before, now)) {
    }
    const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(5);
    while (most < 2 && std::chrono::steady_clock::now() < until) std::this_thread::yield();
    --inside;
  });
  EXPECT_GE(most, 2);
}

TEST_F(Parallel, NestedCallsRunSerially) {
  set_num_threads(4);
  std::atomic<std::int64_t> sum{0};
  parallel_for(10, 1, [&](std::int64_t begin, std::int64_t) {
    const auto thread = std::this_thread::get_id();
    parallel_for(10, 1, [&](std::int64_t inner, std::int64_t) {
      EXPECT_EQ(std::this_thread::get_id(), thread);
      sum += begin * inner;
    });
  });
  EXPECT_EQ(sum, 45 * 45);
}

TEST_F(Parallel, RethrowsTheFirstException) {
  for (const int threads : {1, 4}) {
    set_num_threads(threads);
    const auto call = [] {
      parallel_for(100, 1, [](std::int64_t begin, std::int64_t) {
        if (begin == 5) throw NumericError("chunk five");
      });
    };
    EXPECT_THROW(call(), NumericError);
    std::atomic<int> count{0};
    parallel_for(100, 1, [&](std::int64_t, std::int64_t) { ++count; });
    EXPECT_EQ(count, 100) << "usable afterwards";
  }
}

TEST_F(Parallel, RandomTensorsAreTheSameForAnyThreads) {
  set_num_threads(1);
  const auto normal = Tensor::randn({50000}, {1, 2}).to_vector();
  const auto uniform = Tensor::rand({50000}, {1, 3}).to_vector();
  for (const int threads : {2, 3, 4}) {
    set_num_threads(threads);
    EXPECT_EQ(Tensor::randn({50000}, {1, 2}).to_vector(), normal);
    EXPECT_EQ(Tensor::rand({50000}, {1, 3}).to_vector(), uniform);
  }
}

TEST(Slots, EmptyOnesSaySo) {
  EXPECT_FALSE(fill.has_kernel(DeviceType::cuda));
  try {
    fill({DeviceType::cuda, 0}, Fill{});
    FAIL();
  } catch (const DeviceError& error) {
    EXPECT_STREQ(error.what(), "fill: no cuda kernel; run this on the CPU or install one");
  }
}

TEST(Slots, AreRegistered) {
  const auto names = slot_names();
  EXPECT_EQ(std::count(names.begin(), names.end(), "fill"), 1);
  EXPECT_EQ(names.size(), slot_registry().size());
  for (const SlotBase* slot : slot_registry()) {
    EXPECT_TRUE(slot->has_kernel(DeviceType::cpu)) << slot->name();
  }
}

TEST(Devices, AbsentOnesSaySo) {
  EXPECT_TRUE(device_installed(DeviceType::cpu));
  EXPECT_FALSE(device_installed(DeviceType::cuda));
  EXPECT_EQ(to_string(kFakeDevice), "cuda:0");
  try {
    Tensor::empty({3}, DType::f32, kFakeDevice);
    FAIL();
  } catch (const DeviceError& error) {
    EXPECT_NE(std::string(error.what()).find("cuda is not available in this process"),
              std::string::npos);
  }
}

TEST(FakeDeviceTest, CopiesThereAndBack) {
  const FakeDevice fake;
  const std::vector<double> values{1, 2, 3, 4, 5, 6};
  const auto live = memory_stats(DeviceType::cuda).live_bytes;
  {
    const Tensor x = Tensor::from(values, {2, 3}, DType::f32, kFakeDevice);
    EXPECT_EQ(x.device(), kFakeDevice);
    EXPECT_EQ(memory_stats(DeviceType::cuda).live_bytes, live + 24);
    EXPECT_EQ(x.to_vector(), values);
    EXPECT_EQ(x.transpose(0, 1).to(DType::f64).to_vector(),
              (std::vector<double>{1, 4, 2, 5, 3, 6}));
    x.fill_(2);
    x.add_(Tensor::full({2, 3}, 1, DType::f32, kFakeDevice), 3);
    x.slice(1, 0, 1).copy_(Tensor::zeros({2, 1}));  // from the CPU
    EXPECT_EQ(x.to_vector(), (std::vector<double>{0, 5, 5, 0, 5, 5}));
    EXPECT_GT(FakeDevice::counts().kernels, 0);
    EXPECT_EQ(FakeDevice::broken_guards(), 0);
    try {
      x.add_(Tensor::zeros({2, 3}));
      FAIL() << "operands on two devices";
    } catch (const ShapeError& error) {
      EXPECT_NE(std::string(error.what()).find("on cuda:0, got f32 [2, 3] on cpu"),
                std::string::npos)
          << error.what();
    }
  }
  EXPECT_EQ(FakeDevice::counts().live_blocks, 0);
  EXPECT_EQ(memory_stats(DeviceType::cuda).live_bytes, live);
}

// The fake device must be able to find what it is there to find.
TEST(FakeDeviceTest, SeesWritesOutsideOfABlock) {
  const FakeDevice fake;
  const Tensor x = Tensor::empty({3}, DType::f32, kFakeDevice);
  // A layout of four elements over a storage of three.
  fill(kFakeDevice, {x.storage()->data(), Layout::contiguous({4}), DType::f32, 1.0});
  EXPECT_EQ(FakeDevice::broken_guards(), 1);
}

TEST(FakeDeviceDeathTest, FaultsWhereHostCodeFollowsADevicePointer) {
  ::testing::FLAGS_gtest_death_test_style = "threadsafe";
  EXPECT_DEATH(
      {
        const FakeDevice fake;
        const Tensor x = Tensor::zeros({3}, DType::f32, kFakeDevice);
        x.data<float>()[0] = 1;
      },
      "host code read or wrote device memory outside a kernel");
}

}  // namespace
}  // namespace proteus::testing
