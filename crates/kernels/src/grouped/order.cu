// Pairs of a row and a matrix in the order of their matrices, and the tiles of rows that share one.

namespace offshoot {

// which [n] < n_matrices; order [n]: the pair at each place; places [n]: the place of each pair.
// tiles [max_tiles, 3]: matrix, first place, number of rows, which is 0 behind the last tile. A
// matrix's rows are dealt to as few tiles as hold them, evenly. One block of threads; `counts` has
// room for n_matrices. Where in its matrix's run a pair comes is not settled.
template <int TILE, int THREADS>
__device__ void order_pairs(
    const unsigned* which, unsigned* order, unsigned* places, unsigned* tiles, unsigned* counts,
    int n, int n_matrices, int max_tiles) {
  __shared__ unsigned sums[2][THREADS / 32];
  __shared__ unsigned carried[2];
  const int tid = threadIdx.x, lane = tid % 32, warp = tid / 32;
  for (int i = tid; i < n_matrices; i += THREADS) counts[i] = 0;
  for (int i = tid; i < max_tiles; i += THREADS) tiles[3 * i + 2] = 0;
  if (tid < 2) carried[tid] = 0;
  __syncthreads();
  for (int i = tid; i < n; i += THREADS) atomicAdd(&counts[which[i]], 1u);
  __syncthreads();
  // Running sums of rows and of tiles, THREADS matrices at a time.
  for (int first = 0; first < n_matrices; first += THREADS) {
    const int matrix = first + tid;
    const unsigned count = matrix < n_matrices ? counts[matrix] : 0;
    const unsigned n_tiles = (count + TILE - 1) / TILE;
    unsigned upto[2] = {count, n_tiles};
#pragma unroll
    for (int offset = 1; offset < 32; offset *= 2) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const unsigned other = __shfl_up_sync(~0u, upto[i], offset);
        if (lane >= offset) upto[i] += other;
      }
    }
    if (lane == 31) {
      sums[0][warp] = upto[0];
      sums[1][warp] = upto[1];
    }
    __syncthreads();
    unsigned before[2] = {carried[0], carried[1]};
    for (int w = 0; w < warp; ++w) {
      before[0] += sums[0][w];
      before[1] += sums[1][w];
    }
    const unsigned row = before[0] + upto[0] - count, tile = before[1] + upto[1] - n_tiles;
    __syncthreads();
    if (tid == THREADS - 1) {
      carried[0] = before[0] + upto[0];
      carried[1] = before[1] + upto[1];
    }
    if (matrix < n_matrices) {
      counts[matrix] = row;
      for (unsigned i = 0; i < n_tiles; ++i) {
        const unsigned begin = count * i / n_tiles, end = count * (i + 1) / n_tiles;
        unsigned* to = tiles + 3 * (tile + i);
        to[0] = matrix;
        to[1] = row + begin;
        to[2] = end - begin;
      }
    }
    __syncthreads();
  }
  for (int i = tid; i < n; i += THREADS) {
    const unsigned place = atomicAdd(&counts[which[i]], 1u);
    order[place] = i;
    places[i] = place;
  }
}

}  // namespace offshoot
