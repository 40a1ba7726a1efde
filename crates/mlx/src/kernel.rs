//! Kernels of our own: CUDA and Metal sources compiled at run time, and Rust closures as nodes of
//! the CPU graph.

use std::cell::RefCell;

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
    /// Inputs, the first ones, that the body reads only when it has waited for the launches before
    /// it (griddepcontrol.wait), which it must do before it writes; others may be read sooner. None
    /// if it does not wait: where launches overlap, that is done for it.
    pub n_late: Option<usize>,
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
pub struct CudaKernel(RefCell<UniquePtr<ffi::DeviceKernel>>);

/// A Metal kernel, compiled at its first launch.
pub struct MetalKernel(RefCell<UniquePtr<ffi::DeviceKernel>>);

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
            s.n_late.map_or(-1, |n| n as i32),
        )
        .map(|kernel| Self(RefCell::new(kernel)))
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
        .map(|kernel| Self(RefCell::new(kernel)))
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
    kernel: &RefCell<UniquePtr<ffi::DeviceKernel>>,
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
        kernel.borrow_mut().pin_mut(),
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
    /// Memory as a tensor.
    ///
    /// # Panics
    /// The bytes are not those of so many elements.
    pub fn new(bytes: &'a [u8], shape: &'a [i32], dtype: Dtype) -> Self {
        let n_elements = shape.iter().map(|n| *n as usize).product::<usize>();
        assert!(bytes.len() == n_elements * dtype.size_bytes(), "bytes fit the shape");
        Self { bytes, shape, dtype }
    }

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

/// A CPU kernel's output in row-major order: zeros to be written over, or the values of the array
/// whose memory it reuses.
#[derive(Debug)]
pub struct TensorMut<'a> {
    bytes: &'a mut [u8],
    /// Sizes of the dimensions.
    pub shape: &'a [i32],
    /// Type of the elements.
    pub dtype: Dtype,
}

impl<'a> TensorMut<'a> {
    /// Memory as a tensor.
    ///
    /// # Panics
    /// The bytes are not those of so many elements.
    pub fn new(bytes: &'a mut [u8], shape: &'a [i32], dtype: Dtype) -> Self {
        let n_elements = shape.iter().map(|n| *n as usize).product::<usize>();
        assert!(bytes.len() == n_elements * dtype.size_bytes(), "bytes fit the shape");
        Self { bytes, shape, dtype }
    }

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
        if !self.bytes.as_ptr().cast::<T>().is_aligned() {
            return Err(format!("the tensor is not aligned for {}", T::DTYPE));
        }
        let n = self.bytes.len() / size_of::<T>();
        // SAFETY: the buffer is borrowed mutably; dtype, values and alignment were checked.
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

/// A CPU kernel's input as it lies in memory, which may be a view of something larger.
#[derive(Clone, Copy, Debug)]
pub struct StridedRef<'a> {
    /// From the first element to the last one, and what lies between.
    span: &'a [u8],
    /// Sizes of the dimensions.
    pub shape: &'a [i32],
    /// Elements from one index to the next, ≥ 0, for every dimension.
    pub strides: &'a [i64],
    /// Type of the elements.
    pub dtype: Dtype,
}

impl<'a> StridedRef<'a> {
    /// Memory as a tensor: from its first element to its last one.
    ///
    /// # Panics
    /// Numbers of sizes and strides differ, a stride is negative, or they lead elsewhere.
    pub fn new(span: &'a [u8], shape: &'a [i32], strides: &'a [i64], dtype: Dtype) -> Self {
        assert!(shape.len() == strides.len() && strides.iter().all(|&stride| stride >= 0));
        let n_elements = n_spanned(shape, strides);
        assert!(shape.contains(&0) || span.len() == n_elements * dtype.size_bytes());
        Self { span, shape, strides, dtype }
    }

    /// The bytes from the first element to the last one.
    pub fn span(&self) -> &'a [u8] {
        self.span
    }
}

/// A computation on the CPU in Rust, as one node of the graph. It runs on MLX's stream thread.
///
/// A panic in it ends the process: a kernel's panic is our own fault, and half-written outputs must
/// not travel on.
pub struct CpuKernel;

