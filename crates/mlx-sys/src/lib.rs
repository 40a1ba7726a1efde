//! The bridge to MLX's C++ interface: declarations only, generated on both sides by `cxx` from this
//! one list.
//!
//! Every function returns `Result`: what C++ throws arrives as `Err`. What the functions mean is
//! said in the safe crate `mlx`, their only caller. Shapes and axes are `i32` as in MLX; dtypes
//! travel as the number of MLX's `Dtype::Val`. A null `*const Array` is an absent optional
//! argument.
#![allow(missing_docs)]
#![allow(clippy::too_many_arguments, clippy::missing_safety_doc, clippy::ptr_arg)]

/// The MLX release pinned in `MLX_VERSION`, for which the shim is written.
pub const PINNED_VERSION: &str = env!("MLX_PINNED_VERSION");

/// What a CPU kernel is to C++: a closure over the tensors' memory.
pub struct CpuKernel(pub CpuKernelFn);

/// Called on a stream's thread with inputs and outputs; an `Err` becomes a C++ exception that
/// `eval` reports.
pub type CpuKernelFn =
    Box<dyn Fn(&[ffi::RawTensor], &[ffi::RawTensor]) -> Result<(), String> + Send + Sync>;

fn run_cpu_kernel(
    kernel: &CpuKernel,
    inputs: &[ffi::RawTensor],
    outputs: &[ffi::RawTensor],
) -> Result<(), String> {
    (kernel.0)(inputs, outputs)
}

#[cxx::bridge(namespace = "offshoot")]
pub mod ffi {
    /// A tensor's memory as a CPU kernel sees it: where its first element lies, the bytes of all
    /// elements, shape, and strides in elements. Valid while the kernel runs.
    struct RawTensor {
        data: *mut u8,
        n_bytes: usize,
        shape: *const i32,
        strides: *const i64,
        n_dims: usize,
        dtype: u8,
    }

    /// How a tensor is quantized: `mode` is MLX's name for it.
    struct QuantSpec {
        group_size: i32,
        bits: i32,
        mode: String,
    }

    /// A template argument of a custom kernel: a number, or a dtype if `is_dtype`.
    struct TemplateArg {
        name: String,
        value: i32,
        is_dtype: bool,
    }

    /// What MLX says of the default device; `keys[i]` belongs to `values[i]`.
    struct DeviceFacts {
        is_gpu: bool,
        keys: Vec<String>,
        values: Vec<String>,
    }

    extern "Rust" {
        type CpuKernel;
        fn run_cpu_kernel(
            kernel: &CpuKernel,
            inputs: &[RawTensor],
            outputs: &[RawTensor],
        ) -> Result<()>;
    }

