// Attention of many new tokens over pools of blocks that hold them already.
//
// The query heads that share a head of keys lie side by side: row r of all is query r % GROUP of
// token r / GROUP. A warp keeps sixteen rows of queries, and their logits and sums, in registers
// while tiles of keys and values pass through shared memory (FlashAttention-2, Dao 2023). Few rows
// share their keys' tiles out among parts, which the last one to end joins (Flash-Decoding, 2023).

namespace offshoot {

__device__ inline float nothing() { return __int_as_float(0xff800000); }

__device__ inline float power_of_two(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// The tokens of a block of threads: those of its rows of queries, and the keys from `first` to
// `end` that any of them sees, of which it takes the tiles from `from` to `to`.
template <int GROUP, int ROWS, int TILE, int BLOCK>
struct Share {
  // The last rows see most and begin first.
  const int block_row = gridDim.x - 1 - blockIdx.x;
  const int first_row = block_row * ROWS;
  int kv, row, part, n_parts, n_rows, window, begin, first_token, last_token, end, first, from, to;

  __device__ Share(const int* begins, int n_new, int width, int n_parts_, int window_)
      : kv(blockIdx.y), row(blockIdx.z / n_parts_), part(blockIdx.z % n_parts_), n_parts(n_parts_),
        n_rows(n_new * GROUP), window(window_) {
    begin = begins[row];
    first_token = first_row / GROUP;
    last_token = (min(first_row + ROWS, n_rows) - 1) / GROUP;
    end = min(begin + last_token + 1, width * BLOCK);
    first = window > 0 ? max(0, begin + first_token + 1 - window) : 0;
    const int first_tile = first / TILE, end_tile = (end + TILE - 1) / TILE;
    const int per_part = (end_tile - first_tile + n_parts - 1) / n_parts;
    from = first_tile + part * per_part;
    to = min(end_tile, from + per_part);
  }

  // Of a row, where it is none of the last.
  __device__ int position(int own_row) const {
    return begin + min(first_row + own_row, n_rows - 1) / GROUP;
  }

  __device__ bool is_seen(int token) const { return token >= first && token < end; }

  // Whether all rows see all of a tile.
  __device__ bool is_whole(int tile) const {
    const int tile_begin = tile * TILE, tile_end = tile_begin + TILE;
    return tile_end <= begin + first_token + 1 && tile_end <= end &&
           (window <= 0 || tile_begin > begin + last_token - window);
  }
};

// Rows of 16 bytes of a tile of a pool [N, KV, BLOCK, DIM], each to the place that `at` names.
template <int DIM, int THREADS, int KV, int BLOCK, int TILE, typename T, typename Of, typename At>
__device__ inline void load_tile(
    const T* pool, const unsigned* table, int width, const Of& share, int tile, const At& at) {
  constexpr int CHUNKS = DIM / 8, AT_ONCE = THREADS / CHUNKS;
  const auto copy = [&](int r, int chunk, long block) {
    const int token = tile * TILE + r;
    const T* from = pool + ((block * KV + share.kv) * BLOCK + token % BLOCK) * DIM + chunk * 8;
    copy_ahead(at(r, chunk), from, share.is_seen(token));
  };
  const unsigned* of_row = table + static_cast<long>(share.row) * width;
  if constexpr (THREADS % CHUNKS == 0 && BLOCK % AT_ONCE == 0 && TILE % AT_ONCE == 0) {
#pragma unroll
    for (int r = 0; r < TILE; r += AT_ONCE) {
      const long block = of_row[min((tile * TILE + r) / BLOCK, width - 1)];
      copy(r + threadIdx.x / CHUNKS, threadIdx.x % CHUNKS, block);
    }
  } else {
    for (int i = threadIdx.x; i < TILE * CHUNKS; i += THREADS) {
      const int token = tile * TILE + i / CHUNKS;
      copy(i / CHUNKS, i % CHUNKS, of_row[min(token / BLOCK, width - 1)]);
    }
  }
}

// What a thread keeps of two rows, in the layout of a tensor core's results: element
// 4 n + 2 h + i of `sums` is of row h and column 8 n + lane % 4 * 2 + i.
template <int DV>
struct Kept {
  float sums[DV / 2] = {};
  float top[2] = {nothing(), nothing()};
  float sum[2] = {};
  int position[2];
};

// Logits of a tile become weights, and what is kept is scaled to the new largest one.
template <int TILE, int DV, typename Of>
__device__ inline void weigh(
    float (&logits)[TILE / 2], Kept<DV>& kept, const Of& share, int tile, float factor) {
  const int lane = threadIdx.x % 32;
  if (!share.is_whole(tile)) {
#pragma unroll
    for (int i = 0; i < TILE / 2; ++i) {
      const int token = tile * TILE + i / 4 * 8 + lane % 4 * 2 + i % 2;
      const int at = kept.position[i / 2 % 2];
      const bool is_in_window = share.window <= 0 || token > at - share.window;
      if (token > at || token >= share.end || !is_in_window) logits[i] = nothing();
    }
  }
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    float top = nothing();
#pragma unroll
    for (int i = 2 * h; i < TILE / 2; i += 4) top = fmaxf(top, fmaxf(logits[i], logits[i + 1]));
    top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
    top = fmaxf(top, __shfl_xor_sync(~0u, top, 2)) * factor;
    top = fmaxf(top, kept.top[h]);
    // Rows that have seen nothing yet.
    const float base = top == nothing() ? 0.0f : top;
    const float scale = power_of_two(kept.top[h] - base);
    float sum = 0.0f;
#pragma unroll
    for (int i = 2 * h; i < TILE / 2; i += 4) {
      logits[i] = power_of_two(fmaf(logits[i], factor, -base));
      logits[i + 1] = power_of_two(fmaf(logits[i + 1], factor, -base));
      sum += logits[i] + logits[i + 1];
    }
    kept.sum[h] = kept.sum[h] * scale + sum;
    kept.top[h] = top;
#pragma unroll
    for (int i = 2 * h; i < DV / 2; i += 4) kept.sums[i] *= scale, kept.sums[i + 1] *= scale;
  }
}

// Writes what is kept of a warp's sixteen rows, or joins the parts of all rows if all are there.
template <int GROUP, int KV, int DV, int ROWS, int WARPS, typename T, typename S, typename Of>
__device__ inline void finish(
    Kept<DV>& kept, const Of& share, const S* sinks, const unsigned* tickets, T* out,
    float* part_out, float* part_sums, int n_new) {
  constexpr int HEADS = KV * GROUP;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, n_parts = share.n_parts;
  const long tile_at =
      (static_cast<long>(share.row) * KV + share.kv) * gridDim.x + share.block_row;
  const auto head_of = [&](int at) { return share.kv * GROUP + at % GROUP; };
  const auto row_of = [&](int at) {
    return out + ((static_cast<long>(share.row) * n_new + at / GROUP) * HEADS + head_of(at)) * DV;
  };
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    float sum = kept.sum[h];
    sum += __shfl_xor_sync(~0u, sum, 1);
    sum += __shfl_xor_sync(~0u, sum, 2);
    const int r = warp * 16 + lane / 4 + h * 8, at = share.first_row + r;
    if (at >= share.n_rows) continue;
    if (n_parts == 1) {
      float scale = 1.0f;
      if (sinks) {
        const float sink = static_cast<float>(sinks[head_of(at)]) * LOG2_E;
        const float top = fmaxf(kept.top[h], sink);
        scale = exp2f(kept.top[h] - top);
        sum = sum * scale + exp2f(sink - top);
      }
      scale /= sum;
#pragma unroll
      for (int n = 0; n < DV / 8; ++n) {
        const float* values = kept.sums + 4 * n + 2 * h;
        *reinterpret_cast<unsigned*>(row_of(at) + n * 8 + lane % 4 * 2) =
            pair(T{}, values[0] * scale, values[1] * scale);
      }
    } else {
      const long of_part = (tile_at * n_parts + share.part) * ROWS + r;
#pragma unroll
      for (int n = 0; n < DV / 8; ++n) {
        *reinterpret_cast<float2*>(part_out + of_part * DV + n * 8 + lane % 4 * 2) =
            make_float2(kept.sums[4 * n + 2 * h], kept.sums[4 * n + 2 * h + 1]);
      }
      if (lane % 4 == 0) {
        *reinterpret_cast<float2*>(part_sums + of_part * 2) = make_float2(kept.top[h], sum);
      }
    }
  }
  if (n_parts == 1 || !is_last_of(n_parts, tickets + tile_at)) return;
  for (int r = warp; r < ROWS && share.first_row + r < share.n_rows; r += WARPS) {
    const int at = share.first_row + r;
    const long of_row = tile_at * n_parts * ROWS + r;
    const float sink = sinks ? static_cast<float>(sinks[head_of(at)]) * LOG2_E : nothing();
    float top = sink;
    for (int p = 0; p < n_parts; ++p) {
      top = fmaxf(top, __ldcg(part_sums + (of_row + p * ROWS) * 2));
    }
    float sum = sinks ? exp2f(sink - top) : 0.0f;
    float joined[(DV + 31) / 32] = {};
#pragma unroll 4
    for (int p = 0; p < n_parts; ++p) {
      const long of_part = of_row + p * ROWS;
      const float part_sum = __ldcg(part_sums + of_part * 2 + 1);
      const float scale = part_sum > 0.0f ? exp2f(__ldcg(part_sums + of_part * 2) - top) : 0.0f;
      sum += part_sum * scale;
#pragma unroll
      for (int i = 0; i < (DV + 31) / 32; ++i) {
        const int c = i * 32 + lane;
        if (c < DV) joined[i] += scale * __ldcg(part_out + of_part * DV + c);
      }
    }
#pragma unroll
    for (int i = 0; i < (DV + 31) / 32; ++i) {
      const int c = i * 32 + lane;
      if (c < DV) row_of(at)[c] = static_cast<T>(joined[i] / sum);
    }
  }
}