impl CpuKernel {
    /// Adds a call of `kernel` to the graph. Inputs that are not row-contiguous are copied; outputs
    /// arrive with the stated shapes, zeroed. An `Err` of the kernel becomes the error of the
    /// evaluation.
    ///
    /// # Errors
    /// The node could not be made.
    pub fn call<F>(inputs: &[&Array], outputs: &[(&[i32], Dtype)], kernel: F) -> Result<Vec<Array>>
    where
        F: Fn(&[TensorRef<'_>], &mut [TensorMut<'_>]) -> std::result::Result<(), String>
            + Send
            + Sync
            + 'static,
    {
        add_node(inputs, outputs, move |ins, outs| {
            // SAFETY: MLX keeps the inputs alive while the task runs.
            let packed = ins.iter().map(|t| unsafe { packed(t) }).collect::<Vec<_>>();
            let ins = ins.iter().zip(&packed).map(|(t, copy)| {
                // SAFETY: as above; what was not copied is row-contiguous, and a copy holds as many
                // bytes.
                let (bytes, shape) = unsafe {
                    let data = copy.as_ref().map_or(t.data.cast_const(), |c| c.as_ptr().cast());
                    (slice_or_empty(data, t.n_bytes), slice_or_empty(t.shape, t.n_dims))
                };
                TensorRef { bytes, shape, dtype: Dtype::from_code(t.dtype) }
            });
            kernel(&ins.collect::<Vec<_>>(), outs)
        })
    }

    /// The same with inputs as they lie: nothing is copied.
    ///
    /// # Errors
    /// The node could not be made. That an input has a negative stride shows at evaluation.
    pub fn call_strided<F>(
        inputs: &[&Array],
        outputs: &[(&[i32], Dtype)],
        kernel: F,
    ) -> Result<Vec<Array>>
    where
        F: Fn(&[StridedRef<'_>], &mut [TensorMut<'_>]) -> std::result::Result<(), String>
            + Send
            + Sync
            + 'static,
    {
        add_node(inputs, outputs, move |ins, outs| {
            // SAFETY: MLX keeps the inputs alive while the task runs.
            let ins = ins.iter().map(|t| unsafe { strided(t) });
            kernel(&ins.collect::<std::result::Result<Vec<_>, _>>()?, outs)
        })
    }

