// Norm and turn of heads: a warp for each head of each token. All lanes of a warp take part.

namespace offshoot {

// x [B, L, HEADS * GROUP], heads of DIM from BEGIN on in each group; out [B, HEADS, L, DIM].
// frequencies [TURNED / 2], begins [B]; weight [DIM] or null.
template <int HEADS, int GROUP, int BEGIN, int DIM, int TURNED, bool NEIGHBOURS, typename T,
          typename W>
__device__ void turn(
    long warp, const T* x, const float* frequencies, const int* begins, const W* weight, T* out,
    int n_tokens, float eps, float factor) {
  const int lane = threadIdx.x % 32;
  const int head = warp % HEADS;
  const long token = warp / HEADS;
  const int row = token / n_tokens, within = token % n_tokens;
  const T* from = x + (token * HEADS + head) * GROUP + BEGIN;
  T* to = out + ((static_cast<long>(row) * HEADS + head) * n_tokens + within) * DIM;
  constexpr int PAIRS = (TURNED / 2 + 31) / 32;
  const float position = begins[row] + within;
  float sines[PAIRS], cosines[PAIRS];
#pragma unroll
  for (int i = 0; i < PAIRS; ++i) {
    const int pair = min(i * 32 + lane, TURNED / 2 - 1);
    sincosf(position * frequencies[pair], &sines[i], &cosines[i]);
  }
  wait_for_inputs();
  float scale = 1.0f;
  if (weight != nullptr) {
    float squares = 0.0f;
    for (int i = lane; i < DIM; i += 32) {
      const float value = static_cast<float>(from[i]);
      squares += value * value;
    }
    scale = 1.0f / sqrtf(sum_of_warp(squares) / DIM + eps);
  }
  const auto value = [&](int i) {
    const float normed = static_cast<float>(from[i]) * scale;
    return weight != nullptr ? normed * static_cast<float>(weight[i]) : normed;
  };
#pragma unroll
  for (int i = 0; i < PAIRS; ++i) {
    const int pair = i * 32 + lane;
    if (pair >= TURNED / 2) break;
    const int first = NEIGHBOURS ? 2 * pair : pair;
    const int second = NEIGHBOURS ? first + 1 : pair + TURNED / 2;
    const float a = value(first), b = value(second);
    to[first] = static_cast<T>((a * cosines[i] - b * sines[i]) * factor);
    to[second] = static_cast<T>((b * cosines[i] + a * sines[i]) * factor);
  }
  for (int i = TURNED + lane; i < DIM; i += 32) to[i] = static_cast<T>(value(i));
}

}  // namespace offshoot
