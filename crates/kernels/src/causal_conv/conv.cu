// The causal convolution. A thread has W neighbouring channels and RUN steps, and keeps the window
// of WIDTH rows in registers.

namespace offshoot {

// u, out [B, L, channels]; tail, new_tail [B, WIDTH - 1, channels]; weight [channels, WIDTH]. tail
// and lengths may be null.
template <int WIDTH, int W, int RUN, typename T, typename Weight>
__device__ void causal_conv(
    const T* u, const Weight* weight, const T* tail, const int* lengths, T* out, T* new_tail,
    int n_steps, int channels) {
  constexpr int BEFORE = WIDTH - 1;
  const int first = (blockIdx.x * blockDim.x + threadIdx.x) * W, row = blockIdx.z;
  if (first >= channels) return;
  const int n = lengths ? min(max(lengths[row], 0), n_steps) : n_steps;
  const long start = static_cast<long>(row) * n_steps;

  // Row `step` of the sequence, the tail standing before step 0; zero behind the end.
  auto read = [&](int step) {
    Run<T, W> x;
#pragma unroll
    for (int i = 0; i < W; ++i) x.at[i] = static_cast<T>(0.0f);
    if (step >= n) return x;
    if (step >= 0) return load_run<W>(u + (start + step) * channels + first, 0);
    if (!tail) return x;
    const long at = static_cast<long>(row) * BEFORE + BEFORE + step;
    return load_run<W>(tail + at * channels + first, 0);
  };

  float w[WIDTH][W], window[WIDTH][W];
#pragma unroll
  for (int j = 0; j < WIDTH; ++j) {
#pragma unroll
    for (int i = 0; i < W; ++i) w[j][i] = static_cast<float>(weight[(first + i) * WIDTH + j]);
  }
  const int begin = blockIdx.y * RUN, end = min(begin + RUN, n_steps);
#pragma unroll
  for (int j = 0; j < BEFORE; ++j) {
    Run<T, W> x = read(begin - BEFORE + j);
#pragma unroll
    for (int i = 0; i < W; ++i) window[j + 1][i] = static_cast<float>(x.at[i]);
  }
  for (int step = begin; step < end; ++step) {
    Run<T, W> x = read(step), y;
#pragma unroll
    for (int i = 0; i < W; ++i) {
      float sum = 0;
#pragma unroll
      for (int j = 0; j < BEFORE; ++j) {
        window[j][i] = window[j + 1][i];
        sum += window[j][i] * w[j][i];
      }
      window[BEFORE][i] = static_cast<float>(x.at[i]);
      sum += window[BEFORE][i] * w[BEFORE][i];
      y.at[i] = static_cast<T>(sum / (1.0f + expf(-sum)));
    }
    *reinterpret_cast<Run<T, W>*>(out + (start + step) * channels + first) = y;
  }
  if (blockIdx.y > 0) return;
#pragma unroll
  for (int j = 0; j < BEFORE; ++j) {
    const long at = static_cast<long>(row) * BEFORE + j;
    *reinterpret_cast<Run<T, W>*>(new_tail + at * channels + first) = read(n - BEFORE + j);
  }
}

}  // namespace offshoot
