// Products of many rows with quantized matrices of a stack, each row with the matrix that was
// chosen for it. A block of threads has a tile of rows that share a matrix and as many outputs as
// its warps have weights' rows, 2 * 16 each. Codes, and rows of x beside them, come in steps along
// the inner axis, several on their way; weights become floats in registers, where they are the
// 16-row side of tensor cores, rows of x the 8 columns of the other. The threads of a tile take
// neighbours along the inner axis in an order that suits the codes. What becomes of a row does not
// depend on others.

namespace offshoot {

// Two neighbours.
template <typename T>
struct PairOf;

template <>
struct PairOf<__nv_bfloat16> {
  using Type = __nv_bfloat162;
};

template <>
struct PairOf<__half> {
  using Type = __half2;
};

__device__ inline __nv_bfloat162 both(__nv_bfloat16 x) { return __bfloat162bfloat162(x); }
__device__ inline __half2 both(__half x) { return __half2half2(x); }

template <typename T, int BITS, int NEIGHBOURS>
struct Grouped {
  static constexpr int WARPS = 8;
  static constexpr int THREADS = 32 * WARPS;
  static constexpr int ROWS = 64;                  // of x, at most
  static constexpr int STEP = 512 / BITS;          // of the inner axis: 64 bytes of codes
  static constexpr int QUARTER = STEP / 4;         // of a thread
  static constexpr int CHUNKS = QUARTER / 8;
  static constexpr int STAGES = 3;
  static constexpr int PADDED = QUARTER * 2 + 16;  // bytes, so that rows lie in different banks
  static constexpr int X_BYTES = ROWS * 4 * PADDED;
  static constexpr int CODE_BYTES = WARPS * 32 * 64;
  static constexpr int STAGE_BYTES = X_BYTES + CODE_BYTES;
  static constexpr int OUT_STRIDE = WARPS * 16 + 8;
  using Pair = typename PairOf<T>::Type;

  struct Matrix {
    const unsigned* codes;
    const T* scales;
    const T* biases;
  };

  // A step's scale and bias of a thread's four rows.
  struct Scales {
    T scale[2][2], bias[2][2];
  };

  const T* x;              // [.., k]
  const unsigned* order;   // [pairs]: the pair at a place; rows of x are pair / share
  int share;               // 0: rows of x are places
  Matrix weights[2];       // of the two tiles of 16 outputs of each warp
  int firsts[2];           // their first outputs, of the whole block
  int n, k;

  // Sums of `count` rows from place `begin` on, in the layout of tensor cores' tiles.
  __device__ void run(char* memory, int begin, int count, float (&sums)[2][ROWS / 8][4]) const {
    const int tid = threadIdx.x, lane = tid % 32, warp = tid / 32;
    const int row = lane / 4, part = lane % 4;
    const int n_steps = k / STEP;
    long own[2][2];  // rows of the matrices that this thread reads codes of
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        own[m][half] = min(firsts[m] + warp * 16 + row + 8 * half, n - 1);
      }
    }
    constexpr int PIECES = STEP / 8;  // of 16 bytes in a row of x
    constexpr int EACH = ROWS * PIECES / THREADS;
    const T* from_x[EACH];
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
      const int at = (tid + i * THREADS) / PIECES;
      const int place = begin + min(at, count - 1);
      const long of = share > 0 ? order[place] / share : place;
      from_x[i] = x + of * k + (tid + i * THREADS) % PIECES * 8;
    }
    const auto fetch = [&](int step, int stage) {
      if (step < n_steps) {
        char* to = memory + stage * STAGE_BYTES;
#pragma unroll
        for (int i = 0; i < EACH; ++i) {
          const int at = (tid + i * THREADS) / PIECES, piece = (tid + i * THREADS) % PIECES;
          char* place = to + (at * 4 + piece / CHUNKS) * PADDED + piece % CHUNKS * 16;
          if (at < count) copy_ahead(place, from_x[i] + step * STEP, true);
        }
        to += X_BYTES + warp * 32 * 64 + lane * 16;
#pragma unroll
        for (int m = 0; m < 2; ++m) {
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const char* codes = reinterpret_cast<const char*>(weights[m].codes);
            const long bytes = own[m][half] * (k / 8 * BITS) + step * 64 + part * 16;
            copy_ahead(to + (m * 2 + half) * 512, codes + bytes, true);
          }
        }
      }
      commit_copies();
    };
    const auto scales_of = [&](int step) {
      Scales of = {};
      if (step < n_steps) {
        const int group = (step * STEP + part * QUARTER) / NEIGHBOURS;
#pragma unroll
        for (int m = 0; m < 2; ++m) {
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const long at = own[m][half] * (k / NEIGHBOURS) + group;
            of.scale[m][half] = weights[m].scales[at];
            of.bias[m][half] = weights[m].biases[at];
          }
        }
      }
      return of;
    };
