// Loads and stores of several neighbours at once, for all CUDA sources of the crate.

namespace offshoot {

template <typename T, int N>
struct alignas(sizeof(T) * N) Run {
  T at[N];
};

// Run `i` of an array. Views can begin anywhere, and are then read one by one.
template <int N, typename T>
__device__ inline Run<T, N> load_run(const T* from, int i) {
  if (reinterpret_cast<size_t>(from) % sizeof(Run<T, N>) == 0) {
    return reinterpret_cast<const Run<T, N>*>(from)[i];
  }
  Run<T, N> run;
#pragma unroll
  for (int j = 0; j < N; ++j) run.at[j] = from[i * N + j];
  return run;
}

}  // namespace offshoot
