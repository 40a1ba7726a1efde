// The C++ side of the bridge: free functions of a line or two over mlx::core, called from Rust
// through cxx. Arrays in, owned array out. Every function may throw; cxx turns what is thrown into
// Err. No statics, no callbacks but the CPU primitive in shim.cc. A null `const array*` stands for
// an absent optional.
#pragma once

#include <array>
#include <cstdint>
#include <exception>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "mlx/mlx.h"
#include "mlx/version.h"
#include "rust/cxx.h"

namespace rust::behavior {
// cxx's default catches std::exception only; anything else thrown through the bridge would end the
// process.
template <typename Try, typename Fail>
static void trycatch(Try&& func, Fail&& fail) noexcept try {
  func();
} catch (const std::exception& e) {
  fail(e.what());
} catch (...) {
  fail("an exception of unknown type");
}
}  // namespace rust::behavior

namespace offshoot {

namespace mx = mlx::core;
using mx::array;
using Ptr = std::unique_ptr<array>;
using Ints = rust::Slice<const int32_t>;
using MaybeArray = const array*;

struct TemplateArg;
struct QuantSpec;
struct DeviceFacts;
struct CpuKernel;

// ---- plumbing
inline Ptr own(array&& a) { return std::make_unique<array>(std::move(a)); }
inline std::optional<array> opt(MaybeArray a) {
  return a ? std::optional<array>(*a) : std::nullopt;
}
inline mx::Shape shape_of(Ints v) { return mx::Shape(v.begin(), v.end()); }
inline std::vector<int> ints_of(Ints v) { return std::vector<int>(v.begin(), v.end()); }
inline std::string str(rust::Str s) { return std::string(s.data(), s.size()); }
mx::Dtype dtype_of(uint8_t code);

// A list of arrays; cxx cannot pass vectors of opaque values.
struct Arrays {
  std::vector<array> items;
};
inline std::unique_ptr<Arrays> arrays_new(size_t capacity) {
  auto list = std::make_unique<Arrays>();
  list->items.reserve(capacity);
  return list;
}
inline std::unique_ptr<Arrays> own(std::vector<array>&& v) {
  return std::make_unique<Arrays>(Arrays{std::move(v)});
}
inline void arrays_push(Arrays& list, const array& a) { list.items.push_back(a); }
inline size_t arrays_len(const Arrays& list) { return list.items.size(); }
inline Ptr arrays_get(const Arrays& list, size_t i) { return own(array(list.items.at(i))); }

// ---- version, device, stream, memory
inline uint32_t header_version() { return MLX_VERSION_NUMERIC; }
inline rust::String library_version() { return rust::String(mx::version()); }
inline bool device_is_available(bool gpu) {
  return mx::is_available(gpu ? mx::Device::gpu : mx::Device::cpu);
}
inline void set_default_device(bool gpu) {
  mx::set_default_device(gpu ? mx::Device::gpu : mx::Device::cpu);
}
DeviceFacts device_facts();
inline std::unique_ptr<mx::Stream> default_stream() {
  return std::make_unique<mx::Stream>(mx::default_stream(mx::default_device()));
}
inline std::unique_ptr<mx::Stream> new_stream() {
  return std::make_unique<mx::Stream>(mx::new_stream(mx::default_device()));
}
inline void set_default_stream(const mx::Stream& s) { mx::set_default_stream(s); }
inline void synchronize(const mx::Stream& s) { mx::synchronize(s); }
inline size_t active_memory() { return mx::get_active_memory(); }
inline size_t peak_memory() { return mx::get_peak_memory(); }
inline void reset_peak_memory() { mx::reset_peak_memory(); }
inline size_t cache_memory() { return mx::get_cache_memory(); }
inline void clear_cache() { mx::clear_cache(); }
inline size_t memory_limit() { return mx::get_memory_limit(); }
inline size_t set_memory_limit(size_t bytes) { return mx::set_memory_limit(bytes); }
inline size_t set_cache_limit(size_t bytes) { return mx::set_cache_limit(bytes); }

// ---- array: facts and data
inline Ptr share(const array& a) { return own(array(a)); }
inline rust::Slice<const int32_t> shape(const array& a) {
  return {a.shape().data(), a.shape().size()};
}
inline uint8_t dtype(const array& a) { return static_cast<uint8_t>(a.dtype().val()); }
inline size_t n_bytes(const array& a) { return a.nbytes(); }
inline size_t buffer_bytes(const array& a) { return a.buffer_size(); }
inline bool is_row_contiguous(const array& a) { return a.flags().row_contiguous; }
// The elements of an array that is computed and lies in one piece.
void read(const array& a, rust::Slice<uint8_t> to);
Ptr from_bytes(rust::Slice<const uint8_t> bytes, Ints shape, uint8_t dtype);
// The same in memory that is pinned, where it can be.
Ptr staged(rust::Slice<const uint8_t> bytes, Ints shape, uint8_t dtype);
inline bool is_available(const array& a) { return a.is_available(); }
void eval(const Arrays& list);
void async_eval(const Arrays& list);

// ---- creation
inline Ptr scalar(double v, uint8_t t) {
  return own(mx::astype(array(static_cast<float>(v)), dtype_of(t)));
}
inline Ptr full(Ints s, double v, uint8_t t) {
  return own(mx::full(shape_of(s), static_cast<float>(v), dtype_of(t)));
}
inline Ptr arange(double start, double stop, double step, uint8_t t) {
  return own(mx::arange(start, stop, step, dtype_of(t)));
}

// ---- shape
inline Ptr reshape(const array& a, Ints s) { return own(mx::reshape(a, shape_of(s))); }
inline Ptr transpose(const array& a, Ints axes) { return own(mx::transpose(a, ints_of(axes))); }
// Of what is there already, a view at once: one of MLX's is a node of every graph that has it.
Ptr swap_axes(const array& a, int32_t i, int32_t j);
inline Ptr expand_dims(const array& a, Ints axes) { return own(mx::expand_dims(a, ints_of(axes))); }
inline Ptr squeeze(const array& a, Ints axes) { return own(mx::squeeze(a, ints_of(axes))); }
inline Ptr broadcast_to(const array& a, Ints s) { return own(mx::broadcast_to(a, shape_of(s))); }
inline Ptr flatten(const array& a, int32_t from, int32_t to) {
  return own(mx::flatten(a, from, to));
}
inline Ptr flip(const array& a, int32_t axis) { return own(mx::flip(a, axis)); }
inline Ptr slice(const array& a, Ints start, Ints stop, Ints strides) {
  return own(mx::slice(a, shape_of(start), shape_of(stop), shape_of(strides)));
}
inline Ptr slice_at(const array& a, const array& start, Ints axes, Ints size) {
  return own(mx::slice(a, start, ints_of(axes), shape_of(size)));
}
inline Ptr slice_update(const array& a, const array& update, Ints start, Ints stop) {
  return own(mx::slice_update(a, update, shape_of(start), shape_of(stop)));
}
inline Ptr slice_update_at(const array& a, const array& update, const array& start, Ints axes) {
  return own(mx::slice_update(a, update, start, ints_of(axes)));
}
inline std::unique_ptr<Arrays> split(const array& a, int32_t n, int32_t axis) {
  return own(mx::split(a, n, axis));
}
inline std::unique_ptr<Arrays> split_at(const array& a, Ints at, int32_t axis) {
  return own(mx::split(a, shape_of(at), axis));
}
inline Ptr concatenate(const Arrays& list, int32_t axis) {
  return own(mx::concatenate(list.items, axis));
}
inline Ptr stack(const Arrays& list, int32_t axis) { return own(mx::stack(list.items, axis)); }
inline Ptr repeat(const array& a, int32_t n, int32_t axis) { return own(mx::repeat(a, n, axis)); }
inline Ptr tile(const array& a, Ints reps) { return own(mx::tile(a, ints_of(reps))); }
inline Ptr pad(const array& a, Ints axes, Ints low, Ints high, const array& value) {
  return own(mx::pad(a, ints_of(axes), shape_of(low), shape_of(high), value));
}
inline Ptr contiguous(const array& a) { return own(mx::contiguous(a)); }
inline Ptr astype(const array& a, uint8_t t) { return own(mx::astype(a, dtype_of(t))); }
inline Ptr view(const array& a, uint8_t t) { return own(mx::view(a, dtype_of(t))); }

// ---- elementwise
#define OFFSHOOT_UNARY(name, call) \
  inline Ptr name(const array& a) { return own(mx::call(a)); }
#define OFFSHOOT_BINARY(name, call) \
  inline Ptr name(const array& a, const array& b) { return own(mx::call(a, b)); }
OFFSHOOT_UNARY(neg, negative)
OFFSHOOT_UNARY(abs, abs)
OFFSHOOT_UNARY(sign, sign)
OFFSHOOT_UNARY(exp, exp)
OFFSHOOT_UNARY(expm1, expm1)
OFFSHOOT_UNARY(log, log)
OFFSHOOT_UNARY(log1p, log1p)
OFFSHOOT_UNARY(sqrt, sqrt)
OFFSHOOT_UNARY(rsqrt, rsqrt)
OFFSHOOT_UNARY(square, square)
OFFSHOOT_UNARY(reciprocal, reciprocal)
OFFSHOOT_UNARY(sigmoid, sigmoid)
OFFSHOOT_UNARY(tanh, tanh)
OFFSHOOT_UNARY(erf, erf)
OFFSHOOT_UNARY(sin, sin)
OFFSHOOT_UNARY(cos, cos)
OFFSHOOT_UNARY(floor, floor)
OFFSHOOT_UNARY(ceil, ceil)
OFFSHOOT_UNARY(round, round)
OFFSHOOT_UNARY(logical_not, logical_not)
OFFSHOOT_UNARY(is_nan, isnan)
OFFSHOOT_UNARY(is_finite, isfinite)
OFFSHOOT_BINARY(add, add)
OFFSHOOT_BINARY(sub, subtract)
OFFSHOOT_BINARY(mul, multiply)
OFFSHOOT_BINARY(div, divide)
OFFSHOOT_BINARY(floor_div, floor_divide)
OFFSHOOT_BINARY(rem, remainder)
OFFSHOOT_BINARY(pow, power)
OFFSHOOT_BINARY(maximum, maximum)
OFFSHOOT_BINARY(minimum, minimum)
OFFSHOOT_BINARY(log_add_exp, logaddexp)
OFFSHOOT_BINARY(eq, equal)
OFFSHOOT_BINARY(ne, not_equal)
OFFSHOOT_BINARY(lt, less)
OFFSHOOT_BINARY(le, less_equal)
OFFSHOOT_BINARY(gt, greater)
OFFSHOOT_BINARY(ge, greater_equal)
OFFSHOOT_BINARY(logical_and, logical_and)
OFFSHOOT_BINARY(logical_or, logical_or)
OFFSHOOT_BINARY(bit_and, bitwise_and)
OFFSHOOT_BINARY(bit_or, bitwise_or)
OFFSHOOT_BINARY(bit_xor, bitwise_xor)
OFFSHOOT_BINARY(shift_left, left_shift)
OFFSHOOT_BINARY(shift_right, right_shift)
OFFSHOOT_BINARY(matmul, matmul)
#undef OFFSHOOT_UNARY
#undef OFFSHOOT_BINARY
inline Ptr clip(const array& a, MaybeArray lo, MaybeArray hi) {
  return own(mx::clip(a, opt(lo), opt(hi)));
}
inline Ptr where_(const array& c, const array& x, const array& y) {
  return own(mx::where(c, x, y));
}

// ---- reductions, scans, sorting
#define OFFSHOOT_REDUCE(name, call)                       \
  inline Ptr name(const array& a, Ints axes, bool keep) { \
    return own(mx::call(a, ints_of(axes), keep));         \
  }
OFFSHOOT_REDUCE(sum, sum)
OFFSHOOT_REDUCE(mean, mean)
OFFSHOOT_REDUCE(prod, prod)
OFFSHOOT_REDUCE(max, max)
OFFSHOOT_REDUCE(min, min)
OFFSHOOT_REDUCE(all, all)
OFFSHOOT_REDUCE(any, any)
OFFSHOOT_REDUCE(variance, var)
OFFSHOOT_REDUCE(log_sum_exp, logsumexp)
#undef OFFSHOOT_REDUCE
inline Ptr softmax(const array& a, Ints axes, bool precise) {
  return own(mx::softmax(a, ints_of(axes), precise));
}
inline Ptr cumsum(const array& a, int32_t axis, bool reverse, bool inclusive) {
  return own(mx::cumsum(a, axis, reverse, inclusive));
}
inline Ptr argmax(const array& a, int32_t axis, bool keep) {
  return own(mx::argmax(a, axis, keep));
}
inline Ptr argmin(const array& a, int32_t axis, bool keep) {
  return own(mx::argmin(a, axis, keep));
}
inline Ptr sort(const array& a, int32_t axis) { return own(mx::sort(a, axis)); }
inline Ptr argsort(const array& a, int32_t axis) { return own(mx::argsort(a, axis)); }
inline Ptr topk(const array& a, int32_t k, int32_t axis) { return own(mx::topk(a, k, axis)); }
inline Ptr argpartition(const array& a, int32_t k, int32_t axis) {
  return own(mx::argpartition(a, k, axis));
}

// ---- gather, scatter
inline Ptr take(const array& a, const array& indices, int32_t axis) {
  return own(mx::take(a, indices, axis));
}
inline Ptr take_along(const array& a, const array& indices, int32_t axis) {
  return own(mx::take_along_axis(a, indices, axis));
}
inline Ptr put_along(const array& a, const array& indices, const array& values, int32_t axis) {
  return own(mx::put_along_axis(a, indices, values, axis));
}
inline Ptr gather(const array& a, const Arrays& indices, Ints axes, Ints slice_sizes) {
  return own(mx::gather(a, indices.items, ints_of(axes), shape_of(slice_sizes)));
}
inline Ptr scatter(const array& a, const Arrays& indices, const array& updates, Ints axes) {
  return own(mx::scatter(a, indices.items, updates, ints_of(axes)));
}
inline Ptr scatter_add(const array& a, const Arrays& indices, const array& updates, Ints axes) {
  return own(mx::scatter_add(a, indices.items, updates, ints_of(axes)));
}

// ---- matrices
Ptr quantized_matmul(const array& x, const array& w, const array& scales, MaybeArray biases,
                     const QuantSpec& q);
Ptr gather_qmm(const array& x, const array& w, const array& scales, MaybeArray biases,
               MaybeArray lhs_indices, MaybeArray rhs_indices, const QuantSpec& q,
               MaybeArray global_scale, bool sorted);
std::unique_ptr<Arrays> quantize(const array& w, const QuantSpec& q, MaybeArray global_scale);
Ptr dequantize(const array& w, const array& scales, MaybeArray biases, const QuantSpec& q,
               MaybeArray global_scale, uint8_t dtype);
inline Ptr gather_mm(const array& a, const array& b, MaybeArray lhs, MaybeArray rhs, bool sorted) {
  return own(mx::gather_mm(a, b, opt(lhs), opt(rhs), sorted));
}
inline Ptr addmm(const array& c, const array& a, const array& b, float alpha, float beta) {
  return own(mx::addmm(c, a, b, alpha, beta));
}
inline Ptr conv1d(const array& x, const array& w, int32_t stride, int32_t padding, int32_t dilation,
                  int32_t groups) {
  return own(mx::conv1d(x, w, stride, padding, dilation, groups));
}
inline Ptr from_fp8(const array& a, uint8_t t) { return own(mx::from_fp8(a, dtype_of(t))); }
inline Ptr to_fp8(const array& a) { return own(mx::to_fp8(a)); }

// ---- random: always with an explicit key
inline Ptr random_key(uint64_t seed) { return own(mx::random::key(seed)); }
inline Ptr random_split(const array& key, int32_t n) { return own(mx::random::split(key, n)); }
inline Ptr random_uniform(Ints s, uint8_t t, const array& key) {
  return own(mx::random::uniform(shape_of(s), dtype_of(t), key));
}
inline Ptr random_normal(Ints s, uint8_t t, const array& key) {
  return own(mx::random::normal(shape_of(s), dtype_of(t), std::nullopt, std::nullopt, key));
}
inline Ptr random_gumbel(Ints s, uint8_t t, const array& key) {
  return own(mx::random::gumbel(shape_of(s), dtype_of(t), key));
}
inline Ptr random_bits(Ints s, int32_t width, const array& key) {
  return own(mx::random::bits(shape_of(s), width, key));
}
inline Ptr random_int(const array& low, const array& high, Ints s, uint8_t t, const array& key) {
  return own(mx::random::randint(low, high, shape_of(s), dtype_of(t), key));
}
inline Ptr random_categorical(const array& logits, int32_t axis, const array& key) {
  return own(mx::random::categorical(logits, axis, key));
}

// ---- fast
inline Ptr rms_norm(const array& x, MaybeArray weight, float eps) {
  return own(mx::fast::rms_norm(x, opt(weight), eps));
}
inline Ptr layer_norm(const array& x, MaybeArray weight, MaybeArray bias, float eps) {
  return own(mx::fast::layer_norm(x, opt(weight), opt(bias), eps));
}
// `base` is ignored when `freqs` is given; `offset` is a scalar or one position per batch row.
Ptr rope(const array& x, int32_t dims, bool traditional, float base, float scale,
         const array& offset, MaybeArray freqs);
Ptr rope_from(const array& x, int32_t dims, bool traditional, float base, float scale,
              int32_t offset, MaybeArray freqs);
inline Ptr attention(const array& q, const array& k, const array& v, float scale,
                     rust::Str mask_mode, MaybeArray mask, MaybeArray sinks) {
  return own(mx::fast::scaled_dot_product_attention(q, k, v, scale, str(mask_mode), opt(mask),
                                                    opt(sinks)));
}
inline std::unique_ptr<Arrays> gated_delta_update(const array& q, const array& k, const array& v,
                                                  const array& gates, const array& beta,
                                                  MaybeArray state, MaybeArray mask) {
  return own(mx::fast::gated_delta_update(q, k, v, gates, beta, opt(state), opt(mask)));
}

// ---- custom kernels
// MLX writes a kernel's source text at every call. What it made of the first one with the same
// dtypes, sizes and arguments is kept and serves the others. One thread alone may call a kernel.
struct DeviceKernel {
  mx::fast::CustomKernelFunction call;
  // Inputs, the first ones, that the source reads only after it has waited for the launches before;
  // −1: it does not wait itself.
  int n_late;
  std::map<std::vector<int64_t>, std::shared_ptr<mx::Primitive>> made;
};
std::unique_ptr<DeviceKernel> cuda_kernel(rust::Str name, const rust::Vec<rust::String>& inputs,
                                          const rust::Vec<rust::String>& outputs, rust::Str source,
                                          rust::Str header, bool row_contiguous,
                                          int32_t shared_bytes, int32_t n_late);
std::unique_ptr<DeviceKernel> metal_kernel(rust::Str name, const rust::Vec<rust::String>& inputs,
                                           const rust::Vec<rust::String>& outputs, rust::Str source,
                                           rust::Str header, bool row_contiguous,
                                           bool atomic_outputs);
std::vector<array> launched(DeviceKernel& kernel, const std::vector<array>& inputs,
                            std::vector<mx::Shape> shapes, const std::vector<mx::Dtype>& dtypes,
                            const std::array<int, 3>& grid, const std::array<int, 3>& group,
                            const rust::Vec<TemplateArg>& args);
std::unique_ptr<Arrays> device_kernel_call(DeviceKernel& kernel, const Arrays& inputs, Ints shapes,
                                           Ints ranks, rust::Slice<const uint8_t> dtypes, Ints grid,
                                           Ints group, const rust::Vec<TemplateArg>& args);
std::unique_ptr<Arrays> cpu_kernel_call(rust::Box<CpuKernel> kernel, const Arrays& inputs,
                                        bool updates, Ints shapes, Ints ranks,
                                        rust::Slice<const uint8_t> dtypes);

// ---- files
struct Tensors {
  std::unordered_map<std::string, array> items;
  std::unordered_map<std::string, std::string> metadata;
};
inline std::unique_ptr<Tensors> tensors_new() { return std::make_unique<Tensors>(); }
std::unique_ptr<Tensors> load_safetensors(rust::Str path);
void save_safetensors(rust::Str path, const Tensors& tensors);
inline void tensors_put(Tensors& t, rust::Str name, const array& a) {
  t.items.insert_or_assign(str(name), a);
}
inline void tensors_put_metadata(Tensors& t, rust::Str key, rust::Str value) {
  t.metadata.insert_or_assign(str(key), str(value));
}
inline Ptr tensors_get(const Tensors& t, rust::Str name) {
  return own(array(t.items.at(str(name))));
}
rust::Vec<rust::String> tensors_names(const Tensors& t);
rust::Vec<rust::String> tensors_metadata(const Tensors& t);

}  // namespace offshoot
