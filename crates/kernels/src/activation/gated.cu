// A function of one array times another, element by element, in f32 between loads and store.

namespace offshoot {

enum GatedRule { SWIGLU = 0, GEGLU = 1, CLAMPED = 2, SIGMOID = 3 };

__device__ inline float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

template <int RULE>
__device__ inline float gated(float gate, float x, float alpha, float limit) {
  if (RULE == SWIGLU) return gate * sigmoid(gate) * x;
  if (RULE == SIGMOID) return x * sigmoid(gate);
  if (RULE == GEGLU) {
    const float inner = 0.7978845608f * (gate + 0.044715f * gate * gate * gate);
    return 0.5f * gate * (1.0f + tanhf(inner)) * x;
  }
  // Not what fminf does with numbers that are none.
  gate = gate > limit ? limit : gate;
  x = x > limit ? limit : (x < -limit ? -limit : x);
  return (x + 1.0f) * gate * sigmoid(alpha * gate);
}

// All of n elements. A thread has RUN of them. Gates stand behind as many elements of something
// else each time, if HEAD is not 0, which RUN divides.
template <int RULE, int RUN, int HEAD, typename T>
__device__ void gated_all(
    const T* gate, const T* x, T* out, long n, float alpha, float limit) {
  const long first = (static_cast<long>(blockIdx.x) * blockDim.x + threadIdx.x) * RUN;
  if (first >= n) return;
  if constexpr (HEAD > 0) gate += (first / HEAD + 1) * HEAD;
  if (first + RUN <= n) {
    const auto g = load_run<T, RUN>(gate + first);
    auto values = load_run<T, RUN>(x + first);
#pragma unroll
    for (int i = 0; i < RUN; ++i) {
      const float value = static_cast<float>(values.at[i]);
      values.at[i] = static_cast<T>(gated<RULE>(static_cast<float>(g.at[i]), value, alpha, limit));
    }
    *reinterpret_cast<Run<T, RUN>*>(out + first) = values;
    return;
  }
  for (long i = first; i < n && i < first + RUN; ++i) {
    const float value = static_cast<float>(x[i]);
    out[i] = static_cast<T>(gated<RULE>(static_cast<float>(gate[i]), value, alpha, limit));
  }
}

}  // namespace offshoot
