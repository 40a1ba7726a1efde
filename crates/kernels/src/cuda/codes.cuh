// Codes of 4 and 8 bits as pairs of 16-bit floats in registers.

namespace offshoot {

// Small whole numbers as floats, to the last bit: they are the low bits of one that is large.
template <typename T>
struct Whole;

template <>
struct Whole<__nv_bfloat16> {
  static constexpr unsigned ONES = 0x3f803f80u;
  static constexpr unsigned LARGE = 0x43004300u;
  static constexpr float LARGE_VALUE = 128.0f;
  static constexpr float BYTES_VALUE = 0.0f;

  // Bytes 0 and 1, or 2 and 3. A byte and 128 together need a bit too many.
  static __device__ unsigned bytes(unsigned word, int first) {
    const float low = __uint_as_float(__byte_perm(word, 0x4b000000u, 0x7440 + first));
    const float high = __uint_as_float(__byte_perm(word, 0x4b000000u, 0x7441 + first));
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low - 8388608.0f, high - 8388608.0f);
    return *reinterpret_cast<const unsigned*>(&pair);
  }
};

template <>
struct Whole<__half> {
  static constexpr unsigned ONES = 0x3c003c00u;
  static constexpr unsigned LARGE = 0x64006400u;
  static constexpr float LARGE_VALUE = 1024.0f;
  static constexpr float BYTES_VALUE = 1024.0f;

  static __device__ unsigned bytes(unsigned word, int first) {
    return __byte_perm(word, 0x64646464u, first == 0 ? 0x4140 : 0x4342);
  }
};

// What `pair_of_codes` has more than the codes.
template <typename T, int BITS>
constexpr float ADDED_TO_CODES = BITS == 4 ? Whole<T>::LARGE_VALUE : Whole<T>::BYTES_VALUE;

// Pair i of the four of eight neighbours, whose codes are these words: of 4 bits each code with the
// one that stands four behind.
template <typename T, int BITS>
__device__ inline unsigned pair_of_codes(const unsigned* words, int i) {
  if constexpr (BITS == 4) return (words[0] >> (4 * i) & 0x000f000fu) | Whole<T>::LARGE;
  return Whole<T>::bytes(words[i / 2], i % 2 * 2);
}

// Eight neighbours in the order of those pairs.
template <int BITS>
__device__ inline uint4 in_order_of_codes(uint4 v) {
  if constexpr (BITS != 4) return v;
  return {__byte_perm(v.x, v.z, 0x5410), __byte_perm(v.x, v.z, 0x7632),
          __byte_perm(v.y, v.w, 0x5410), __byte_perm(v.y, v.w, 0x7632)};
}

}  // namespace offshoot
