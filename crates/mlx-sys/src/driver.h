// CUDA's driver, as far as Offshoot calls it itself. libmlx has loaded it where there is a device;
// a program that was linked with it would not start anywhere else.
#pragma once

#include <cstddef>

namespace offshoot {

// What MLX's CUDA allocator hands out (mlx/backend/cuda/allocator.h, which needs CUDA's headers).
struct CudaBuffer {
  void* data;
  size_t size;
  int device;  // -1: on the host as well
};

// CUDA_KERNEL_NODE_PARAMS in its second version.
struct KernelNode {
  void* function;
  unsigned grid[3];
  unsigned group[3];
  unsigned shared_bytes;
  void** arguments;
  void** extra;
  void* kernel;
  void* context;
};

// CUgraphEdgeData.
struct KernelEdge {
  unsigned char from_port, to_port, type, reserved[5];
};

struct Driver {
  int (*context)(void**);
  int (*set_context)(void*);
  int (*new_pinned)(void**, size_t, unsigned);
  int (*pin)(void*, size_t, unsigned);
  int (*unpin)(void*);
  int (*device_address)(unsigned long long*, void*, unsigned);
  int (*new_stream)(void**, unsigned, int);
  int (*copy_out)(void*, unsigned long long, size_t, void*);
  int (*wait)(void*);
  int (*load_module)(void**, const void*);
  int (*function)(void**, void*, const char*);
  int (*set_attribute)(void*, int, int);
  int (*new_graph)(void**, unsigned);
  int (*add_kernel)(void**, void*, void* const*, size_t, const KernelNode*);
  // Null in drivers before CUDA 12.3.
  int (*add_edges)(void*, void* const*, void* const*, const KernelEdge*, size_t);
  int (*instantiate)(void**, void*, unsigned long long);
  int (*change_kernel)(void*, void*, const KernelNode*);
  int (*launch)(void*, void*);
  int (*drop_graph)(void*);
  int (*drop_executable)(void*);

  // Throws where there is none, or one without these functions.
  Driver();
};

const Driver& driver();

// Throws unless the status is that of success.
void check(int status, const char* what);

}  // namespace offshoot
