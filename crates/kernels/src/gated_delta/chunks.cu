// The gated delta rule in chunks of 64 steps, on tensor cores. The formulas are in chunked.rs.
//
// Two kernels. `delta_prepare` works on all chunks at once and leaves, per value head, T = (I +
// A)^-1 with column j scaled by beta_j, the decayed scores P, and G. `delta_scan` walks the chunks
// in order; a block owns TILE value rows of one head's state, which stays in its registers:
//   R = V - e^G K S'     V' = T R     O = e^G Q S' + P V'     S = e^G_C S + V'' K
// with S' the transposed state and V'' = e^(G_C - G) V'. U and W are never formed.
//
// Products are tf32 with f32 sums. Inputs of 16 bits are exact in tf32, and what is not is rounded
// to it where it is stored. Inputs of 32 bits (PRECISE) are split in two tf32 parts each, which
// gives f32 products. 256 threads: warp w has rows 16 (w % 4) .. + 16 of the chunk, and half w / 4
// of the columns.
//
// Fragments hold k = 2t and 2t + 1 where the instruction says t and t + 4: the order of a sum's
// terms is free, and so a lane finds both in one 8-byte load. Row lengths in shared memory (LK, LC:
// 8 modulo 16; LV: 4 modulo 16) keep these loads free of bank conflicts.

namespace offshoot {

constexpr int C = 64;          // steps of a chunk
constexpr int LC = C + 8;      // row of a C x C matrix in shared memory
constexpr int THREADS = 256;

__device__ inline float to_tf32(float x) {
  unsigned bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return __uint_as_float(bits);
}

__device__ inline void mma_tf32(float (&c)[4], const float (&a)[4], const float (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])),
        "r"(__float_as_uint(a[3])), "r"(__float_as_uint(b[0])), "r"(__float_as_uint(b[1])));
}

// N numbers of a lane's fragment. With PRECISE, `lo` is what tf32 loses of them.
template <int N, bool PRECISE>
struct Fragment {
  float hi[N], lo[PRECISE ? N : 1];

  __device__ void set(int i, float x) {
    hi[i] = x;
    if constexpr (PRECISE) {
      hi[i] = to_tf32(x);
      lo[i] = x - hi[i];
    }
  }
  // Two neighbours in a row: k = 2t, 2t + 1.
  __device__ void set_pair(int i, int j, const float* x) {
    float2 pair = *reinterpret_cast<const float2*>(x);
    set(i, pair.x);
    set(j, pair.y);
  }
};

template <bool PRECISE>
struct Product {
  using A = Fragment<4, PRECISE>;
  using B = Fragment<2, PRECISE>;

  // Rows m .. m + 16 of a matrix with one row per m.
  __device__ static A a_rows(const float* x, int length, int m, int k, int g, int t) {
    A a;
    a.set_pair(0, 2, x + (m + g) * length + k + 2 * t);
    a.set_pair(1, 3, x + (m + g + 8) * length + k + 2 * t);
    return a;
  }
  // Rows m .. m + 16 of a matrix with one row per k.
  __device__ static A a_columns(const float* x, int length, int m, int k, int g, int t) {
    A a;
    const float* at = x + (k + 2 * t) * length + m + g;
    a.set(0, at[0]);
    a.set(1, at[8]);
    a.set(2, at[length]);
    a.set(3, at[length + 8]);
    return a;
  }
  // Columns n .. n + 8 of a matrix with one row per n.
  __device__ static B b_rows(const float* x, int length, int n, int k, int g, int t) {
    B b;
    b.set_pair(0, 1, x + (n + g) * length + k + 2 * t);
    return b;
  }
  // Columns n .. n + 8 of a matrix with one row per k.
  __device__ static B b_columns(const float* x, int length, int n, int k, int g, int t) {
    B b;
    const float* at = x + (k + 2 * t) * length + n + g;
    b.set(0, at[0]);
    b.set(1, at[length]);
    return b;
  }
  __device__ static void add(float (&c)[4], const A& a, const B& b) {
    if constexpr (PRECISE) {
      mma_tf32(c, a.lo, b.hi);
      mma_tf32(c, a.hi, b.lo);
    }
    mma_tf32(c, a.hi, b.hi);
  }
};

