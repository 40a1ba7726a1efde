// Whole blocks of a pool over others of the same pool, which is written in place although it is an
// input.

namespace offshoot {

// pool [N, SIZE], from, to [k], done [1]. No block is in both lists.
template <int SIZE, typename T>
__device__ void copy_blocks(
    const T* pool, const unsigned* from, const unsigned* to, unsigned* done) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < SIZE) {
    const long place = static_cast<long>(to[blockIdx.y]) * SIZE + i;
    const_cast<T*>(pool)[place] = pool[static_cast<long>(from[blockIdx.y]) * SIZE + i];
  }
  if (i == 0 && blockIdx.y == 0) *done = 1;
}

}  // namespace offshoot