#pragma unroll
    for (int i = 0; i < STAGES - 1; ++i) fetch(i, i);
    Scales next = scales_of(0);
    int stage = 0;
    for (int step = 0; step < n_steps; ++step) {
      wait_for_copies<STAGES - 2>();
      __syncthreads();
      fetch(step + STAGES - 1, stage == 0 ? STAGES - 1 : stage - 1);
      const Scales scales = next;
      next = scales_of(step + 1);
      multiply(memory + stage * STAGE_BYTES, scales, count, sums);
      stage = stage == STAGES - 1 ? 0 : stage + 1;
    }
    wait_for_copies<0>();
    __syncthreads();
  }

  static __device__ void multiply(
      const char* stage, const Scales& scales, int count, float (&sums)[2][ROWS / 8][4]) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const char* own = stage + X_BYTES + warp * 32 * 64 + lane * 16;
    alignas(16) unsigned words[2][2][4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      *reinterpret_cast<uint4*>(words[i / 2][i % 2]) =
          *reinterpret_cast<const uint4*>(own + i * 512);
    }
    const char* of_x = stage + (lane / 4 * 4 + lane % 4) * PADDED;
#pragma unroll
    for (int chunk = 0; chunk < CHUNKS; ++chunk) {
      unsigned a[2][2][4];  // two products of 16 neighbours
#pragma unroll
      for (int m = 0; m < 2; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const Pair scale = both(scales.scale[m][half]), bias = both(scales.bias[m][half]);
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const unsigned* from = words[m][half] + chunk * BITS / 4;
            const Pair weight = __hfma2(whole(pair_of_codes<T, BITS>(from, i)), scale, bias);
            a[m][i / 2][i % 2 * 2 + half] = *reinterpret_cast<const unsigned*>(&weight);
          }
        }
      }
#pragma unroll
      for (int j = 0; j < ROWS / 8; ++j) {
        if (j * 8 >= count) break;
        const uint4 b = in_order_of_codes<BITS>(
            *reinterpret_cast<const uint4*>(of_x + j * 8 * 4 * PADDED + chunk * 16));
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          Tensor<T>::multiply(sums[m][j], a[m][0], b.x, b.y);
          Tensor<T>::multiply(sums[m][j], a[m][1], b.z, b.w);
        }
      }
    }
  }

  static __device__ Pair whole(unsigned bits) {
    const Pair pair = *reinterpret_cast<const Pair*>(&bits);
    if constexpr (ADDED_TO_CODES<T, BITS> == 0.0f) return pair;
    return __hsub2(pair, both(static_cast<T>(ADDED_TO_CODES<T, BITS>)));
  }

  // Outputs of a tile, one of 16 rows for each warp, gathered and written as rows of y [.., n] from
  // `begin` on.
  static __device__ void write(
      char* memory, const float (&of)[ROWS / 8][4], T* y, int begin, int count, int first, int n) {
    const int tid = threadIdx.x, lane = tid % 32, warp = tid / 32;
    T* tile = reinterpret_cast<T*>(memory);
#pragma unroll
    for (int j = 0; j < ROWS / 8; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int at = j * 8 + lane % 4 * 2 + i % 2, output = warp * 16 + lane / 4 + i / 2 * 8;
        tile[at * OUT_STRIDE + output] = static_cast<T>(of[j][i]);
      }
    }
    __syncthreads();
    constexpr int PIECES = WARPS * 16 / 8;
    for (int i = tid; i < count * PIECES; i += THREADS) {
      const int at = i / PIECES, output = i % PIECES * 8;
      T* to = y + static_cast<long>(begin + at) * n + first + output;
      const T* from = tile + at * OUT_STRIDE + output;
      if (first + output + 8 <= n && n % 8 == 0) {
        *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(from);
      } else {
        for (int c = 0; c < 8 && first + output + c < n; ++c) to[c] = from[c];
      }
    }
    __syncthreads();
  }
};

