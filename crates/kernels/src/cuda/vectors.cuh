// Several neighbours in one load or store, for all CUDA sources of the crate.

namespace offshoot {

template <typename T, int N>
struct alignas(sizeof(T) * N) Run {
  T at[N];
};

}  // namespace offshoot