template <bool PRECISE>
__device__ inline float stored(float x) {
  return PRECISE ? x : to_tf32(x);
}

__device__ inline void put_pair(float* to, float x, float y) {
  *reinterpret_cast<float2*>(to) = make_float2(x, y);
}

// A C x N block of T on its way from global to shared memory, 16 bytes at a time. Rows from `count`
// on are zero. What is under way stays as it came: taking it apart would wait for it.
template <int N, typename T>
struct Rows {
  static constexpr int WIDTH = 16 / sizeof(T);
  static constexpr int IN_ROW = N / WIDTH;
  static constexpr int RUNS = (C * IN_ROW + THREADS - 1) / THREADS;
  const T* from;
  long stride;
  int count;
  bool aligned;  // a view can begin anywhere
  uint4 runs[RUNS];

  __device__ void load(const T* first, long row_stride, int n_rows) {
    from = first;
    stride = row_stride;
    count = n_rows;
    aligned = reinterpret_cast<size_t>(first) % 16 == 0;
    if (!aligned) return;
#pragma unroll
    for (int i = 0; i < RUNS; ++i) {
      const int at = threadIdx.x + i * THREADS, row = at / IN_ROW;
      runs[i] = make_uint4(0, 0, 0, 0);
      if (row < count) {
        runs[i] = reinterpret_cast<const uint4*>(from + row * stride)[at % IN_ROW];
      }
    }
  }

  __device__ void store(float* to, int length) const {
    if (!aligned) {
      for (int at = threadIdx.x; at < C * N; at += THREADS) {
        const int row = at / N, col = at % N;
        const float x = row < count ? static_cast<float>(from[row * stride + col]) : 0.0f;
        to[row * length + col] = x;
      }
      return;
    }
#pragma unroll
    for (int i = 0; i < RUNS; ++i) {
      const int at = threadIdx.x + i * THREADS, row = at / IN_ROW;
      if (row < C) {
        const Run<T, WIDTH> run = *reinterpret_cast<const Run<T, WIDTH>*>(&runs[i]);
#pragma unroll
        for (int j = 0; j < WIDTH; j += 4) {
          float* cell = to + row * length + at % IN_ROW * WIDTH + j;
          *reinterpret_cast<float4*>(cell) = make_float4(
              static_cast<float>(run.at[j]), static_cast<float>(run.at[j + 1]),
              static_cast<float>(run.at[j + 2]), static_cast<float>(run.at[j + 3]));
        }
      }
    }
  }
};

// X = (I + A)^-1 for strictly lower triangular A, both C x C in shared memory: the diagonal blocks
// of 16 by substitution, then block by block away from the diagonal. The blocks above the diagonal
// of X are not written. `scratch` holds 3 x 16 x 17 numbers.
__device__ inline void invert(const float* a, float* x, float* scratch) {
  const int tid = threadIdx.x, r = tid / 16, c = tid % 16;
  if (tid < C) {
    const float* block = a + r * 16 * LC + r * 16;
    float column[16];
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      float sum = i == c ? 1.0f : 0.0f;
#pragma unroll
      for (int j = 0; j < i; ++j) sum -= block[i * LC + j] * column[j];
      column[i] = sum;
      x[(r * 16 + i) * LC + tid] = sum;
    }
  }
  __syncthreads();
#pragma unroll
  for (int away = 1; away < 4; ++away) {
#pragma unroll
    for (int i = away; i < 4; ++i) {  // block (i, j)
      const int j = i - away;
      float sum = 0;
#pragma unroll
      for (int k = j * 16; k < i * 16; ++k) {
        sum += a[(i * 16 + r) * LC + k] * x[k * LC + j * 16 + c];
      }
      scratch[(j * 16 + r) * 17 + c] = sum;
    }
    __syncthreads();
#pragma unroll
    for (int i = away; i < 4; ++i) {
      const int j = i - away;
      float sum = 0;
#pragma unroll
      for (int k = 0; k < 16; ++k) {
        sum -= x[(i * 16 + r) * LC + i * 16 + k] * scratch[(j * 16 + k) * 17 + c];
      }
      x[(i * 16 + r) * LC + j * 16 + c] = sum;
    }
    __syncthreads();
  }
}

