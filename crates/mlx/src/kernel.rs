//! Kernels of our own: CUDA and Metal sources compiled at run time, and Rust closures as nodes of
//! the CPU graph.

use cxx::UniquePtr;
use mlx_sys::ffi;

use crate::array::{list, unlist};
use crate::dtype::{Element, NO_BOOL};
use crate::{Array, Dtype, Result, error};

/// What a CUDA kernel is compiled from.
#[derive(Clone, Copy, Debug)]
pub struct CudaSource<'a> {
    /// The kernel's name.
    pub name: &'a str,
    /// Names of the inputs as the body uses them.
    pub inputs: &'a [&'a str],
    /// Names of the outputs as the body uses them.
    pub outputs: &'a [&'a str],
    /// The function's body.
    pub body: &'a str,
    /// What stands before the function: includes, helpers.
    pub header: &'a str,
    /// Copy inputs that are not row-contiguous. False hands them over as they are.
    pub row_contiguous: bool,
    /// Dynamic shared memory, bytes.
    pub shared_bytes: i32,
}

/// What a Metal kernel is compiled from.
#[derive(Clone, Copy, Debug)]
pub struct MetalSource<'a> {
    /// The kernel's name.
    pub name: &'a str,
    /// Names of the inputs as the body uses them.
    pub inputs: &'a [&'a str],
    /// Names of the outputs as the body uses them.
    pub outputs: &'a [&'a str],
    /// The function's body.
    pub body: &'a str,
    /// What stands before the function: includes, helpers.
    pub header: &'a str,
    /// Copy inputs that are not row-contiguous. False hands them over as they are.
    pub row_contiguous: bool,
    /// Declare the outputs as atomics.
    pub atomic_outputs: bool,
}

/// One launch of a device kernel.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    /// Shape and dtype of each output.
    pub outputs: &'a [(&'a [i32], Dtype)],
    /// Threads in all, per dimension.
    pub grid: [i32; 3],
    /// Threads of one block (threadgroup), per dimension.
    pub group: [i32; 3],
    /// Integer template arguments.
    pub ints: &'a [(&'a str, i32)],
    /// Dtype template arguments.
    pub dtypes: &'a [(&'a str, Dtype)],
}

/// A CUDA kernel, compiled at its first launch.
pub struct CudaKernel(UniquePtr<ffi::DeviceKernel>);

/// A Metal kernel, compiled at its first launch.
pub struct MetalKernel(UniquePtr<ffi::DeviceKernel>);

fn strings(names: &[&str]) -> Vec<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

impl CudaKernel {
    /// Registers a source.
    ///
    /// # Errors
    /// The library has no CUDA backend.
    pub fn new(s: &CudaSource<'_>) -> Result<Self> {
        let (inputs, outputs) = (strings(s.inputs), strings(s.outputs));
        ffi::cuda_kernel(
            s.name,
            &inputs,
            &outputs,
            s.body,
            s.header,
            s.row_contiguous,
            s.shared_bytes,
        )
        .map(Self)
        .map_err(|e| error::of_op("cuda_kernel", &[], e))
    }

    /// Adds a launch to the graph.
    ///
    /// # Errors
    /// Inputs do not fit the source. That the source does not compile shows at evaluation.
    pub fn launch(&self, inputs: &[&Array], launch: &Launch<'_>) -> Result<Vec<Array>> {
        launch_on_device("cuda_kernel", &self.0, inputs, launch)
    }
}

impl MetalKernel {
    /// Registers a source.
    ///
    /// # Errors
    /// The library has no Metal backend.
    pub fn new(s: &MetalSource<'_>) -> Result<Self> {
        let (inputs, outputs) = (strings(s.inputs), strings(s.outputs));
        ffi::metal_kernel(
            s.name,
            &inputs,
            &outputs,
            s.body,
            s.header,
            s.row_contiguous,
            s.atomic_outputs,
        )
        .map(Self)
        .map_err(|e| error::of_op("metal_kernel", &[], e))
    }

