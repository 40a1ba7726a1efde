// What a token's experts make of it, weighed and added onto the token; and what a block that every
// token passes makes of it.

namespace offshoot {

// onto, out [N, E]; y [N, K, E], or rows in another order, pair p at places[p]; weights [N, K];
// shared [N, E] or null, times the sigmoid of gate [N], or 1 if that is null. A thread has RUN
// neighbours of a token; RUN divides E.
template <int K, int RUN, typename T>
__device__ void add_chosen(
    const T* onto, const T* y, const unsigned* places, const float* weights, const T* shared,
    const T* gate, T* out, int n, int width) {
  const long first = (static_cast<long>(blockIdx.x) * blockDim.x + threadIdx.x) * RUN;
  if (first >= static_cast<long>(n) * width) return;
  const long token = first / width, at = first % width;
  float sum[RUN] = {};
#pragma unroll
  for (int i = 0; i < K; ++i) {
    const long pair = token * K + i;
    const long row = places != nullptr ? places[pair] : pair;
    const auto of = load_run<T, RUN>(y + row * width + at);
    const float weight = weights[pair];
#pragma unroll
    for (int j = 0; j < RUN; ++j) sum[j] += weight * static_cast<float>(of.at[j]);
  }
  if (shared != nullptr) {
    const auto of = load_run<T, RUN>(shared + first);
    const float weight =
        gate != nullptr ? 1.0f / (1.0f + expf(-static_cast<float>(gate[token]))) : 1.0f;
#pragma unroll
    for (int j = 0; j < RUN; ++j) sum[j] += weight * static_cast<float>(of.at[j]);
  }
  auto run = load_run<T, RUN>(onto + first);
#pragma unroll
  for (int j = 0; j < RUN; ++j) run.at[j] = static_cast<T>(static_cast<float>(run.at[j]) + sum[j]);
  *reinterpret_cast<Run<T, RUN>*>(out + first) = run;
}

}  // namespace offshoot