// One block per chunk, key head and row. inverse, scores [B, Hv, N, C, C]; decay [B, Hv, N, C].
template <int DK, typename T>
__device__ void delta_prepare(
    float* shared, const T* q, const T* k, const float* log_decay, const float* beta,
    const int* lengths, float* inverse, float* scores, float* decay, int n_steps, int k_heads,
    int v_heads) {
  constexpr bool PRECISE = sizeof(T) == 4;
  constexpr int LK = DK + 8;
  constexpr int ROWS = C * LK > C * LC ? C * LK : C * LC;
  using P = Product<PRECISE>;
  float *ks = shared, *qs = ks + ROWS;
  float *kk = qs + ROWS, *qk = kk + C * LC;
  float *scratch = qk + C * LC, *gates = scratch + 3 * 16 * 17;  // G and beta of each head
  float *a = ks, *x = qs;  // keys and queries are not needed beside them

  const int tid = threadIdx.x, warp = tid / 32, lane = tid % 32, g = lane / 4, t = lane % 4;
  const int chunk = blockIdx.x, n_chunks = gridDim.x, key_head = blockIdx.y, row = blockIdx.z;
  const int n = lengths ? min(max(lengths[row], 0), n_steps) : n_steps;
  const int first = chunk * C, count = min(C, n - first);
  if (count <= 0) return;  // the scan does not look at these
  const long step = static_cast<long>(row) * n_steps + first;

  Rows<DK, T> keys, queries;
  const long stride = static_cast<long>(k_heads) * DK;
  keys.load(k + (step * k_heads + key_head) * DK, stride, count);
  queries.load(q + (step * k_heads + key_head) * DK, stride, count);
  const int share = v_heads / k_heads;
  for (int of = warp; of < share; of += THREADS / 32) {
    const int head = key_head * share + of;
    const long at = (static_cast<long>(row) * v_heads + head) * n_chunks + chunk;
    float *g_at = gates + of * 2 * C, *beta_at = g_at + C, sum = 0;
#pragma unroll
    for (int half = 0; half < C; half += 32) {
      const int i = half + lane;
      const bool counts = i < count;
      float value = counts ? log_decay[(step + i) * v_heads + head] : 0.0f;
      beta_at[i] = counts ? beta[(step + i) * v_heads + head] : 0.0f;
#pragma unroll
      for (int offset = 1; offset < 32; offset *= 2) {
        float before = __shfl_up_sync(~0u, value, offset);
        if (lane >= offset) value += before;
      }
      g_at[i] = sum + value;
      sum += __shfl_sync(~0u, value, 31);
      decay[at * C + i] = g_at[i];
    }
  }
  keys.store(ks, LK);
  queries.store(qs, LK);
  __syncthreads();

  const int m = warp % 4 * 16;
#pragma unroll
  for (int tile = 0; tile < 4; ++tile) {
    const int col = (warp / 4 * 4 + tile) * 8;
    float of_k[4] = {0, 0, 0, 0}, of_q[4] = {0, 0, 0, 0};
    if (col < m + 16) {  // the rest is above the diagonal
#pragma unroll 4
      for (int i = 0; i < DK; i += 8) {
        auto keys = P::b_rows(ks, LK, col, i, g, t);
        P::add(of_k, P::a_rows(ks, LK, m, i, g, t), keys);
        P::add(of_q, P::a_rows(qs, LK, m, i, g, t), keys);
      }
    }
    put_pair(kk + (m + g) * LC + col + 2 * t, of_k[0], of_k[1]);
    put_pair(kk + (m + g + 8) * LC + col + 2 * t, of_k[2], of_k[3]);
    put_pair(qk + (m + g) * LC + col + 2 * t, of_q[0], of_q[1]);
    put_pair(qk + (m + g + 8) * LC + col + 2 * t, of_q[2], of_q[3]);
  }

  for (int of = 0; of < share; ++of) {
    const long head = static_cast<long>(row) * v_heads + key_head * share + of;
    const long at = head * n_chunks + chunk;
    const float *g_at = gates + of * 2 * C, *beta_at = g_at + C;
    __syncthreads();  // kk and qk are there; a and x are no longer read
    for (int cell = tid; cell < C * C; cell += THREADS) {
      const int i = cell / C, j = cell % C;
      // Above the diagonal the difference is positive, and would overflow.
      const float apart = j <= i ? expf(g_at[i] - g_at[j]) : 0.0f;
      a[i * LC + j] = j < i ? beta_at[i] * apart * kk[i * LC + j] : 0.0f;
      scores[at * C * C + cell] = j <= i ? stored<PRECISE>(apart * qk[i * LC + j]) : 0.0f;
    }
    __syncthreads();
    invert(a, x, scratch);
    for (int cell = tid; cell < C * C; cell += THREADS) {
      const int i = cell / C, j = cell % C;
      inverse[at * C * C + cell] = j <= i ? stored<PRECISE>(x[i * LC + j] * beta_at[j]) : 0.0f;
    }
  }
}

