// What is longer than a line, and the one primitive that calls back into Rust. See shim.h for the
// rules.
#include <algorithm>
#include <array>

#include "mlx-sys/src/chain.h"
#include "mlx-sys/src/lib.rs.h"
#include "mlx-sys/src/program.h"
#include "mlx/backend/cpu/encoder.h"
#include "mlx/primitives.h"

namespace offshoot {

mx::Dtype dtype_of(uint8_t code) {
  static constexpr std::array<mx::Dtype, 14> table = {
      mx::bool_, mx::uint8, mx::uint16,  mx::uint32,  mx::uint64,  mx::int8,     mx::int16,
      mx::int32, mx::int64, mx::float16, mx::float32, mx::float64, mx::bfloat16, mx::complex64};
  return table.at(code);
}

DeviceFacts device_facts() {
  DeviceFacts facts;
  const auto& device = mx::default_device();
  facts.is_gpu = device == mx::Device::gpu;
  for (const auto& [key, value] : mx::device_info(device)) {
    facts.keys.push_back(key);
    if (auto text = std::get_if<std::string>(&value)) {
      facts.values.push_back(*text);
    } else {
      facts.values.push_back(std::to_string(std::get<size_t>(value)));
    }
  }
  return facts;
}

// MLX's CPU allocator hands out what malloc returned, null included.
static mx::allocator::Data allocate(size_t n) {
  auto data = mx::allocator::malloc(n);
  if (n > 0 && !data.buffer().ptr())
    throw std::runtime_error("[malloc] Unable to allocate " + std::to_string(n) + " bytes.");
  return data;
}

static Ptr filled(std::optional<mx::allocator::Data> buffer, rust::Slice<const uint8_t> bytes,
                  Ints shape, uint8_t dtype) {
  auto type = dtype_of(dtype);
  auto dims = shape_of(shape);
  size_t n = type.size();
  for (auto d : dims) n *= d;
  if (n != bytes.size()) throw std::invalid_argument("byte count does not match the shape");
  // MLX's CUDA allocator keeps what is freed on the device and on the host together, by size, and
  // moves a buffer from one to the other where it is used again, in a call that waits for the link.
  // So what comes from the host has a size that little else has.
  constexpr size_t small = 64 << 10, of_host = 67 * (16 << 10);
  if (!buffer) buffer.emplace(allocate(has_cuda() && n > 0 && n <= small ? of_host : n));
  std::copy(bytes.begin(), bytes.end(), static_cast<uint8_t*>(buffer->buffer().raw_ptr()));
  return own(array(std::move(*buffer), std::move(dims), type));
}

Ptr from_bytes(rust::Slice<const uint8_t> bytes, Ints shape, uint8_t dtype) {
  return filled(std::nullopt, bytes, shape, dtype);
}

Ptr staged(rust::Slice<const uint8_t> bytes, Ints shape, uint8_t dtype) {
  return filled(pinned_small(bytes.size()), bytes, shape, dtype);
}

void eval(const Arrays& list) {
  await_programs();
  mx::eval(list.items);
}

void async_eval(const Arrays& list) {
  await_programs();
  mx::async_eval(list.items);
}

void read(const array& a, rust::Slice<uint8_t> to) {
  if (to.size() > a.nbytes()) throw std::invalid_argument("there are not so many bytes");
  if (read_from_device(a, to.data(), to.size())) return;
  std::copy_n(a.data<uint8_t>(), to.size(), to.data());
}

// Whether the elements of these axes, innermost first, lie one after another.
template <typename Sizes, typename Strides>
static bool is_packed(const Sizes& sizes, const Strides& strides) {
  int64_t n = 1;
  for (size_t i = 0; i < sizes.size(); ++i) {
    if (sizes[i] != 1 && strides[i] != n) return false;
    n *= sizes[i];
  }
  return true;
}

Ptr swap_axes(const array& a, int32_t i, int32_t j) {
  bool is_there = !a.has_primitive() && a.data_shared_ptr() && a.is_available();
  int n = a.ndim();
  if (!is_there || std::min(i, j) < -n || std::max(i, j) >= n) return own(mx::swapaxes(a, i, j));
  auto shape = a.shape();
  auto strides = a.strides();
  std::swap(shape[(i + n) % n], shape[(j + n) % n]);
  std::swap(strides[(i + n) % n], strides[(j + n) % n]);
  auto flags = a.flags();
  flags.col_contiguous = is_packed(shape, strides);
  std::vector<int64_t> sizes(shape.rbegin(), shape.rend()), steps(strides.rbegin(), strides.rend());
  flags.row_contiguous = is_packed(sizes, steps);
  array view(std::move(shape), a.dtype(), nullptr, {});
  view.copy_shared_buffer(a, strides, flags, a.data_size());
  view.set_status(array::Status::available);
  return own(std::move(view));
}

Ptr quantized_matmul(const array& x, const array& w, const array& scales, MaybeArray biases,
                     const QuantSpec& q) {
  return own(mx::quantized_matmul(x, w, scales, opt(biases), /*transpose=*/true, q.group_size,
                                  q.bits, std::string(q.mode)));
}

Ptr gather_qmm(const array& x, const array& w, const array& scales, MaybeArray biases,
               MaybeArray lhs_indices, MaybeArray rhs_indices, const QuantSpec& q,
               MaybeArray global_scale, bool sorted) {
  return own(mx::gather_qmm(x, w, scales, opt(biases), opt(lhs_indices), opt(rhs_indices),
                            /*transpose=*/true, q.group_size, q.bits, std::string(q.mode),
                            opt(global_scale), sorted));
}

std::unique_ptr<Arrays> quantize(const array& w, const QuantSpec& q, MaybeArray global_scale) {
  return own(mx::quantize(w, q.group_size, q.bits, std::string(q.mode), opt(global_scale)));
}

Ptr dequantize(const array& w, const array& scales, MaybeArray biases, const QuantSpec& q,
               MaybeArray global_scale, uint8_t dtype) {
  return own(mx::dequantize(w, scales, opt(biases), q.group_size, q.bits, std::string(q.mode),
                            opt(global_scale), dtype_of(dtype)));
}

static std::optional<float> base_unless(float base, MaybeArray freqs) {
  return freqs ? std::nullopt : std::optional<float>(base);
}

Ptr rope(const array& x, int32_t dims, bool traditional, float base, float scale,
         const array& offset, MaybeArray freqs) {
  return own(
      mx::fast::rope(x, dims, traditional, base_unless(base, freqs), scale, offset, opt(freqs)));
}

Ptr rope_from(const array& x, int32_t dims, bool traditional, float base, float scale,
              int32_t offset, MaybeArray freqs) {
  return own(
      mx::fast::rope(x, dims, traditional, base_unless(base, freqs), scale, offset, opt(freqs)));
}

// ---- custom kernels

static std::vector<std::string> strings(const rust::Vec<rust::String>& list) {
  return std::vector<std::string>(list.begin(), list.end());
}

std::unique_ptr<DeviceKernel> cuda_kernel(rust::Str name, const rust::Vec<rust::String>& inputs,
                                          const rust::Vec<rust::String>& outputs, rust::Str source,
                                          rust::Str header, bool row_contiguous,
                                          int32_t shared_bytes, int32_t n_late) {
  auto call = mx::fast::cuda_kernel(str(name), strings(inputs), strings(outputs), str(source),
                                    str(header), row_contiguous, shared_bytes);
  return std::make_unique<DeviceKernel>(DeviceKernel{std::move(call), n_late, {}});
}

std::unique_ptr<DeviceKernel> metal_kernel(rust::Str name, const rust::Vec<rust::String>& inputs,
                                           const rust::Vec<rust::String>& outputs, rust::Str source,
                                           rust::Str header, bool row_contiguous,
                                           bool atomic_outputs) {
  auto call = mx::fast::metal_kernel(str(name), strings(inputs), strings(outputs), str(source),
                                     str(header), row_contiguous, atomic_outputs);
  return std::make_unique<DeviceKernel>(DeviceKernel{std::move(call), -1, {}});
}

// `shapes` holds all output shapes one after another, `ranks` how many numbers belong to each.
static std::vector<mx::Shape> split_shapes(Ints shapes, Ints ranks) {
  std::vector<mx::Shape> out;
  auto next = shapes.begin();
  for (auto rank : ranks) {
    out.emplace_back(next, next + rank);
    next += rank;
  }
  return out;
}

static std::vector<mx::Dtype> dtypes_of(rust::Slice<const uint8_t> codes) {
  std::vector<mx::Dtype> out;
  for (auto code : codes) out.push_back(dtype_of(code));
  return out;
}

// Launches of a kernel whose nodes are kept, each with its text: grids differ with the context.
constexpr size_t MAX_MADE = 32;

std::vector<array> launched(DeviceKernel& kernel, const std::vector<array>& inputs,
                            std::vector<mx::Shape> shapes, const std::vector<mx::Dtype>& dtypes,
                            const std::array<int, 3>& grid, const std::array<int, 3>& group,
                            const rust::Vec<TemplateArg>& args) {
  auto stream = mx::default_stream(mx::default_device());
  std::vector<int64_t> key{stream.index};
  key.insert(key.end(), grid.begin(), grid.end());
  key.insert(key.end(), group.begin(), group.end());
  // The source states what of a shape there is: nothing for a scalar.
  for (const auto& x : inputs) key.push_back(2 * int64_t(x.dtype().val()) + (x.ndim() > 0));
  for (auto dtype : dtypes) key.push_back(int64_t(dtype.val()));
  for (const auto& arg : args) key.push_back(arg.value);
  if (auto made = kernel.made.find(key); made != kernel.made.end()) {
    return array::make_arrays(std::move(shapes), dtypes, made->second, inputs);
  }
  std::vector<std::pair<std::string, mx::fast::TemplateArg>> list;
  for (const auto& arg : args) {
    auto value = arg.is_dtype ? mx::fast::TemplateArg(dtype_of(arg.value))
                              : mx::fast::TemplateArg(int(arg.value));
    list.emplace_back(std::string(arg.name), value);
  }
  auto outputs = kernel.call(inputs, shapes, dtypes, {grid[0], grid[1], grid[2]},
                             {group[0], group[1], group[2]}, list, std::nullopt, /*verbose=*/false,
                             {});
  const auto& node = outputs.at(0).primitive_ptr();
  note_launch(node, kernel.n_late);
  if (kernel.made.size() == MAX_MADE) kernel.made.clear();
  kernel.made.emplace(std::move(key), node);
  return outputs;
}

std::unique_ptr<Arrays> device_kernel_call(DeviceKernel& kernel, const Arrays& inputs, Ints shapes,
                                           Ints ranks, rust::Slice<const uint8_t> dtypes, Ints grid,
                                           Ints group, const rust::Vec<TemplateArg>& args) {
  return own(launched(kernel, inputs.items, split_shapes(shapes, ranks), dtypes_of(dtypes),
                      {grid[0], grid[1], grid[2]}, {group[0], group[1], group[2]}, args));
}

// Tensors as a task sees them: MLX keeps their memory until it has run, but not their arrays, so
// that shapes and strides are kept here.
class Views {
 public:
  explicit Views(const std::vector<array>& arrays) {
    size_t n_dims = 0;
    for (const auto& a : arrays) n_dims += a.ndim();
    shapes_.reserve(n_dims);
    strides_.reserve(n_dims);
    tensors_.reserve(arrays.size());
    for (const auto& a : arrays) {
      tensors_.push_back(RawTensor{const_cast<uint8_t*>(a.data<uint8_t>()), a.nbytes(),
                                   shapes_.data() + shapes_.size(),
                                   strides_.data() + strides_.size(), a.ndim(),
                                   static_cast<uint8_t>(a.dtype().val())});
      shapes_.insert(shapes_.end(), a.shape().begin(), a.shape().end());
      strides_.insert(strides_.end(), a.strides().begin(), a.strides().end());
    }
  }
  rust::Slice<const RawTensor> all() const { return {tensors_.data(), tensors_.size()}; }

