// Attention of one new token per row over pools of latents, which writes that token on the way. All
// heads share a latent: it is the key, and its beginning the value.
//
// A block of threads takes a part of one row's tokens for all heads, tile after tile: logits and
// sums on tensor cores, softmax in between (FlashAttention-2, Dao 2023; parts as in Flash-Decoding,
// 2023). The last one to end joins the parts. Pools are written in place although they are inputs:
// a new token's place is read from the inputs instead.

namespace offshoot {

// What a block of threads shares. Rows are padded, so that eight of them lie in different banks.
template <int HEADS, int D, int TILE, typename T>
struct AttendMemory {
  static constexpr int ROWS = (HEADS + 15) / 16 * 16;
  alignas(16) T q[ROWS][D + 8];
  alignas(16) T latents[2][TILE][D + 8];
  alignas(16) T shares[ROWS][TILE + 8];
  alignas(16) float logits[ROWS][TILE + 4];
  float factor[ROWS];
  float sum[ROWS];
};

// q [B, HEADS, D]; fresh [B, D]; latents [N, BLOCK, D]; table [B, width]; slots, begins [B];
// tickets [B], zeros before and after. out [B, HEADS, DV]; part_out [B, HEADS, parts, DV];
// part_sums [B, HEADS, parts, 2]. Grid (1, B, parts), 128 threads.
template <int HEADS, int D, int DV, int BLOCK, int TILE, typename T>
__device__ void attend_latents(
    const T* q, const T* fresh, const T* latents, const unsigned* table, const unsigned* slots,
    const int* begins, const unsigned* tickets, T* out, float* part_out, float* part_sums,
    int width, float scale) {
  constexpr int THREADS = 128;
  using Memory = AttendMemory<HEADS, D, TILE, T>;
  constexpr int ROWS = Memory::ROWS;
  constexpr int M = ROWS / 16;
  constexpr int PER_ROW = THREADS / ROWS;
  constexpr int WIDTH = DV / 4;
  constexpr int N = WIDTH / 8;
  // Neighbours of a tile that are in one block.
  constexpr int STRETCH = BLOCK < TILE ? BLOCK : TILE;
  static_assert(TILE % STRETCH == 0 && BLOCK % STRETCH == 0, "blocks and tiles divide each other");
  extern __shared__ __align__(16) char shared_bytes[];
  Memory& s = *reinterpret_cast<Memory*>(shared_bytes);

  const int row = blockIdx.y, part = blockIdx.z, n_parts = gridDim.z;
  const int tid = threadIdx.x, warp = tid / 32, lane = tid % 32;
  const int begin = begins[row];
  const int end_tile = begin / TILE + 1, per_part = (end_tile + n_parts - 1) / n_parts;
  const int from = part * per_part, to = min(end_tile, from + per_part);
  const unsigned slot = slots[row];
  const bool writes = slot != NOT_WRITTEN;
  fresh += static_cast<long>(row) * D;

  const auto load_tile = [&](int tile, int buffer) {
    // What is looked up once for the tile: no store stands between.
    long blocks[TILE / STRETCH];
#pragma unroll
    for (int i = 0; i < TILE / STRETCH; ++i) {
      const int token = tile * TILE + i * STRETCH;
      blocks[i] = token <= begin ? table[static_cast<long>(row) * width + token / BLOCK] : 0;
    }
#pragma unroll
    for (int j = 0; j < (TILE * D / 8 + THREADS - 1) / THREADS; ++j) {
      const int i = tid + j * THREADS;
      const int r = i / (D / 8), c = i % (D / 8) * 8, token = tile * TILE + r;
      if (r >= TILE) break;
      const T* source = latents + (blocks[r / STRETCH] * BLOCK + token % BLOCK) * D + c;
      if (token == begin && writes) source = fresh + c;
      copy_ahead(&s.latents[buffer][r][c], source, token <= begin);
    }
    // The new token's place is written by the part that has it.
    if (writes && tile == begin / TILE && tid < D / 8) {
      const long at = static_cast<long>(slot / BLOCK) * BLOCK + slot % BLOCK;
      *reinterpret_cast<Run<T, 8>*>(const_cast<T*>(latents) + at * D + tid * 8) =
          *reinterpret_cast<const Run<T, 8>*>(fresh + tid * 8);
    }
    commit_copies();
  };
  const bool has_early = from < to && from != begin / TILE;
  if (has_early) load_tile(from, 0);
  wait_for_inputs();
  if (from < to && !has_early) load_tile(from, 0);
  const long first_head = static_cast<long>(row) * HEADS;
  for (int i = tid; i < ROWS * (D / 8); i += THREADS) {
    const int r = i / (D / 8), c = i % (D / 8) * 8;
    copy_ahead(&s.q[r][c], q + (first_head + min(r, HEADS - 1)) * D + c, r < HEADS);
  }
  commit_copies();

  float sums[M][N][4] = {};
  float top = -INFINITY, sum = 0.0f;
  const int my_row = tid / PER_ROW;
  for (int tile = from; tile < to; ++tile) {
    const int buffer = (tile - from) % 2;
    if (tile + 1 < to) {
      load_tile(tile + 1, buffer ^ 1);
      wait_for_copies<1>();
    } else {
      wait_for_copies<0>();
    }
    __syncthreads();

    if (warp * 16 < TILE) {
      float logits[M][2][4] = {};
#pragma unroll 4
      for (int k = 0; k < D; k += 16) {
        unsigned b[4];
        const int r = warp * 16 + lane % 8 + lane / 16 * 8;
        load_matrices(b, &s.latents[buffer][r][k + lane / 8 % 2 * 8]);
#pragma unroll
        for (int m = 0; m < M; ++m) {
          unsigned a[4];
          load_matrices(a, &s.q[m * 16 + lane % 16][k + lane / 16 * 8]);
          Tensor<T>::multiply(logits[m][0], a, b[0], b[1]);
          Tensor<T>::multiply(logits[m][1], a, b[2], b[3]);
        }
      }
#pragma unroll
      for (int m = 0; m < M; ++m) {
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          const int r = m * 16 + lane / 4 + i % 4 / 2 * 8;
          const int c = warp * 16 + i / 4 * 8 + lane % 4 * 2 + i % 2;
          const int token = tile * TILE + c;
          s.logits[r][c] = token <= begin ? logits[m][i / 4][i % 4] * scale * LOG2_E : -INFINITY;
        }
      }
    }
    __syncthreads();

    float tile_top = top;
#pragma unroll
    for (int c = tid % PER_ROW; c < TILE; c += PER_ROW) {
      tile_top = fmaxf(tile_top, s.logits[my_row][c]);
    }
#pragma unroll
    for (int i = 1; i < PER_ROW; i *= 2) {
      tile_top = fmaxf(tile_top, __shfl_xor_sync(~0u, tile_top, i));
    }
    float tile_sum = 0.0f;
#pragma unroll
    for (int c = tid % PER_ROW; c < TILE; c += PER_ROW) {
      const float share = exp2f(s.logits[my_row][c] - tile_top);
      tile_sum += share;
      s.shares[my_row][c] = static_cast<T>(share);
    }
#pragma unroll
    for (int i = 1; i < PER_ROW; i *= 2) {
      tile_sum += __shfl_xor_sync(~0u, tile_sum, i);
    }
    const float factor = exp2f(top - tile_top);
    sum = sum * factor + tile_sum;
    top = tile_top;
    if (tid % PER_ROW == 0) s.factor[my_row] = factor;
    __syncthreads();

#pragma unroll
    for (int m = 0; m < M; ++m) {
      const float upper = s.factor[m * 16 + lane / 4], lower = s.factor[m * 16 + lane / 4 + 8];
#pragma unroll
      for (int n = 0; n < N; ++n) {
        sums[m][n][0] *= upper, sums[m][n][1] *= upper;
        sums[m][n][2] *= lower, sums[m][n][3] *= lower;
      }
    }
#pragma unroll
    for (int k = 0; k < TILE; k += 16) {
      unsigned a[M][4];
#pragma unroll
      for (int m = 0; m < M; ++m) {
        load_matrices(a[m], &s.shares[m * 16 + lane % 16][k + lane / 16 * 8]);
      }
#pragma unroll
      for (int n = 0; n < N; n += 2) {
        unsigned b[4];
        const int c = warp * WIDTH + n * 8 + lane / 16 * 8;
        load_transposed(b, &s.latents[buffer][k + lane % 16][c]);
#pragma unroll
        for (int m = 0; m < M; ++m) {
          Tensor<T>::multiply(sums[m][n], a[m], b[0], b[1]);
          Tensor<T>::multiply(sums[m][n + 1], a[m], b[2], b[3]);
        }
      }
    }
    __syncthreads();
  }
  wait_for_copies<0>();

