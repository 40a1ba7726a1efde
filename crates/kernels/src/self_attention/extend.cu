// New tokens into a pool of blocks, and all tokens of each row out of it, in one launch.
//
// The pool is written in place although it is an input: nothing else may be written by MLX into an
// array that a launch still under way may read. Every element that a launch writes is read in it
// from the new tokens, never from the pool, so that threads need not wait for each other.

namespace offshoot {

constexpr unsigned NOWHERE = 0xffffffffu;

// pool [N, HEADS, BLOCK, DIM]; fresh [B, HEADS, L, DIM] if BY_HEAD, else [B, L, HEADS, DIM]; table
// [B, width]; slots [B, L]; begins [B]: the position of each row's first new token. out
// [B, HEADS, width * BLOCK, DIM], zero from a row's end on and before its window. A thread moves
// RUN elements.
template <int HEADS, int DIM, int BLOCK, int RUN, bool BY_HEAD, typename T>
__device__ void extend(
    const T* pool, const T* fresh, const unsigned* table, const unsigned* slots,
    const int* begins, T* out, int n_new, int width, int window) {
  constexpr int PARTS = DIM / RUN;
  const long room = static_cast<long>(width) * BLOCK;
  const long index = static_cast<long>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int row = blockIdx.y;
  if (index >= room * HEADS * PARTS) return;
  const int part = index % PARTS;
  const int head = index / PARTS % HEADS;
  const long token = index / (PARTS * HEADS);
  const int begin = begins[row];
  const long i = token - begin;

  Run<T, RUN> value;
#pragma unroll
  for (int k = 0; k < RUN; ++k) value.at[k] = static_cast<T>(0.0f);
  const bool is_seen = window <= 0 || token + window > begin;
  if (i < n_new && is_seen) {
    const unsigned slot = i >= 0 ? slots[static_cast<long>(row) * n_new + i] : NOWHERE;
    if (slot != NOWHERE) {
      const long at = BY_HEAD
          ? ((static_cast<long>(row) * HEADS + head) * n_new + i) * DIM
          : ((static_cast<long>(row) * n_new + i) * HEADS + head) * DIM;
      value = *reinterpret_cast<const Run<T, RUN>*>(fresh + at + part * RUN);
      const long place = (static_cast<long>(slot / BLOCK) * HEADS + head) * BLOCK + slot % BLOCK;
      T* to = const_cast<T*>(pool) + place * DIM;
      *reinterpret_cast<Run<T, RUN>*>(to + part * RUN) = value;
    } else {
      const long block = table[static_cast<long>(row) * width + token / BLOCK];
      const T* from = pool + ((block * HEADS + head) * BLOCK + token % BLOCK) * DIM;
      value = *reinterpret_cast<const Run<T, RUN>*>(from + part * RUN);
    }
  }
  T* to = out + ((static_cast<long>(row) * HEADS + head) * room + token) * DIM;
  *reinterpret_cast<Run<T, RUN>*>(to + part * RUN) = value;
}

}  // namespace offshoot