    /// Adds a launch to the graph.
    ///
    /// # Errors
    /// Inputs do not fit the source. That the source does not compile shows at evaluation.
    pub fn launch(&self, inputs: &[&Array], launch: &Launch<'_>) -> Result<Vec<Array>> {
        launch_on_device("metal_kernel", &self.0, inputs, launch)
    }
}

/// Output shapes as the bridge takes them: all numbers, how many belong to each, and the dtypes.
fn flat_shapes(outputs: &[(&[i32], Dtype)]) -> (Vec<i32>, Vec<i32>, Vec<u8>) {
    let sizes = outputs.iter().flat_map(|(shape, _)| shape.iter().copied()).collect();
    let ranks = outputs.iter().map(|(shape, _)| shape.len() as i32).collect();
    (sizes, ranks, outputs.iter().map(|(_, dtype)| dtype.code()).collect())
}

fn launch_on_device(
    op: &'static str,
    kernel: &ffi::DeviceKernel,
    inputs: &[&Array],
    launch: &Launch<'_>,
) -> Result<Vec<Array>> {
    let (sizes, ranks, dtypes) = flat_shapes(launch.outputs);
    let ints = launch.ints.iter().map(|&(name, value)| ffi::TemplateArg {
        name: name.to_owned(),
        value,
        is_dtype: false,
    });
    let types = launch.dtypes.iter().map(|&(name, dtype)| ffi::TemplateArg {
        name: name.to_owned(),
        value: i32::from(dtype.code()),
        is_dtype: true,
    });
    let args = ints.chain(types).collect::<Vec<_>>();
    let list = list(inputs.iter().copied());
    let result = ffi::device_kernel_call(
        kernel,
        &list,
        &sizes,
        &ranks,
        &dtypes,
        &launch.grid,
        &launch.group,
        &args,
    );
    unlist(op, inputs, result)
}

/// A CPU kernel's input: its memory, shape and dtype. Row-contiguous.
#[derive(Clone, Copy, Debug)]
pub struct TensorRef<'a> {
    bytes: &'a [u8],
    /// Sizes of the dimensions.
    pub shape: &'a [i32],
    /// Type of the elements.
    pub dtype: Dtype,
}

impl<'a> TensorRef<'a> {
    /// The elements in row-major order.
    ///
    /// # Errors
    /// The elements are not `T`, or do not lie where a `T` may: a view of narrower elements can
    /// begin anywhere.
    pub fn as_slice<T: Element>(&self) -> std::result::Result<&'a [T], String> {
        expect_dtype::<T>(self.dtype)?;
        if self.bytes.is_empty() {
            return Ok(&[]);
        }
        if !self.bytes.as_ptr().cast::<T>().is_aligned() {
            return Err(format!("the tensor is not aligned for {}", T::DTYPE));
        }
        if !T::holds(self.bytes) {
            return Err(NO_BOOL.to_owned());
        }
        // SAFETY: `bytes` covers the tensor; dtype, alignment and values were checked.
        Ok(unsafe {
            std::slice::from_raw_parts(
                self.bytes.as_ptr().cast(),
                self.bytes.len() / size_of::<T>(),
            )
        })
    }

    /// The elements' bytes in row-major order.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }
}

/// A CPU kernel's output: uninitialised values of the wanted shape and dtype, to be written in
/// row-major order.
#[derive(Debug)]
pub struct TensorMut<'a> {
    bytes: &'a mut [u8],
    /// Sizes of the dimensions.
    pub shape: &'a [i32],
    /// Type of the elements.
    pub dtype: Dtype,
}

impl TensorMut<'_> {
    /// The elements in row-major order.
    ///
    /// # Errors
    /// The elements are not `T`.
    pub fn as_mut_slice<T: Element>(&mut self) -> std::result::Result<&mut [T], String> {
        expect_dtype::<T>(self.dtype)?;
        if self.bytes.is_empty() {
            return Ok(&mut []);
        }
        if !T::holds(self.bytes) {
            return Err(NO_BOOL.to_owned());
        }
        let n = self.bytes.len() / size_of::<T>();
        // SAFETY: the buffer is a fresh one, which MLX aligns for every dtype; it is borrowed
        // mutably, and dtype and values were checked.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.bytes.as_mut_ptr().cast(), n) })
    }

    /// The elements' bytes in row-major order.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.bytes
    }
}

