// The causal convolution. A thread has one channel and RUN steps; all its rows are under way before
// the first is used.

namespace offshoot {

// u, out [B, L, channels]; tail, new_tail [B, WIDTH - 1, channels]; weight [channels, WIDTH]. tail
// and lengths may be null.
template <int WIDTH, int RUN, typename T, typename Weight>
__device__ void causal_conv(
    const T* u, const Weight* weight, const T* tail, const int* lengths, T* out, T* new_tail,
    int n_steps, int channels) {
  constexpr int BEFORE = WIDTH - 1;
  const int channel = blockIdx.x * blockDim.x + threadIdx.x, row = blockIdx.z;
  if (channel >= channels) return;
  const int n = lengths ? min(max(lengths[row], 0), n_steps) : n_steps;
  const long start = static_cast<long>(row) * n_steps;

  // Row `step` of the sequence, the tail standing before step 0; zero behind the end.
  auto read = [&](int step) {
    const T* from = u + (start + step) * channels + channel;
    if (step < 0 && tail) {
      from = tail + (static_cast<long>(row) * BEFORE + BEFORE + step) * channels + channel;
    }
    T x = static_cast<T>(0.0f);
    if (step < n && (step >= 0 || tail)) x = *from;
    return x;
  };

  const int begin = blockIdx.y * RUN;
  T rows[BEFORE + RUN], last[BEFORE];
  Weight w[WIDTH];
#pragma unroll
  for (int j = 0; j < BEFORE + RUN; ++j) rows[j] = read(begin - BEFORE + j);
#pragma unroll
  for (int j = 0; j < WIDTH; ++j) w[j] = weight[channel * WIDTH + j];
  if (blockIdx.y == 0) {
#pragma unroll
    for (int j = 0; j < BEFORE; ++j) last[j] = read(n - BEFORE + j);
  }
#pragma unroll
  for (int i = 0; i < RUN; ++i) {
    float sum = 0;
#pragma unroll
    for (int j = 0; j < WIDTH; ++j) {
      sum += static_cast<float>(rows[i + j]) * static_cast<float>(w[j]);
    }
    if (begin + i < n_steps) {
      out[(start + begin + i) * channels + channel] =
          static_cast<T>(sum / (1.0f + expf(-sum)));
    }
  }
  if (blockIdx.y == 0) {
#pragma unroll
    for (int j = 0; j < BEFORE; ++j) {
      new_tail[(static_cast<long>(row) * BEFORE + j) * channels + channel] = last[j];
    }
  }
}

}  // namespace offshoot
