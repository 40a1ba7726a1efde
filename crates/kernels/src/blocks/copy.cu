// Blocks of many pools over others of the same pool, which is written in place although it is an
// input.

namespace offshoot {

// pools [n] of [N, sizes[n]]; ids: from [k], to [k]; done [1]. No block is in both lists.
template <typename T>
__device__ void copy_blocks(T* const* pools, const int* sizes, const int* ids, unsigned* done) {
  T* pool = pools[blockIdx.y];
  const long size = sizes[blockIdx.y];
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  const long from = ids[blockIdx.z], to = ids[gridDim.z + blockIdx.z];
  if (i < size) pool[to * size + i] = pool[from * size + i];
  if (i == 0 && blockIdx.y == 0 && blockIdx.z == 0) *done = 1;
}

}  // namespace offshoot
