// Whole blocks into a pool, which is written in place although it is an input.

namespace offshoot {

// pool [N, SIZE], blocks [k, SIZE], ids [k], done [1].
template <int SIZE, typename T>
__device__ void write_blocks(const T* pool, const T* blocks, const unsigned* ids, unsigned* done) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < SIZE) {
    const long to = static_cast<long>(ids[blockIdx.y]) * SIZE + i;
    const_cast<T*>(pool)[to] = blocks[static_cast<long>(blockIdx.y) * SIZE + i];
  }
  if (i == 0 && blockIdx.y == 0) *done = 1;
}

}  // namespace offshoot