    unsafe extern "C++" {
        include!("mlx-sys/src/shim.h");
        include!("mlx-sys/src/pinned.h");
        include!("mlx-sys/src/joined.h");
        include!("mlx-sys/src/program.h");

        #[namespace = "mlx::core"]
        #[cxx_name = "array"]
        type Array;
        #[namespace = "mlx::core"]
        type Stream;
        type Arrays;
        type Tensors;
        type DeviceKernel;
        type Pinned;
        type Recording;

        fn arrays_new(capacity: usize) -> Result<UniquePtr<Arrays>>;
        fn arrays_push(list: Pin<&mut Arrays>, a: &Array) -> Result<()>;
        fn arrays_len(list: &Arrays) -> Result<usize>;
        fn arrays_get(list: &Arrays, i: usize) -> Result<UniquePtr<Array>>;

        fn header_version() -> Result<u32>;
        fn library_version() -> Result<String>;
        fn device_is_available(gpu: bool) -> Result<bool>;
        fn set_default_device(gpu: bool) -> Result<()>;
        fn device_facts() -> Result<DeviceFacts>;
        fn default_stream() -> Result<UniquePtr<Stream>>;
        fn new_stream() -> Result<UniquePtr<Stream>>;
        fn set_default_stream(s: &Stream) -> Result<()>;
        fn synchronize(s: &Stream) -> Result<()>;
        fn active_memory() -> Result<usize>;
        fn peak_memory() -> Result<usize>;
        fn reset_peak_memory() -> Result<()>;
        fn cache_memory() -> Result<usize>;
        fn clear_cache() -> Result<()>;
        fn memory_limit() -> Result<usize>;
        fn set_memory_limit(bytes: usize) -> Result<usize>;
        fn set_cache_limit(bytes: usize) -> Result<usize>;

        fn pinned_new(n_bytes: usize) -> Result<SharedPtr<Pinned>>;
        fn pinned_grow(memory: &SharedPtr<Pinned>, n_bytes: usize) -> Result<()>;
        fn pinned_data(memory: &SharedPtr<Pinned>) -> Result<*mut u8>;
        fn pinned_array(memory: &SharedPtr<Pinned>) -> Result<UniquePtr<Array>>;

        fn shape(a: &Array) -> Result<&[i32]>;
        fn dtype(a: &Array) -> Result<u8>;
        fn n_bytes(a: &Array) -> Result<usize>;
        fn buffer_bytes(a: &Array) -> Result<usize>;
        fn is_row_contiguous(a: &Array) -> Result<bool>;
        fn read(a: &Array, to: &mut [u8]) -> Result<()>;
        fn from_bytes(bytes: &[u8], shape: &[i32], dtype: u8) -> Result<UniquePtr<Array>>;
        fn staged(bytes: &[u8], shape: &[i32], dtype: u8) -> Result<UniquePtr<Array>>;
        fn is_available(a: &Array) -> Result<bool>;
        fn eval(list: &Arrays) -> Result<()>;
        fn async_eval(list: &Arrays) -> Result<()>;
        fn joined(outputs: &Arrays) -> Result<UniquePtr<Arrays>>;
        fn record(outputs: &Arrays, sources: &Arrays) -> Result<SharedPtr<Recording>>;
        fn is_same(a: &SharedPtr<Recording>, b: &SharedPtr<Recording>) -> Result<bool>;
        fn replay(recording: &SharedPtr<Recording>, sources: &Arrays) -> Result<UniquePtr<Arrays>>;
        fn keep_programs(folder: &str) -> Result<()>;

        fn scalar(value: f64, dtype: u8) -> Result<UniquePtr<Array>>;
        fn full(shape: &[i32], value: f64, dtype: u8) -> Result<UniquePtr<Array>>;
        fn arange(start: f64, stop: f64, step: f64, dtype: u8) -> Result<UniquePtr<Array>>;

        fn reshape(a: &Array, shape: &[i32]) -> Result<UniquePtr<Array>>;
        fn transpose(a: &Array, axes: &[i32]) -> Result<UniquePtr<Array>>;
        fn swap_axes(a: &Array, i: i32, j: i32) -> Result<UniquePtr<Array>>;
        fn expand_dims(a: &Array, axes: &[i32]) -> Result<UniquePtr<Array>>;
        fn squeeze(a: &Array, axes: &[i32]) -> Result<UniquePtr<Array>>;
        fn broadcast_to(a: &Array, shape: &[i32]) -> Result<UniquePtr<Array>>;
        fn flatten(a: &Array, from: i32, to: i32) -> Result<UniquePtr<Array>>;
        fn flip(a: &Array, axis: i32) -> Result<UniquePtr<Array>>;
        fn slice(
            a: &Array,
            start: &[i32],
            stop: &[i32],
            strides: &[i32],
        ) -> Result<UniquePtr<Array>>;
        fn slice_at(
            a: &Array,
            start: &Array,
            axes: &[i32],
            size: &[i32],
        ) -> Result<UniquePtr<Array>>;
        fn slice_update(
            a: &Array,
            update: &Array,
            start: &[i32],
            stop: &[i32],
        ) -> Result<UniquePtr<Array>>;
        fn slice_update_at(
            a: &Array,
            update: &Array,
            start: &Array,
            axes: &[i32],
        ) -> Result<UniquePtr<Array>>;
        fn split(a: &Array, n: i32, axis: i32) -> Result<UniquePtr<Arrays>>;
        fn split_at(a: &Array, at: &[i32], axis: i32) -> Result<UniquePtr<Arrays>>;
        fn concatenate(list: &Arrays, axis: i32) -> Result<UniquePtr<Array>>;
        fn stack(list: &Arrays, axis: i32) -> Result<UniquePtr<Array>>;
        fn repeat(a: &Array, n: i32, axis: i32) -> Result<UniquePtr<Array>>;
        fn tile(a: &Array, reps: &[i32]) -> Result<UniquePtr<Array>>;
        fn pad(
            a: &Array,
            axes: &[i32],
            low: &[i32],
            high: &[i32],
            value: &Array,
        ) -> Result<UniquePtr<Array>>;
        fn astype(a: &Array, dtype: u8) -> Result<UniquePtr<Array>>;
        fn view(a: &Array, dtype: u8) -> Result<UniquePtr<Array>>;

        fn neg(a: &Array) -> Result<UniquePtr<Array>>;
        fn abs(a: &Array) -> Result<UniquePtr<Array>>;
        fn sign(a: &Array) -> Result<UniquePtr<Array>>;
        fn exp(a: &Array) -> Result<UniquePtr<Array>>;
        fn expm1(a: &Array) -> Result<UniquePtr<Array>>;
        fn log(a: &Array) -> Result<UniquePtr<Array>>;
        fn log1p(a: &Array) -> Result<UniquePtr<Array>>;
        fn sqrt(a: &Array) -> Result<UniquePtr<Array>>;
        fn rsqrt(a: &Array) -> Result<UniquePtr<Array>>;
        fn square(a: &Array) -> Result<UniquePtr<Array>>;
        fn reciprocal(a: &Array) -> Result<UniquePtr<Array>>;
        fn sigmoid(a: &Array) -> Result<UniquePtr<Array>>;
        fn tanh(a: &Array) -> Result<UniquePtr<Array>>;
        fn erf(a: &Array) -> Result<UniquePtr<Array>>;
        fn sin(a: &Array) -> Result<UniquePtr<Array>>;
        fn cos(a: &Array) -> Result<UniquePtr<Array>>;
        fn floor(a: &Array) -> Result<UniquePtr<Array>>;
        fn ceil(a: &Array) -> Result<UniquePtr<Array>>;
        fn round(a: &Array) -> Result<UniquePtr<Array>>;
        fn logical_not(a: &Array) -> Result<UniquePtr<Array>>;
        fn is_nan(a: &Array) -> Result<UniquePtr<Array>>;
        fn is_finite(a: &Array) -> Result<UniquePtr<Array>>;
        fn contiguous(a: &Array) -> Result<UniquePtr<Array>>;
        fn share(a: &Array) -> Result<UniquePtr<Array>>;
        fn to_fp8(a: &Array) -> Result<UniquePtr<Array>>;
        fn add(a: &Array, b: &Array) -> Result<UniquePtr<Array>>;
        fn sub(a: &Array, b: &Array) -> Result<UniquePtr<Array>>;
        fn mul(a: &Array, b: &Array) -> Result<UniquePtr<Array>>;
        fn div(a: &Array, b: &Array) -> Result<UniquePtr<Array>>;
        fn floor_div(a: &Array, b: &Array) -> Result<UniquePtr<Array>>;
        fn rem(a: &Array, b: &Array) -> Result<UniquePtr<Array>>;
        fn pow(a: &Array, b: &Array) -> Result<UniquePtr<Array>>;
        fn maximum(a: &Array, b: &Array) -> Result<UniquePtr<Array>>;
        fn minimum(a: &Array, b: &Array) -> Result<UniquePtr<Array>>;
        fn log_add_exp(a: &Array, b: &Array) -> Result<UniquePtr<Array>>;
        fn eq(a: &Array, b: &Array) -> Result<UniquePtr<Array>>;
        fn ne(a: &Array, b: &Array) -> Result<UniquePtr<Array>>;
        fn lt(a: &Array, b: &Array) -> Result<UniquePtr<Array>>;
        fn le(a: &Array, b: &Array) -> Result<UniquePtr<Array>>;
        fn gt(a: &Array, b: &Array) -> Result<UniquePtr<Array>>;
        fn ge(a: &Array, b: &Array) -> Result<UniquePtr<Array>>;
        fn logical_and(a: &Array, b: &Array) -> Result<UniquePtr<Array>>;
        fn logical_or(a: &Array, b: &Array) -> Result<UniquePtr<Array>>;
        fn bit_and(a: &Array, b: &Array) -> Result<UniquePtr<Array>>;
        fn bit_or(a: &Array, b: &Array) -> Result<UniquePtr<Array>>;
        fn bit_xor(a: &Array, b: &Array) -> Result<UniquePtr<Array>>;
        fn shift_left(a: &Array, b: &Array) -> Result<UniquePtr<Array>>;
        fn shift_right(a: &Array, b: &Array) -> Result<UniquePtr<Array>>;
        fn matmul(a: &Array, b: &Array) -> Result<UniquePtr<Array>>;
        unsafe fn clip(a: &Array, lo: *const Array, hi: *const Array) -> Result<UniquePtr<Array>>;
        fn where_(condition: &Array, x: &Array, y: &Array) -> Result<UniquePtr<Array>>;

        fn sum(a: &Array, axes: &[i32], keep_dims: bool) -> Result<UniquePtr<Array>>;
        fn mean(a: &Array, axes: &[i32], keep_dims: bool) -> Result<UniquePtr<Array>>;
        fn prod(a: &Array, axes: &[i32], keep_dims: bool) -> Result<UniquePtr<Array>>;
        fn max(a: &Array, axes: &[i32], keep_dims: bool) -> Result<UniquePtr<Array>>;
        fn min(a: &Array, axes: &[i32], keep_dims: bool) -> Result<UniquePtr<Array>>;
        fn all(a: &Array, axes: &[i32], keep_dims: bool) -> Result<UniquePtr<Array>>;
        fn any(a: &Array, axes: &[i32], keep_dims: bool) -> Result<UniquePtr<Array>>;
        fn variance(a: &Array, axes: &[i32], keep_dims: bool) -> Result<UniquePtr<Array>>;
        fn log_sum_exp(a: &Array, axes: &[i32], keep_dims: bool) -> Result<UniquePtr<Array>>;
        fn softmax(a: &Array, axes: &[i32], precise: bool) -> Result<UniquePtr<Array>>;
        fn cumsum(a: &Array, axis: i32, reverse: bool, inclusive: bool)
        -> Result<UniquePtr<Array>>;
        fn argmax(a: &Array, axis: i32, keep_dims: bool) -> Result<UniquePtr<Array>>;
        fn argmin(a: &Array, axis: i32, keep_dims: bool) -> Result<UniquePtr<Array>>;
        fn sort(a: &Array, axis: i32) -> Result<UniquePtr<Array>>;
        fn argsort(a: &Array, axis: i32) -> Result<UniquePtr<Array>>;
        fn topk(a: &Array, k: i32, axis: i32) -> Result<UniquePtr<Array>>;
        fn argpartition(a: &Array, k: i32, axis: i32) -> Result<UniquePtr<Array>>;

        fn take(a: &Array, indices: &Array, axis: i32) -> Result<UniquePtr<Array>>;
        fn take_along(a: &Array, indices: &Array, axis: i32) -> Result<UniquePtr<Array>>;
        fn put_along(
            a: &Array,
            indices: &Array,
            values: &Array,
            axis: i32,
        ) -> Result<UniquePtr<Array>>;
        fn gather(
            a: &Array,
            indices: &Arrays,
            axes: &[i32],
            slice_sizes: &[i32],
        ) -> Result<UniquePtr<Array>>;
        fn scatter(
            a: &Array,
            indices: &Arrays,
            updates: &Array,
            axes: &[i32],
        ) -> Result<UniquePtr<Array>>;
        fn scatter_add(
            a: &Array,
            indices: &Arrays,
            updates: &Array,
            axes: &[i32],
        ) -> Result<UniquePtr<Array>>;

        unsafe fn quantized_matmul(
            x: &Array,
            w: &Array,
            scales: &Array,
            biases: *const Array,
            spec: &QuantSpec,
        ) -> Result<UniquePtr<Array>>;
        unsafe fn gather_qmm(
            x: &Array,
            w: &Array,
            scales: &Array,
            biases: *const Array,
            lhs_indices: *const Array,
            rhs_indices: *const Array,
            spec: &QuantSpec,
            global_scale: *const Array,
            sorted: bool,
        ) -> Result<UniquePtr<Array>>;
        unsafe fn quantize(
            w: &Array,
            spec: &QuantSpec,
            global_scale: *const Array,
        ) -> Result<UniquePtr<Arrays>>;
        unsafe fn dequantize(
            w: &Array,
            scales: &Array,
            biases: *const Array,
            spec: &QuantSpec,
            global_scale: *const Array,
            dtype: u8,
        ) -> Result<UniquePtr<Array>>;
        unsafe fn gather_mm(
            a: &Array,
            b: &Array,
            lhs: *const Array,
            rhs: *const Array,
            sorted: bool,
        ) -> Result<UniquePtr<Array>>;
        fn addmm(
            c: &Array,
            a: &Array,
            b: &Array,
            alpha: f32,
            beta: f32,
        ) -> Result<UniquePtr<Array>>;
        fn conv1d(
            x: &Array,
            w: &Array,
            stride: i32,
            padding: i32,
            dilation: i32,
            groups: i32,
        ) -> Result<UniquePtr<Array>>;
        fn from_fp8(a: &Array, dtype: u8) -> Result<UniquePtr<Array>>;

        fn random_key(seed: u64) -> Result<UniquePtr<Array>>;
        fn random_split(key: &Array, n: i32) -> Result<UniquePtr<Array>>;
        fn random_uniform(shape: &[i32], dtype: u8, key: &Array) -> Result<UniquePtr<Array>>;
        fn random_normal(shape: &[i32], dtype: u8, key: &Array) -> Result<UniquePtr<Array>>;
        fn random_gumbel(shape: &[i32], dtype: u8, key: &Array) -> Result<UniquePtr<Array>>;
        fn random_bits(shape: &[i32], width: i32, key: &Array) -> Result<UniquePtr<Array>>;
        fn random_int(
            low: &Array,
            high: &Array,
            shape: &[i32],
            dtype: u8,
            key: &Array,
        ) -> Result<UniquePtr<Array>>;
        fn random_categorical(logits: &Array, axis: i32, key: &Array) -> Result<UniquePtr<Array>>;

        unsafe fn rms_norm(x: &Array, weight: *const Array, eps: f32) -> Result<UniquePtr<Array>>;
        unsafe fn layer_norm(
            x: &Array,
            weight: *const Array,
            bias: *const Array,
            eps: f32,
        ) -> Result<UniquePtr<Array>>;
        unsafe fn rope(
            x: &Array,
            dims: i32,
            traditional: bool,
            base: f32,
            scale: f32,
            offset: &Array,
            freqs: *const Array,
        ) -> Result<UniquePtr<Array>>;
        unsafe fn rope_from(
            x: &Array,
            dims: i32,
            traditional: bool,
            base: f32,
            scale: f32,
            offset: i32,
            freqs: *const Array,
        ) -> Result<UniquePtr<Array>>;
        unsafe fn attention(
            q: &Array,
            k: &Array,
            v: &Array,
            scale: f32,
            mask_mode: &str,
            mask: *const Array,
            sinks: *const Array,
        ) -> Result<UniquePtr<Array>>;
        unsafe fn gated_delta_update(
            q: &Array,
            k: &Array,
            v: &Array,
            gates: &Array,
            beta: &Array,
            state: *const Array,
            mask: *const Array,
        ) -> Result<UniquePtr<Arrays>>;

        fn cuda_kernel(
            name: &str,
            inputs: &Vec<String>,
            outputs: &Vec<String>,
            source: &str,
            header: &str,
            row_contiguous: bool,
            shared_bytes: i32,
            n_late: i32,
        ) -> Result<UniquePtr<DeviceKernel>>;
        fn metal_kernel(
            name: &str,
            inputs: &Vec<String>,
            outputs: &Vec<String>,
            source: &str,
            header: &str,
            row_contiguous: bool,
            atomic_outputs: bool,
        ) -> Result<UniquePtr<DeviceKernel>>;
        fn device_kernel_call(
            kernel: Pin<&mut DeviceKernel>,
            inputs: &Arrays,
            shapes: &[i32],
            ranks: &[i32],
            dtypes: &[u8],
            grid: &[i32],
            group: &[i32],
            args: &Vec<TemplateArg>,
        ) -> Result<UniquePtr<Arrays>>;
        fn cpu_kernel_call(
            kernel: Box<CpuKernel>,
            inputs: &Arrays,
            updates: bool,
            shapes: &[i32],
            ranks: &[i32],
            dtypes: &[u8],
        ) -> Result<UniquePtr<Arrays>>;

        fn tensors_new() -> Result<UniquePtr<Tensors>>;
        fn load_safetensors(path: &str) -> Result<UniquePtr<Tensors>>;
        fn save_safetensors(path: &str, tensors: &Tensors) -> Result<()>;
        fn tensors_put(tensors: Pin<&mut Tensors>, name: &str, a: &Array) -> Result<()>;
        fn tensors_put_metadata(tensors: Pin<&mut Tensors>, key: &str, value: &str) -> Result<()>;
        fn tensors_get(tensors: &Tensors, name: &str) -> Result<UniquePtr<Array>>;
        fn tensors_names(tensors: &Tensors) -> Result<Vec<String>>;
        fn tensors_metadata(tensors: &Tensors) -> Result<Vec<String>>;
    }
}
