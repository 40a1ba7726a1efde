// Routers: one warp per token, experts dealt to the lanes in turn. The best experts are found by as
// many rounds of a maximum over the warp.

namespace offshoot {

constexpr unsigned ALL = ~0u;

enum Rule { SOFTMAX_TOPK = 0, TOPK_SOFTMAX = 1, SIGMOID_TOPK = 2 };

// The largest value of the warp and where it is; of equal ones the first.
__device__ inline void best_of_warp(float& value, int& index) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    float other = __shfl_xor_sync(ALL, value, offset);
    int at = __shfl_xor_sync(ALL, index, offset);
    if (other > value || (other == value && at < index)) {
      value = other;
      index = at;
    }
  }
}

// The scores [E] of a token that lie in the groups with the largest sums of two, as a mask of
// groups. One lane looks at one group.
template <int E, int N_GROUP, int TOPK_GROUP>
__device__ unsigned best_groups(const float* scores, int lane) {
  constexpr int SIZE = E / N_GROUP;
  float first = -INFINITY, second = -INFINITY;
  if (lane < N_GROUP) {
    for (int i = 0; i < SIZE; ++i) {
      const float x = scores[lane * SIZE + i];
      if (x > first) {
        second = first;
        first = x;
      } else if (x > second) {
        second = x;
      }
    }
  }
  float sum = lane < N_GROUP ? first + second : -INFINITY;
  unsigned chosen = 0;
  for (int i = 0; i < TOPK_GROUP; ++i) {
    float value = sum;
    int index = lane;
    best_of_warp(value, index);
    chosen |= 1u << index;
    if (lane == index) sum = -INFINITY;
  }
  return chosen;
}

// logits [N, E]; bias [E] or null; indices, weights [N, K]. K <= 32, N_GROUP <= 32.
template <int RULE, int E, int K, int NORMALISE, int N_GROUP, int TOPK_GROUP, int WARPS, typename T>
__device__ void route(
    const T* logits, const float* bias, unsigned* indices, float* weights, int n, float scale) {
  constexpr int EACH = (E + 31) / 32;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const long token = static_cast<long>(blockIdx.x) * WARPS + warp;
  if (token >= n) return;

  float x[EACH], score[EACH];
#pragma unroll
  for (int i = 0; i < EACH; ++i) {
    const int expert = i * 32 + lane;
    x[i] = expert < E ? static_cast<float>(logits[token * E + expert]) : -INFINITY;
    score[i] = x[i];
    if constexpr (RULE == SIGMOID_TOPK) {
      x[i] = 1.0f / (1.0f + expf(-x[i]));
      score[i] = expert < E ? x[i] + bias[expert] : -INFINITY;
    }
  }
  if constexpr (N_GROUP > 1) {
    __shared__ float shared[WARPS][E];
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
      if (i * 32 + lane < E) shared[warp][i * 32 + lane] = score[i];
    }
    __syncwarp();
    const unsigned chosen = best_groups<E, N_GROUP, TOPK_GROUP>(shared[warp], lane);
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
      const int group = (i * 32 + lane) / (E / N_GROUP);
      if (group < N_GROUP && !(chosen >> group & 1)) score[i] = -INFINITY;
    }
  }

  // Lane i keeps the i-th pick: its expert, and the value it is weighed by.
  int mine = 0;
  float weight = 0, largest = 0;
  for (int round = 0; round < K; ++round) {
    float value = -INFINITY;
    int index = E;
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
      const int expert = i * 32 + lane;
      // An expert stays eligible at -inf, so that there is always one to pick.
      if (expert < E && (index == E || score[i] > value)) {
        value = score[i];
        index = expert;
      }
    }
    if (index == E) value = -INFINITY;
    best_of_warp(value, index);
    float of = 0;
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
      if (i * 32 + lane == index) {
        of = x[i];
        score[i] = -INFINITY;
      }
    }
    of = __shfl_sync(ALL, of, index % 32);
    if (round == 0) largest = of;
    if (lane == round) {
      mine = index;
      weight = of;
    }
  }

  if constexpr (RULE != SIGMOID_TOPK) weight = lane < K ? expf(weight - largest) : 0.0f;
  if constexpr (RULE == SOFTMAX_TOPK) {
    float sum = 0;
#pragma unroll
    for (int i = 0; i < EACH; ++i) sum += expf(x[i] - largest);
    weight /= sum_of_warp(sum);
  }
  if constexpr (NORMALISE != 0) {
    weight /= sum_of_warp(lane < K ? weight : 0.0f) + (RULE == SIGMOID_TOPK ? 1e-20f : 0.0f);
  }
  if (lane < K) {
    indices[token * K + lane] = static_cast<unsigned>(mine);
    weights[token * K + lane] = weight * scale;
  }
}

}  // namespace offshoot