  if (tid % PER_ROW == 0) {
    s.sum[my_row] = sum;
    if (my_row < HEADS && n_parts > 1) {
      float* at = part_sums + ((first_head + my_row) * n_parts + part) * 2;
      at[0] = top, at[1] = sum;
    }
  }
  __syncthreads();
#pragma unroll
  for (int m = 0; m < M; ++m) {
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
      const int r = m * 16 + lane / 4 + i / 2 * 8;
      if (r >= HEADS) continue;
      const float divisor = n_parts == 1 ? s.sum[r] : 1.0f;
#pragma unroll
      for (int n = 0; n < N; ++n) {
        const int c = warp * WIDTH + n * 8 + lane % 4 * 2;
        if (n_parts == 1) {
          T* at = out + (first_head + r) * DV + c;
          at[0] = static_cast<T>(sums[m][n][i] / divisor);
          at[1] = static_cast<T>(sums[m][n][i + 1] / divisor);
        } else {
          float* at = part_out + ((first_head + r) * n_parts + part) * DV + c;
          at[0] = sums[m][n][i], at[1] = sums[m][n][i + 1];
        }
      }
    }
  }
  if (n_parts == 1 || !is_last_of(n_parts, tickets + row)) return;
  for (int r = warp; r < HEADS; r += 4) {
    const long head = first_head + r;
    join_parts<DV>(
        part_out + head * n_parts * DV, part_sums + head * n_parts * 2, n_parts, -INFINITY,
        out + head * DV);
  }
}

}  // namespace offshoot
