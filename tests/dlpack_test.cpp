// DLPack: what comes out is what the ABI says, what goes in is read in place, and memory lives
// exactly as long as both sides need it.
#include "tensor/dlpack.h"

#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "tensor/error.h"
#include "tests/error_text.h"
#include "tests/fake_device.h"

namespace proteus::dlpack {
namespace {

using testing::message_of;

/// Another framework: owns numbers, hands them out and counts what comes back.
struct Other {
  std::vector<float> numbers = {0, 1, 2, 3, 4, 5, 6, 7};
  std::vector<std::int64_t> shape = {2, 4};
  std::vector<std::int64_t> strides;
  int returned = 0;
  ManagedTensor managed{};

  Other() {
    managed.version = {kMajorVersion, 1};  // a newer minor version has the same layout
    managed.owner = this;
    managed.deleter = [](ManagedTensor* self) { ++static_cast<Other*>(self->owner)->returned; };
    managed.tensor.dtype = {kFloat, 32, 1};
    managed.tensor.device = {kCpuCode, 0};
  }
  ManagedTensor* give() {
    managed.tensor.data = numbers.data();
    managed.tensor.rank = static_cast<std::int32_t>(shape.size());
    managed.tensor.shape = shape.data();
    managed.tensor.strides = strides.empty() ? nullptr : strides.data();
    return &managed;
  }
};

using Numbers = std::vector<double>;

TEST(DlpackExport, DescribesAView) {
  const Tensor whole = Tensor::arange(24, DType::f32).reshape({4, 6});
  const Tensor view = whole.slice(0, 1, 3).transpose(0, 1);
  ManagedTensor* m = export_tensor(view);
  EXPECT_EQ(m->version.major, 1u);
  EXPECT_EQ(m->flags, 0u);
  EXPECT_EQ(m->tensor.data, whole.data<float>() + 6);
  EXPECT_EQ(m->tensor.byte_offset, 0u);
  EXPECT_EQ(m->tensor.device.type, kCpuCode);
  ASSERT_EQ(m->tensor.rank, 2);
  EXPECT_EQ(std::vector(m->tensor.shape, m->tensor.shape + 2), (std::vector<std::int64_t>{6, 2}));
  EXPECT_EQ(std::vector(m->tensor.strides, m->tensor.strides + 2),
            (std::vector<std::int64_t>{1, 6}));
  m->deleter(m);
}

TEST(DlpackExport, NamesEveryType) {
  const auto code_of = [](DType dtype) {
    ManagedTensor* m = export_tensor(Tensor::zeros({1}, dtype));
    const DataType d = m->tensor.dtype;
    m->deleter(m);
    return std::vector<int>{d.code, d.bits, d.lanes};
  };
  EXPECT_EQ(code_of(DType::f64), (std::vector{2, 64, 1}));
  EXPECT_EQ(code_of(DType::f32), (std::vector{2, 32, 1}));
  EXPECT_EQ(code_of(DType::bf16), (std::vector{4, 16, 1}));
  EXPECT_EQ(code_of(DType::i8), (std::vector{0, 8, 1}));
  EXPECT_EQ(code_of(DType::i32), (std::vector{0, 32, 1}));
  EXPECT_EQ(code_of(DType::i64), (std::vector{0, 64, 1}));
}

TEST(DlpackExport, OutlivesTheTensorUntilTheDeleter) {
  const auto live = memory_stats(DeviceType::cpu).live_bytes;
  ManagedTensor* m = nullptr;
  {
    const Tensor t = Tensor::from({1, 2, 3}, {3});
    m = export_tensor(t);
  }
  EXPECT_EQ(memory_stats(DeviceType::cpu).live_bytes, live + 12);
  EXPECT_EQ(static_cast<float*>(m->tensor.data)[2], 3);
  m->deleter(m);
  EXPECT_EQ(memory_stats(DeviceType::cpu).live_bytes, live);
}

TEST(DlpackImport, ReadsAndWritesInPlace) {
  const auto live = memory_stats(DeviceType::cpu).live_bytes;
  Other other;
  const Tensor t = import_tensor(other.give());
  EXPECT_EQ(t.raw(), other.numbers.data());
  EXPECT_EQ(t.shape(), (Shape{2, 4}));
  EXPECT_TRUE(t.is_contiguous());
  EXPECT_EQ(t.to_vector(), (Numbers{0, 1, 2, 3, 4, 5, 6, 7}));
  t.select(0, 1).fill_(9);
  EXPECT_EQ(other.numbers, (std::vector<float>{0, 1, 2, 3, 9, 9, 9, 9}));
  other.numbers[0] = -1;
  EXPECT_EQ(t.to_vector()[0], -1);
  EXPECT_EQ(memory_stats(DeviceType::cpu).live_bytes, live) << "these bytes are not ours";
}

TEST(DlpackImport, TakesStridesAndAnOffset) {
  Other other;
  other.shape = {3, 2};
  other.strides = {1, 3};
  other.managed.tensor.byte_offset = 2 * sizeof(float);
  EXPECT_EQ(import_tensor(other.give()).to_vector(), (Numbers{2, 5, 3, 6, 4, 7}));
  other.shape = {2, 2};
  other.strides = {0, 1};  // repeated
  EXPECT_EQ(import_tensor(other.give()).to_vector(), (Numbers{2, 3, 2, 3}));
  other.shape = {};
  other.strides = {};
  EXPECT_EQ(import_tensor(other.give()).item(), 2);
  other.shape = {0, 5};
  EXPECT_EQ(import_tensor(other.give()).numel(), 0);
}

TEST(DlpackImport, GivesBackOnceWhenTheLastViewIsGone) {
  Other other;
  {
    Tensor view;
    {
      const Tensor t = import_tensor(other.give());
      const Tensor copy = t;
      view = copy.slice(1, 1, 3);
    }
    EXPECT_EQ(other.returned, 0);
    EXPECT_EQ(view.to_vector(), (Numbers{1, 2, 5, 6}));
  }
  EXPECT_EQ(other.returned, 1);
  other.managed.deleter = nullptr;  // an owner who needs no telling
  import_tensor(other.give());
  EXPECT_EQ(other.returned, 1);
}

TEST(DlpackImport, ComesBackFromAnExport) {
  for (const DType dtype :
       {DType::f64, DType::f32, DType::bf16, DType::i8, DType::i32, DType::i64}) {
    SCOPED_TRACE(name_of(dtype));
    Tensor back;
    const void* address = nullptr;
    Numbers numbers;
    {
      const Tensor t =
          Tensor::arange(24, dtype).reshape({2, 3, 4}).permute({2, 0, 1}).slice(0, 1, 3);
      address = t.raw();
      numbers = t.to_vector();
      back = import_tensor(export_tensor(t));
    }
    EXPECT_EQ(back.raw(), address);
    EXPECT_EQ(back.dtype(), dtype);
    EXPECT_EQ(back.to_vector(), numbers);
  }
}

TEST(DlpackImport, LivesOnADevice) {
  const testing::FakeDevice fake;
  const Tensor t = Tensor::from({1, 2, 3, 4}, {4}, DType::f32, testing::kFakeDevice);
  const Tensor back = import_tensor(export_tensor(t.slice(0, 1, 4)));
  EXPECT_EQ(back.device(), testing::kFakeDevice);
  EXPECT_EQ(back.to_vector(), (Numbers{2, 3, 4}));
}

// Moving the bytes leaves the other side's memory, which is given back.
TEST(DlpackImport, MovesAway) {
  const testing::FakeDevice fake;
  const auto live = memory_stats(DeviceType::cpu).live_bytes;
  Other other;
  {
    const Tensor t = import_tensor(other.give());
    t.storage()->move_to(testing::kFakeDevice);
    EXPECT_EQ(other.returned, 1);
    EXPECT_EQ(t.to_vector()[7], 7);
  }
  EXPECT_EQ(other.returned, 1);
  EXPECT_EQ(memory_stats(DeviceType::cpu).live_bytes, live);
  EXPECT_EQ(memory_stats(DeviceType::cuda).live_bytes, 0);
}

template <class Wanted>
std::string refused(const std::function<void(Other&)>& spoil) {
  Other other;
  ManagedTensor* m = other.give();
  spoil(other);
  const std::string text = message_of<Wanted>([&] { import_tensor(m); });
  EXPECT_EQ(other.returned, 0) << "a refused tensor stays the caller's";
  return text.substr(text.find(": ") + 2);
}

TEST(DlpackImport, RefusesWhatItCannotRepresent) {
  EXPECT_EQ(refused<Error>([](Other& o) { o.managed.version.major = 2; }),
            "version: expected 1.x, got 2.1");
  EXPECT_EQ(refused<Error>([](Other& o) { o.managed.flags = kReadOnly | kIsCopy; }),
            "flags: expected memory that may be written, got read-only; copy it on the other side");
  EXPECT_EQ(refused<DTypeError>([](Other& o) { o.managed.tensor.dtype.bits = 16; }),
            "dtype: expected f64, f32, bf16, i8, i32 or i64, got code 2 with 16 bits and 1 lanes; "
            "convert it on the other side");
  EXPECT_EQ(refused<DTypeError>([](Other& o) { o.managed.tensor.dtype.lanes = 4; }),
            "dtype: expected f64, f32, bf16, i8, i32 or i64, got code 2 with 32 bits and 4 lanes; "
            "convert it on the other side");
  EXPECT_EQ(refused<DeviceError>([](Other& o) { o.managed.tensor.device.type = 10; }),
            "device: expected type 1 (CPU) or 2 (CUDA), got 10; copy it on the other side");
  refused<DeviceError>([](Other& o) { o.managed.tensor.device.type = kCudaCode; });
  EXPECT_EQ(refused<ShapeError>([](Other& o) { o.managed.tensor.rank = 9; }),
            "rank: expected at most 8, got 9");
  EXPECT_EQ(refused<ShapeError>([](Other& o) { o.shape[0] = -2; }),
            "shape: expected sizes of an address space, got [-2, 4]");
  EXPECT_EQ(refused<ShapeError>([](Other& o) { o.shape[0] = std::int64_t{1} << 61; }),
            "shape: expected sizes of an address space, got [2305843009213693952, 4]");
  EXPECT_EQ(refused<ShapeError>([](Other& o) {
              o.strides = {-4, 1};
              o.managed.tensor.strides = o.strides.data();
            }),
            "strides: expected none below 0, got [-4, 1]; make it contiguous on the other side");
  EXPECT_EQ(refused<Error>([](Other& o) { o.managed.tensor.byte_offset = 2; }),
            "data: expected the address of an element of 4 bytes, got one between two; copy it on "
            "the other side");
  EXPECT_EQ(message_of<Error>([] { import_tensor(nullptr); }),
            "dlpack::import_tensor(m): m: expected a tensor, got null");
  EXPECT_EQ(message_of<Error>([] { export_tensor({}); }),
            "dlpack::export_tensor(t): t: expected a tensor, got an undefined one");
}

}  // namespace
}  // namespace proteus::dlpack
