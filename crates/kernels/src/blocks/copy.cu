// A block of many pools over another of the same pool, which is written in place although it is an
// input.

namespace offshoot {

// pools [n] of [N, sizes[n]], ids [2]: from and to, done [1].
template <typename T>
__device__ void copy_blocks(
    T* const* pools, const int* sizes, const int* ids, unsigned* done) {
  T* pool = pools[blockIdx.y];
  const long size = sizes[blockIdx.y];
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < size) pool[ids[1] * size + i] = pool[ids[0] * size + i];
  if (i == 0 && blockIdx.y == 0) *done = 1;
}

}  // namespace offshoot
