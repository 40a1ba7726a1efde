// What CUDA sources of the crate share: several neighbours in one load or store, sums over a warp.

namespace offshoot {

template <typename T, int N>
struct alignas(sizeof(T) * N) Run {
  T at[N];
};

// A view may begin anywhere.
template <typename T, int N>
__device__ inline Run<T, N> load_run(const T* from) {
  if (reinterpret_cast<unsigned long long>(from) % sizeof(Run<T, N>) == 0) {
    return *reinterpret_cast<const Run<T, N>*>(from);
  }
  Run<T, N> run;
#pragma unroll
  for (int i = 0; i < N; ++i) run.at[i] = from[i];
  return run;
}

// In all lanes.
__device__ inline float sum_of_warp(float value) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(~0u, value, offset);
  return value;
}

}  // namespace offshoot