 private:
  std::vector<int32_t> shapes_;
  std::vector<int64_t> strides_;
  std::vector<RawTensor> tensors_;
};

// A graph node whose evaluation on the CPU is a Rust closure. The closure runs later, on the
// stream's own thread. If the node updates, its one output is its last input: in the same memory
// where nothing else needs that, else in memory that the closure has to fill with its values.
class RustPrimitive : public mx::Primitive {
 public:
  RustPrimitive(mx::Stream stream, rust::Box<CpuKernel> kernel, bool updates)
      : Primitive(stream),
        kernel_(std::make_shared<rust::Box<CpuKernel>>(std::move(kernel))),
        updates_(updates) {}

  void eval_cpu(const std::vector<array>& inputs, std::vector<array>& outputs) override {
    if (updates_ && inputs.back().is_donatable() && inputs.back().flags().row_contiguous) {
      outputs[0].copy_shared_buffer(inputs.back());
    } else {
      for (auto& out : outputs) out.set_data(allocate(out.nbytes()));
    }
    auto& encoder = mx::cpu::get_command_encoder(stream());
    auto views = std::make_shared<std::pair<Views, Views>>(Views(inputs), Views(outputs));
    encoder.dispatch([kernel = kernel_, views = std::move(views)]() {
      run_cpu_kernel(**kernel, views->first.all(), views->second.all());
    });
  }