// TILE rows of a state in the registers of a block: accumulators of TILE/16 x DK/8 products, the
// columns dealt to the warps in turn.
template <int DK, int TILE, bool PRECISE>
struct State {
  static constexpr int DOWN = TILE / 16, ACROSS = (DK / 8 + 7) / 8;
  static constexpr int LK = DK + 8, LV = TILE + 4;
  float at[DOWN][ACROSS][4];

  // Visits what this lane has: visit(value row, key, pair of numbers).
  template <typename F>
  __device__ void each_pair(int warp, int g, int t, F visit) {
#pragma unroll
    for (int d = 0; d < DOWN; ++d) {
#pragma unroll
      for (int j = 0; j < ACROSS; ++j) {
        const int key = (warp + 8 * j) * 8 + 2 * t;
        if (key < DK) {
          visit(d * 16 + g, key, at[d][j][0], at[d][j][1]);
          visit(d * 16 + g + 8, key, at[d][j][2], at[d][j][3]);
        }
      }
    }
  }

  // S = factor S + weighted' keys, with weighted [C, TILE] and keys [C, DK] in shared memory.
  __device__ void update(
      float factor, const float* weighted, const float* keys, int warp, int g, int t) {
    using P = Product<PRECISE>;
#pragma unroll
    for (int d = 0; d < DOWN; ++d) {
#pragma unroll
      for (int j = 0; j < ACROSS; ++j) {
#pragma unroll
        for (int i = 0; i < 4; ++i) at[d][j][i] *= factor;
      }
    }
#pragma unroll 4
    for (int i = 0; i < C; i += 8) {
      typename P::A a[DOWN];
#pragma unroll
      for (int d = 0; d < DOWN; ++d) a[d] = P::a_columns(weighted, LV, d * 16, i, g, t);
#pragma unroll
      for (int j = 0; j < ACROSS; ++j) {
        const int key = (warp + 8 * j) * 8;
        if (key < DK) {
          auto b = P::b_columns(keys, LK, key, i, g, t);
#pragma unroll
          for (int d = 0; d < DOWN; ++d) P::add(at[d][j], a[d], b);
        }
      }
    }
  }
};