// y [pairs, n] in the order of the matrices. tiles as `order_pairs` leaves them, one for each y of
// the grid; x of it: 256 outputs.
template <int BITS, int NEIGHBOURS, typename T>
__device__ void grouped_apart(
    const T* x, const unsigned* order, const unsigned* tiles, const unsigned* codes,
    const T* scales, const T* biases, T* y, int share, int n, int k) {
  using G = Grouped<T, BITS, NEIGHBOURS>;
  extern __shared__ __align__(16) char grouped_memory[];
  const unsigned* tile = tiles + 3 * blockIdx.y;
  const int begin = tile[1], count = tile[2];
  if (count == 0) return;
  const long groups = static_cast<long>(tile[0]) * n * (k / NEIGHBOURS);
  const typename G::Matrix w = {
      codes + groups * (NEIGHBOURS * BITS / 32), scales + groups, biases + groups};
  constexpr int WIDTH = G::WARPS * 16;
  const int first = blockIdx.x * 2 * WIDTH;
  const G g = {x, order, share, {w, w}, {first, first + WIDTH}, n, k};
  float sums[2][G::ROWS / 8][4] = {};
  g.run(grouped_memory, begin, count, sums);
  G::write(grouped_memory, sums[0], y, begin, count, first, n);
  if (first + WIDTH < n) G::write(grouped_memory, sums[1], y, begin, count, first + WIDTH, n);
}

// The same of silu(x gateᵀ) ⊙ x upᵀ, each rounded to T before it goes on; 128 outputs for each x of
// the grid.
template <int BITS, int NEIGHBOURS, typename T>
__device__ void grouped_swiglu(
    const T* x, const unsigned* order, const unsigned* tiles, const unsigned* gate_codes,
    const T* gate_scales, const T* gate_biases, const unsigned* up_codes, const T* up_scales,
    const T* up_biases, T* y, int share, int n, int k) {
  using G = Grouped<T, BITS, NEIGHBOURS>;
  extern __shared__ __align__(16) char grouped_memory[];
  const unsigned* tile = tiles + 3 * blockIdx.y;
  const int begin = tile[1], count = tile[2];
  if (count == 0) return;
  const long groups = static_cast<long>(tile[0]) * n * (k / NEIGHBOURS);
  const long words = groups * (NEIGHBOURS * BITS / 32);
  const typename G::Matrix gate = {
      gate_codes + words, gate_scales + groups, gate_biases + groups};
  const typename G::Matrix up = {up_codes + words, up_scales + groups, up_biases + groups};
  const int first = blockIdx.x * G::WARPS * 16;
  const G g = {x, order, share, {gate, up}, {first, first}, n, k};
  float sums[2][G::ROWS / 8][4] = {};
  g.run(grouped_memory, begin, count, sums);
#pragma unroll
  for (int j = 0; j < G::ROWS / 8; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float by = static_cast<float>(static_cast<T>(sums[0][j][i]));
      const float value = static_cast<float>(static_cast<T>(sums[1][j][i]));
      sums[0][j][i] = by / (1.0f + expf(-by)) * value;
    }
  }
  G::write(grouped_memory, sums[0], y, begin, count, first, n);
}

}  // namespace offshoot
