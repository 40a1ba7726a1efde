// Products of a few rows with matrices of weights. Every weight is read once and is the side of 16
// rows of a tile on tensor cores; rows of x are the 8 columns of the other side. The threads of a
// tile take neighbours along the inner axis in whatever order suits the weights' form, as long as
// both sides agree. Warps take turns at the inner axis, each with several steps of weights on their
// way into its part of shared memory, the first of them before there is an x, and are summed in
// their order: an output does not depend on the number of rows.

namespace offshoot {

constexpr int TILE_ROWS = 16;
constexpr int TILE_COLUMNS = 8;
constexpr int FEW_ROWS_WARPS = 8;

// Of 4, 8 or 16 bytes. They are read once: the large ones need not stay near, but the next steps
// want what lies behind them.
template <int BYTES>
__device__ inline void copy_soon(void* to, const void* from) {
  const unsigned place = static_cast<unsigned>(__cvta_generic_to_shared(to));
  if constexpr (BYTES == 16) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(place), "l"(from)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(place), "l"(from), "n"(BYTES)
                 : "memory");
  }
}

__device__ inline void end_of_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// All but the newest N groups of this thread's copies have come.
template <int N>
__device__ inline void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// The two halves of a tile's weights, 8 neighbours of a thread, times rows of x.
template <typename T>
__device__ inline void multiply_tile(
    float (&sums)[4], const unsigned (&a)[4], const unsigned (&b)[4], const uint4& x) {
  const unsigned first[4] = {a[0], b[0], a[1], b[1]};
  const unsigned second[4] = {a[2], b[2], a[3], b[3]};
  Tensor<T>::multiply(sums, first, x.x, x.y);
  Tensor<T>::multiply(sums, second, x.z, x.w);
}

// Weights [n, k] as they are.
template <typename T>
struct Floats {
  static constexpr int SIZE = 32;   // of the inner axis in a group
  static constexpr int GROUPS = 1;  // in a step
  static constexpr int CHUNKS = 1;  // of 8 neighbours in a group, for a thread
  static constexpr int WORDS = GROUPS * 2 * 4 * 32;  // of shared memory, for a tile and a step

  const T* weights;

  __device__ Floats chosen(long which, int n, int k) const {
    return {weights + which * n * k};
  }

  // Rows of a tile from `first` on.
  __device__ void fetch(unsigned* to, int first, int n, int k, int step) const {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const long row = min(first + lane / 4 + 8 * half, n - 1);
      const T* from = weights + row * k + step * GROUPS * SIZE + lane % 4 * 8;
#pragma unroll
      for (int i = 0; i < GROUPS; ++i) {
        copy_soon<16>(to + ((half * GROUPS + i) * 32 + lane) * 4, from + i * SIZE);
      }
    }
  }

  static __device__ uint4 ordered(uint4 v) { return v; }

  static __device__ void add_x(float (&)[4], const uint4 (&)[CHUNKS]) {}

  static __device__ void add(
      float (&sums)[4], const unsigned* from, int group, const float (&)[4],
      const uint4 (&x)[CHUNKS]) {
    const uint4* halves = reinterpret_cast<const uint4*>(from) + group * 32 + threadIdx.x % 32;
    const uint4 low = halves[0];
    const uint4 high = halves[GROUPS * 32];
    const unsigned a[4] = {low.x, low.y, low.z, low.w};
    const unsigned b[4] = {high.x, high.y, high.z, high.w};
    multiply_tile<T>(sums, a, b, x[0]);
  }
};

// Weights scale · code + bias, NEIGHBOURS of a row sharing the two. Of the
// two groups of a step the scales are whole words.
template <typename T, typename S, int BITS, int NEIGHBOURS>
struct Affine {
  static constexpr int SIZE = NEIGHBOURS;
  static constexpr int GROUPS = 2;
  static constexpr int CHUNKS = SIZE / 32;
  static constexpr int CODES = CHUNKS * BITS / 4;  // words of a thread, of a row and a group
  static constexpr int VECTOR = CODES < 4 ? CODES : 4;
  static constexpr int PAIR = GROUPS * sizeof(S) / 4;  // words of a row's scales
  static constexpr int ALL_CODES = 2 * GROUPS * CODES * 32;
  static constexpr int WORDS = ALL_CODES + 2 * TILE_ROWS * PAIR;
  static constexpr float ADDED = ADDED_TO_CODES<T, BITS>;

  const unsigned* codes;
  const S* scales;
  const S* biases;

  __device__ Affine chosen(long which, int n, int k) const {
    const long groups = which * n * (k / SIZE);
    return {codes + groups * (SIZE * BITS / 32), scales + groups, biases + groups};
  }