fn expect_dtype<T: Element>(found: Dtype) -> std::result::Result<(), String> {
    if found == T::DTYPE {
        Ok(())
    } else {
        Err(format!("the tensor holds {found}, not {}", T::DTYPE))
    }
}

/// A computation on the CPU in Rust, as one node of the graph. It runs on MLX's stream thread.
///
/// A panic in it ends the process: a kernel's panic is our own fault, and half-written outputs must
/// not travel on.
pub struct CpuKernel;

impl CpuKernel {
    /// Adds a call of `kernel` to the graph. Inputs are made row-contiguous; outputs arrive with
    /// the stated shapes, zeroed. An `Err` of the kernel becomes the error of the evaluation.
    ///
    /// # Errors
    /// An input could not be prepared.
    pub fn call<F>(inputs: &[&Array], outputs: &[(&[i32], Dtype)], kernel: F) -> Result<Vec<Array>>
    where
        F: Fn(&[TensorRef<'_>], &mut [TensorMut<'_>]) -> std::result::Result<(), String>
            + Send
            + Sync
            + 'static,
    {
        let rows = inputs.iter().map(|a| a.contiguous()).collect::<Result<Vec<_>>>()?;
        let (sizes, ranks, dtypes) = flat_shapes(outputs);
        let run = move |ins: &[ffi::RawTensor], outs: &[ffi::RawTensor]| {
            // SAFETY: MLX keeps inputs and outputs alive while the task runs; outputs are fresh
            // buffers that nothing else sees.
            let ins = ins.iter().map(|t| unsafe { borrow(t) }).collect::<Vec<_>>();
            // SAFETY: as above; every output is a buffer of its own.
            let mut outs = outs.iter().map(|t| unsafe { borrow_mut(t) }).collect::<Vec<_>>();
            kernel(&ins, &mut outs)
        };
        let kernel = Box::new(mlx_sys::CpuKernel(Box::new(run)));
        let result = ffi::cpu_kernel_call(kernel, &list(&rows), &sizes, &ranks, &dtypes);
        unlist("cpu_kernel", inputs, result)
    }
}

/// # Safety
/// The tensor's memory and shape stay valid and unwritten for `'a`.
unsafe fn borrow<'a>(t: &ffi::RawTensor) -> TensorRef<'a> {
    // SAFETY: the caller's promise.
    let (bytes, shape) =
        unsafe { (slice_or_empty(t.data, t.n_bytes), slice_or_empty(t.shape, t.n_dims)) };
    TensorRef { bytes, shape, dtype: Dtype::from_code(t.dtype) }
}

/// # Safety
/// The tensor's memory is valid for `'a` and nobody else reads or writes it.
unsafe fn borrow_mut<'a>(t: &ffi::RawTensor) -> TensorMut<'a> {
    // SAFETY: the caller's promise.
    let shape = unsafe { slice_or_empty(t.shape, t.n_dims) };
    let bytes: &mut [u8] = if t.n_bytes == 0 {
        &mut []
    } else {
        // SAFETY: the caller's promise; zeroing first makes every byte initialised.
        unsafe {
            std::ptr::write_bytes(t.data, 0, t.n_bytes);
            std::slice::from_raw_parts_mut(t.data, t.n_bytes)
        }
    };
    TensorMut { bytes, shape, dtype: Dtype::from_code(t.dtype) }
}

/// # Safety
/// `n` values are readable at `data` for `'a`, unless `n` is 0.
unsafe fn slice_or_empty<'a, T>(data: *const T, n: usize) -> &'a [T] {
    // SAFETY: the caller's promise.
    if n == 0 { &[] } else { unsafe { std::slice::from_raw_parts(data, n) } }
}
