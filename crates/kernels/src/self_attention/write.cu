// New keys and values into their pools, which are written in place although they are inputs.

namespace offshoot {

constexpr unsigned NOWHERE = 0xffffffffu;

// RUN neighbours of a head of a token, for each thread.
template <int HEADS, int DIM, int BLOCK, bool BY_HEAD, typename T>
__device__ void write_tokens(
    const T* pool, const T* fresh, const unsigned* slots, long n_tokens, int n_new) {
  constexpr int RUN = 8, PARTS = DIM / RUN;
  const long index = static_cast<long>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= n_tokens * HEADS * PARTS) return;
  const int part = index % PARTS, head = index / PARTS % HEADS;
  const long token = index / (PARTS * HEADS);
  const unsigned slot = slots[token];
  if (slot == NOWHERE) return;
  const long from = BY_HEAD ? (token / n_new * HEADS + head) * n_new + token % n_new
                            : token * HEADS + head;
  const long to = (static_cast<long>(slot / BLOCK) * HEADS + head) * BLOCK + slot % BLOCK;
  *reinterpret_cast<Run<T, RUN>*>(const_cast<T*>(pool) + to * DIM + part * RUN) =
      load_run<T, RUN>(fresh + from * DIM + part * RUN);
}

// keys [N, HEADS, BLOCK, DK], new_keys [B, HEADS, L, DK]; values [N, HEADS, BLOCK, DV], new_values
// [B, L, HEADS, DV]; slots [B, L]; done [1]. Grid y: keys, values.
template <int HEADS, int DK, int DV, int BLOCK, typename T>
__device__ void write_new(
    const T* keys, const T* values, const T* new_keys, const T* new_values, const unsigned* slots,
    unsigned* done, int n_rows, int n_new) {
  const long n_tokens = static_cast<long>(n_rows) * n_new;
  if (blockIdx.y == 0) {
    write_tokens<HEADS, DK, BLOCK, true>(keys, new_keys, slots, n_tokens, n_new);
  } else {
    write_tokens<HEADS, DV, BLOCK, false>(values, new_values, slots, n_tokens, n_new);
  }
  if (blockIdx.x == 0 && blockIdx.y == 0 && threadIdx.x == 0) *done = 1;
}

}  // namespace offshoot