    /// `old`, changed by `kernel`: in place where nothing else holds it, else on a copy. Inputs
    /// come as they lie.
    ///
    /// # Errors
    /// As [`CpuKernel::call_strided`].
    pub fn update<F>(old: Array, inputs: &[&Array], kernel: F) -> Result<Array>
    where
        F: Fn(&[StridedRef<'_>], &mut TensorMut<'_>) -> std::result::Result<(), String>
            + Send
            + Sync
            + 'static,
    {
        let run = move |ins: &[ffi::RawTensor], outs: &[ffi::RawTensor]| {
            let ([ins @ .., old], [out]) = (ins, outs) else {
                return Err("an update has one output".to_owned());
            };
            // SAFETY: MLX keeps inputs and output alive while the task runs; nothing else sees the
            // output, which has its values then.
            let (ins, mut out) = unsafe {
                fill(out, old);
                (ins.iter().map(|t| strided(t)), borrow_mut(out))
            };
            kernel(&ins.collect::<std::result::Result<Vec<_>, _>>()?, &mut out)
        };
        let inputs = [inputs, &[&old]].concat();
        Ok(node(&inputs, &[(old.shape(), old.dtype())], true, Box::new(run))?.remove(0))
    }
}

fn add_node(
    inputs: &[&Array],
    outputs: &[(&[i32], Dtype)],
    run: impl Fn(&[ffi::RawTensor], &mut [TensorMut<'_>]) -> std::result::Result<(), String>
    + Send
    + Sync
    + 'static,
) -> Result<Vec<Array>> {
    let run = move |ins: &[ffi::RawTensor], outs: &[ffi::RawTensor]| {
        // SAFETY: MLX keeps outputs alive while the task runs; every one is a fresh buffer of its
        // own that nothing else sees.
        let mut outs = outs.iter().map(|t| unsafe { zeroed_mut(t) }).collect::<Vec<_>>();
        run(ins, &mut outs)
    };
    node(inputs, outputs, false, Box::new(run))
}

/// A node of the graph; one that updates has its last input as its one output.
fn node(
    inputs: &[&Array],
    outputs: &[(&[i32], Dtype)],
    updates: bool,
    run: mlx_sys::CpuKernelFn,
) -> Result<Vec<Array>> {
    let (sizes, ranks, dtypes) = flat_shapes(outputs);
    let (kernel, list) = (Box::new(mlx_sys::CpuKernel(run)), list(inputs.iter().copied()));
    let made = ffi::cpu_kernel_call(kernel, &list, updates, &sizes, &ranks, &dtypes);
    unlist("cpu_kernel", inputs, made)
}

/// Elements from the first one of a view to its last one, both and what lies between.
fn n_spanned(shape: &[i32], strides: &[i64]) -> usize {
    let last = shape.iter().zip(strides).map(|(&n, &stride)| (i64::from(n) - 1) * stride);
    1 + last.sum::<i64>() as usize
}

/// Shape and strides of a tensor.
///
/// # Safety
/// They stay valid for `'a`.
unsafe fn layout<'a>(t: &ffi::RawTensor) -> (&'a [i32], &'a [i64]) {
    // SAFETY: the caller's promise.
    unsafe { (slice_or_empty(t.shape, t.n_dims), slice_or_empty(t.strides, t.n_dims)) }
}

/// # Safety
/// The tensor's memory, shape and strides stay valid and unwritten for `'a`.
unsafe fn strided<'a>(t: &ffi::RawTensor) -> std::result::Result<StridedRef<'a>, String> {
    let dtype = Dtype::from_code(t.dtype);
    // SAFETY: the caller's promise.
    let (shape, strides) = unsafe { layout(t) };
    let n_elements = if t.n_bytes == 0 {
        0
    } else if strides.iter().any(|&stride| stride < 0) {
        return Err(format!("strides {strides:?} go backwards"));
    } else {
        n_spanned(shape, strides)
    };
    // SAFETY: the caller's promise; strides lead to elements only.
    let span = unsafe { slice_or_empty(t.data, n_elements * dtype.size_bytes()) };
    Ok(StridedRef { span, shape, strides, dtype })
}

/// A row-contiguous copy, in words so that any element may lie at its begin; none if the tensor is
/// row-contiguous itself.
///
/// # Safety
/// The tensor's memory, shape and strides are valid.
unsafe fn packed(t: &ffi::RawTensor) -> Option<Vec<u64>> {
    // SAFETY: the caller's promise.
    let (shape, strides) = unsafe { layout(t) };
    // The longest run of elements that lie one after another.
    let (mut run, mut outer) = (1, shape.len());
    while outer > 0 && (shape[outer - 1] == 1 || strides[outer - 1] == run) {
        outer -= 1;
        run *= i64::from(shape[outer]);
    }
    if outer == 0 || t.n_bytes == 0 {
        return None;
    }
    let mut copy = vec![0u64; t.n_bytes.div_ceil(8)];
    let item_bytes = Dtype::from_code(t.dtype).size_bytes();
    let run_bytes = run as usize * item_bytes;
    let mut index = vec![0i32; outer];
    for to in (0..t.n_bytes).step_by(run_bytes) {
        let at = index.iter().zip(strides).map(|(&i, &stride)| i64::from(i) * stride).sum::<i64>();
        // SAFETY: the strides lead to a run of elements; runs fill the copy one after another.
        unsafe {
            let from = t.data.cast_const().offset(at as isize * item_bytes as isize);
            copy.as_mut_ptr().cast::<u8>().add(to).copy_from_nonoverlapping(from, run_bytes);
        }
        for axis in (0..outer).rev() {
            index[axis] += 1;
            if index[axis] < shape[axis] {
                break;
            }
            index[axis] = 0;
        }
    }
    Some(copy)
}

/// Gives `out` the values of `old`, unless it has taken over its memory.
///
/// # Safety
/// The memory, shapes and strides of both are valid, and `out` is a row-contiguous tensor of the
/// same shape and dtype that nobody else reads or writes.
unsafe fn fill(out: &ffi::RawTensor, old: &ffi::RawTensor) {
    if out.data == old.data || out.n_bytes == 0 {
        return;
    }
    // SAFETY: the caller's promise; what is not packed is row-contiguous.
    unsafe {
        let copy = packed(old);
        let from = copy.as_ref().map_or(old.data.cast_const(), |copy| copy.as_ptr().cast());
        out.data.copy_from_nonoverlapping(from, out.n_bytes);
    }
}

/// # Safety
/// The tensor's memory is valid for `'a` and nobody else reads or writes it.
unsafe fn zeroed_mut<'a>(t: &ffi::RawTensor) -> TensorMut<'a> {
    // SAFETY: the caller's promise.
    unsafe {
        std::ptr::write_bytes(t.data, 0, t.n_bytes);
        borrow_mut(t)
    }
}

/// # Safety
/// The tensor's memory is valid and initialised for `'a` and nobody else reads or writes it.
unsafe fn borrow_mut<'a>(t: &ffi::RawTensor) -> TensorMut<'a> {
    // SAFETY: the caller's promise.
    let shape = unsafe { slice_or_empty(t.shape, t.n_dims) };
    let bytes: &mut [u8] = if t.n_bytes == 0 {
        &mut []
    } else {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(t.data, t.n_bytes) }
    };
    TensorMut { bytes, shape, dtype: Dtype::from_code(t.dtype) }
}

/// # Safety
/// `n` values are readable at `data` for `'a`, unless `n` is 0.
unsafe fn slice_or_empty<'a, T>(data: *const T, n: usize) -> &'a [T] {
    // SAFETY: the caller's promise.
    if n == 0 { &[] } else { unsafe { std::slice::from_raw_parts(data, n) } }
}