// One block per TILE value rows, value head and row. Shapes as in steps.cu and above.
template <int DK, int TILE, typename T>
__device__ void delta_scan(
    float* shared, const T* q, const T* k, const T* v, const float* inverse, const float* scores,
    const float* decay, const float* state, const int* lengths, const int* capture,
    int n_captures, T* out, float* last, float* captured, int n_rows, int n_steps, int k_heads,
    int v_heads, int v_dim) {
  constexpr bool PRECISE = sizeof(T) == 4;
  constexpr bool AHEAD = !PRECISE;  // whether registers suffice to load a chunk ahead
  constexpr int LK = DK + 8, LV = TILE + 4, NT = TILE / 16;
  using P = Product<PRECISE>;
  float *ks = shared, *qs = ks + C * LK, *ts = qs + C * LK, *ps = ts + C * LC;
  float *rs = ps + C * LC, *vs = rs + C * LV, *ws = vs + C * LV;  // R, V', V''
  float *ss = ws + C * LV, *g_at = ss + TILE * LK;

  const int tid = threadIdx.x, warp = tid / 32, lane = tid % 32, g = lane / 4, t = lane % 4;
  const int m = warp % 4 * 16, half = warp / 4 * NT;  // rows of the chunk, first column tile
  const int value = blockIdx.x * TILE, head = blockIdx.y, row = blockIdx.z;
  const int key_head = head / (v_heads / k_heads);
  const int n = lengths ? min(max(lengths[row], 0), n_steps) : n_steps;
  const int n_chunks = (n_steps + C - 1) / C;
  const long at = (static_cast<long>(row) * v_heads + head) * v_dim + value;
  const long all = static_cast<long>(n_rows) * v_heads * v_dim * DK;
  const long matrix = (static_cast<long>(row) * v_heads + head) * n_chunks;

  State<DK, TILE, PRECISE> s;
  s.each_pair(warp, g, t, [&](int d, int key, float& x, float& y) {
    x = state ? state[(at + d) * DK + key] : 0.0f;
    y = state ? state[(at + d) * DK + key + 1] : 0.0f;
  });
  auto write = [&](State<DK, TILE, PRECISE>& s, float* to) {
    s.each_pair(warp, g, t, [&](int d, int key, float& x, float& y) {
      put_pair(to + (at + d) * DK + key, x, y);
    });
  };
  auto share = [&] {  // the state to where all warps read it
    s.each_pair(warp, g, t, [&](int d, int key, float& x, float& y) {
      put_pair(ss + d * LK + key, stored<PRECISE>(x), stored<PRECISE>(y));
    });
  };
  share();
  for (int i = 0; i < n_captures; ++i) {
    if (min(capture[i], n) == 0) write(s, captured + i * all);
  }

  Rows<DK, T> keys, queries;
  Rows<C, float> inverses, score_rows;
  float next_g = 0;
  T next_v[NT][4];
  // Element i of an accumulator lies in row m + g + 8 (i / 2), column tile + 2t + i % 2.
  auto cell = [&](long step, int i, int j) {
    const long in_heads = (step + m + g + i / 2 * 8) * v_heads + head;
    return in_heads * v_dim + value + (half + j) * 8 + 2 * t + i % 2;
  };
  auto load = [&](int chunk) {
    const long step = static_cast<long>(row) * n_steps + chunk * C;
    const long stride = static_cast<long>(k_heads) * DK;
    const int count = min(C, n - chunk * C);
    keys.load(k + (step * k_heads + key_head) * DK, stride, count);
    queries.load(q + (step * k_heads + key_head) * DK, stride, count);
    inverses.load(inverse + (matrix + chunk) * C * C, C, C);
    score_rows.load(scores + (matrix + chunk) * C * C, C, C);
    if (tid < C) next_g = decay[(matrix + chunk) * C + tid];
#pragma unroll
    for (int j = 0; j < NT; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        next_v[j][i] = static_cast<T>(0.0f);
        if (m + g + i / 2 * 8 < count) next_v[j][i] = v[cell(step, i, j)];
      }
    }
  };
  if (n > 0) load(0);

  for (int first = 0; first < n; first += C) {
    const int count = min(C, n - first);
    const long step = static_cast<long>(row) * n_steps + first;
    if (!AHEAD && first > 0) load(first / C);
    keys.store(ks, LK);
    queries.store(qs, LK);
    inverses.store(ts, LC);
    score_rows.store(ps, LC);
    if (tid < C) g_at[tid] = next_g;
    float wanted[NT][4], o[NT][4], r[NT][4], kept[2];
#pragma unroll
    for (int j = 0; j < NT; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        wanted[j][i] = static_cast<float>(next_v[j][i]);
        o[j][i] = r[j][i] = 0;
      }
    }
    __syncthreads();
    if (AHEAD && first + C < n) load(first / C + 1);

