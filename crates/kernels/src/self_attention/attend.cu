// Attention of one new token per row over pools of blocks, which writes that token on the way.
//
// A block of threads takes a part of one row's tokens for the query heads that share a head of
// keys. Each warp goes through tokens of its own, 16 at a time, with logits, shares and sums in its
// registers (FlashAttention-2, Dao 2023) and its next tokens on their way into its part of shared
// memory, the first of them before there are queries. Warps are joined in shared memory, parts by
// the block that ends last (Flash-Decoding, 2023). Pools are written in place although they are
// inputs: the new token is read from the inputs instead.

namespace offshoot {

constexpr int TILE = 16;

// What a block of threads shares. Rows are padded, so that eight of them lie in different banks.
template <int DK, int DV, int WARPS, int STAGES, typename T>
struct AttendMemory {
  struct Tile {
    T keys[TILE][DK + 8];
    T values[TILE][DV + 8];
  };
  // Once all tokens were seen, a warp's sums lie where its tiles were.
  union Own {
    Tile tiles[STAGES];
    float sums[TILE][DV + 8];
  };
  alignas(16) T q[TILE][DK + 8];
  alignas(16) Own own[WARPS];
  float top[WARPS][TILE], sum[WARPS][TILE];
};

// q [B, HEADS, DK]; new_keys [B, KV, DK]; new_values [B, KV, DV]; keys [N, KV, BLOCK, DK]; values
// [N, KV, BLOCK, DV]; table [B, width]; slots, begins [B]; sinks [HEADS] or absent; tickets, one
// for each x and y of the grid, zeros before and after. out [B, HEADS, DV]; part_out
// [B, HEADS, parts, DV]; part_sums [B, HEADS, parts, 2]. Grid (KV times the sixteens of heads that
// share one, B, parts), 32 WARPS threads. BLOCK is a multiple of TILE.
template <int HEADS, int KV, int DK, int DV, int BLOCK, int WARPS, int STAGES, typename T,
          typename S>
__device__ void attend(
    const T* q, const T* new_keys, const T* new_values, const T* keys, const T* values,
    const unsigned* table, const unsigned* slots, const int* begins, const S* sinks,
    const unsigned* tickets, T* out, float* part_out, float* part_sums, int width, int window,
    float scale) {
  constexpr int GROUP = HEADS / KV;
  constexpr int SIXTEENS = (GROUP + TILE - 1) / TILE;
  constexpr int N = DV / 8;
  using Memory = AttendMemory<DK, DV, WARPS, STAGES, T>;
  using Tile = typename Memory::Tile;
  static_assert(BLOCK % TILE == 0, "a tile lies in one block");
  extern __shared__ __align__(16) char shared_bytes[];
  Memory& s = *reinterpret_cast<Memory*>(shared_bytes);

  const int kv = blockIdx.x / SIXTEENS, first_of_group = blockIdx.x % SIXTEENS * TILE;
  const int n_heads = min(TILE, GROUP - first_of_group);
  const int row = blockIdx.y, part = blockIdx.z, n_parts = gridDim.z;
  const int tid = threadIdx.x, warp = tid / 32, lane = tid % 32;
  const int begin = begins[row];
  const unsigned slot = slots[row];
  const bool writes = slot != NOT_WRITTEN;
  const int first = window > 0 ? max(0, begin + 1 - window) : 0;
  const int first_tile = first / TILE, end_tile = begin / TILE + 1;
  const int per_part = (end_tile - first_tile + n_parts - 1) / n_parts;
  const int from = first_tile + part * per_part, to = min(end_tile, from + per_part);
  const long head_at = static_cast<long>(row) * KV + kv;
  const long first_head = head_at * GROUP + first_of_group;

  // In the new token's place is whatever was there before.
  const auto load = [&](T* rows, const T* pool, int dim, long block, int tile) {
    const T* from = pool + ((block * KV + kv) * BLOCK + tile * TILE % BLOCK) * dim + lane * 8;
#pragma unroll
    for (int i = 0; i < TILE * dim / 8 / 32; ++i) {
      const int r = (i * 32 + lane) / (dim / 8), c = (i * 32 + lane) % (dim / 8) * 8;
      const int token = tile * TILE + r;
      copy_ahead(rows + r * (dim + 8) + c, from + i * 256, token >= first && token <= begin);
    }
  };
  const auto block_of = [&](int tile) {
    return tile < to ? table[static_cast<long>(row) * width + tile * TILE / BLOCK] : 0;
  };
  const auto fetch = [&](int tile, long block, Tile& place) {
    if (tile < to) {
      load(&place.keys[0][0], keys, DK, block, tile);
      load(&place.values[0][0], values, DV, block, tile);
    }
    commit_copies();
  };
  Tile* const tiles = s.own[warp].tiles;
#pragma unroll
  for (int i = 0; i < STAGES; ++i) {
    const int tile = from + warp + i * WARPS;
    fetch(tile, block_of(tile), tiles[i]);
  }

  wait_for_inputs();
  using Piece = Run<T, 8>;
  for (int i = tid; i < TILE * (DK / 8); i += 32 * WARPS) {
    const int r = i / (DK / 8), c = i % (DK / 8) * 8;
    const bool is_there = r < n_heads;
    const T* of_head = q + (first_head + (is_there ? r : 0)) * DK + c;
    copy_ahead(&s.q[r][c], of_head, is_there);
  }
  commit_copies();
  // The warp that sees the new token writes it, if it is of the first heads.
  const int new_tile = begin / TILE;
  const bool has_new = writes && new_tile >= from && new_tile < to &&
                       (new_tile - from) % WARPS == warp;
  Piece new_key = {}, new_value = {};
  if (has_new) {
    if (lane < DK / 8) new_key = load_run<T, 8>(new_keys + head_at * DK + lane * 8);
    if (lane < DV / 8) new_value = load_run<T, 8>(new_values + head_at * DV + lane * 8);
    const long at = (static_cast<long>(slot / BLOCK) * KV + kv) * BLOCK + slot % BLOCK;
    if (first_of_group == 0 && lane < DK / 8) {
      *reinterpret_cast<Piece*>(const_cast<T*>(keys) + at * DK + lane * 8) = new_key;
    }
    if (first_of_group == 0 && lane < DV / 8) {
      *reinterpret_cast<Piece*>(const_cast<T*>(values) + at * DV + lane * 8) = new_value;
    }
  }
  wait_for_copies<0>();
  __syncthreads();

  // A thread has rows lane / 4 and 8 more.
  float sums[N][4] = {};
  float top[2] = {-INFINITY, -INFINITY}, sum[2] = {};
  int stage = 0;
  for (int tile = from + warp; tile < to; tile += WARPS) {
    Tile& own = tiles[stage];
    const int coming = tile + STAGES * WARPS;
    const unsigned block = block_of(coming);
    wait_for_copies<STAGES - 1>();
    if (has_new && tile == new_tile) {
      // What was there before may have been another lane's copy.
      __syncwarp();
      const int r = begin % TILE;
      if (lane < DK / 8) *reinterpret_cast<Piece*>(&own.keys[r][lane * 8]) = new_key;
      if (lane < DV / 8) *reinterpret_cast<Piece*>(&own.values[r][lane * 8]) = new_value;
    }
    __syncwarp();

    float logits[2][4] = {};
#pragma unroll
    for (int k = 0; k < DK; k += 16) {
      unsigned a[4], b[4];
      load_matrices(a, &s.q[lane % 16][k + lane / 16 * 8]);
      load_matrices(b, &own.keys[lane % 8 + lane / 16 * 8][k + lane / 8 % 2 * 8]);
      Tensor<T>::multiply(logits[0], a, b[0], b[1]);
      Tensor<T>::multiply(logits[1], a, b[2], b[3]);
    }
    float tile_top[2] = {top[0], top[1]};
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int token = tile * TILE + i / 4 * 8 + lane % 4 * 2 + i % 2;
      float& logit = logits[i / 4][i % 4];
      logit = token >= first && token <= begin ? logit * scale * LOG2_E : -INFINITY;
      tile_top[i % 4 / 2] = fmaxf(tile_top[i % 4 / 2], logit);
    }
    float factor[2], tile_sum[2] = {};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      tile_top[half] = fmaxf(tile_top[half], __shfl_xor_sync(~0u, tile_top[half], 1));
      tile_top[half] = fmaxf(tile_top[half], __shfl_xor_sync(~0u, tile_top[half], 2));
      factor[half] = exp2f(top[half] - tile_top[half]);
      top[half] = tile_top[half];
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      float& share = logits[i / 4][i % 4];
      share = exp2f(share - top[i % 4 / 2]);
      tile_sum[i % 4 / 2] += share;
    }
    // Of all columns at the end.
    sum[0] = sum[0] * factor[0] + tile_sum[0];
    sum[1] = sum[1] * factor[1] + tile_sum[1];
    const unsigned shares[4] = {
        pair(T{}, logits[0][0], logits[0][1]), pair(T{}, logits[0][2], logits[0][3]),
        pair(T{}, logits[1][0], logits[1][1]), pair(T{}, logits[1][2], logits[1][3])};
    if (__any_sync(~0u, factor[0] != 1.0f || factor[1] != 1.0f)) {
#pragma unroll
      for (int n = 0; n < N; ++n) {
        sums[n][0] *= factor[0], sums[n][1] *= factor[0];
        sums[n][2] *= factor[1], sums[n][3] *= factor[1];
      }
    }
#pragma unroll
    for (int n = 0; n < N; n += 2) {
      unsigned b[4];
      load_transposed(b, &own.values[lane % 16][n * 8 + lane / 16 * 8]);
      Tensor<T>::multiply(sums[n], shares, b[0], b[1]);
      Tensor<T>::multiply(sums[n + 1], shares, b[2], b[3]);
    }
    __syncwarp();
    fetch(coming, block, own);
    stage = stage == STAGES - 1 ? 0 : stage + 1;
  }
  wait_for_copies<0>();
  __syncwarp();

