// What is common to blocks of threads that share a row's tokens: each keeps its sums, and the one
// that ends last joins them.

namespace offshoot {

// The slot of a token that is not written.
constexpr unsigned NOT_WRITTEN = 0xffffffffu;
constexpr int MAX_PARTS = 64;

// Whether this block of threads is the last of `n` to come here, and sees what all have written.
// The ticket is zero before and after.
__device__ inline bool is_last_of(int n, const unsigned* ticket) {
  __shared__ bool is_last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    unsigned* own = const_cast<unsigned*>(ticket);
    is_last = atomicAdd(own, 1u) == static_cast<unsigned>(n) - 1;
    if (is_last) *own = 0;
  }
  __syncthreads();
  if (is_last) __threadfence();
  return is_last;
}

// Neighbours that other blocks of threads have written.
template <int N>
__device__ inline Run<float, N> load_written(const float* from) {
  Run<float, N> run;
  if constexpr (N == 4) {
    *reinterpret_cast<float4*>(&run) = __ldcg(reinterpret_cast<const float4*>(from));
  } else {
    *reinterpret_cast<float2*>(&run) = __ldcg(reinterpret_cast<const float2*>(from));
  }
  return run;
}

// out = the sums of all parts of a head; one warp.
template <int DV, typename T>
__device__ void join_parts(
    const float* part_out, const float* part_sums, int n_parts, float sink, T* out) {
  const int lane = threadIdx.x % 32;
  // A lane has the tops and sums of every 32nd part.
  float all_top = sink;
  float factors[MAX_PARTS / 32], part_sum[MAX_PARTS / 32];
#pragma unroll
  for (int i = 0; i < MAX_PARTS / 32; ++i) {
    const int p = i * 32 + lane;
    factors[i] = p < n_parts ? __ldcg(part_sums + 2 * p) : -INFINITY;
    part_sum[i] = p < n_parts ? __ldcg(part_sums + 2 * p + 1) : 0.0f;
    all_top = fmaxf(all_top, factors[i]);
  }
#pragma unroll
  for (int i = 1; i < 32; i *= 2) all_top = fmaxf(all_top, __shfl_xor_sync(~0u, all_top, i));
  float divisor = 0.0f;
#pragma unroll
  for (int i = 0; i < MAX_PARTS / 32; ++i) {
    factors[i] = part_sum[i] > 0.0f ? exp2f(factors[i] - all_top) : 0.0f;
    divisor += part_sum[i] * factors[i];
  }
  divisor = sum_of_warp(divisor) + (sink > -INFINITY ? exp2f(sink - all_top) : 0.0f);
  constexpr int RUN = DV / 32 < 4 ? 2 : 4, RUNS = DV / 32 / RUN;
  float joined[RUNS][RUN] = {};
#pragma unroll
  for (int half = 0; half < MAX_PARTS / 32; ++half) {
#pragma unroll 8
    for (int p = half * 32; p < min(n_parts, half * 32 + 32); ++p) {
      const float factor = __shfl_sync(~0u, factors[half], p % 32);
#pragma unroll
      for (int i = 0; i < RUNS; ++i) {
        const auto run = load_written<RUN>(part_out + p * DV + (i * 32 + lane) * RUN);
#pragma unroll
        for (int j = 0; j < RUN; ++j) joined[i][j] += factor * run.at[j];
      }
    }
  }
#pragma unroll
  for (int i = 0; i < RUNS; ++i) {
    Run<T, RUN> run;
#pragma unroll
    for (int j = 0; j < RUN; ++j) run.at[j] = static_cast<T>(joined[i][j] / divisor);
    *reinterpret_cast<Run<T, RUN>*>(out + (i * 32 + lane) * RUN) = run;
  }
}

}  // namespace offshoot