  __device__ void fetch(unsigned* to, int first, int n, int k, int step) const {
    const int lane = threadIdx.x % 32;
    const int part = lane % 4;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const long row = min(first + lane / 4 + 8 * half, n - 1);
      const long group = row * (k / SIZE) + step * GROUPS;
#pragma unroll
      for (int i = 0; i < GROUPS; ++i) {
        const unsigned* from = codes + (group + i) * (SIZE * BITS / 32) + part * CODES;
#pragma unroll
        for (int j = 0; j < CODES; j += VECTOR) {
          copy_soon<4 * VECTOR>(at(to, half, i, j, lane), from + j);
        }
      }
      // A thread fetches a row's scales, another its biases.
      if (part / 2 == half) {
        const S* from = (part % 2 == 0 ? scales : biases) + group;
        const int place = (part % 2) * TILE_ROWS + lane / 4 + 8 * half;
        copy_soon<4 * PAIR>(to + ALL_CODES + place * PAIR, from);
      }
    }
  }

  template <typename Word>
  static __device__ Word* at(Word* slot, int half, int group, int j, int lane) {
    return slot + (((half * GROUPS + group) * CODES + j) * 32 + lane * VECTOR);
  }

  // A thread's codes of a row and a group.
  static __device__ void load(
      unsigned (&words)[CODES], const unsigned* slot, int half, int group) {
#pragma unroll
    for (int j = 0; j < CODES; j += VECTOR) {
      const unsigned* from = at(slot, half, group, j, threadIdx.x % 32);
      *reinterpret_cast<Run<unsigned, VECTOR>*>(words + j) =
          *reinterpret_cast<const Run<unsigned, VECTOR>*>(from);
    }
  }

  // Pairs of a chunk.
  static __device__ void unpack(unsigned (&pairs)[4], const unsigned (&words)[CODES], int chunk) {
#pragma unroll
    for (int i = 0; i < 4; ++i) pairs[i] = pair_of_codes<T, BITS>(words + chunk * BITS / 4, i);
  }

  static __device__ uint4 ordered(uint4 v) { return in_order_of_codes<BITS>(v); }

  // Sums of x alone, in the layout of a tile's.
  static __device__ void add_x(float (&of_x)[4], const uint4 (&x)[CHUNKS]) {
    const unsigned ones[4] = {Whole<T>::ONES, Whole<T>::ONES, Whole<T>::ONES, Whole<T>::ONES};
#pragma unroll
    for (int chunk = 0; chunk < CHUNKS; ++chunk) multiply_tile<T>(of_x, ones, ones, x[chunk]);
  }

  static __device__ void add(
      float (&sums)[4], const unsigned* slot, int group, const float (&of_x)[4],
      const uint4 (&x)[CHUNKS]) {
    float of_codes[4] = {};
    alignas(16) unsigned low[CODES];
    alignas(16) unsigned high[CODES];
    load(low, slot, 0, group);
    load(high, slot, 1, group);
#pragma unroll
    for (int chunk = 0; chunk < CHUNKS; ++chunk) {
      unsigned a[4], b[4];
      unpack(a, low, chunk);
      unpack(b, high, chunk);
      multiply_tile<T>(of_codes, a, b, x[chunk]);
    }
    const S* pairs = reinterpret_cast<const S*>(slot + ALL_CODES);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = threadIdx.x % 32 / 4 + 8 * half;
      const float scale = static_cast<float>(pairs[row * GROUPS + group]);
      const float bias = static_cast<float>(pairs[(TILE_ROWS + row) * GROUPS + group]);
#pragma unroll
      for (int i = 2 * half; i < 2 * half + 2; ++i) {
        sums[i] += scale * of_codes[i] + (bias - ADDED * scale) * of_x[i];
      }
    }
  }
};

