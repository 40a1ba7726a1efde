// How memory is pinned: by CUDA's driver on Linux, and nowhere else. See pinned.h.
#include "mlx-sys/src/pinned.h"

#include "mlx-sys/src/driver.h"

#include <array>
#include <bit>
#include <mutex>
#include <stdexcept>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace offshoot {

#ifdef __linux__

namespace {

constexpr size_t page_bytes = 4096;
constexpr unsigned portable_mapped = 3;

// Pinned pieces of the powers of two from 64 bytes to 64 KiB. What is given back is handed out
// again and never returned to the system. MLX keeps an array's bytes until the device has read
// them.
class Pieces {
 public:
  // None where the driver has no more.
  CudaBuffer* take(size_t n_bytes) {
    size_t size = std::bit_ceil(std::max(n_bytes, smallest));
    std::lock_guard lock(mutex_);
    auto& free = free_of(size);
    if (free.empty()) {
      void* slab = nullptr;
      if (driver().new_pinned(&slab, slab_bytes, portable_mapped) != 0) return nullptr;
      for (size_t at = 0; at < slab_bytes; at += size) {
        free.push_back(new CudaBuffer{static_cast<uint8_t*>(slab) + at, size, -1});
      }
    }
    auto* piece = free.back();
    free.pop_back();
    return piece;
  }

  void give_back(CudaBuffer* piece) {
    std::lock_guard lock(mutex_);
    free_of(piece->size).push_back(piece);
  }

  static constexpr size_t smallest = 64, largest = 64 << 10;

 private:
  static constexpr size_t slab_bytes = 256 << 10;

  std::vector<CudaBuffer*>& free_of(size_t size) {
    return free_[std::bit_width(size) - std::bit_width(smallest)];
  }

  std::mutex mutex_;
  std::array<std::vector<CudaBuffer*>, 11> free_;
};

// Arrays may be dropped while the process ends, so it is never destroyed.
Pieces& pieces() {
  static auto* pieces = new Pieces;
  return *pieces;
}

}  // namespace

Pinned::Pinned(size_t n_bytes) : n_reserved_(n_bytes) {
  check(driver().context(&context_), "no context");
  if (!context_) throw std::runtime_error("this thread has not used the device yet");
  int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  void* data = mmap(nullptr, n_bytes, PROT_NONE, flags, -1, 0);
  if (data == MAP_FAILED) throw std::runtime_error("there are no addresses for so many bytes");
  data_ = static_cast<uint8_t*>(data);
  madvise(data_, n_bytes, MADV_HUGEPAGE);
}

Pinned::~Pinned() {
  // A process that ends may have lost its context; its pages are freed with it.
  bool has_context = driver().set_context(context_) == 0;
  uint8_t* at = data_;
  for (size_t part : parts_) {
    if (has_context) driver().unpin(at);
    at += part;
  }
  munmap(data_, n_reserved_);
}

void Pinned::grow(size_t n_bytes) {
  size_t n_pinned = 0;
  for (size_t part : parts_) n_pinned += part;
  if (n_bytes > n_reserved_ - n_pinned) throw std::runtime_error("all of it is pinned");
  uint8_t* begin = data_ + n_pinned;
  if (mprotect(begin, n_bytes, PROT_READ | PROT_WRITE) != 0) {
    throw std::runtime_error("the system has no memory for it");
  }
  // Pages come at the first touch; the driver, which others wait for, should find them there.
  for (size_t i = 0; i < n_bytes; i += page_bytes) begin[i] = 0;
  check(driver().set_context(context_), "no context");
  check(driver().pin(begin, n_bytes, portable_mapped), "the driver does not pin it");
  parts_.push_back(n_bytes);
  unsigned long long address = 0;
  check(driver().device_address(&address, begin, 0), "the device does not see it");
  if (address != reinterpret_cast<unsigned long long>(begin)) {
    throw std::runtime_error("the device sees it at another address");
  }
}

bool has_cuda() { return mx::default_device() == mx::Device::gpu; }

bool read_from_device(const array& a, uint8_t* to, size_t n_bytes) {
  if (!has_cuda()) return false;
  const auto* buffer = static_cast<const CudaBuffer*>(a.buffer().ptr());
  if (!buffer || buffer->device < 0) return false;
  auto from = reinterpret_cast<unsigned long long>(buffer->data) + a.offset();
  // The device's common stream would wait for what other streams are in the middle of.
  thread_local void* stream = nullptr;
  constexpr int non_blocking = 1, before_all_others = -1000;
  if (!stream) check(driver().new_stream(&stream, non_blocking, before_all_others), "no stream");
  check(driver().copy_out(to, from, n_bytes, stream), "the device's memory cannot be read");
  check(driver().wait(stream), "the device's memory cannot be read");
  return true;
}

std::optional<mx::allocator::Data> pinned_small(size_t n_bytes) {
  if (!has_cuda() || n_bytes == 0 || n_bytes > Pieces::largest) return std::nullopt;
  auto* piece = pieces().take(n_bytes);
  if (!piece) return std::nullopt;
  auto release = [](mx::allocator::Buffer b) {
    pieces().give_back(static_cast<CudaBuffer*>(b.ptr()));
  };
  return mx::allocator::Data(mx::allocator::Buffer(piece), release);
}

#else

std::optional<mx::allocator::Data> pinned_small(size_t) { return std::nullopt; }
bool has_cuda() { return false; }
bool read_from_device(const array&, uint8_t*, size_t) { return false; }

Pinned::Pinned(size_t n_bytes) : n_reserved_(n_bytes) {
  throw std::runtime_error("memory is pinned for CUDA on Linux only");
}
Pinned::~Pinned() = default;
void Pinned::grow(size_t) {}

#endif

void pinned_grow(const std::shared_ptr<Pinned>& memory, size_t n_bytes) { memory->grow(n_bytes); }

Ptr pinned_array(const std::shared_ptr<Pinned>& memory) {
  constexpr int n_bytes = 16;
  auto* buffer = new CudaBuffer{memory->data(), n_bytes, -1};
  auto release = [memory](mx::allocator::Buffer b) { delete static_cast<CudaBuffer*>(b.ptr()); };
  mx::allocator::Data data(mx::allocator::Buffer(buffer), std::move(release));
  return own(array(std::move(data), mx::Shape{n_bytes}, mx::uint8));
}

}  // namespace offshoot
