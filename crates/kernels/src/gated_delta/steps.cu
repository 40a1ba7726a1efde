// The gated delta rule step by step, with the state in registers: for decoding and short pieces.
//
// A block owns 16 value rows of one head of one sequence; 8 lanes share a row, each with DK/8 of
// its keys. Rows do not depend on each other, so blocks never meet. Keys, queries and values of
// STEPS steps at a time come through shared memory: one wait for memory, then STEPS steps without.

namespace offshoot {

constexpr int ROWS = 16, LANES = 8;

// The elements that one lane owns of a row of N numbers, as runs of W: lane l owns runs l, l + 8, …
template <int N>
struct Share {
  static constexpr int W = N % 32 == 0 ? 4 : 2;
  static constexpr int RUNS = N / (LANES * W);
  float at[RUNS * W];

  __device__ void load(const float* row, int lane) {
    if (reinterpret_cast<size_t>(row) % sizeof(Run<float, W>) == 0) {
#pragma unroll
      for (int i = 0; i < RUNS; ++i) {
        Run<float, W> run = reinterpret_cast<const Run<float, W>*>(row)[i * LANES + lane];
#pragma unroll
        for (int j = 0; j < W; ++j) at[i * W + j] = run.at[j];
      }
    } else {  // a view can begin anywhere
#pragma unroll
      for (int i = 0; i < RUNS * W; ++i) at[i] = row[(i / W * LANES + lane) * W + i % W];
    }
  }

  // From a row in shared memory, which is aligned.
  __device__ void load_shared(const float* row, int lane) {
#pragma unroll
    for (int i = 0; i < RUNS; ++i) {
      Run<float, W> run = reinterpret_cast<const Run<float, W>*>(row)[i * LANES + lane];
#pragma unroll
      for (int j = 0; j < W; ++j) at[i * W + j] = run.at[j];
    }
  }

  __device__ void store(float* row, int lane) const {
#pragma unroll
    for (int i = 0; i < RUNS; ++i) {
      Run<float, W> run;
#pragma unroll
      for (int j = 0; j < W; ++j) run.at[j] = at[i * W + j];
      reinterpret_cast<Run<float, W>*>(row)[i * LANES + lane] = run;
    }
  }

  // The product with another row, summed over the 8 lanes.
  __device__ float dot(const Share& other) const {
    float sums[W] = {};
#pragma unroll
    for (int i = 0; i < RUNS * W; ++i) sums[i % W] += at[i] * other.at[i];
    float sum = sums[0] + sums[1];
    if constexpr (W == 4) sum += sums[2] + sums[3];
#pragma unroll
    for (int offset = LANES / 2; offset > 0; offset /= 2) {
      sum += __shfl_xor_sync(~0u, sum, offset);
    }
    return sum;
  }
};

template <int DK, int STEPS>
struct Tile {
  alignas(16) float k[STEPS][DK], q[STEPS][DK];
  float v[STEPS][ROWS], decay[STEPS], beta[STEPS];
};

// q, k [B, T, Hk, DK]; v, out [B, T, Hv, Dv]; log_decay, beta [B, T, Hv]; state, last [B, Hv, Dv,
// DK]; captured [n_captures, B, Hv, Dv, DK]. state, lengths and capture may be null.
template <int DK, int STEPS, typename T>
__device__ void delta_steps(
    Tile<DK, STEPS>& tile, const T* q, const T* k, const T* v, const float* log_decay,
    const float* beta, const float* state, const int* lengths, const int* capture, int n_captures,
    T* out, float* last, float* captured, int n_rows, int n_steps, int k_heads, int v_heads,
    int v_dim) {
  const int tid = threadIdx.x, lane = tid % LANES, in_block = tid / LANES;
  const int value = blockIdx.x * ROWS + in_block, head = blockIdx.y, row = blockIdx.z;
  const bool mine = value < v_dim;  // all lanes take part in the sums
  const int n = lengths ? min(max(lengths[row], 0), n_steps) : n_steps;
  const long at = (static_cast<long>(row) * v_heads + head) * v_dim + (mine ? value : 0);
  const long all = static_cast<long>(n_rows) * v_heads * v_dim * DK;
  const long gate = static_cast<long>(row) * n_steps * v_heads + head;
  const long keys = (static_cast<long>(row) * n_steps * k_heads + head / (v_heads / k_heads)) * DK;

  Share<DK> s, key, query;
  if (state) {
    s.load(state + at * DK, lane);
  } else {
#pragma unroll
    for (float& x : s.at) x = 0;
  }
  auto keep = [&](int step) {  // the states asked for after `step` steps
    for (int i = 0; i < n_captures; ++i) {
      if (mine && min(capture[i], n) == step) s.store(captured + i * all + at * DK, lane);
    }
  };
  keep(0);
  for (int first = 0; first < n; first += STEPS) {
    const int count = min(STEPS, n - first);
    if (first > 0) __syncthreads();  // the tile is no longer read
#pragma unroll 4
    for (int i = tid; i < count * DK; i += ROWS * LANES) {
      const long from = keys + static_cast<long>(first + i / DK) * k_heads * DK + i % DK;
      tile.k[i / DK][i % DK] = static_cast<float>(k[from]);
      tile.q[i / DK][i % DK] = static_cast<float>(q[from]);
    }
    for (int i = tid; i < count * ROWS; i += ROWS * LANES) {
      const int of = min(static_cast<int>(blockIdx.x) * ROWS + i % ROWS, v_dim - 1);
      const long from = (gate + static_cast<long>(first + i / ROWS) * v_heads) * v_dim + of;
      tile.v[i / ROWS][i % ROWS] = static_cast<float>(v[from]);
    }
    if (tid < count) {
      tile.decay[tid] = expf(log_decay[gate + static_cast<long>(first + tid) * v_heads]);
      tile.beta[tid] = beta[gate + static_cast<long>(first + tid) * v_heads];
    }
    __syncthreads();
    for (int i = 0; i < count; ++i) {
      key.load_shared(tile.k[i], lane);
      query.load_shared(tile.q[i], lane);
      const float decay = tile.decay[i];
      const float delta = (tile.v[i][in_block] - decay * s.dot(key)) * tile.beta[i];
#pragma unroll
      for (int j = 0; j < DK / LANES; ++j) s.at[j] = decay * s.at[j] + delta * key.at[j];
      const float y = s.dot(query);
      if (mine && lane == 0) {
        out[(gate + static_cast<long>(first + i) * v_heads) * v_dim + value] = static_cast<T>(y);
      }
      keep(first + i + 1);
    }
  }
  if (!mine) return;
  s.store(last + at * DK, lane);
  for (int step = n + lane; step < n_steps; step += LANES) {
    out[(gate + static_cast<long>(step) * v_heads) * v_dim + value] = static_cast<T>(0.0f);
  }
}

}  // namespace offshoot
