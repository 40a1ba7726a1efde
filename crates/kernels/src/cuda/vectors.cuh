// What CUDA sources of the crate share: several neighbours in one load or store, sums over a warp,
// products of tiles on tensor cores.

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

// Lets launches behind begin, and waits until what the launches before have written is there.
// Without effect in a launch that has to wait anyway.
__device__ inline void wait_for_inputs() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// In all lanes.
__device__ inline float sum_of_warp(float value) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(~0u, value, offset);
  return value;
}

template <typename T>
struct Tensor;

template <>
struct Tensor<__nv_bfloat16> {
  // c += a b; a 16x16, b 16x8 in the registers of a warp.
  static __device__ void multiply(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
};

template <>
struct Tensor<__half> {
  static __device__ void multiply(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
};

}  // namespace offshoot
