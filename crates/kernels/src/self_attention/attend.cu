// Attention of one new token per row over pools of blocks, which writes that token on the way.
//
// A block of threads takes a part of one row's tokens for the query heads that share a head of
// keys, tile after tile: logits and sums on tensor cores, softmax in between (FlashAttention-2,
// Dao 2023; parts as in Flash-Decoding, 2023). The last one to end joins the parts. Pools are
// written in place although they are inputs: a new token's place is read from the inputs instead.

namespace offshoot {

constexpr unsigned NOT_WRITTEN = 0xffffffffu;
constexpr int MAX_PARTS = 64;

// What a block of threads shares. GROUP query heads read one head of keys; rows are padded, so that
// eight of them lie in different banks.
template <int GROUP, int DK, int DV, int TILE, bool SHARED, typename T>
struct AttendMemory {
  static constexpr int ROWS = (GROUP + 15) / 16 * 16;
  alignas(16) T q[ROWS][DK + 8];
  alignas(16) T keys[2][TILE][DK + 8];
  alignas(16) T values[SHARED ? 1 : 2][SHARED ? 1 : TILE][DV + 8];
  alignas(16) T shares[ROWS][TILE + 8];
  alignas(16) float logits[ROWS][TILE + 4];
  float factor[ROWS];
  float top[ROWS];
  float sum[ROWS];
  bool is_last;
};

// q [B, HEADS, DK]; new_keys [B, KV, DK]; new_values [B, KV, DV]; keys [N, KV, BLOCK, DK]; values
// [N, KV, BLOCK, DV], or absent: the first DV of keys. table [B, width]; slots, begins [B]; sinks
// [HEADS] or absent; tickets [B * KV], zeros before and after. out [B, HEADS, DV]; part_out
// [B, HEADS, parts, DV]; part_sums [B, HEADS, parts, 2]. Grid (KV, B, parts), 128 threads.
template <int HEADS, int KV, int DK, int DV, int BLOCK, int TILE, bool SHARED, typename T,
          typename S>
__device__ void attend(
    const T* q, const T* new_keys, const T* new_values, const T* keys, const T* values,
    const unsigned* table, const unsigned* slots, const int* begins, const S* sinks,
    const unsigned* tickets, T* out, float* part_out, float* part_sums, int width, int window,
    float scale) {
  constexpr int GROUP = HEADS / KV;
  constexpr int THREADS = 128;
  using Memory = AttendMemory<GROUP, DK, DV, TILE, SHARED, T>;
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

  const int kv = blockIdx.x, row = blockIdx.y, part = blockIdx.z, n_parts = gridDim.z;
  const int tid = threadIdx.x, warp = tid / 32, lane = tid % 32;
  const int begin = begins[row];
  const int first = window > 0 ? max(0, begin + 1 - window) : 0;
  const int first_tile = first / TILE, end_tile = begin / TILE + 1;
  const int per_part = (end_tile - first_tile + n_parts - 1) / n_parts;
  const int from = first_tile + part * per_part, to = min(end_tile, from + per_part);
  const unsigned slot = slots[row];
  const long head_at = static_cast<long>(row) * KV + kv;

  for (int i = tid; i < ROWS * (DK / 8); i += THREADS) {
    const int r = i / (DK / 8), c = i % (DK / 8) * 8;
    const long head = static_cast<long>(row) * HEADS + kv * GROUP + min(r, GROUP - 1);
    copy_ahead(&s.q[r][c], q + head * DK + c, r < GROUP);
  }

  const bool writes = slot != NOT_WRITTEN;
  auto load = [&](T* to_shared, int stride, const T* pool, const T* fresh, int dim, int tile,
                  const long* blocks) {
    fresh += head_at * dim;
#pragma unroll
    for (int j = 0; j < (TILE * dim / 8 + THREADS - 1) / THREADS; ++j) {
      const int i = tid + j * THREADS;
      const int r = i / (dim / 8), c = i % (dim / 8) * 8, token = tile * TILE + r;
      if (r >= TILE) break;
      const long block = blocks[r / STRETCH];
      const T* source = pool + ((block * KV + kv) * BLOCK + token % BLOCK) * dim + c;
      if (token == begin && writes) source = fresh + c;
      copy_ahead(to_shared + r * stride + c, source, token >= first && token <= begin);
    }
    // The new token's place is written by the part that has it.
    if (writes && tile == begin / TILE && tid < dim / 8) {
      const long at = (static_cast<long>(slot / BLOCK) * KV + kv) * BLOCK + slot % BLOCK;
      *reinterpret_cast<Run<T, 8>*>(const_cast<T*>(pool) + at * dim + tid * 8) =
          *reinterpret_cast<const Run<T, 8>*>(fresh + tid * 8);
    }
  };
  auto load_tile = [&](int tile, int buffer) {
    // What is looked up once for the tile: no store stands between.
    long blocks[TILE / STRETCH];
#pragma unroll
    for (int i = 0; i < TILE / STRETCH; ++i) {
      const int token = tile * TILE + i * STRETCH;
      const bool is_seen = token + STRETCH > first && token <= begin;
      blocks[i] = is_seen ? table[static_cast<long>(row) * width + token / BLOCK] : 0;
    }
    load(&s.keys[buffer][0][0], DK + 8, keys, new_keys, DK, tile, blocks);
    if constexpr (!SHARED) {
      load(&s.values[buffer][0][0], DV + 8, values, new_values, DV, tile, blocks);
    }
    commit_copies();
  };

  const float nothing = __int_as_float(0xff800000);
  float sums[M][N][4] = {};
  float top = nothing, sum = 0.0f;
  const int my_row = tid / PER_ROW;
  if (from < to) load_tile(from, 0);
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
      for (int k = 0; k < DK; k += 16) {
        unsigned b[4];
        const int r = warp * 16 + lane % 8 + lane / 16 * 8;
        load_matrices(b, &s.keys[buffer][r][k + lane / 8 % 2 * 8]);
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
          const bool is_seen = token >= first && token <= begin;
          s.logits[r][c] = is_seen ? logits[m][i / 4][i % 4] * scale * LOG2_E : nothing;
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
      tile_top = fmaxf(tile_top, __shfl_xor_sync(0xffffffffu, tile_top, i));
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
      tile_sum += __shfl_xor_sync(0xffffffffu, tile_sum, i);
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
    const T* of_values = SHARED ? &s.keys[buffer][0][0] : &s.values[SHARED ? 0 : buffer][0][0];
    constexpr int STRIDE = (SHARED ? DK : DV) + 8;
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
        load_transposed(b, of_values + (k + lane % 16) * STRIDE + c);
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

  const long first_head = static_cast<long>(row) * HEADS + kv * GROUP;
  if (tid % PER_ROW == 0) {
    s.top[my_row] = top;
    s.sum[my_row] = sum;
    if (my_row < GROUP && n_parts > 1) {
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
      if (r >= GROUP) continue;
      float divisor = 1.0f;
      if (n_parts == 1) {
        divisor = s.sum[r];
        if (sinks) {
          divisor += exp2f(static_cast<float>(sinks[kv * GROUP + r]) * LOG2_E - s.top[r]);
        }
      }
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
  if (n_parts == 1) return;

  __threadfence();
  __syncthreads();
  if (tid == 0) {
    unsigned* ticket = const_cast<unsigned*>(tickets) + head_at;
    s.is_last = atomicAdd(ticket, 1u) == static_cast<unsigned>(n_parts) - 1;
    if (s.is_last) *ticket = 0;
  }
  __syncthreads();
  if (!s.is_last) return;
  __threadfence();
  for (int r = warp; r < GROUP; r += 4) {
    const float* of_sums = part_sums + (first_head + r) * n_parts * 2;
    const float* of_parts = part_out + (first_head + r) * n_parts * DV;
    const float sink = sinks ? static_cast<float>(sinks[kv * GROUP + r]) * LOG2_E : nothing;
    // A lane has the tops and sums of every 32nd part.
    float all_top = sink;
    float factors[MAX_PARTS / 32], part_sum[MAX_PARTS / 32];
#pragma unroll
    for (int i = 0; i < MAX_PARTS / 32; ++i) {
      const int p = i * 32 + lane;
      factors[i] = p < n_parts ? __ldcg(of_sums + 2 * p) : nothing;
      part_sum[i] = p < n_parts ? __ldcg(of_sums + 2 * p + 1) : 0.0f;
      all_top = fmaxf(all_top, factors[i]);
    }
#pragma unroll
    for (int i = 1; i < 32; i *= 2) {
      all_top = fmaxf(all_top, __shfl_xor_sync(0xffffffffu, all_top, i));
    }
    float divisor = 0.0f;
#pragma unroll
    for (int i = 0; i < MAX_PARTS / 32; ++i) {
      factors[i] = part_sum[i] > 0.0f ? exp2f(factors[i] - all_top) : 0.0f;
      divisor += part_sum[i] * factors[i];
    }
#pragma unroll
    for (int i = 1; i < 32; i *= 2) divisor += __shfl_xor_sync(0xffffffffu, divisor, i);
    if (sinks) divisor += exp2f(sink - all_top);
    float joined[DV / 32] = {};
#pragma unroll
    for (int half = 0; half < MAX_PARTS / 32; ++half) {
#pragma unroll 8
      for (int p = half * 32; p < min(n_parts, half * 32 + 32); ++p) {
        const float factor = __shfl_sync(0xffffffffu, factors[half], p % 32);
#pragma unroll
        for (int i = 0; i < DV / 32; ++i) {
          joined[i] += factor * __ldcg(of_parts + p * DV + i * 32 + lane);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < DV / 32; ++i) {
      out[(first_head + r) * DV + i * 32 + lane] = static_cast<T>(joined[i] / divisor);
    }
  }
}

}  // namespace offshoot