// Sums of tiles of weights [n, k] with rows x [m, k], m at most TILE_COLUMNS. Tile i has TILE_ROWS
// outputs from firsts[i] on. Every value is handed to `store(row of x, output, sums of the tiles)`.
template <int TILES, int STAGES, typename T, typename Form, typename Store>
__device__ void few_rows(
    const T* x, int m, const Form (&weights)[TILES], const int (&firsts)[TILES], int n, int k,
    const Store& store) {
  extern __shared__ uint4 few_rows_memory[];
  constexpr int SLOT = TILES * Form::WORDS;
  using Parts = float[FEW_ROWS_WARPS][TILES][TILE_ROWS][TILE_COLUMNS];
  unsigned* memory = reinterpret_cast<unsigned*>(few_rows_memory);
  Parts& parts = *reinterpret_cast<Parts*>(memory + FEW_ROWS_WARPS * STAGES * SLOT);
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  const int row = lane / 4;
  const int part = lane % 4;
  unsigned* slots = memory + warp * STAGES * SLOT;
  const int n_steps = k / (Form::GROUPS * Form::SIZE);
  const auto fetch = [&](int step, int slot) {
    if (step < n_steps) {
#pragma unroll
      for (int tile = 0; tile < TILES; ++tile) {
        unsigned* to = slots + slot * SLOT + tile * Form::WORDS;
        weights[tile].fetch(to, firsts[tile], n, k, step);
      }
    }
    end_of_copies();
  };
#pragma unroll
  for (int i = 0; i < STAGES - 1; ++i) fetch(warp + i * FEW_ROWS_WARPS, i);
  wait_for_inputs();
  const T* own = x + static_cast<long>(row) * k + part * Form::CHUNKS * 8;
  float sums[TILES][4] = {};
  int slot = 0;
  for (int step = warp; step < n_steps; step += FEW_ROWS_WARPS) {
    fetch(step + (STAGES - 1) * FEW_ROWS_WARPS, slot == 0 ? STAGES - 1 : slot - 1);
    uint4 values[Form::GROUPS][Form::CHUNKS] = {};
    if (row < m) {
#pragma unroll
      for (int i = 0; i < Form::GROUPS; ++i) {
        const T* from = own + (step * Form::GROUPS + i) * Form::SIZE;
#pragma unroll
        for (int chunk = 0; chunk < Form::CHUNKS; ++chunk) {
          const Run<T, 8> run = load_run<T, 8>(from + chunk * 8);
          values[i][chunk] = Form::ordered(*reinterpret_cast<const uint4*>(&run));
        }
      }
    }
    wait_for_copies<STAGES - 1>();
    __syncwarp();
#pragma unroll
    for (int i = 0; i < Form::GROUPS; ++i) {
      float of_x[4] = {};
      Form::add_x(of_x, values[i]);
#pragma unroll
      for (int tile = 0; tile < TILES; ++tile) {
        Form::add(sums[tile], slots + slot * SLOT + tile * Form::WORDS, i, of_x, values[i]);
      }
    }
    __syncwarp();
    slot = slot == STAGES - 1 ? 0 : slot + 1;
  }
#pragma unroll
  for (int tile = 0; tile < TILES; ++tile) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      parts[warp][tile][row + i / 2 * 8][2 * part + i % 2] = sums[tile][i];
    }
  }
  __syncthreads();
  const int output = threadIdx.x % TILE_ROWS;
  const int column = threadIdx.x / TILE_ROWS;
  if (column >= m) return;
  float found[TILES] = {};
#pragma unroll
  for (int tile = 0; tile < TILES; ++tile) {
#pragma unroll
    for (int w = 0; w < FEW_ROWS_WARPS; ++w) found[tile] += parts[w][tile][output][column];
  }
  store(column, output, found);
}

// y = x wᵀ for N matrices of the same inner size; blocks take tiles of one after the other.
template <int N, int STAGES, typename T, typename Form>
__device__ void few_rows_apart(
    const T* x, int m, const Form (&weights)[N], const int (&sizes)[N], T* const (&y)[N], int k,
    int block) {
  Form of[1] = {weights[0]};
  T* to = y[0];
  int n = sizes[0];
#pragma unroll
  for (int i = 1; i < N; ++i) {
    const int tiles = (n + TILE_ROWS - 1) / TILE_ROWS;
    if (block < tiles) break;
    block -= tiles;
    of[0] = weights[i];
    to = y[i];
    n = sizes[i];
  }
  const int firsts[1] = {block * TILE_ROWS};
  few_rows<1, STAGES>(
      x, m, of, firsts, n, k, [&](int row, int output, const float (&found)[1]) {
        const int at = firsts[0] + output;
        if (at < n) to[static_cast<long>(row) * n + at] = static_cast<T>(found[0]);
      });
}

// y = silu(x gateᵀ) ⊙ x upᵀ, each rounded to T before it goes on.
template <int STAGES, typename T, typename Form>
__device__ void few_rows_swiglu(
    const T* x, int m, const Form& gate, const Form& up, int n, T* y, int k, int block) {
  const Form of[2] = {gate, up};
  const int first = block * TILE_ROWS;
  const int firsts[2] = {first, first};
  few_rows<2, STAGES>(
      x, m, of, firsts, n, k, [&](int row, int output, const float (&found)[2]) {
        const float g = static_cast<float>(static_cast<T>(found[0]));
        const float value = static_cast<float>(static_cast<T>(found[1]));
        const int at = first + output;
        if (at < n) {
          y[static_cast<long>(row) * n + at] = static_cast<T>(g / (1.0f + expf(-g)) * value);
        }
      });
}

}  // namespace offshoot