// Rows of queries to shared memory [ROWS, DK + 8]; rows are padded, so that eight of them lie in
// different banks.
template <int GROUP, int KV, int DK, int ROWS, int THREADS, typename T, typename Of>
__device__ inline void load_queries(T (*to)[DK + 8], const T* q, const Of& share, int n_new) {
  for (int i = threadIdx.x; i < ROWS * (DK / 8); i += THREADS) {
    const int r = i / (DK / 8), c = i % (DK / 8) * 8;
    const int at = min(share.first_row + r, share.n_rows - 1);
    const long head = (static_cast<long>(share.row) * KV + share.kv) * GROUP + at % GROUP;
    copy_ahead(&to[r][c], q + (head * n_new + at / GROUP) * DK + c, true);
  }
  commit_copies();
}

// q [B, KV * GROUP, L, DK]; keys [N, KV, BLOCK, DK]; values [N, KV, BLOCK, DV]; table [B, width];
// begins [B]; sinks [KV * GROUP] or absent; tickets [B * KV * tiles], zeros before and after. out
// [B, L, KV * GROUP, DV]; part_out [B, KV, tiles, parts, ROWS, DV]; part_sums
// [B, KV, tiles, parts, ROWS, 2]. Grid (tiles, KV, B * parts), WARPS * 32 threads.
template <int GROUP, int KV, int DK, int DV, int BLOCK, int WARPS, int TILE, typename T, typename S>
__device__ void flash(
    const T* q, const T* keys, const T* values, const unsigned* table, const int* begins,
    const S* sinks, const unsigned* tickets, T* out, float* part_out, float* part_sums, int n_new,
    int width, int n_parts, int window, float scale) {
  constexpr int THREADS = WARPS * 32, ROWS = WARPS * 16;
  // Queries that are kept in registers lie where the tiles come afterwards.
  constexpr bool IN_REGISTERS = DK <= 128;
  struct Tiles {
    alignas(16) T keys[2][TILE][DK + 8];
    alignas(16) T values[2][TILE][DV + 8];
  };
  extern __shared__ __align__(16) char shared_bytes[];
  T(*queries)[DK + 8] = reinterpret_cast<T(*)[DK + 8]>(shared_bytes);
  Tiles& s = *reinterpret_cast<Tiles*>(
      shared_bytes + (IN_REGISTERS ? 0 : sizeof(T) * ROWS * (DK + 8)));
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const Share<GROUP, ROWS, TILE, BLOCK> share(begins, n_new, width, n_parts, window);
  load_queries<GROUP, KV, DK, ROWS, THREADS>(queries, q, share, n_new);

  const auto load = [&](int tile, int buffer) {
    load_tile<DK, THREADS, KV, BLOCK, TILE>(
        keys, table, width, share, tile, [&](int r, int c) { return &s.keys[buffer][r][c * 8]; });
    load_tile<DV, THREADS, KV, BLOCK, TILE>(
        values, table, width, share, tile,
        [&](int r, int c) { return &s.values[buffer][r][c * 8]; });
    commit_copies();
  };
  unsigned of_queries[IN_REGISTERS ? DK / 16 : 1][4];
  const T* of_lane = &queries[warp * 16 + lane % 16][lane / 16 * 8];
  if constexpr (IN_REGISTERS) {
    wait_for_copies<0>();
    __syncthreads();
#pragma unroll
    for (int k = 0; k < DK / 16; ++k) load_matrices(of_queries[k], of_lane + k * 16);
    __syncthreads();
  }

  Kept<DV> kept;
#pragma unroll
  for (int h = 0; h < 2; ++h) kept.position[h] = share.position(warp * 16 + lane / 4 + h * 8);
  if (share.from < share.to) load(share.from, 0);
  for (int tile = share.from; tile < share.to; ++tile) {
    const int buffer = (tile - share.from) % 2;
    if (tile + 1 < share.to) {
      load(tile + 1, buffer ^ 1);
      wait_for_copies<1>();
    } else {
      wait_for_copies<0>();
    }
    __syncthreads();

    float logits[TILE / 8][4] = {};
#pragma unroll
    for (int k = 0; k < DK / 16; ++k) {
      unsigned a[4];
      if constexpr (!IN_REGISTERS) load_matrices(a, of_lane + k * 16);
#pragma unroll
      for (int n = 0; n < TILE; n += 16) {
        unsigned b[4];
        load_matrices(b, &s.keys[buffer][n + lane % 8 + lane / 16 * 8][k * 16 + lane / 8 % 2 * 8]);
        const auto& own = IN_REGISTERS ? of_queries[IN_REGISTERS ? k : 0] : a;
        Tensor<T>::multiply(logits[n / 8], own, b[0], b[1]);
        Tensor<T>::multiply(logits[n / 8 + 1], own, b[2], b[3]);
      }
    }
    float weights[TILE / 2];
#pragma unroll
    for (int i = 0; i < TILE / 2; ++i) weights[i] = logits[i / 4][i % 4];
    weigh<TILE>(weights, kept, share, tile, scale * LOG2_E);
#pragma unroll
    for (int k = 0; k < TILE / 16; ++k) {
      unsigned a[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        a[i] = pair(T{}, weights[8 * k + 2 * i], weights[8 * k + 2 * i + 1]);
      }
#pragma unroll
      for (int n = 0; n < DV; n += 16) {
        unsigned b[4];
        load_transposed(b, &s.values[buffer][k * 16 + lane % 16][n + lane / 16 * 8]);
        auto& sums = reinterpret_cast<float(&)[DV / 8][4]>(kept.sums);
        Tensor<T>::multiply(sums[n / 8], a, b[0], b[1]);
        Tensor<T>::multiply(sums[n / 8 + 1], a, b[2], b[3]);
      }
    }
    __syncthreads();
  }
  wait_for_copies<0>();
  finish<GROUP, KV, DV, ROWS, WARPS>(
      kept, share, sinks, tickets, out, part_out, part_sums, n_new);
}

}  // namespace offshoot
