// From a convolution's output and a layer's two gates to what the rule takes, in one launch: a warp
// for each head of each token, and one more for the token's gates.

namespace offshoot {

// u [N, 2 HK DK + HV DV]: heads of q, of k, of v; a, b [N, HV]; dt_bias, decay [HV].
// q [N, HK, DK] of length 1 / sqrt(DK), k [N, HK, DK] of length 1; v [N, HV, DV]; log_decay,
// beta [N, HV].
template <int HK, int DK, int HV, int DV, typename T>
__device__ void delta_inputs(
    const T* u, const T* a, const T* b, const float* dt_bias, const float* decay, T* q, T* k, T* v,
    float* log_decay, float* beta, long n_tokens, float eps) {
  constexpr int TASKS = 2 * HK + HV + 1, WIDTH = 2 * HK * DK + HV * DV;
  const long warp = (static_cast<long>(blockIdx.x) * blockDim.x + threadIdx.x) / 32;
  const int lane = threadIdx.x % 32;
  const long token = warp / TASKS;
  int task = warp % TASKS;
  if (token >= n_tokens) return;
  const T* from = u + token * WIDTH;
  if (task < 2 * HK) {
    const bool is_query = task < HK;
    from += task * DK;
    T* to = (is_query ? q : k) + (token * HK + task % HK) * DK;
    float squares = 0.0f;
    for (int i = lane; i < DK; i += 32) {
      const float x = static_cast<float>(from[i]);
      squares += x * x;
    }
    const float length = sqrtf((sum_of_warp(squares) + eps) * (is_query ? DK : 1));
    for (int i = lane; i < DK; i += 32) {
      to[i] = static_cast<T>(static_cast<float>(from[i]) / length);
    }
    return;
  }
  task -= 2 * HK;
  if (task < HV) {
    from += 2 * HK * DK + task * DV;
    T* to = v + (token * HV + task) * DV;
    for (int i = lane; i < DV; i += 32) to[i] = from[i];
    return;
  }
  for (int head = lane; head < HV; head += 32) {
    const long at = token * HV + head;
    const float x = static_cast<float>(a[at]) + dt_bias[head];
    log_decay[at] = (fmaxf(x, 0.0f) + log1pf(expf(-fabsf(x)))) * decay[head];
    beta[at] = 1.0f / (1.0f + expf(-static_cast<float>(b[at])));
  }
}

}  // namespace offshoot