  void eval_gpu(const std::vector<array>&, std::vector<array>&) override {
    throw std::runtime_error("a CPU kernel was asked to run on the GPU");
  }

  const char* name() const override { return "RustPrimitive"; }

 private:
  // Shared with the tasks in flight: MLX may drop the node before its task has run.
  std::shared_ptr<rust::Box<CpuKernel>> kernel_;
  bool updates_;
};

std::unique_ptr<Arrays> cpu_kernel_call(rust::Box<CpuKernel> kernel, const Arrays& inputs,
                                        bool updates, Ints shapes, Ints ranks,
                                        rust::Slice<const uint8_t> dtypes) {
  auto stream = mx::default_stream(mx::Device::cpu);
  auto node = std::make_shared<RustPrimitive>(stream, std::move(kernel), updates);
  return own(array::make_arrays(split_shapes(shapes, ranks), dtypes_of(dtypes), std::move(node),
                                inputs.items));
}

// ---- files

std::unique_ptr<Tensors> load_safetensors(rust::Str path) {
  auto [items, metadata] = mx::load_safetensors(str(path));
  return std::make_unique<Tensors>(Tensors{std::move(items), std::move(metadata)});
}

void save_safetensors(rust::Str path, const Tensors& tensors) {
  mx::save_safetensors(str(path), tensors.items, tensors.metadata);
}

rust::Vec<rust::String> tensors_names(const Tensors& t) {
  rust::Vec<rust::String> names;
  for (const auto& item : t.items) names.push_back(item.first);
  return names;
}

// Keys and values by turns.
rust::Vec<rust::String> tensors_metadata(const Tensors& t) {
  rust::Vec<rust::String> list;
  for (const auto& [key, value] : t.metadata) {
    list.push_back(key);
    list.push_back(value);
  }
  return list;
}

}  // namespace offshoot