#pragma unroll 4
    for (int i = 0; i < DK; i += 8) {
      auto key = P::a_rows(ks, LK, m, i, g, t);
      auto query = P::a_rows(qs, LK, m, i, g, t);
#pragma unroll
      for (int j = 0; j < NT; ++j) {
        auto b = P::b_rows(ss, LK, (half + j) * 8, i, g, t);
        P::add(r[j], key, b);
        P::add(o[j], query, b);
      }
    }
    kept[0] = expf(g_at[m + g]);
    kept[1] = expf(g_at[m + g + 8]);
#pragma unroll
    for (int j = 0; j < NT; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        r[j][i] = stored<PRECISE>(wanted[j][i] - kept[i / 2] * r[j][i]);
        o[j][i] *= kept[i / 2];
      }
      float* to = rs + (m + g) * LV + (half + j) * 8 + 2 * t;
      put_pair(to, r[j][0], r[j][1]);
      put_pair(to + 8 * LV, r[j][2], r[j][3]);
    }
    __syncthreads();

    float values[NT][4];  // V'
#pragma unroll
    for (int j = 0; j < NT; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) values[j][i] = 0;
    }
#pragma unroll 4
    for (int i = 0; i < C; i += 8) {  // also the zeros above the diagonal: no warp is sooner done
      auto a = P::a_rows(ts, LC, m, i, g, t);
#pragma unroll
      for (int j = 0; j < NT; ++j) {
        P::add(values[j], a, P::b_columns(rs, LV, (half + j) * 8, i, g, t));
      }
    }
    // V'' towards the state after `upto` steps of the chunk.
    auto weigh = [&](int upto) {
      const float end = g_at[upto - 1];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int in_chunk = m + g + 8 * i;
        const float weight = in_chunk < upto ? expf(end - g_at[in_chunk]) : 0.0f;
#pragma unroll
        for (int j = 0; j < NT; ++j) {
          put_pair(ws + in_chunk * LV + (half + j) * 8 + 2 * t,
                   stored<PRECISE>(weight * values[j][2 * i]),
                   stored<PRECISE>(weight * values[j][2 * i + 1]));
        }
      }
    };
#pragma unroll
    for (int j = 0; j < NT; ++j) {
      float* to = vs + (m + g) * LV + (half + j) * 8 + 2 * t;
      put_pair(to, stored<PRECISE>(values[j][0]), stored<PRECISE>(values[j][1]));
      put_pair(to + 8 * LV, stored<PRECISE>(values[j][2]), stored<PRECISE>(values[j][3]));
    }
    for (int i = 0; i < n_captures; ++i) {
      const int upto = min(capture[i], n) - first;
      if (upto <= 0 || upto > C) continue;
      weigh(upto);
      __syncthreads();
      State<DK, TILE, PRECISE> then = s;
      then.update(expf(g_at[upto - 1]), ws, ks, warp, g, t);
      write(then, captured + i * all);
      __syncthreads();
    }
    weigh(C);
    __syncthreads();

#pragma unroll 4
    for (int i = 0; i < C; i += 8) {  // also the zeros above the diagonal: no warp is sooner done
      auto a = P::a_rows(ps, LC, m, i, g, t);
#pragma unroll
      for (int j = 0; j < NT; ++j) {
        P::add(o[j], a, P::b_columns(vs, LV, (half + j) * 8, i, g, t));
      }
    }
#pragma unroll
    for (int j = 0; j < NT; ++j) {
#pragma unroll
      for (int i = 0; i < 4; i += 2) {
        if (m + g + i / 2 * 8 < count) {
          Run<T, 2> pair{static_cast<T>(o[j][i]), static_cast<T>(o[j][i + 1])};
          *reinterpret_cast<Run<T, 2>*>(out + cell(step, i, j)) = pair;
        }
      }
    }
    s.update(expf(g_at[C - 1]), ws, ks, warp, g, t);
    __syncthreads();  // all have read the chunk and the state before it
    share();
  }
  write(s, last);
  for (long i = tid; i < static_cast<long>(n_steps - n) * TILE; i += THREADS) {
    const long step = static_cast<long>(row) * n_steps + n + i / TILE;
    out[(step * v_heads + head) * v_dim + value + i % TILE] = static_cast<T>(0.0f);
  }
}

}  // namespace offshoot
