// Host memory that a CUDA device reads and writes where it lies. MLX has none: what it keeps on the
// host is managed memory, whose pages wander to the device when a kernel touches them. Addresses
// are reserved for all of it at once; pages come, and are pinned, from the beginning on.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "mlx-sys/src/shim.h"

namespace offshoot {

class Pinned {
 public:
  // Throws where there is no CUDA device, or no room for so many addresses.
  explicit Pinned(size_t n_bytes);
  ~Pinned();
  Pinned(const Pinned&) = delete;
  Pinned& operator=(const Pinned&) = delete;

  // Pins the next `n_bytes`, whole pages. One thread at a time.
  void grow(size_t n_bytes);

  uint8_t* data() const { return data_; }

 private:
  uint8_t* data_ = nullptr;
  size_t n_reserved_;
  // The device's context, which belongs to the thread that made this.
  void* context_ = nullptr;
  std::vector<size_t> parts_;
};

inline std::shared_ptr<Pinned> pinned_new(size_t n_bytes) {
  return std::make_shared<Pinned>(n_bytes);
}

// Host memory for the bytes of a small array, which a kernel reads over the link. Managed memory
// would wander to the device when a kernel touches it and back when the host fills it again, a page
// fault each time. None where there is no CUDA device or nothing can be pinned.
std::optional<mx::allocator::Data> pinned_small(size_t n_bytes);

// Bytes of the device's memory, without making them the host's as MLX does. False where MLX has to.
bool read_from_device(const array& a, uint8_t* to, size_t n_bytes);
// Whether the default device is CUDA's.
bool has_cuda();

// Bytes change behind a shared handle: who reads and writes what, and when, is the callers' matter.
void pinned_grow(const std::shared_ptr<Pinned>& memory, size_t n_bytes);
inline uint8_t* pinned_data(const std::shared_ptr<Pinned>& memory) { return memory->data(); }
// Where it begins, as an array of a few bytes that keeps the memory alive: MLX ends a batch of work
// early when the arrays of it are large.
Ptr pinned_array(const std::shared_ptr<Pinned>& memory);

}  // namespace offshoot
