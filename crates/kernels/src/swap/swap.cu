// Rows of many arrays to places in the host's pinned memory, and back. Whole vectors of 16 bytes,
// several on their way at a time: a load over the link takes a thousand cycles.

namespace offshoot {

constexpr int SWAP_DEPTH = 4;

// arrays [n_arrays] of rows; all sizes and places in vectors.
// plan: sizes of the arrays' rows [n_arrays], rows [n], places [n].
template <bool OUT>
__device__ void swap_rows(
    uint4* const* arrays, int n_arrays, const unsigned char* memory, const long long* plan, int n,
    unsigned* done) {
  uint4* host = reinterpret_cast<uint4*>(const_cast<unsigned char*>(memory));
  const long long* rows = plan + n_arrays;
  const long long* places = rows + n;
  const unsigned step = gridDim.x * blockDim.x;
  for (int a = 0; a < n_arrays; ++a) {
    uint4* array = arrays[a];
    const unsigned size = plan[a];
    const unsigned total = size * n;
    for (unsigned first = blockIdx.x * blockDim.x + threadIdx.x; first < total;
         first += SWAP_DEPTH * step) {
      uint4 values[SWAP_DEPTH];
      uint4* to[SWAP_DEPTH];
#pragma unroll
      for (int k = 0; k < SWAP_DEPTH; ++k) {
        const unsigned i = first + k * step;
        to[k] = nullptr;
        if (i < total) {
          const unsigned item = i / size;
          const unsigned within = i - item * size;
          uint4* there = host + places[item] + within;
          uint4* here = array + rows[item] * size + within;
          values[k] = OUT ? *here : *there;
          to[k] = OUT ? there : here;
        }
      }
#pragma unroll
      for (int k = 0; k < SWAP_DEPTH; ++k) {
        if (to[k]) *to[k] = values[k];
      }
    }
    host += size;
  }
  if (blockIdx.x == 0 && threadIdx.x == 0) *done = 1;
}

}  // namespace offshoot
