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
  const float position = begins[row] + within;
#pragma unroll
  for (int pair = lane; pair < TURNED / 2; pair += 32) {
    const int first = NEIGHBOURS ? 2 * pair : pair;
    const int second = NEIGHBOURS ? first + 1 : pair + TURNED / 2;
    float sine, cosine;
    sincosf(position * frequencies[pair], &sine, &cosine);
    const float a = value(first), b = value(second);
    to[first] = static_cast<T>((a * cosine - b * sine) * factor);
    to[second] = static_cast<T>((b * cosine + a * sine) * factor);
  }
  for (int i = TURNED + lane; i < DIM; i += 32) to[i] = static_cast<T>(value(i));
}

}  // namespace offshoot