#pragma unroll
  for (int half = 0; half < 2; ++half) {
    sum[half] += __shfl_xor_sync(~0u, sum[half], 1);
    sum[half] += __shfl_xor_sync(~0u, sum[half], 2);
    const int r = lane / 4 + half * 8;
    if (lane % 4 == 0) s.top[warp][r] = top[half], s.sum[warp][r] = sum[half];
#pragma unroll
    for (int n = 0; n < N; ++n) {
      float* at = &s.own[warp].sums[r][n * 8 + lane % 4 * 2];
      at[0] = sums[n][half * 2], at[1] = sums[n][half * 2 + 1];
    }
  }
  __syncthreads();
  // A warp joins what all have of a head.
  for (int r = warp; r < n_heads; r += WARPS) {
    const long head = first_head + r;
    float all_top = -INFINITY, all_sum = 0.0f, factors[WARPS];
#pragma unroll
    for (int w = 0; w < WARPS; ++w) all_top = fmaxf(all_top, s.top[w][r]);
#pragma unroll
    for (int w = 0; w < WARPS; ++w) {
      // A warp may have seen nothing.
      factors[w] = s.sum[w][r] > 0.0f ? exp2f(s.top[w][r] - all_top) : 0.0f;
      all_sum += s.sum[w][r] * factors[w];
    }
    float divisor = 1.0f;
    if (n_parts == 1) {
      divisor = all_sum;
      if (sinks) {
        divisor += exp2f(static_cast<float>(sinks[head % HEADS]) * LOG2_E - all_top);
      }
    } else if (lane == 0) {
      float* at = part_sums + (head * n_parts + part) * 2;
      at[0] = all_top, at[1] = all_sum;
    }
#pragma unroll 1
    for (int c = lane * 2; c < DV; c += 64) {
      float joined[2] = {};
#pragma unroll
      for (int w = 0; w < WARPS; ++w) {
        joined[0] += factors[w] * s.own[w].sums[r][c];
        joined[1] += factors[w] * s.own[w].sums[r][c + 1];
      }
      if (n_parts == 1) {
        const unsigned both = pair(T{}, joined[0] / divisor, joined[1] / divisor);
        *reinterpret_cast<unsigned*>(out + head * DV + c) = both;
      } else {
        float* at = part_out + (head * n_parts + part) * DV + c;
        *reinterpret_cast<float2*>(at) = {joined[0], joined[1]};
      }
    }
  }
  if (n_parts == 1 || !is_last_of(n_parts, tickets + row * gridDim.x + blockIdx.x)) return;
  for (int r = warp; r < n_heads; r += WARPS) {
    const long head = first_head + r;
    const float sink = sinks ? static_cast<float>(sinks[head % HEADS]) * LOG2_E : -INFINITY;
    join_parts<DV>(
        part_out + head * n_parts * DV, part_sums + head * n_parts * 2, n_parts, sink,
        out + head * DV);
  }
}

}  // namespace offshoot
