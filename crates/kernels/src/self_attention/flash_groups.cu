// The same on Hopper's tensor cores, which take tiles from shared memory themselves: groups of four
// warps have 64 rows, and the logits of the next tile are on their way while those of the last one
// become weights (as in FlashAttention-3, Shah et al. 2024). Tiles lie in columns of 64 elements,
// rows of 128 bytes, whose 16-byte chunks are swizzled by their row.

namespace offshoot {

// A matrix in shared memory, by its first row: groups of eight rows lie behind each other.
__device__ inline unsigned long long described(const void* at) {
  constexpr unsigned long long SWIZZLED = 1ull << 62, GROUP_BYTES = 1024;
  return (shared_address(at) >> 4 & 0x3fff) | 1ull << 16 | (GROUP_BYTES >> 4) << 32 | SWIZZLED;
}

#define OFFSHOOT_FOUR(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define OFFSHOOT_MULTIPLY(TYPE)                                                                 \
  asm volatile(                                                                                 \
      "{.reg .pred p; setp.ne.b32 p, %37, 0;\n"                                                 \
      "wgmma.mma_async.sync.aligned.m64n64k16.f32." TYPE "." TYPE " "                           \
      "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23," \
      "%24,%25,%26,%27,%28,%29,%30,%31}, {%32,%33,%34,%35}, %36, p, 1, 1, %38;}"                \
      : OFFSHOOT_FOUR(0), OFFSHOOT_FOUR(4), OFFSHOOT_FOUR(8), OFFSHOOT_FOUR(12),                \
        OFFSHOOT_FOUR(16), OFFSHOOT_FOUR(20), OFFSHOOT_FOUR(24), OFFSHOOT_FOUR(28)              \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(is_added), "n"(TRANSPOSED))

// d [32] = a b, or more by it if `is_added`: a 64x16 in the registers of a group of warps, b 16x64
// in shared memory, by its columns or TRANSPOSED. It goes on behind.
template <int TRANSPOSED>
__device__ inline void multiply_behind(
    __nv_bfloat16, float* d, const unsigned (&a)[4], unsigned long long b, int is_added) {
  OFFSHOOT_MULTIPLY("bf16");
}

template <int TRANSPOSED>
__device__ inline void multiply_behind(
    __half, float* d, const unsigned (&a)[4], unsigned long long b, int is_added) {
  OFFSHOOT_MULTIPLY("f16");
}

__device__ inline void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

__device__ inline void commit_products() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

__device__ inline void wait_for_products() {
  asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
}

// The compiler does not look at results before this.
template <int N>
__device__ inline void settle(float (&values)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) asm volatile("" : "+f"(values[i])::"memory");
}

// As `flash`, for DK and DV of 64 and 128, 8 warps and tiles of 64 keys.
template <int GROUP, int KV, int DK, int DV, int BLOCK, int WARPS, int TILE, typename T, typename S>
__device__ void flash_groups(
    const T* q, const T* keys, const T* values, const unsigned* table, const int* begins,
    const S* sinks, const unsigned* tickets, T* out, float* part_out, float* part_sums, int n_new,
    int width, int n_parts, int window, float scale) {
  static_assert(TILE == 64 && DK % 64 == 0 && DV % 64 == 0 && WARPS % 4 == 0);
  constexpr int THREADS = WARPS * 32, ROWS = WARPS * 16, COLUMN_BYTES = TILE * 128;
  constexpr int KEYS_BYTES = DK / 64 * COLUMN_BYTES, VALUES_BYTES = DV / 64 * COLUMN_BYTES;
  extern __shared__ __align__(16) char shared_bytes[];
  // Swizzles go by addresses.
  char* memory = shared_bytes + (1024 - shared_address(shared_bytes) % 1024) % 1024;
  T(*queries)[DK + 8] = reinterpret_cast<T(*)[DK + 8]>(memory);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const Share<GROUP, ROWS, TILE, BLOCK> share(begins, n_new, width, n_parts, window);
  load_queries<GROUP, KV, DK, ROWS, THREADS>(queries, q, share, n_new);
  unsigned of_queries[DK / 16][4];
  wait_for_copies<0>();
  __syncthreads();
#pragma unroll
  for (int k = 0; k < DK / 16; ++k) {
    load_matrices(of_queries[k], &queries[warp * 16 + lane % 16][k * 16 + lane / 16 * 8]);
  }
  __syncthreads();

  const auto keys_of = [&](int tile) { return memory + tile % 2 * KEYS_BYTES; };
  const auto values_of = [&](int tile) {
    return memory + 2 * KEYS_BYTES + tile % 2 * VALUES_BYTES;
  };
  const auto swizzled = [](char* to, int r, int c) {
    return to + c / 8 * COLUMN_BYTES + r * 128 + (c % 8 ^ r % 8) * 16;
  };
  const auto load_keys = [&](int tile) {
    if (tile >= share.to) return;
    load_tile<DK, THREADS, KV, BLOCK, TILE>(
        keys, table, width, share, tile,
        [&](int r, int c) { return swizzled(keys_of(tile), r, c); });
  };
  const auto load_values = [&](int tile) {
    if (tile >= share.to) return;
    load_tile<DV, THREADS, KV, BLOCK, TILE>(
        values, table, width, share, tile,
        [&](int r, int c) { return swizzled(values_of(tile), r, c); });
  };
  const auto wait_for_loads = [] {
    wait_for_copies<0>();
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncthreads();
  };
  const auto begin_logits = [&](float(&logits)[TILE / 2], int tile) {
#pragma unroll
    for (int k = 0; k < DK / 16; ++k) {
      const char* at = keys_of(tile) + k / 4 * COLUMN_BYTES + k % 4 * 32;
      multiply_behind<0>(T{}, logits, of_queries[k], described(at), k > 0);
    }
    commit_products();
  };

  Kept<DV> kept;
#pragma unroll
  for (int h = 0; h < 2; ++h) kept.position[h] = share.position(warp * 16 + lane / 4 + h * 8);
  float logits[TILE / 2], next[TILE / 2];
  if (share.from < share.to) {
    load_keys(share.from);
    commit_copies();
    wait_for_loads();
    load_values(share.from);
    load_keys(share.from + 1);
    commit_copies();
    begin_products();
    begin_logits(logits, share.from);
    wait_for_products();
    settle(logits);
  }
  for (int tile = share.from; tile < share.to; ++tile) {
    wait_for_loads();
    load_values(tile + 1);
    load_keys(tile + 2);
    commit_copies();
    begin_products();
    if (tile + 1 < share.to) begin_logits(next, tile + 1);
    weigh<TILE>(logits, kept, share, tile, scale * LOG2_E);
    unsigned weights[TILE / 16][4];
#pragma unroll
    for (int i = 0; i < TILE / 4; ++i) {
      weights[i / 4][i % 4] = pair(T{}, logits[2 * i], logits[2 * i + 1]);
    }
    begin_products();
#pragma unroll
    for (int k = 0; k < TILE / 16; ++k) {
#pragma unroll
      for (int n = 0; n < DV / 64; ++n) {
        const char* at = values_of(tile) + n * COLUMN_BYTES + k * 2048;
        multiply_behind<1>(T{}, kept.sums + 32 * n, weights[k], described(at), 1);
      }
    }
    commit_products();
    wait_for_products();
    settle(kept.sums);
    settle(next);
#pragma unroll
    for (int i = 0; i < TILE / 2; ++i) logits[i] = next[i];
  }
  finish<GROUP, KV, DV, ROWS, WARPS>(
      kept, share, sinks, tickets, out, part_out, part_sums, n_new);
}

}  // namespace offshoot
