// Root-mean-square norms with what stands beside them: one or more warps for each row, which hold
// it in registers between the two passes.

namespace offshoot {

// Rows [n, WIDTH], WARPS warps each; a block has one row, or blockDim.y rows of one warp each. y,
// gate, weight may be null; sum is written iff there is y.
template <int WIDTH, int WARPS, int RUN, typename T, typename Gate, typename W>
__device__ void rms_norm(
    const T* x, const T* y, const Gate* gate, const W* weight, T* normed, T* sum, long n,
    float eps, float factor) {
  constexpr int THREADS = 32 * WARPS;
  constexpr int LOOPS = (WIDTH + THREADS * RUN - 1) / (THREADS * RUN);
  __shared__ float parts[WARPS];
  const long row = static_cast<long>(blockIdx.x) * blockDim.y + threadIdx.y;
  if (row >= n) return;
  float held[LOOPS][RUN];
  float squares = 0.0f;
#pragma unroll
  for (int k = 0; k < LOOPS; ++k) {
    const int first = (k * THREADS + threadIdx.x) * RUN;
    if (first >= WIDTH) break;
    const long at = row * WIDTH + first;
    auto values = load_run<T, RUN>(x + at);
    if (y != nullptr) {
      const auto added = load_run<T, RUN>(y + at);
#pragma unroll
      for (int i = 0; i < RUN; ++i) {
        const float h = static_cast<float>(values.at[i]) + static_cast<float>(added.at[i]);
        values.at[i] = static_cast<T>(h);
      }
      *reinterpret_cast<Run<T, RUN>*>(sum + at) = values;
    }
#pragma unroll
    for (int i = 0; i < RUN; ++i) {
      held[k][i] = static_cast<float>(values.at[i]);
      squares += held[k][i] * held[k][i];
    }
  }
  squares = sum_of_warp(squares);
  if (WARPS > 1) {
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = squares;
    __syncthreads();
    squares = 0.0f;
#pragma unroll
    for (int i = 0; i < WARPS; ++i) squares += parts[i];
  }
  const float scale = factor / sqrtf(squares / WIDTH + eps);
#pragma unroll
  for (int k = 0; k < LOOPS; ++k) {
    const int first = (k * THREADS + threadIdx.x) * RUN;
    if (first >= WIDTH) break;
    Run<T, RUN> values;
#pragma unroll
    for (int i = 0; i < RUN; ++i) {
      float value = held[k][i] * scale;
      if (weight != nullptr) value *= static_cast<float>(weight[first + i]);
      if (gate != nullptr) {
        const float g = static_cast<float>(gate[row * WIDTH + first + i]);
        value *= g / (1.0f + expf(-g));
      }
      values.at[i] = static_cast<T>(value);
    }
    *reinterpret_cast<Run<T, RUN>*>(normed + row * WIDTH + first) = values;
  }
}

}  // namespace offshoot
