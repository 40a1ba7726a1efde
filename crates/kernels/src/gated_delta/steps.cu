// The gated delta rule step by step, with the state in registers: for decoding and short pieces.
//
// A block owns 16 value rows of one head of one sequence; 8 lanes share a row, each with DK/8 of
// its keys. Rows do not depend on each other, so blocks never meet. The inputs of the next step
// are under way while one is computed.

namespace offshoot {

// The elements that one lane owns of a row of N numbers, as runs of W: lane l owns runs l, l + 8, …
template <int N>
struct Share {
  static constexpr int W = N % 32 == 0 ? 4 : 2;
  static constexpr int RUNS = N / (8 * W);
  float at[RUNS * W];

  template <typename T>
  __device__ void load(const T* row, int lane) {
#pragma unroll
    for (int i = 0; i < RUNS; ++i) {
      Run<T, W> run = load_run<W>(row, i * 8 + lane);
#pragma unroll
      for (int j = 0; j < W; ++j) at[i * W + j] = static_cast<float>(run.at[j]);
    }
  }

  __device__ void store(float* row, int lane) const {
#pragma unroll
    for (int i = 0; i < RUNS; ++i) {
      Run<float, W> run;
#pragma unroll
      for (int j = 0; j < W; ++j) run.at[j] = at[i * W + j];
      reinterpret_cast<Run<float, W>*>(row)[i * 8 + lane] = run;
    }
  }

  // The product with another row, summed over the 8 lanes.
  __device__ float dot(const Share& other) const {
    float sum = 0;
#pragma unroll
    for (int i = 0; i < RUNS * W; ++i) sum += at[i] * other.at[i];
#pragma unroll
    for (int offset = 4; offset > 0; offset /= 2) sum += __shfl_xor_sync(~0u, sum, offset);
    return sum;
  }
};

// q, k [B, T, Hk, DK]; v, out [B, T, Hv, Dv]; log_decay, beta [B, T, Hv]; state, last [B, Hv, Dv,
// DK]; captured [n_captures, B, Hv, Dv, DK]. state, lengths and capture may be null.
template <int DK, typename T>
__device__ void delta_steps(
    const T* q, const T* k, const T* v, const float* log_decay, const float* beta,
    const float* state, const int* lengths, const int* capture, int n_captures, T* out,
    float* last, float* captured, int n_rows, int n_steps, int k_heads, int v_heads, int v_dim) {
  const int lane = threadIdx.x % 8;
  const int value = blockIdx.x * 16 + threadIdx.x / 8;
  const int head = blockIdx.y, row = blockIdx.z;
  const bool mine = value < v_dim;  // all lanes take part in the sums
  const int n = lengths ? min(max(lengths[row], 0), n_steps) : n_steps;
  const long at = (static_cast<long>(row) * v_heads + head) * v_dim + (mine ? value : 0);
  const long all = static_cast<long>(n_rows) * v_heads * v_dim * DK;

  Share<DK> s, key, query, next_key, next_query;
#pragma unroll
  for (float& x : s.at) x = 0;
  if (state) s.load(state + at * DK, lane);

  auto gate_at = [&](int step) {
    return (static_cast<long>(row) * n_steps + step) * v_heads + head;
  };
  float next_v = 0, next_decay = 0, next_beta = 0;
  auto fetch = [&](int step) {
    long keys = (static_cast<long>(row) * n_steps + step) * k_heads + head / (v_heads / k_heads);
    next_key.load(k + keys * DK, lane);
    next_query.load(q + keys * DK, lane);
    next_decay = log_decay[gate_at(step)];
    next_beta = beta[gate_at(step)];
    next_v = static_cast<float>(v[gate_at(step) * v_dim + (mine ? value : 0)]);
  };
  auto keep = [&](int step) {  // the states asked for after `step` steps
    for (int i = 0; i < n_captures; ++i) {
      if (mine && min(capture[i], n) == step) s.store(captured + i * all + at * DK, lane);
    }
  };

  if (n > 0) fetch(0);
  keep(0);
  for (int step = 0; step < n; ++step) {
    key = next_key;
    query = next_query;
    const float decay = expf(next_decay), rate = next_beta, wanted = next_v;
    if (step + 1 < n) fetch(step + 1);
    const float delta = (wanted - decay * s.dot(key)) * rate;
#pragma unroll
    for (int i = 0; i < DK / 8; ++i) s.at[i] = decay * s.at[i] + delta * key.at[i];
    const float y = s.dot(query);
    if (mine && lane == 0) out[gate_at(step) * v_dim + value] = static_cast<T>(y);
    keep(step + 1);
  }
  if (!mine) return;
  s.store(last + at * DK, lane);
  if (lane == 0) {
    for (int step = n; step < n_steps; ++step) {
      out[gate_at(step) * v_dim + value] = static_cast<T>(0.0f);
    }
  }
}

}  // namespace offshoot
